import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from firebox.model_zoo import TrainingConfig, train
from firebox.model_zoo.training import (
    Callbacks,
    FreezeOut,
    LoopState,
    Resources,
    make_optimizer,
    open_training_images,
    predict,
)
from firebox.model_zoo.training.data import DecodedImages
from firebox.model_zoo.training.distributed import ProcessGroup
from firebox.model_zoo.training.freezeout import freezing_times, macs_of, measured_saving, predicted_saving
from firebox.model_zoo.training.layer_groups import layers_of
from firebox.model_zoo.training.learner import Learner
from firebox.model_zoo.training.log import LogRow
from firebox.model_zoo.training.start import start
from firebox.runtime.errors import TrainingError, UsageError

CONFIG = TrainingConfig(epochs=4, batch_size=4, freezeout="linear", freeze_first=0.25, precision="float32")


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        ("linear", [0.4, 0.6, 0.8, 1.0]),
        ("squared", [0.16, 0.36, 0.64, 1.0]),
        ("cubic", [0.064, 0.216, 0.512, 1.0]),
    ],
)
def test_freezing_times_rise_evenly_then_to_a_power(schedule, times):
    assert freezing_times(4, schedule, 0.4) == pytest.approx(times)
    assert freezing_times(1, schedule, 0.4) == [1.0]
    assert freezing_times(3, schedule, 1.0) == [1.0] * 3
    assert all(freezing_times(count, schedule, share / 97)[-1] == 1.0 for count in (2, 17) for share in range(1, 97))


@pytest.mark.parametrize("first", [0, -0.1, 1.5, math.nan, math.inf])
def test_a_first_freezing_time_outside_the_training_is_refused(first):
    with pytest.raises(UsageError):
        freezing_times(3, "linear", first)
    with pytest.raises(UsageError, match="freeze_first"):
        TrainingConfig(freezeout="linear", freeze_first=first)


@pytest.mark.parametrize("scaled", [True, False])
def test_each_layer_anneals_to_its_own_freezing_time(scaled):
    steps, rate = 400, 0.1
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    config = TrainingConfig(freezeout="cubic", learning_rate=rate)
    state = LoopState(module, make_optimizer(module, config), steps)
    callbacks = Callbacks([FreezeOut("cubic", 0.5, scaled, rate)])
    times = freezing_times(3, "cubic", 0.5)
    sums = dict.fromkeys(("0", "1", "2"), 0.0)
    callbacks.begin(state)
    for step in range(steps):
        callbacks.before_step(state)
        rates = {group["layer"]: group["lr"] for group in state.optimizer.param_groups}
        for name, time in zip(sums, times, strict=True):
            assert (name in rates) == (step < time * steps)
            if name in rates:
                cosine = (1 + math.cos(math.pi * step / (time * steps))) / 2
                assert rates[name] == pytest.approx(rate * cosine / (time if scaled else 1), abs=1e-12)
                sums[name] += rates[name]
        state.step += 1
        callbacks.after_step(state)
    sums_of_rates = [total / sums["2"] for total in sums.values()]
    assert sums_of_rates == pytest.approx([1] * 3 if scaled else times, rel=0.05)


def test_the_predicted_saving_matches_a_calculation_by_hand():
    # 3x3 convolution of 3 to 4 channels at 6x6, then 1x1 to 5 channels.
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    first, second = macs_of(module, (3, 6, 6))
    assert (first, second) == (36 * 4 * 27, 36 * 5 * 4)
    assert module.training
    # Without freezing: forward pass and weight gradients of both, input gradient of the second. If the first is frozen
    # at half time, its weight gradient and the input gradient of the second are saved from then on.
    whole = 2 * first + 3 * second
    assert predicted_saving([first, second], [0.5, 1.0]) == pytest.approx(0.5 * (first + second) / whole)
    assert predicted_saving([first, second], [1.0, 1.0]) == 0
    # The first is never trained, so freezing saves only in the second.
    assert predicted_saving([first, second], [0.0, 0.5]) == pytest.approx(0.5 * second / (first + 2 * second))


def learner_of(config: TrainingConfig) -> tuple[Learner, torch.Tensor, torch.Tensor]:
    images = open_training_images(config)
    checkpoint = start(config, images, Resources("cpu"))
    size = checkpoint.preprocessing.size
    steps = len(images.training) // 4
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8, generator=generator)
    return Learner(checkpoint, torch.device("cpu"), steps, ProcessGroup()), pixels, torch.tensor([0, 1, 0, 1])


def test_frozen_layers_do_not_change(images):
    learner, pixels, labels = learner_of(replace(CONFIG, data=str(images), ema=0.5))
    layers, optimizer = layers_of(learner.module), learner.state.optimizer
    counts = set()
    for _ in range(learner.state.total_steps):
        frozen = [layer for layer in layers if not layer.trainable]
        parts = [part for layer in frozen for part in layer.parts]
        before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
        learner.step(pixels, labels)
        # Validation of the average and of the network itself must leave frozen layers in eval mode.
        for module in (learner.evaluation_model(), learner.module):
            predict(module, DecodedImages(pixels, labels), learner.start.preprocessing)
        assert [layer.trainable for layer in layers] == sorted(layer.trainable for layer in layers)
        in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter in (parameter for layer in frozen for parameter in layer.parameters()):
            assert parameter.grad is None
            assert id(parameter) not in in_optimizer
            assert parameter not in optimizer.state
        for part, saved in zip(parts, before, strict=True):
            assert not part.training
            assert all(torch.equal(value, saved[name]) for name, value in part.state_dict().items())
        assert all(part.training for layer in layers if layer.trainable for part in layer.parts)
        counts.add(len(frozen))
    assert len(layers) - 4 < max(counts) < len(layers)


def test_frozen_layers_are_outside_the_autograd_graph(images):
    learner, pixels, labels = learner_of(replace(CONFIG, data=str(images), network={"bypass": "none"}))
    stem = learner.module.features[0]
    outputs = []
    stem.register_forward_hook(lambda module, inputs, output: outputs.append(output.requires_grad))
    for _ in range(learner.state.total_steps):
        learner.step(pixels, labels)
    assert outputs[0]
    assert not outputs[-1]
    assert outputs == sorted(outputs, reverse=True)


def test_the_model_is_compiled_again_after_freezing(images, monkeypatch):
    compiled, compile = [], torch.compile

    def eager(module):
        compiled.append(sum(not layer.trainable for layer in layers_of(module)))
        # Captures and guards graphs as usual, but generates no C++ code.
        return compile(module, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    config = replace(CONFIG, data=str(images), network={"num_fires": 2, "pools": (1, 2)}, freeze_first=0.5)
    plain, pixels, labels = learner_of(config)
    learner, _, _ = learner_of(replace(config, compile=True))
    for _ in range(learner.state.total_steps):
        assert learner.step(pixels, labels)[0] == pytest.approx(plain.step(pixels, labels)[0], rel=1e-4)
    assert len(compiled) > 2
    assert compiled == sorted(set(compiled))


def test_a_missing_compiler_is_reported_in_one_line(images, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend=broken))
    config = TrainingConfig(data=str(images), epochs=1, batch_size=4, compile=True)
    with pytest.raises(TrainingError, match=r"torch.compile failed \(.*no C\+\+ compiler.*leave out --compile"):
        train(config, tmp_path / "run")


def test_the_command_reports_savings(firebox, images, tmp_path):
    options = ("--data", images, "--epochs", 4, "--batch-size", 4, "--out", tmp_path / "run")
    outcome = firebox("train", *options, "--freezeout", "linear", "--freeze-first", 0.5)
    assert outcome.code == 0
    assert "of the arithmetic; measured " in outcome.err
    assert "% of the time" in outcome.err


def test_the_measured_saving_matches_a_calculation_by_hand():
    def row(epoch, step, seconds):
        return LogRow(epoch, step, 0.1, 1.0, 0.5, 0.5, seconds)

    # A step takes 0.2 s; the first epoch has 5 s of warm-up, and the last epoch is incomplete.
    rows = [row(1, 10, 7.0), row(2, 20, 2.0), row(3, 30, 1.0), row(4, 35, 0.5)]
    assert measured_saving(rows, 20) == pytest.approx(1 - 10.5 / (35 * 0.2))
    assert measured_saving(rows, 10) == pytest.approx(1 - 10.5 / (35 * 0.7))
    assert measured_saving(rows, 9) is None
