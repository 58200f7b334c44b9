"""FreezeOut: layers stop learning one after the other, the first ones first (Brock et al., arXiv 1706.04983)."""

import math
from collections.abc import Sequence

from torch import nn

from ..runtime.errors import UsageError
from .callbacks import Callback, Loop
from .freezing import Layer, freeze, layers_of
from .training_config import FreezeSchedule

_EXPONENTS = {"linear": 1, "squared": 2, "cubic": 3}
# A layer's step is a third forward, a third for its weights' gradients, a third for its input's; frozen, it keeps one.
_BACKWARD = 2 / 3


class FreezeOut(Callback):
    """Sets every layer's rate to half a cosine that ends at the layer's own time, when the layer is frozen.

    Section 3: the times of the layers, as shares of all steps, rise evenly from ``first`` to 1, and are squared or
    cubed by the ``schedule``. A ``scaled`` rate begins at ``rate`` divided by the layer's time, so that every layer
    goes the same way in all; others begin at ``rate``. Groups of the optimizer name their layer (``make_optimizer``).
    Raises ``UsageError`` for a ``first`` outside (0, 1].
    """

    name = "freezeout"

    def __init__(self, schedule: FreezeSchedule, first: float, scaled: bool, rate: float):
        self.schedule: FreezeSchedule = schedule
        self.first, self.scaled, self.rate = first, scaled, rate
        self.layers: list[Layer] = []
        self.times: list[float] = []
        self._frozen = 0

    def begin(self, loop: Loop) -> None:
        """Find the layers, and freeze those whose time has passed."""
        self.layers = [layer for layer in layers_of(loop.module) if any(p.requires_grad for p in layer.parameters())]
        self.times = freezing_times(len(self.layers), self.schedule, self.first)
        self._frozen = 0
        self._freeze(loop)

    def before_step(self, loop: Loop) -> None:
        """Freeze the layers whose time has come, and set the others' rates."""
        self._freeze(loop)
        done = loop.step / loop.total_steps
        times = {layer.name: time for layer, time in zip(self.layers, self.times, strict=True)}
        for group in loop.optimizer.param_groups:
            time = times[group["layer"]]
            base = self.rate * group.get("factor", 1.0) / (time if self.scaled else 1.0)
            group["lr"] = base * (1 + math.cos(math.pi * min(done / time, 1.0))) / 2

    def _freeze(self, loop: Loop) -> None:
        while self._frozen < len(self.layers) and self.times[self._frozen] * loop.total_steps <= loop.step:
            freeze(self.layers[self._frozen], loop.optimizer)
            self._frozen += 1
            loop.rewrap = True


def freezing_times(layers: int, schedule: FreezeSchedule, first: float) -> list[float]:
    """When each layer is frozen, as shares of all steps; the last layer learns to the end."""
    if not 0 < first <= 1:
        raise UsageError(f"a first layer cannot be frozen after the share {first} of the steps; give one in (0, 1]")
    even = (first + (1 - first) * index / max(1, layers - 1) for index in range(layers))
    return [time ** _EXPONENTS[schedule] for time in even]


def predicted_saving(macs: Sequence[int], times: Sequence[float]) -> float:
    """The share of a training's arithmetic that freezing saves, from each layer's multiply-accumulates."""
    saved = sum(count * _BACKWARD * (1 - time) for count, time in zip(macs, times, strict=True))
    return saved / sum(macs)


def macs_of(module: nn.Module, size: Sequence[int]) -> list[int]:
    """The multiply-accumulates of each layer for one picture of ``size`` (C, H, W), in the order of ``layers_of``."""
    import torch

    counts: dict[nn.Module, int] = {}

    def count(part: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = part.weight
        assert isinstance(weight, nn.Parameter)
        counts[part] = counts.get(part, 0) + weight[0].numel() * output[0].numel()

    kernels = [layer.parts[0] for layer in layers_of(module)]
    hooks = [part.register_forward_hook(count) for part in kernels]
    parameter, modes = next(module.parameters()), [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *size, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes:
            part.training = mode
    return [counts.get(part, 0) for part in kernels]
