"""Accuracy of models on labelled images, and agreement between models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..images import LabelledImages, match_labels
from ..progress import SILENT, Progress
from .classifier import Classifier
from .ensemble import View

_TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """One model on some images: ``ranked`` classes, shape (images, up to 5), best first, and the true ``labels``."""

    name: str
    ranked: np.ndarray
    labels: np.ndarray

    @property
    def top1(self) -> float:
        """Share of images with the correct class ranked first."""
        return float((self.ranked[:, 0] == self.labels).mean())

    @property
    def top5(self) -> float:
        """Share of images with the correct class among the first five."""
        return float((self.ranked == self.labels[:, None]).any(axis=1).mean())

    def agreement(self, other: "Evaluation") -> float:
        """Share of images for which both models rank the same class first."""
        return float((self.ranked[:, 0] == other.ranked[:, 0]).mean())

    def to_json(self) -> dict[str, Any]:
        """Counts and accuracies for JSON."""
        return {"name": self.name, "images": len(self.labels), "top1": self.top1, "top5": self.top5}


def evaluate(
    models: Mapping[str, Classifier],
    images: LabelledImages,
    *,
    progress: Progress = SILENT,
) -> list[Evaluation]:
    """Run every model on every image; an image is decoded once per preprocessing.

    A model that is also a member of an ensemble runs once for both. Raises ``UsageError`` if there is no model, and
    ``DataError`` if there are no images, an image cannot be read, or a model lacks one of the classes.
    """
    if not models:
        raise UsageError("there are no models to evaluate; pass at least one")
    if not images:
        raise DataError(f"there are no images of {images.source} to evaluate on; choose another split")
    labels = {name: match_labels(images, model.classes, model.class_ids) for name, model in models.items()}
    ranked: dict[str, list[np.ndarray]] = {name: [] for name in models}
    with progress.task("evaluating", len(images)) as advance:
        for image in images.names:
            view = View(images.read(image), images.where(image))
            for name, model in models.items():
                ranked[name].append(np.argsort(-view.output(model), kind="stable")[:_TOP])
            advance()
    return [Evaluation(name, np.array(ranked[name]), labels[name]) for name in models]
