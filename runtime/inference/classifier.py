"""The interface shared by sessions, torch networks and ensembles, and the softmax of their logits."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from ..images import Preprocessing


class Classifier(Protocol):
    """A model that classifies pixels: a session, a torch network, or an ensemble of them."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """One name per output value."""
        ...

    @property
    def class_ids(self) -> Sequence[str]:
        """One identifier per output value, or none."""
        ...

    @property
    def answer(self) -> Literal["logits", "probabilities"]:
        """Kind of the output values."""
        ...

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Dequantized output, shape (classes,), for uint8 pixels (height, width, channels)."""
        ...


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits along the last axis, in the logits' own type."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
