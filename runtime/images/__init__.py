"""Labelled images, and the preprocessing that turns an image into a network's input."""

from typing import TYPE_CHECKING

from ..lazy import attach

if TYPE_CHECKING:
    from .datasets import LabelledImages, Split, match_labels, open_images, per_class, sample, split_images
    from .preprocessing import ImageLike, Preprocessing, decode
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "datasets": (
                "LabelledImages", "Split", "match_labels", "open_images", "per_class", "sample", "split_images",
            ),
            "preprocessing": ("ImageLike", "Preprocessing", "decode"),
        },
    )  # fmt: skip

__all__ = [
    "ImageLike",
    "LabelledImages",
    "Preprocessing",
    "Split",
    "decode",
    "match_labels",
    "open_images",
    "per_class",
    "sample",
    "split_images",
]
