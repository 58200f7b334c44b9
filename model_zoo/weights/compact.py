"""Weights in a quarter of their bytes, for files that ship: kernels in int8, one scale per output channel."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError

_LARGEST = 127


def compact(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Kernels as int8 with their scales, float32 of shape (out,), by the same names; all else as it is.

    The largest weight of each output channel becomes 127 of its scale's steps, as in exported files.
    """
    small, scales = dict(weights), dict[str, Tensor]()
    for name, weight in weights.items():
        if weight.ndim > 1:
            scale = weight.flatten(1).abs().amax(1).float() / _LARGEST
            # A channel of zeros has any scale.
            scales[name] = torch.where(scale > 0, scale, 1.0)
            small[name] = (weight.float() / _along(scales[name], weight)).round().to(torch.int8)
    return small, scales


def expand(small: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that ``compact`` stored, as float32. Raises ``CheckpointError`` for scales that do not fit them."""
    weights = dict(small)
    for name, scale in scales.items():
        weight = small.get(name)
        if weight is None or weight.dtype != torch.int8 or not scale.is_floating_point():
            raise CheckpointError(f"the scale of {name} belongs to no int8 tensor; copy the file again")
        if weight.ndim < 2 or scale.shape != weight.shape[:1]:
            raise CheckpointError(f"the scale of {name} is of shape {tuple(scale.shape)} for {tuple(weight.shape)}")
        weights[name] = weight.float() * _along(scale.float(), weight)
    return weights


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.ndim - 1))
