"""The interface shared by sessions, torch networks and ensembles, and the softmax of their logits."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from ..images import Preprocessing


class Classifier(Protocol):
    """A model that classifies pixels: a session, a torch network, or an ensemble of them."""

    @property
    def preprocessing(self) -> Preprocessing: ...  # noqa: D102

    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def class_ids(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def answer(self) -> Literal["logits", "probabilities"]: ...  # noqa: D102

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Dequantized output, shape (classes,), for uint8 pixels (height, width, channels)."""
        ...


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, in the logits' own type."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
