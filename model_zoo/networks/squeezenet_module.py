"""SqueezeNet as a torch module, with the parameter names of torchvision."""

import torch
from torch import Tensor, nn

from .modules import NetworkModule
from .squeezenet import FireSize, SqueezeNetConfig


class Fire(nn.Module):
    """Fire module (section 3.1): a 1x1 squeeze layer, then parallel 1x1 and 3x3 expand layers, concatenated.

    (N, in_channels, H, W) to (N, expand1x1 + expand3x3, H, W). With bypass (section 6) the input is added to the
    output, directly if the channels agree, and through a 1x1 convolution if they differ and the bypass is "complex".
    With ``bypass_before_relu`` the sum comes before the ReLU of the expand layers.
    """

    def __init__(self, size: FireSize, config: SqueezeNetConfig):
        super().__init__()
        norm = config.batch_norm
        same = size.in_channels == size.out_channels
        bypassed = config.bypass == "complex" or (config.bypass == "simple" and same)
        late = bypassed and config.bypass_before_relu
        self.squeeze = _conv(size.in_channels, size.squeeze, 1, norm)
        self.squeeze_norm = _norm(size.squeeze, norm)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = _conv(size.squeeze, size.expand1x1, 1, norm)
        self.expand1x1_norm = _norm(size.expand1x1, norm)
        self.expand1x1_activation = nn.Identity() if late else nn.ReLU()
        self.expand3x3 = _conv(size.squeeze, size.expand3x3, 3, norm, padding=1)
        self.expand3x3_norm = _norm(size.expand3x3, norm)
        self.expand3x3_activation = nn.Identity() if late else nn.ReLU()
        self.activation = nn.ReLU() if late else nn.Identity()
        self.bypass: nn.Module | None = None
        if bypassed and same:
            self.bypass = nn.Identity()
        elif bypassed:
            bypass = _conv(size.in_channels, size.out_channels, 1, norm)
            self.bypass = nn.Sequential(bypass, nn.BatchNorm2d(size.out_channels)) if norm else bypass

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        squeezed = self.squeeze_activation(self.squeeze_norm(self.squeeze(x)))
        expanded1x1 = self.expand1x1_activation(self.expand1x1_norm(self.expand1x1(squeezed)))
        expanded3x3 = self.expand3x3_activation(self.expand3x3_norm(self.expand3x3(squeezed)))
        for part in (expanded1x1, expanded3x3):
            if part.requires_grad and not isinstance(self.activation, nn.Identity):
                # The gradient of a concatenation is a strided slice, on which batch norm is many times slower on CPU.
                part.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
        expanded = torch.cat([expanded1x1, expanded3x3], 1)
        return self.activation(expanded if self.bypass is None else expanded + self.bypass(x))


class SqueezeNet(NetworkModule):
    """SqueezeNet: stem, fire modules with max pools between them, and a convolutional head.

    (N, in_channels, H, W) to logits (N, num_classes). The head is dropout, conv10, ReLU and a global average pool, so
    inputs may be larger than ``config.input_size``. torchvision's state dicts load unchanged. Weights are initialized
    by Glorot's method (xavier), as in the paper.
    """

    config: SqueezeNetConfig

    def __init__(self, config: SqueezeNetConfig):
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
        channels = config.fires[-1].out_channels
        classifier = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Conv2d(channels, config.num_classes, 1, padding=config.head_padding),
            nn.ReLU() if config.head_relu else nn.Identity(),
            nn.AdaptiveAvgPool2d((1, 1)),
        )
        super().__init__(config, nn.Sequential(*layers), classifier)
        self.initialise(nn.init.xavier_uniform_)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    batch_norm: bool,
    padding: int = 0,
    stride: int = 1,
) -> nn.Conv2d:
    # Batch norm would subtract a bias again with the mean.
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=not batch_norm)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
