"""SqueezeNet as a torch module, built from its config; the names inside are torchvision's."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .config import FireSize, SqueezeNetConfig

# Parameters of the classifier's convolution (conv10), the only ones that depend on the number of
# classes.
HEAD = "classifier.1."


class Fire(nn.Module):
    """Fire module (section 3.1): 1x1 squeeze, then 1x1 and 3x3 expand side by side, concatenated.

    (N, in_channels, H, W) to (N, expand1x1 + expand3x3, H, W). With bypass (section 6) the input is
    added to the output: as it is where the channels agree, through a 1x1 convolution where they
    differ and ``complex`` allows it.
    """

    def __init__(self, size: FireSize, config: SqueezeNetConfig):
        super().__init__()
        norm = config.batch_norm
        self.squeeze = _conv(size.in_channels, size.squeeze, 1, norm)
        self.squeeze_norm = _norm(size.squeeze, norm)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = _conv(size.squeeze, size.expand1x1, 1, norm)
        self.expand1x1_norm = _norm(size.expand1x1, norm)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = _conv(size.squeeze, size.expand3x3, 3, norm, padding=1)
        self.expand3x3_norm = _norm(size.expand3x3, norm)
        self.expand3x3_activation = nn.ReLU()
        self.bypass: nn.Module | None = None
        if config.bypass != "none" and size.in_channels == size.out_channels:
            self.bypass = nn.Identity()
        elif config.bypass == "complex":
            bypass = _conv(size.in_channels, size.out_channels, 1, norm)
            self.bypass = nn.Sequential(bypass, nn.BatchNorm2d(size.out_channels)) if norm else bypass

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        squeezed = self.squeeze_activation(self.squeeze_norm(self.squeeze(x)))
        expanded1x1 = self.expand1x1_activation(self.expand1x1_norm(self.expand1x1(squeezed)))
        expanded3x3 = self.expand3x3_activation(self.expand3x3_norm(self.expand3x3(squeezed)))
        expanded = torch.cat([expanded1x1, expanded3x3], 1)
        return expanded if self.bypass is None else expanded + self.bypass(x)


class SqueezeNet(nn.Module):
    """The whole network: stem, fire modules with max pools between them, and a convolutional head.

    (N, in_channels, H, W) to logits (N, num_classes). The head is dropout, conv10, ReLU and a
    global average pool, so any input at least as large as ``config.input_size`` works. State dicts
    of torchvision's load unchanged.
    """

    def __init__(self, config: SqueezeNetConfig):
        super().__init__()
        self.config = config
        norm = config.batch_norm
        stem = _conv(
            config.in_channels,
            config.stem_channels,
            config.stem_kernel,
            norm,
            config.stem_padding,
            config.stem_stride,
        )
        layers: list[nn.Module] = [
            stem,
            *([nn.BatchNorm2d(config.stem_channels)] if norm else []),
            nn.ReLU(),
        ]
        for layer, fire in enumerate((None, *config.fires), start=1):
            if fire is not None:
                layers.append(Fire(fire, config))
            if layer in config.pools:
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        channels = config.fires[-1].out_channels
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Conv2d(channels, config.num_classes, 1, padding=config.head_padding),
            nn.ReLU() if config.head_relu else nn.Identity(),
            nn.AdaptiveAvgPool2d((1, 1)),
        )
        self.initialise()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return torch.flatten(self.classifier(self.features(x)), 1)

    def initialise(self) -> None:
        """Draw new weights: Glorot's (xavier) everywhere, N(0, 0.01) in conv10, biases zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if f"{name}." == HEAD:
                    nn.init.normal_(module.weight, 0.0, 0.01)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def without_batch_norm(network: SqueezeNet) -> SqueezeNet:
    """The same network in eval mode, each batch norm folded into the convolution before it.

    (Jacob et al., arXiv 1712.05877, section 3.2)
    """
    folded = SqueezeNet(replace(network.config, batch_norm=False)).eval()
    targets = iter(part for part in folded.modules() if isinstance(part, nn.Conv2d))
    parts = [part.eval() for part in copy.deepcopy(network).modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(part, nn.Conv2d):
            fused = fuse_conv_bn_eval(part, after) if isinstance(after, nn.BatchNorm2d) else part
            next(targets).load_state_dict(fused.state_dict())
    return folded


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    batch_norm: bool,
    padding: int = 0,
    stride: int = 1,
) -> nn.Conv2d:
    # A bias before batch norm would be subtracted again with the mean.
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=not batch_norm)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
