"""Baselines that SqueezeNet is compared with, as layers; no torch."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

from ...runtime.errors import UsageError
from .config import LIMIT
from .layers import (
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    GlobalAveragePool,
    Layer,
    LayeredConfig,
    Pool,
    Relu,
    Residual,
    Sequence,
    Shape,
    Subsample,
    count,
)
from .registry import CIFAR, IMAGENET, ZooEntry, register


@dataclass(frozen=True)
class AlexNetConfig(LayeredConfig):
    """AlexNet as in Caffe (Krizhevsky et al., NIPS 2012, section 3.5): three convolutions have two groups.

    It has no local response normalization, which has no parameters and no operation in the export formats.
    """

    family: ClassVar[str] = "alexnet"

    input_size: tuple[int, int] = (227, 227)

    @property
    def features(self) -> Sequence:
        """Five convolutions; the first, second and last precede a pool."""
        pool = Pool("max", 3, 2)
        return Sequence(
            (
                *(*self.conv(96, 11, stride=4), pool),
                *(*self.conv(256, 5, padding=2, groups=2), pool),
                *self.conv(384, 3, padding=1),
                *self.conv(384, 3, padding=1, groups=2),
                *(*self.conv(256, 3, padding=1, groups=2), pool),
            )
        )

    @property
    def classifier(self) -> Sequence:
        """Three fully connected layers."""
        return self.head(4096, 4096)


@dataclass(frozen=True)
class VGGConfig(LayeredConfig):
    """VGG (arXiv 1409.1556, table 1; by default configuration D): stages of 3x3 convolutions and pools.

    Stage ``i`` has ``depths[i]`` convolutions with ``widths[i]`` filters; ``hidden`` are the widths of the fully
    connected layers before the head.
    """

    family: ClassVar[str] = "vgg"

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: tuple[int, ...] = (4096, 4096)

    def check_family(self) -> None:
        """Raise ``UsageError`` if a field of the family has a value that does not make a network."""
        check_counts("depths", self.depths, highest=64)
        check_counts("widths", self.widths)
        check_counts("hidden", self.hidden, lowest_length=0)
        if len(self.depths) != len(self.widths):
            raise UsageError(f"depths {self.depths} and widths {self.widths} differ in length; give one per stage")

    @property
    def features(self) -> Sequence:
        """The stages, each followed by a 2x2 pool."""
        layers: list[Layer] = []
        for depth, width in zip(self.depths, self.widths, strict=True):
            layers += self.conv(width, 3, padding=1) * depth
            layers.append(Pool("max", 2, 2))
        return Sequence(tuple(layers))

    @property
    def classifier(self) -> Sequence:
        """Fully connected layers."""
        return self.head(*self.hidden)


@dataclass(frozen=True)
class NINConfig(LayeredConfig):
    """Network in network for ImageNet, as in the authors' Caffe model (arXiv 1312.4400).

    Each of the four stages is a convolution with ``widths[i]`` filters and two 1x1 convolutions; the last 1x1
    convolution is the head, followed by a global average pool. The head has no ReLU (see
    ``SqueezeNetConfig.head_relu``).
    """

    family: ClassVar[str] = "nin"

    widths: tuple[int, ...] = (96, 256, 384, 1024)

    def check_family(self) -> None:
        """Raise ``UsageError`` if a field of the family has a value that does not make a network."""
        check_counts("widths", self.widths)
        if len(self.widths) != 4:
            raise UsageError(f"widths {self.widths} has {len(self.widths)} values; give 4, one per stage")

    @property
    def features(self) -> Sequence:
        """All layers but the head, with three pools."""
        first, second, third, fourth = self.widths
        pool = Pool("max", 3, 2, ceil=True)
        return Sequence(
            (
                *(*self.conv(first, 11, stride=4), *self.conv(first, 1) * 2, pool),
                *(*self.conv(second, 5, padding=2), *self.conv(second, 1) * 2, pool),
                *(*self.conv(third, 3, padding=1), *self.conv(third, 1) * 2, pool),
                Dropout(self.dropout),
                *(*self.conv(fourth, 3, padding=1), *self.conv(fourth, 1)),
            )
        )

    @property
    def classifier(self) -> Sequence:
        """A 1x1 convolution and a global average pool."""
        return Sequence((Conv(self.num_classes, 1), GlobalAveragePool()))


# Inception modules by stage (table 1), each with its numbers of filters: 1x1; 3x3 reduction, 3x3; 5x5 reduction, 5x5;
# pool projection. A max pool separates the stages.
_INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
# Output channels of modules 4a and 4d, at 14x14: the inputs of the auxiliary classifiers.
_AUXILIARY_INPUTS = (512, 528)


@dataclass(frozen=True)
class GoogLeNetConfig(LayeredConfig):
    """GoogLeNet, the first Inception network with 5x5 branches (arXiv 1409.4842, table 1), for inference.

    It has no local response normalization, which has no parameters. The paper uses the auxiliary classifiers in
    training only; ``with_auxiliary`` counts them.
    """

    family: ClassVar[str] = "googlenet"

    dropout: float = 0.4

    @property
    def features(self) -> Sequence:
        """Stem, then nine Inception modules in three stages separated by pools."""
        pool = Pool("max", 3, 2, ceil=True)
        stem = (*self.conv(64, 7, 2, 3), pool, *self.conv(64, 1), *self.conv(192, 3, padding=1), pool)
        first, second, third = (tuple(self._inception(*sizes) for sizes in stage) for stage in _INCEPTIONS)
        return Sequence((*stem, *first, pool, *second, pool, *third))

    @property
    def classifier(self) -> Sequence:
        """Global average pool and one fully connected layer."""
        return self.averaging_head()

    @property
    def with_auxiliary(self) -> int:
        """Parameters with the two auxiliary classifiers of section 5."""
        layers = (Pool("average", 5, 3), Conv(128, 1), Relu(), *self.head(1024).layers)
        heads = (count(Sequence(layers), Shape(channels, 14, 14)) for channels in _AUXILIARY_INPUTS)
        return self.parameters + sum(head.parameters for head in heads)

    def _inception(self, one: int, reduce3: int, three: int, reduce5: int, five: int, projection: int) -> Concat:
        branches = (
            self.conv(one, 1),
            [*self.conv(reduce3, 1), *self.conv(three, 3, padding=1)],
            [*self.conv(reduce5, 1), *self.conv(five, 5, padding=2)],
            [Pool("max", 3, 1, 1), *self.conv(projection, 1)],
        )
        return Concat(tuple(Sequence(tuple(branch)) for branch in branches))


@dataclass(frozen=True)
class CIFARStyleConfig(LayeredConfig):
    """A network with the defaults for CIFAR-10: 32x32 images, 10 classes, batch norm, no dropout."""

    num_classes: int = 10
    input_size: tuple[int, int] = (32, 32)
    batch_norm: bool = True
    dropout: float = 0.0


@dataclass(frozen=True)
class ResNetConfig(CIFARStyleConfig):
    """Residual network for small images (arXiv 1512.03385, section 4.2): three stages of (depth - 2) / 6 blocks.

    ``width`` is the number of filters in the first stage and doubles in each further stage. ``shortcut`` connects
    stages: "pad" (the paper's option A, used for its published figures) subsamples and zero-pads the channels,
    "project" (option B) is a 1x1 convolution.
    """

    family: ClassVar[str] = "resnet"

    depth: int = 20
    width: int = 16
    shortcut: Literal["pad", "project"] = "pad"

    def check_family(self) -> None:
        """Raise ``UsageError`` if a field of the family has a value that does not make a network."""
        self.check_between(1, LIMIT // 4, "width")
        self.check_between(8, 1202, "depth")
        if self.depth % 6 != 2:
            raise UsageError(f"depth {self.depth} is not 6 n + 2; use a depth such as 20 or 56")

    @property
    def features(self) -> Sequence:
        """Stem and residual blocks."""
        layers = self.conv(self.width, 3, padding=1)
        widths = (self.width, 2 * self.width, 4 * self.width)
        for before, width in pairwise((self.width, *widths)):
            for block in range((self.depth - 2) // 6):
                stride = 1 if block or width == before else 2
                layers += [self._block(width, stride), Relu()]
        return Sequence(tuple(layers))

    @property
    def classifier(self) -> Sequence:
        """Global average pool and one fully connected layer."""
        return self.averaging_head()

    def _block(self, width: int, stride: int) -> Residual:
        shortcut: list[Layer] = []
        if stride > 1:
            shortcut = [Subsample(width, stride)] if self.shortcut == "pad" else self.linear_conv(width, 1, stride)
        body = (*self.conv(width, 3, stride, 1), *self.linear_conv(width, 3, padding=1))
        return Residual(Sequence(body), Sequence(tuple(shortcut)))


@dataclass(frozen=True)
class DenseNetConfig(CIFARStyleConfig):
    """DenseNet for small images (arXiv 1608.06993, sections 3 and 4.2): each layer gets the outputs of all before it.

    It has three blocks, in which every layer adds ``growth`` channels. With ``bottleneck`` (DenseNet-B) a layer is two
    convolutions, the first with 4 ``growth`` filters. Transitions keep a fraction ``compression`` of the channels;
    below 1 (DenseNet-C) the stem has 2 ``growth`` filters instead of 16.
    """

    family: ClassVar[str] = "densenet"

    depth: int = 40
    growth: int = 12
    bottleneck: bool = False
    compression: float = 1.0

    def check_family(self) -> None:
        """Raise ``UsageError`` if a field of the family has a value that does not make a network."""
        self.check_between(1, 1024, "growth")
        self.check_between(7, 1000, "depth")
        if (self.depth - 4) % (6 if self.bottleneck else 3):
            form = "6 n + 4; use 40 or 100" if self.bottleneck else "3 n + 4; use 22 or 40"
            raise UsageError(f"depth {self.depth} is not {form}")
        if not 0 < self.compression <= 1:
            raise UsageError(f"compression {self.compression} is not above 0 and at most 1")

    @property
    def features(self) -> Sequence:
        """Stem, then dense blocks separated by transitions."""
        channels = 16 if self.compression == 1 else 2 * self.growth
        per_block = (self.depth - 4) // (6 if self.bottleneck else 3)
        layers: list[Layer] = [self._conv(channels, 3)]
        for block in range(3):
            if block:
                channels = max(1, int(channels * self.compression))
                layers += [*self._norm(), self._conv(channels, 1), Pool("average", 2, 2)]
            layers += [self._layer()] * per_block
            channels += per_block * self.growth
        return Sequence((*layers, *self._norm()))

    @property
    def classifier(self) -> Sequence:
        """Global average pool and one fully connected layer."""
        return self.averaging_head()

    def _layer(self) -> Concat:
        reduce = (*self._norm(), self._conv(4 * self.growth, 1)) if self.bottleneck else ()
        body = (*reduce, *self._norm(), self._conv(self.growth, 3))
        return Concat((Sequence(), Sequence(body)))

    def _norm(self) -> tuple[Layer, ...]:
        return (BatchNorm(), Relu()) if self.batch_norm else (Relu(),)

    def _conv(self, out_channels: int, kernel: int) -> Conv:
        return Conv(out_channels, kernel, padding=kernel // 2, bias=not self.batch_norm)


def check_counts(name: str, values: tuple[int, ...], highest: int = LIMIT, lowest_length: int = 1) -> None:
    """Raise ``UsageError`` for a tuple of the wrong length, or with a number that is not from 1 to ``highest``."""
    if not lowest_length <= len(values) <= 16 or not all(1 <= value <= highest for value in values):
        raise UsageError(f"{name} {values} are not {lowest_length} to 16 numbers between 1 and {highest}")


@register
def alexnet() -> ZooEntry:
    """AlexNet with grouped convolutions, the baseline of the SqueezeNet paper."""
    config = AlexNetConfig()
    return ZooEntry(config, replace(IMAGENET, size=config.input_size), "arXiv 1602.07360, table 2", 57.2, 80.3)


@register
def vgg16() -> ZooEntry:
    """VGG with 16 layers (configuration D)."""
    return ZooEntry(VGGConfig(), IMAGENET, "arXiv 1409.1556, table 3 (D, one scale)", 74.4, 91.9)


@register
def nin() -> ZooEntry:
    """Network in network, without fully connected layers."""
    return ZooEntry(NINConfig(), IMAGENET, "arXiv 1312.4400; accuracy of the authors' Caffe model", 59.36)


@register
def googlenet() -> ZooEntry:
    """GoogLeNet without auxiliary classifiers."""
    return ZooEntry(GoogLeNetConfig(), IMAGENET, "arXiv 1409.4842, table 3 (one model, one crop)", top5=89.93)


@register
def resnet20() -> ZooEntry:
    """Residual network with 20 layers for 32x32 images."""
    return ZooEntry(ResNetConfig(), CIFAR, "arXiv 1512.03385, table 6 (CIFAR-10)", 91.25)


@register
def resnet56() -> ZooEntry:
    """Residual network with 56 layers for 32x32 images."""
    return ZooEntry(ResNetConfig(depth=56), CIFAR, "arXiv 1512.03385, table 6 (CIFAR-10)", 93.03)


@register
def densenet40() -> ZooEntry:
    """DenseNet with 40 layers and growth 12, for 32x32 images."""
    return ZooEntry(DenseNetConfig(), CIFAR, "arXiv 1608.06993, table 2 (CIFAR-10+)", 94.76)


@register
def densenet_bc100() -> ZooEntry:
    """DenseNet-BC with 100 layers and growth 12, for 32x32 images."""
    config = DenseNetConfig(depth=100, bottleneck=True, compression=0.5)
    return ZooEntry(config, CIFAR, "arXiv 1608.06993, table 2 (CIFAR-10+)", 95.49)


@register
def densenet22() -> ZooEntry:
    """densenet40 with half as many layers in each block, for experiments on a CPU."""
    return ZooEntry(DenseNetConfig(depth=22), CIFAR, "firebox; for CIFAR-10")


@register
def vgg_cifar() -> ZooEntry:
    """VGG configuration A with fewer filters and batch norm, for 32x32 images."""
    config = VGGConfig(
        num_classes=10,
        input_size=(32, 32),
        batch_norm=True,
        dropout=0.0,
        depths=(1, 1, 2, 2, 2),
        widths=(32, 64, 128, 128, 128),
        hidden=(),
    )
    return ZooEntry(config, CIFAR, "firebox; for CIFAR-10")
