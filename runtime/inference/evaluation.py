"""How often models are right on labelled images, and how often they agree with each other."""

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
    """One model on some images: its best classes, shape (images, up to 5), best first, and the right ones."""

    name: str
    ranked: np.ndarray
    labels: np.ndarray

    @property
    def top1(self) -> float:
        """Share of images whose best class is right."""
        return float((self.ranked[:, 0] == self.labels).mean())

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five best."""
        return float((self.ranked == self.labels[:, None]).any(axis=1).mean())

    def agreement(self, other: "Evaluation") -> float:
        """Share of images that both give the same class."""
        return float((self.ranked[:, 0] == other.ranked[:, 0]).mean())

    def to_json(self) -> dict[str, Any]:
        """Figures for programs."""
        return {"name": self.name, "images": len(self.labels), "top1": self.top1, "top5": self.top5}


def evaluate(
    models: Mapping[str, Classifier],
    images: LabelledImages,
    *,
    progress: Progress = SILENT,
) -> list[Evaluation]:
    """Run every model on every image; each image is decoded once for all models of the same preprocessing.

    A model that is also a member of an ensemble runs once for both. Raises ``UsageError`` if there is no model, and
    ``DataError`` if there are no images, an image cannot be read, or a model lacks one of the classes.
    """
    if not models:
        raise UsageError("there is no model to evaluate")
    if not images:
        raise DataError(f"there are no images of {images.source} to evaluate on; choose another split")
    labels = {name: match_labels(images, model.classes, model.class_ids) for name, model in models.items()}
    ranked: dict[str, list[np.ndarray]] = {name: [] for name in models}
    with progress.task("evaluating", len(images)) as advance:
        for image in images.names:
            view = View(images.read(image), images.where(image))
            for name, model in models.items():
                ranked[name].append(np.argsort(-view.answer(model), kind="stable")[:_TOP])
            advance()
    return [Evaluation(name, np.array(ranked[name]), labels[name]) for name in models]
