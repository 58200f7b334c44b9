"""Fake-quantized networks for quantization-aware training: torch modules that compute what their int8 files will."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...export.quantization import FakeQuantized, Range, calibrate, scale_groups
from ...export.trace import trace
from ...runtime.errors import UsageError
from ...runtime.graph import Graph, ops
from ...runtime.images import LabelledImages, Preprocessing, sample
from ...runtime.progress import SILENT, Progress
from .build import build_network
from .modules import NetworkModule

_LAYERS = (nn.Conv2d, nn.Linear)
# Training images for the initial activation ranges.
_CALIBRATION_IMAGES = 100
# Largest ratio between the scale of a global average pool's input and that of its output.
_FINEST = 4


def without_batch_norm(network: NetworkModule) -> NetworkModule:
    """A copy of the network in eval mode with each batch norm folded into the convolution before it.

    (Jacob et al., arXiv 1712.05877, section 3.2.) Raises ``UsageError`` if batch norm precedes the convolutions.
    """
    if network.config.batch_norm and not network.config.batch_norm_folds:
        raise UsageError(
            f"{network.config.family} has batch norm before its convolutions, where it cannot be folded for training "
            "in int8; use firebox export, which quantizes without training"
        )
    folded = build_network(replace(network.config, batch_norm=False)).eval()
    targets = iter(part for part in folded.modules() if isinstance(part, _LAYERS))
    parts = [part for part in copy.deepcopy(network).eval().modules() if isinstance(part, (*_LAYERS, nn.BatchNorm2d))]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(part, _LAYERS):
            if isinstance(part, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                part = fuse_conv_bn_eval(part, after)
            next(targets).load_state_dict(part.state_dict())
    return folded


def fake_quantized(module: NetworkModule, ranges: Mapping[str, Range]) -> FakeQuantized:
    """A network without batch norm as a module that computes in int8; both share their weights.

    Raises ``QuantizationError`` if the ranges belong to another network.
    """
    config = module.config
    # Tracing merges equal constants and drops zero biases; tracing random parameters keeps all names.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = build_network(config)
        for parameter in drawn.parameters():
            nn.init.normal_(parameter)
    graph = trace(drawn, (1, config.in_channels, *config.input_size))
    parameters = dict(module.named_parameters())
    return FakeQuantized(graph, ranges, parameters).to(next(module.parameters()).device)


def calibrated(
    module: NetworkModule,
    preprocessing: Preprocessing,
    images: LabelledImages,
    seed: int,
    *,
    progress: Progress = SILENT,
) -> dict[str, Range]:
    """The activation ranges of a network on a sample of the images, drawn by ``seed``."""
    graph = trace(module, (1, module.config.in_channels, *module.config.input_size))
    chosen = sample(images, _CALIBRATION_IMAGES, seed)
    samples = [preprocessing.normalize(image)[None] for image in preprocessing.crop_all(chosen)]
    found = calibrate(graph, samples, progress=progress)
    return {**found, **_no_finer(graph, found)}


def _no_finer(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Wider ranges for global average pools with too small a scale, and for all activations that share that scale.

    Fixed-point kernels differ by one step of their input; a much finer output scale would only expose these
    differences, and training gains nothing from it.
    """
    groups, found = scale_groups(graph), dict[str, Range]()
    for op in graph.ops:
        if isinstance(op, ops.GlobalAveragePool):
            before, after = (ranges[name].high - ranges[name].low for name in (op.inputs[0], op.output))
            if 0 < after < before / _FINEST:
                same = [name for name, group in groups.items() if group == groups[op.output]]
                found |= {name: ranges[name].scaled(before / _FINEST / after) for name in same}
    return found
