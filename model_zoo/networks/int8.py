"""Networks that compute in torch what their int8 files will: how quantization-aware training begins."""

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
# Training images that the ranges of activations begin with.
_CALIBRATION_IMAGES = 100
# How many times as fine the steps of a global average may be as those of what it averages.
_FINEST = 4


def without_batch_norm(network: NetworkModule) -> NetworkModule:
    """The same network in eval mode, each batch norm folded into the convolution before it.

    (Jacob et al., arXiv 1712.05877, section 3.2). Raises ``UsageError`` where it precedes the convolutions.
    """
    if network.config.batch_norm and not network.config.batch_norm_folds:
        raise UsageError(
            f"a {network.config.family} has batch norm before its convolutions, where it cannot be folded to train in "
            "int8; firebox export quantizes it as it is"
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
    """A network without batch norm as it answers in int8; both share their weights.

    Raises ``QuantizationError`` for ranges of another network.
    """
    config = module.config
    # Equal constants are one in a traced graph, and biases of zero are none: names come from a network of random ones.
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
    """The ranges of a network's activations on some of the images, drawn by ``seed``."""
    graph = trace(module, (1, module.config.in_channels, *module.config.input_size))
    chosen = sample(images, _CALIBRATION_IMAGES, seed)
    samples = [preprocessing.normalize(image)[None] for image in preprocessing.crop_all(chosen)]
    found = calibrate(graph, samples, progress=progress)
    return {**found, **_no_finer(graph, found)}


def _no_finer(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Wider ranges for global averages, and all that shares their scales, whose steps would be too fine.

    Kernels in fixed point differ by a step of what they average; finer steps of the average only tell them apart, and
    training has no use for them.
    """
    groups, found = scale_groups(graph), dict[str, Range]()
    for op in graph.ops:
        if isinstance(op, ops.GlobalAveragePool):
            before, after = (ranges[name].high - ranges[name].low for name in (op.inputs[0], op.output))
            if 0 < after < before / _FINEST:
                same = [name for name, group in groups.items() if group == groups[op.output]]
                found |= {name: ranges[name].scaled(before / _FINEST / after) for name in same}
    return found
