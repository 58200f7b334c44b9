"""Muon: steps of the same length in all directions that a layer's kernel can move in.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), and Jordan, arXiv 2404.00498, for
networks of convolutions.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# A quintic iteration that brings singular values to about 1 from wherever they lie in (0, 1], as the authors chose it.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPSILON = 1e-7


class Muon(Optimizer):
    """SGD with Nesterov's momentum, whose step is orthogonalized in groups that are ``orthogonal``.

    Those hold kernels with a batch norm behind them, (out, in, ...): the length of such a kernel does not matter, so it
    is kept at the root of its outputs, where a step moves it by ``lr`` of that. Other groups are SGD's, with its
    ``weight_decay``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move all parameters that have a gradient."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.mul_(group["momentum"]).add_(gradient)
        step = gradient.add(buffer, alpha=group["momentum"])
        if not group["orthogonal"]:
            parameter.add_(step, alpha=-group["lr"])
            return
        outputs, inputs = len(step), step[0].numel()
        parameter.mul_(outputs**0.5 / (parameter.norm() + _EPSILON))
        # As many singular values of 1 as the smaller side has: their length is its root.
        scale = (outputs / min(outputs, inputs)) ** 0.5
        parameter.add_(orthogonalized(step.reshape(outputs, -1)).view_as(step), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: (M, N) to (M, N), by Newton and Schulz's iteration in bf16."""
    flat = len(matrix) <= matrix.shape[1]
    x = (matrix if flat else matrix.T).bfloat16()
    x = x / (x.norm() + _EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x if flat else x.T).to(matrix.dtype)
