"""SqueezeNet configs: the paper's metaparameters, and the SqueezeNets of the zoo; no torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ...runtime.errors import UsageError
from .config import LIMIT, NetworkConfig
from .registry import CIFAR, IMAGENET, PublicFile, ZooEntry, register

Bypass = Literal["none", "simple", "complex"]

# Layers followed by a max pool; conv1 is layer 1, fire modules are numbered from 2.
DELAYED = (1, 4, 8)
EARLY = (1, 3, 5)

_POOL_KERNEL, _POOL_STRIDE = 3, 2
_TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class FireSize:
    """Channels of a fire module: input, squeeze layer and both expand layers."""

    in_channels: int
    squeeze: int
    expand1x1: int
    expand3x3: int

    @property
    def out_channels(self) -> int:
        """Channels of the concatenated expand layers."""
        return self.expand1x1 + self.expand3x3


@dataclass(frozen=True)
class SqueezeNetConfig(NetworkConfig):
    """Metaparameters of a SqueezeNet (arXiv 1602.07360, section 5.1); the defaults are v1.0.

    Fire module ``i`` (from 0) has ``base_e + incr_e * (i // freq)`` expand filters, a fraction ``pct3x3`` of them 3x3,
    and ``squeeze_ratio`` (the paper's SR) times as many squeeze filters. ``pools`` are the layers followed by a 3x3
    stride-2 max pool: ``DELAYED`` (v1.0), ``EARLY`` (v1.1) or others. ``bypass`` is the bypass of section 6, added
    after the ReLU of the expand layers, or before it with ``bypass_before_relu``, as in residual networks (arXiv
    1512.03385). ``head_padding`` pads conv10, as the original Caffe network does. ``head_relu`` is the paper's ReLU
    after conv10: a class with only negative logits gets no gradient, so training from new weights at high learning
    rates loses classes. Raises ``UsageError`` for values that do not make a network.
    """

    family: ClassVar[str] = "squeezenet"

    stem_channels: int = 96
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_padding: int = 0
    num_fires: int = 8
    base_e: int = 128
    incr_e: int = 128
    freq: int = 2
    pct3x3: float = 0.5
    squeeze_ratio: float = 0.125
    pools: tuple[int, ...] = DELAYED
    bypass: Bypass = "none"
    bypass_before_relu: bool = False
    head_padding: int = 0
    head_relu: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ranges()
        for number, fire in enumerate(self.fires, start=2):
            if min(fire.squeeze, fire.expand1x1, fire.expand3x3) < 1:
                raise UsageError(
                    f"fire{number} would have {fire.squeeze} squeeze, {fire.expand1x1} 1x1 and "
                    f"{fire.expand3x3} 3x3 "
                    f"filters; raise base_e {self.base_e} or squeeze_ratio {self.squeeze_ratio}, "
                    f"or move pct3x3 {self.pct3x3} towards 0.5"
                )
        if min(map(min, self.stage_sizes)) < 1:
            raise UsageError(
                f"input size {self.input_size} is too small for a "
                f"{self.stem_kernel}x{self.stem_kernel} stem of "
                f"stride {self.stem_stride} and {len(self.pools)} pools; use a larger input or "
                "fewer pools"
            )
        self.check_parameters()

    @property
    def fires(self) -> tuple[FireSize, ...]:
        """The fire modules in order, fire2 first; numbers of filters are rounded half up."""
        sizes: list[FireSize] = []
        channels = self.stem_channels
        for index in range(self.num_fires):
            expand = self.base_e + self.incr_e * (index // self.freq)
            expand3x3 = _nearest(self.pct3x3 * expand)
            squeeze = _nearest(self.squeeze_ratio * expand)
            sizes.append(FireSize(channels, squeeze, expand - expand3x3, expand3x3))
            channels = expand
        return tuple(sizes)

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the outputs of conv1 and the fire modules, then of the input of conv10.

        Values below 1 mean that the input is too small.
        """
        height, width = (
            (length + 2 * self.stem_padding - self.stem_kernel) // self.stem_stride + 1 for length in self.input_size
        )
        sizes = [(height, width)]
        for layer in range(1, self.num_fires + 2):
            if layer in self.pools:
                height, width = _pooled(height), _pooled(width)
            sizes.append((height, width))
        return tuple(sizes)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, in closed form."""
        # Batch norm replaces the bias by a scale and a shift per channel; conv10 has no batch norm.
        extra = 2 if self.batch_norm else 1
        body = sum(outputs * (inputs + extra) for inputs, outputs, _ in self._convolutions())
        return body + self.num_classes * (self.fires[-1].out_channels + 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions for one image, in closed form."""
        sizes = self.stage_sizes
        body = sum(inputs * outputs * math.prod(sizes[stage]) for inputs, outputs, stage in self._convolutions())
        head = math.prod(length + 2 * self.head_padding for length in sizes[-1])
        return body + self.fires[-1].out_channels * self.num_classes * head

    def _convolutions(self) -> Iterator[tuple[int, int, int]]:
        """Weights per filter, filters and index into ``stage_sizes`` of each convolution but conv10."""
        yield self.in_channels * self.stem_kernel**2, self.stem_channels, 0
        for stage, fire in enumerate(self.fires, start=1):
            yield fire.in_channels, fire.squeeze, stage
            yield fire.squeeze, fire.expand1x1, stage
            yield fire.squeeze * 9, fire.expand3x3, stage
            if self.bypass == "complex" and fire.in_channels != fire.out_channels:
                yield fire.in_channels, fire.out_channels, stage

    def _check_ranges(self) -> None:
        positive = ("stem_channels", "stem_kernel", "stem_stride", "num_fires", "base_e", "freq")
        self.check_between(1, LIMIT, *positive)
        self.check_between(0, LIMIT, "stem_padding", "incr_e")
        self.check_between(0, 64, "head_padding")
        if self.stem_padding >= self.stem_kernel:
            raise UsageError(f"stem_padding {self.stem_padding} is not smaller than stem_kernel {self.stem_kernel}")
        if not 0 < self.pct3x3 < 1 or not 0 < self.squeeze_ratio <= 1:
            raise UsageError(
                f"pct3x3 {self.pct3x3} must lie between 0 and 1, squeeze_ratio {self.squeeze_ratio} above 0 and up to 1"
            )
        if self.num_fires > 64:
            raise UsageError(f"num_fires {self.num_fires} is more than 64")
        last = self.num_fires + 1
        if list(self.pools) != sorted(set(self.pools)) or not all(1 <= layer <= last for layer in self.pools):
            raise UsageError(
                f"pools {self.pools} are not layers from 1 (conv1) to {last} (the last fire), in rising order"
            )


def _nearest(number: float) -> int:
    return math.floor(number + 0.5)


def _pooled(length: int) -> int:
    # In ceil mode the last window may extend past the edge.
    return -(-(length - _POOL_KERNEL) // _POOL_STRIDE) + 1


@register
def squeezenet1_0() -> ZooEntry:
    """SqueezeNet v1.0, table 1 of the paper."""
    public = {"imagenet": PublicFile(f"{_TORCHVISION}/squeezenet1_0-b66bff10.pth", "b66bff10")}
    return ZooEntry(SqueezeNetConfig(), IMAGENET, "arXiv 1602.07360, tables 1 and 2", 57.5, 80.3, public)


@register
def squeezenet1_1() -> ZooEntry:
    """SqueezeNet v1.1: a 3x3 stem with 64 filters and early pools, 2.4 times fewer MACs than v1.0."""
    config = SqueezeNetConfig(stem_channels=64, stem_kernel=3, pools=EARLY)
    public = {"imagenet": PublicFile(f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")}
    return ZooEntry(config, IMAGENET, "authors' repository; accuracy of torchvision's weights", 58.178, 80.624, public)


@register
def squeezenet1_0_simple_bypass() -> ZooEntry:
    """v1.0 with simple bypass around fire3, 5, 7 and 9."""
    config = SqueezeNetConfig(bypass="simple")
    return ZooEntry(config, IMAGENET, "arXiv 1602.07360, section 6, table 3", 60.4, 82.5)


@register
def squeezenet1_0_complex_bypass() -> ZooEntry:
    """v1.0 with simple bypass, and 1x1 convolutions as bypass around fire2, 4, 6 and 8.

    Its 1,589,672 float32 parameters take 6.4 MB. Table 3 states 7.7 MB, which section 6 does not explain.
    """
    config = SqueezeNetConfig(bypass="complex")
    return ZooEntry(config, IMAGENET, "arXiv 1602.07360, section 6, table 3", 58.8, 82.0)


@register
def squeezenet_cifar() -> ZooEntry:
    """Six fire modules for 32x32 images, with a stride-1 stem, batch norm, and bypass before the ReLU."""
    config = SqueezeNetConfig(
        num_classes=10,
        input_size=(32, 32),
        stem_channels=64,
        stem_kernel=3,
        stem_stride=1,
        stem_padding=1,
        num_fires=6,
        freq=3,
        squeeze_ratio=0.5,
        pools=(1, 4),
        bypass="simple",
        bypass_before_relu=True,
        batch_norm=True,
        dropout=0.0,
        head_relu=False,
    )
    return ZooEntry(config, CIFAR, "firebox; for CIFAR-10")


@register
def squeezenet_cifar_small() -> ZooEntry:
    """A smaller squeezenet_cifar: four fire modules and a fifth of the parameters."""
    config = squeezenet_cifar().config
    small = replace(config, stem_channels=32, num_fires=4, base_e=64, incr_e=80, freq=2, pools=(1, 3))
    return ZooEntry(small, CIFAR, "firebox; for CIFAR-10")


@register
def squeezenet_micro() -> ZooEntry:
    """Six narrow fire modules for 32x32 images on devices with 256 KiB of memory."""
    config = SqueezeNetConfig(
        num_classes=10,
        input_size=(32, 32),
        stem_channels=32,
        stem_kernel=3,
        stem_stride=2,
        stem_padding=1,
        num_fires=6,
        base_e=64,
        incr_e=32,
        squeeze_ratio=0.25,
        pools=(3, 5),
        bypass="simple",
        batch_norm=True,
        dropout=0.0,
        head_relu=False,
    )
    return ZooEntry(config, CIFAR, "firebox; for microcontrollers")
