"""A network in torch behind the interface that evaluation knows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import nn

from ..export.trace import one_thread
from ..runtime.images import Preprocessing
from .network import Network
from .networks.int8 import fake_quantized


@dataclass(frozen=True)
class TorchClassifier:
    """Answers pixels as a ``Session`` does, on the module's device: in float32, or in the int8 it was trained with."""

    network: Network

    @cached_property
    def module(self) -> nn.Module:
        """What computes the answers."""
        return fake_quantized(self.network.module, self.network.ranges) if self.network.ranges else self.network.module

    @property
    def preprocessing(self) -> Preprocessing:
        """How images were prepared in training."""
        return self.network.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.network.classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        """An id for each output, or nothing."""
        return self.network.class_ids

    @property
    def answer(self) -> Literal["logits"]:
        """What the output is: networks of the zoo leave the softmax out."""
        return "logits"

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Logits, shape (classes,), for uint8 pixels (height, width, channels)."""
        values = self.preprocessing.normalize(pixels).transpose(2, 0, 1)[None]
        parameter = next(self.module.parameters())
        with one_thread(), torch.inference_mode():
            logits = self.module(torch.from_numpy(np.ascontiguousarray(values)).to(parameter.device))
        return logits[0].cpu().numpy()
