"""The images of a training: which it learns from, which it is validated on, and their codes for a head alone."""

import json

from ...runtime.files import sha256
from ...runtime.images.datasets import LabelledImages, open_images, per_class, split_images
from ..networks.families import build
from ..training_config import TrainingConfig
from ..weights.checkpoint import Checkpoint
from ..weights.files import Weights, load_weights_into
from .data import ImageDataset, load_images
from .features import encode
from .resources import Resources

# Trained and validated images.
ImageSplits = tuple[LabelledImages, LabelledImages]


def open_training_images(config: TrainingConfig, data: str | None = None) -> ImageSplits:
    """The images that a config trains on, and those that it validates on; ``data`` says where they are now.

    Raises ``UsageError`` when there are none and ``DataError`` for those that cannot be split as the config says.
    """
    trained, validated = split_images(open_images(data or config.data), config.val_fraction, config.seed)
    if config.images_per_class:
        trained = per_class(trained, config.images_per_class, config.seed)
    return trained, validated


def digest_of(images: ImageSplits) -> str:
    """Of the names and classes of all images."""
    parts = [[[name, int(label)] for name, label in zip(part.names, part.labels, strict=True)] for part in images]
    return sha256(json.dumps(parts).encode())


def load_training_images(
    checkpoint: Checkpoint, config: TrainingConfig, images: ImageSplits, resources: Resources, quiet: bool
) -> tuple[ImageDataset, ImageDataset]:
    """ImageDataset, or their codes, to train and to validate on, sharing the memory in proportion to their number."""
    total = sum(checkpoint.images)
    shares = [resources.memory_bytes * len(part) // total for part in images]
    trained, validated = (
        load_images(part, checkpoint.preprocessing, memory_bytes=share, workers=resources.workers, quiet=quiet)
        for part, share in zip(images, shares, strict=True)
    )
    if config.learn != "head":
        return trained, validated
    module = build(checkpoint.config).to(resources.torch_device())
    load_weights_into(module, Weights("the checkpoint", "", checkpoint.weights))
    coded = [
        encode(module, dataset, checkpoint.preprocessing, memory_bytes=share, quiet=quiet)
        for dataset, share in zip((trained, validated), shares, strict=True)
    ]
    return coded[0], coded[1]
