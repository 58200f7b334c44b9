"""A network in torch behind the interface that evaluation knows."""

from dataclasses import dataclass

import numpy as np
import torch

from ..export.tracing import one_thread
from ..runtime.preprocessing import Preprocessing
from .network import Network


@dataclass(frozen=True)
class TorchClassifier:
    """Answers pixels as a ``Session`` does, in float32 on the module's device."""

    network: Network

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures were prepared in training."""
        return self.network.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.network.classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        """An id for each output, or nothing."""
        return self.network.class_ids

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Logits, shape (classes,), for uint8 pixels (height, width, channels)."""
        values = self.preprocessing.normalize(pixels).transpose(2, 0, 1)[None]
        parameter = next(self.network.module.parameters())
        with one_thread(), torch.inference_mode():
            logits = self.network.module(torch.from_numpy(np.ascontiguousarray(values)).to(parameter.device))
        return logits[0].cpu().numpy()
