"""FreezeOut: layers stop learning one after the other, the first ones first (Brock et al., arXiv 1706.04983)."""

from collections.abc import Sequence

from torch import nn

from ...export.trace import in_eval_mode
from ...runtime.errors import UsageError
from ..training_config import FreezeSchedule
from .callbacks import Callback, Loop
from .layer_groups import Layer, freeze, layers_of
from .log import LogRow
from .schedules import half_cosine

_EXPONENTS = {"linear": 1, "squared": 2, "cubic": 3}


class FreezeOut(Callback):
    """Sets every layer's rate to half a cosine that ends at the layer's own time, when the layer is frozen.

    Section 3: the times of the layers, as shares of all steps, rise evenly from ``first`` to 1, and are squared or
    cubed by the ``schedule``. A ``scaled`` rate begins at ``rate`` divided by the layer's time, so that every layer
    goes the same way in all; others begin at ``rate``. Groups of the optimizer name their layer (``make_optimizer``).
    Raises ``UsageError`` for an unknown ``schedule`` and for a ``first`` outside (0, 1].
    """

    name = "freezeout"

    def __init__(self, schedule: FreezeSchedule, first: float, scaled: bool, rate: float):
        if schedule not in _EXPONENTS:
            raise UsageError(f"FreezeOut knows no schedule {schedule!r}; give {', '.join(_EXPONENTS)}")
        _check_first(first)
        self.schedule: FreezeSchedule = schedule
        self.first, self.scaled, self.rate = first, scaled, rate
        # When each layer is frozen, by its name, in their order.
        self.times: dict[str, float] = {}
        self._learning: list[Layer] = []

    def begin(self, loop: Loop) -> None:
        """Find the layers, and freeze those whose time has passed. Raises ``UsageError`` for groups without layers."""
        if not all(group.get("layer") for group in loop.optimizer.param_groups):
            raise UsageError(
                "FreezeOut needs to know the layer of each of the optimizer's groups; use make_optimizer, with a "
                "config that has freezeout"
            )
        self._learning = [layer for layer in layers_of(loop.module) if layer.learns]
        times = freezing_times(len(self._learning), self.schedule, self.first)
        self.times = {layer.name: time for layer, time in zip(self._learning, times, strict=True)}
        self._freeze(loop)

    def before_step(self, loop: Loop) -> None:
        """Set the rate of every layer that learns."""
        done = loop.step / loop.total_steps
        for group in loop.optimizer.param_groups:
            time = self.times[group["layer"]]
            base = self.rate * group.get("factor", 1.0) / (time if self.scaled else 1.0)
            group["lr"] = base * half_cosine(done, time)

    def after_step(self, loop: Loop) -> None:
        """Freeze the layers whose time has come, at once, so that a checkpoint holds no state of theirs."""
        self._freeze(loop)

    def predicted(self, module: nn.Module, size: Sequence[int]) -> float:
        """The share of the arithmetic that the schedule saves, for images of ``size`` (C, H, W)."""
        times = [self.times.get(layer.name, 0.0) for layer in layers_of(module)]
        return predicted_saving(macs_of(module, size), times)

    def _freeze(self, loop: Loop) -> None:
        while self._learning and self.times[self._learning[0].name] * loop.total_steps <= loop.step:
            freeze(self._learning.pop(0), loop.optimizer)
            loop.rewrap = True


def freezing_times(layers: int, schedule: FreezeSchedule, first: float) -> list[float]:
    """When each layer is frozen, as shares of all steps; the last one, or the only one, learns to the end.

    Raises ``UsageError`` for a ``first`` outside (0, 1].
    """
    _check_first(first)
    last = layers - 1
    even = (first + (1 - first) * index / last if last else 1.0 for index in range(layers))
    return [time ** _EXPONENTS[schedule] for time in even]


def _check_first(first: float) -> None:
    if not 0 < first <= 1:
        raise UsageError(f"a first layer cannot be frozen after the share {first} of the steps; give one in (0, 1]")


def predicted_saving(macs: Sequence[int], times: Sequence[float]) -> float:
    """The share of a training's arithmetic that freezing saves, from each layer's multiply-accumulates.

    ``times`` are those of all layers, 0 for one that never learns. A layer costs its MACs forward, as many for the
    gradients of its weights until it is frozen, and as many for those of its input until the layer before it is.
    """
    before = [0.0, *times[:-1]]
    cost = sum(count * (1 + own + other) for count, own, other in zip(macs, times, before, strict=True))
    whole = sum(count * (1 + (own > 0) + (other > 0)) for count, own, other in zip(macs, times, before, strict=True))
    return 1 - cost / whole


def measured_saving(rows: Sequence[LogRow], first: float) -> float | None:
    """The share of a training's time that freezing saved, by its epochs up to step ``first``, when a layer was frozen.

    The very first epoch counts among those only where it is the only one: caches are cold, and what is compiled is
    compiled then. ``None`` where there is none.
    """
    whole = [row for row in rows if row.step <= first]
    if not whole:
        return None
    steps = whole[-1].step - (whole[0].step if len(whole) > 1 else 0)
    step = sum(row.seconds for row in whole[1:] or whole) / steps
    return 1 - sum(row.seconds for row in rows) / (rows[-1].step * step)


def macs_of(module: nn.Module, size: Sequence[int]) -> list[int]:
    """The multiply-accumulates of each layer for one image of ``size`` (C, H, W), in the order of ``layers_of``."""
    import torch

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
