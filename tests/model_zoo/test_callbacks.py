"""Callbacks in a training loop of the caller, with any module and optimizer."""

import math
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from firebox.model_zoo.training import (
    Callback,
    Callbacks,
    FreezeOut,
    LearningRate,
    LoopState,
    SaveSnapshots,
    WeightAverage,
    snapshot_callbacks,
)
from firebox.model_zoo.training.layer_groups import layers_of
from firebox.runtime.errors import CheckpointError, UsageError


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def run(callbacks: Iterable[Callback], steps: int, module: nn.Module, each=lambda state: None) -> LoopState:
    """The loop of the docstring of the callbacks; ``each`` is called after every step."""
    callbacks = Callbacks(callbacks)
    groups = [{"params": list(layer.parameters()), "layer": layer.name} for layer in layers_of(module)]
    state = LoopState(module, torch.optim.SGD(groups, lr=9.0, momentum=0.9), total_steps=steps)
    callbacks.begin(state)
    for _ in range(steps):
        callbacks.before_step(state)
        state.optimizer.zero_grad()
        loss = random_loss(module)
        loss.backward()
        state.optimizer.step()
        state.loss = loss.item()
        state.step += 1
        callbacks.after_step(state)
        each(state)
    return state


def random_loss(module: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(module(torch.randn(6, 3)), torch.randint(2, (6,)))


@pytest.mark.parametrize(("steps", "count"), [(20, 5), (12, 1), (6, 6), (300, 3)])
def test_snapshot_rates_match_the_paper(steps, count):
    rates, saved = [], []
    callbacks = snapshot_callbacks(steps, count, 0.1, lambda number, module: saved.append((number, len(rates))))
    # Runs after the snapshot callbacks, so it records the rate of a step before the snapshot of that step.
    recorder = LearningRate(lambda step: math.nan)
    recorder.before_step = lambda state: rates.append(state.optimizer.param_groups[0]["lr"])
    run([*callbacks, recorder], steps, small_network())
    # Equation 2 of arXiv 1704.00109, whose steps t count from 1.
    cycle = math.ceil(steps / count)
    expected = [0.1 / 2 * (math.cos(math.pi * ((t - 1) % cycle) / cycle) + 1) for t in range(1, steps + 1)]
    assert rates == pytest.approx(expected, abs=1e-15)
    assert saved == [(number, number * cycle) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("steps", "count", "message"),
    [
        (20, 6, "20 steps cannot be divided into 6 cycles; train 18 or 24 steps"),
        (3, 5, "5 snapshots do not fit into 3 steps"),
        (3, 0, "0 snapshots do not fit"),
        (3, -1, "-1 snapshots do not fit"),
    ],
)
def test_cycles_that_do_not_divide_the_steps_are_refused(steps, count, message):
    with pytest.raises(UsageError, match=message):
        snapshot_callbacks(steps, count, 0.1, lambda number, module: None)


def test_snapshots_have_the_weights_of_the_end_of_their_cycle():
    saved, states = {}, []

    def copied(module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def save(number: int, module: nn.Module) -> None:
        saved[number] = copied(module)

    run([SaveSnapshots(2, save)], 4, small_network(), lambda state: states.append(copied(state.module)))
    assert sorted(saved) == [1, 2]
    for number in saved:
        assert all(torch.equal(saved[number][name], tensor) for name, tensor in states[2 * number - 1].items())


def test_weight_average_matches_its_definition_and_restores():
    module, average = small_network(), WeightAverage(0.7)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def update(state: LoopState) -> None:
        decay = min(0.7, (1 + state.step) / (10 + state.step))
        for name, tensor in module.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * tensor
            expected[name] = mean if tensor.is_floating_point() else tensor.clone()

    loop = run([average], 30, module, update)
    averaged = average.state_dict()
    assert all(torch.allclose(averaged[name], tensor, atol=1e-6) for name, tensor in expected.items())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())

    other = WeightAverage(0.7)
    other.begin(loop)
    other.load_state_dict(averaged)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in averaged.items())
    for wrong in ({}, {**averaged, "more": torch.zeros(1)}, {**averaged, "0.bias": torch.zeros(3)}):
        with pytest.raises(CheckpointError):
            other.load_state_dict(wrong)


def test_freezeout_works_in_any_loop():
    module, frozen = small_network(), []

    def record(state: LoopState) -> None:
        frozen.append([not layer.trainable for layer in layers_of(module)])
        if state.rewrap:
            state.rewrap = False

    run([FreezeOut("linear", 0.5, True, 0.1)], 8, module, record)
    assert frozen == [[False, False]] * 3 + [[True, False]] * 4 + [[True, True]]
    plain = LoopState(module, torch.optim.SGD(module.parameters(), lr=0.1), total_steps=8)
    with pytest.raises(UsageError, match="FreezeOut needs the layer of each parameter group"):
        FreezeOut("linear", 0.5, True, 0.1).begin(plain)
