"""Weights: checkpoints of firebox, published files, and downloads by name; every file is checked before it is used."""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach
from ..extras import EXTRAS

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, pack_checkpoint, pack_compact, read_checkpoint
    from .files import Weights, load_weights, load_weights_into, network_from
    from .imagenet import imagenet_classes
    from .names import find_weights, weight_names
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "checkpoint": ("Checkpoint", "pack_checkpoint", "pack_compact", "read_checkpoint"),
            "files": ("Weights", "load_weights", "load_weights_into", "network_from"),
            "imagenet": ("imagenet_classes",),
            "names": ("find_weights", "weight_names"),
        },
        EXTRAS,
    )

__all__ = [
    "Checkpoint",
    "Weights",
    "find_weights",
    "imagenet_classes",
    "load_weights",
    "load_weights_into",
    "network_from",
    "pack_checkpoint",
    "pack_compact",
    "read_checkpoint",
    "weight_names",
]
