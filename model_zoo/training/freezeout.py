"""FreezeOut: layers are frozen progressively, from the first to the last (Brock et al., arXiv 1706.04983)."""

from collections.abc import Sequence

import torch
from torch import nn

from ...export.trace import in_eval_mode
from ...runtime.errors import UsageError
from ..training_config import FreezeSchedule
from .callbacks import Callback, LoopState
from .layer_groups import Layer, freeze, layers_of
from .log import LogRow
from .schedules import half_cosine

_EXPONENTS = {"linear": 1, "squared": 2, "cubic": 3}


class FreezeOut(Callback):
    """Anneals each layer's learning rate along half a cosine to the layer's own time, then freezes the layer.

    Section 3: the freezing times, as shares of all steps, rise evenly from ``first`` to 1 and are squared or
    cubed according to ``schedule``. With ``scaled`` rates, a layer starts at ``rate`` divided by its time, so that the
    sum of its rates is the same for all layers; otherwise it starts at ``rate``. Parameter groups of the optimizer must
    name their layer (``make_optimizer``). Raises ``UsageError`` for an unknown ``schedule`` and a ``first`` outside
    (0, 1].
    """

    name = "freezeout"

    def __init__(self, schedule: FreezeSchedule, first: float, scaled: bool, rate: float):
        if schedule not in _EXPONENTS:
            raise UsageError(f"unknown FreezeOut schedule {schedule!r}; use {', '.join(_EXPONENTS)}")
        _check_first(first)
        self.schedule: FreezeSchedule = schedule
        self.first, self.scaled, self.rate = first, scaled, rate
        # Freezing time of each layer by name, first layer first.
        self.times: dict[str, float] = {}
        self._trainable: list[Layer] = []

    def begin(self, state: LoopState) -> None:
        """Find the layers and freeze those whose time has passed. Raises ``UsageError`` for groups without a layer."""
        if not all(group.get("layer") for group in state.optimizer.param_groups):
            raise UsageError(
                "FreezeOut needs the layer of each parameter group; create the optimizer with make_optimizer and a "
                "config with freezeout"
            )
        self._trainable = [layer for layer in layers_of(state.module) if layer.trainable]
        times = freezing_times(len(self._trainable), self.schedule, self.first)
        self.times = {layer.name: time for layer, time in zip(self._trainable, times, strict=True)}
        self._freeze(state)

    def before_step(self, state: LoopState) -> None:
        """Set the learning rate of each layer that is not frozen."""
        done = state.step / state.total_steps
        for group in state.optimizer.param_groups:
            time = self.times[group["layer"]]
            base = self.rate * group.get("factor", 1.0) / (time if self.scaled else 1.0)
            group["lr"] = base * half_cosine(done, time)

    def after_step(self, state: LoopState) -> None:
        """Freeze the layers whose time has come, before a checkpoint could include their optimizer state."""
        self._freeze(state)

    def predicted(self, module: nn.Module, size: Sequence[int]) -> float:
        """The predicted saving, as a share of the arithmetic, for images of ``size`` (C, H, W)."""
        times = [self.times.get(layer.name, 0.0) for layer in layers_of(module)]
        return predicted_saving(macs_of(module, size), times)

    def _freeze(self, state: LoopState) -> None:
        while self._trainable and self.times[self._trainable[0].name] * state.total_steps <= state.step:
            freeze(self._trainable.pop(0), state.optimizer)
            state.rewrap = True


def freezing_times(layers: int, schedule: FreezeSchedule, first: float) -> list[float]:
    """The freezing time of each layer as a share of all steps; 1 for the last or only layer.

    Raises ``UsageError`` for a ``first`` outside (0, 1].
    """
    _check_first(first)
    last = layers - 1
    even = (first + (1 - first) * index / last if last else 1.0 for index in range(layers))
    return [time ** _EXPONENTS[schedule] for time in even]


def _check_first(first: float) -> None:
    if not 0 < first <= 1:
        raise UsageError(f"the freezing time {first} of the first layer is outside (0, 1]; it is a share of the steps")


def predicted_saving(macs: Sequence[int], times: Sequence[float]) -> float:
    """The share of a training's arithmetic that freezing saves, from the multiply-accumulates of each layer.

    ``times`` are the freezing times of all layers, 0 for one that is never trained. A layer costs its MACs for the
    forward pass, the same for the gradients of its weights until it is frozen, and the same for the gradients of its
    input until the layer before it is frozen.
    """
    before = [0.0, *times[:-1]]
    cost = sum(count * (1 + own + other) for count, own, other in zip(macs, times, before, strict=True))
    whole = sum(count * (1 + (own > 0) + (other > 0)) for count, own, other in zip(macs, times, before, strict=True))
    return 1 - cost / whole


def measured_saving(rows: Sequence[LogRow], first: float) -> float | None:
    """The share of a training's time that freezing saved, compared with the epochs up to step ``first``.

    ``first`` is the step at which the first layer was frozen. The very first epoch is ignored if there are others,
    because it warms caches and compiles. ``None`` if no epoch ended by step ``first``.
    """
    whole = [row for row in rows if row.step <= first]
    if not whole:
        return None
    steps = whole[-1].step - (whole[0].step if len(whole) > 1 else 0)
    step = sum(row.seconds for row in whole[1:] or whole) / steps
    return 1 - sum(row.seconds for row in rows) / (rows[-1].step * step)


def macs_of(module: nn.Module, size: Sequence[int]) -> list[int]:
    """The multiply-accumulates of each layer for one image of ``size`` (C, H, W), in the order of ``layers_of``."""
    counts: dict[nn.Module, int] = {}

    def count(part: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = part.weight
        assert isinstance(weight, nn.Parameter)
        counts[part] = counts.get(part, 0) + weight[0].numel() * output[0].numel()

    kernels = [layer.parts[0] for layer in layers_of(module)]
    hooks = [part.register_forward_hook(count) for part in kernels]
    try:
        with in_eval_mode(module), torch.no_grad():
            module(torch.zeros(1, *size, device=next(module.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return [counts.get(part, 0) for part in kernels]
