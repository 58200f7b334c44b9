"""Networks that compute in torch what their int8 files will: how quantization-aware training begins."""

from collections.abc import Mapping

import torch
from torch import nn

from ..export.calibration import calibrate
from ..export.calibrators import Range
from ..export.fake_quantization import FakeQuantized
from ..export.tracing import trace
from ..runtime.console import progress
from ..runtime.datasets import LabelledImages, sample
from ..runtime.preprocessing import Preprocessing
from .squeezenet import SqueezeNet

# Training pictures that the ranges of activations begin with.
_CALIBRATION_PICTURES = 100


def fake_quantized(module: SqueezeNet, ranges: Mapping[str, Range]) -> FakeQuantized:
    """A network without batch norm as it answers in int8; both share their weights.

    Raises ``QuantizationError`` for ranges of another network.
    """
    config = module.config
    # Equal constants are one in a traced graph, and biases of zero are none: names come from a network of random ones.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = SqueezeNet(config)
        for parameter in drawn.parameters():
            nn.init.normal_(parameter)
    graph = trace(drawn, (1, config.in_channels, *config.input_size))
    parameters = dict(module.named_parameters())
    return FakeQuantized(graph, ranges, parameters).to(next(module.parameters()).device)


def calibrated(
    module: SqueezeNet, preprocessing: Preprocessing, images: LabelledImages, seed: int, quiet: bool = False
) -> dict[str, Range]:
    """The ranges of a network's activations on some of the pictures, drawn by ``seed``."""
    graph = trace(module, (1, module.config.in_channels, *module.config.input_size))
    chosen = sample(images, _CALIBRATION_PICTURES, seed)
    with progress("calibrating", quiet=quiet) as advance:
        pixels = [preprocessing.crop(chosen.read(name), chosen.where(name)) for name in chosen.names]
        return calibrate(graph, [preprocessing.normalize(picture)[None] for picture in pixels], tick=advance)
