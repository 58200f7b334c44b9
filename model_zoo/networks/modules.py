"""Torch modules: the base class of all networks, and networks built from layers."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import NetworkConfig
from .layers import (
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    LayeredConfig,
    Linear,
    Pool,
    Relu,
    Residual,
    Sequence,
    Shape,
    Subsample,
    count,
)


class NetworkModule(nn.Module):
    """A zoo network: features, then a classifier whose last layer with weights is the head.

    (N, in_channels, H, W) to logits (N, num_classes).
    """

    def __init__(self, config: NetworkConfig, features: nn.Sequential, classifier: nn.Sequential):
        super().__init__()
        self.config = config
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return torch.flatten(self.classifier(self.features(x)), 1)

    def initialise(self, draw: Callable[[Tensor], object]) -> None:
        """Initialize weights: N(0, 0.01) in the head, by ``draw`` elsewhere; biases are zero."""
        head = head_prefix(self)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if f"{name}." == head:
                    nn.init.normal_(module.weight, 0.0, 0.01)
                else:
                    draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def head_prefix(module: nn.Module) -> str:
    """Prefix of the head's parameter names; the head is the last layer with weights.

    The order of layers is known only from a built module; building one on the meta device costs nothing.
    """
    return [f"{name}." for name, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)][-1]


class LayeredNetwork(NetworkModule):
    """A network built from its config's layers, with He initialization (arXiv 1502.01852, section 2.2)."""

    config: LayeredConfig

    def __init__(self, config: LayeredConfig):
        shape = config.input_shape
        features = _sequential(config.features, shape)
        super().__init__(config, features, _sequential(config.classifier, count(config.features, shape).shape))
        self.initialise(partial(nn.init.kaiming_normal_, nonlinearity="relu"))


class ConcatModule(nn.Module):
    """Parallel branches, concatenated along the channels."""

    def __init__(self, branches: list[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, sum of the branches' channels, H', W')."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class ResidualModule(nn.Module):
    """Sum of the outputs of a body and a shortcut."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        return self.body(x) + self.shortcut(x)


class SubsampleModule(nn.Module):
    """Subsampling with zero-padded channels, as a convolution with a constant kernel.

    A convolution exists in every export format; a slice with padding does not in all.
    """

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.register_buffer("kernel", torch.eye(out_channels, in_channels)[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return functional.conv2d(x, self.kernel, stride=self.stride)


def _sequential(sequence: Sequence, shape: Shape) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in sequence.layers:
        modules.append(_module(layer, shape))
        shape = count(layer, shape).shape
    return nn.Sequential(*modules)


def _module(layer: Layer, shape: Shape) -> nn.Module:
    match layer:
        case Conv(out_channels, kernel, stride, padding, groups, bias):
            return nn.Conv2d(shape.channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)
        case Linear(outputs):
            return nn.Linear(shape.channels, outputs)
        case BatchNorm():
            return nn.BatchNorm2d(shape.channels)
        case Relu():
            return nn.ReLU()
        case Dropout(share):
            return nn.Dropout(share)
        case Pool("max", kernel, stride, padding, ceil):
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
        case Pool(_, kernel, stride, padding, ceil):
            return nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=False)
        case GlobalAveragePool():
            return nn.AdaptiveAvgPool2d((1, 1))
        case Flatten():
            return nn.Flatten()
        case Subsample(out_channels, stride):
            return SubsampleModule(shape.channels, out_channels, stride)
        case Sequence():
            return _sequential(layer, shape)
        case Concat(branches):
            return ConcatModule([_sequential(branch, shape) for branch in branches])
        case Residual(body, shortcut):
            return ResidualModule(_sequential(body, shape), _sequential(shortcut, shape))
