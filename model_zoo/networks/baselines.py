"""The networks that SqueezeNet is compared with, as layers; no torch."""

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
    """AlexNet as Caffe has it (Krizhevsky et al., NIPS 2012, section 3.5): three convolutions in two groups.

    Without local response normalization, which holds no parameters and is no operation of our formats.
    """

    family: ClassVar[str] = "alexnet"

    input_size: tuple[int, int] = (227, 227)

    @property
    def features(self) -> Sequence:
        """Five convolutions, three of them before a pool."""
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
    """VGG (arXiv 1409.1556, table 1; the defaults are D): stages of 3x3 convolutions with pools between.

    Stage ``i`` has ``depths[i]`` convolutions of ``widths[i]`` filters; ``hidden`` are the fully connected
    layers before the head.
    """

    family: ClassVar[str] = "vgg"

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: tuple[int, ...] = (4096, 4096)

    def check_family(self) -> None:
        """Raises ``UsageError`` for a value of the family's own that makes no network."""
        check_counts("depths", self.depths, highest=64)
        check_counts("widths", self.widths)
        check_counts("hidden", self.hidden, lowest_length=0)
        if len(self.depths) != len(self.widths):
            raise UsageError(f"depths {self.depths} and widths {self.widths} are not of as many stages")

    @property
    def features(self) -> Sequence:
        """The stages, each with a 2x2 pool behind."""
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
    """Network in network for ImageNet, as the authors' Caffe model has it (arXiv 1312.4400).

    Four stages, each a convolution of ``widths[i]`` filters and two 1x1 convolutions; the last 1x1 convolution is the
    head, averaged. No ReLU follows it (see ``SqueezeNetConfig.head_relu``).
    """

    family: ClassVar[str] = "nin"

    widths: tuple[int, ...] = (96, 256, 384, 1024)

    def check_family(self) -> None:
        """Raises ``UsageError`` for a value of the family's own that makes no network."""
        check_counts("widths", self.widths)
        if len(self.widths) != 4:
            raise UsageError(f"widths {self.widths} are not of four stages")

    @property
    def features(self) -> Sequence:
        """All but the head; three pools."""
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
        """A 1x1 convolution, averaged."""
        return Sequence((Conv(self.num_classes, 1), GlobalAveragePool()))


# GoogLeNet's modules in table 1 of its article: filters of the 1x1 convolution, of the 3x3 and the 5x5 one with those
# that reduce before them, and of the projection behind the pool; a max pool where a number of stages ends.
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
# Channels of modules 4a and 4d, whose output the auxiliary classifiers take, at 14x14.
_AUXILIARY_INPUTS = (512, 528)


@dataclass(frozen=True)
class GoogLeNetConfig(LayeredConfig):
    """GoogLeNet, the first Inception network with 5x5 branches (arXiv 1409.4842, table 1), as it is used.

    Without local response normalization, which holds no parameters. The auxiliary classifiers are only there in the
    article's training: ``with_auxiliary`` counts them.
    """

    family: ClassVar[str] = "googlenet"

    dropout: float = 0.4

    @property
    def features(self) -> Sequence:
        """Stem, and nine Inception modules in three stages with pools between."""
        pool = Pool("max", 3, 2, ceil=True)
        stem = (*self.conv(64, 7, 2, 3), pool, *self.conv(64, 1), *self.conv(192, 3, padding=1), pool)
        first, second, third = (tuple(self._inception(*sizes) for sizes in stage) for stage in _INCEPTIONS)
        return Sequence((*stem, *first, pool, *second, pool, *third))

    @property
    def classifier(self) -> Sequence:
        """Global average and one fully connected layer."""
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
    """What networks for CIFAR-10's images begin with."""

    num_classes: int = 10
    input_size: tuple[int, int] = (32, 32)
    batch_norm: bool = True
    dropout: float = 0.0


@dataclass(frozen=True)
class ResNetConfig(CIFARStyleConfig):
    """Residual network for small images (arXiv 1512.03385, section 4.2): three stages of (depth - 2) / 6 blocks.

    ``width`` is that of the first stage and doubles twice. ``shortcut`` is what joins stages: "pad" (the paper's
    option A, of which the published figures are) leaves rows and columns out and adds channels of zeros, "project"
    (option B) is a 1x1 convolution.
    """

    family: ClassVar[str] = "resnet"

    depth: int = 20
    width: int = 16
    shortcut: Literal["pad", "project"] = "pad"

    def check_family(self) -> None:
        """Raises ``UsageError`` for a value of the family's own that makes no network."""
        self.check_between(1, LIMIT // 4, "width")
        self.check_between(8, 1202, "depth")
        if self.depth % 6 != 2:
            raise UsageError(f"depth {self.depth} is not 6 n + 2, such as 20 or 56")

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
        """Global average and one fully connected layer."""
        return self.averaging_head()

    def _block(self, width: int, stride: int) -> Residual:
        shortcut: list[Layer] = []
        if stride > 1:
            shortcut = [Subsample(width, stride)] if self.shortcut == "pad" else self.linear_conv(width, 1, stride)
        body = (*self.conv(width, 3, stride, 1), *self.linear_conv(width, 3, padding=1))
        return Residual(Sequence(body), Sequence(tuple(shortcut)))


@dataclass(frozen=True)
class DenseNetConfig(CIFARStyleConfig):
    """DenseNet for small images (arXiv 1608.06993, sections 3 and 4.2): each layer gets the output of all before it.

    Three blocks; every layer adds ``growth`` channels. With ``bottleneck`` (DenseNet-B) a layer is two convolutions,
    the first of which gives 4 ``growth`` channels. Transitions keep the share ``compression`` of the channels; with
    less than 1 (DenseNet-C) the stem has 2 ``growth`` filters instead of 16.
    """

    family: ClassVar[str] = "densenet"

    depth: int = 40
    growth: int = 12
    bottleneck: bool = False
    compression: float = 1.0

    def check_family(self) -> None:
        """Raises ``UsageError`` for a value of the family's own that makes no network."""
        self.check_between(1, 1024, "growth")
        self.check_between(7, 1000, "depth")
        if (self.depth - 4) % (6 if self.bottleneck else 3):
            form = "6 n + 4, such as 40 or 100" if self.bottleneck else "3 n + 4, such as 22 or 40"
            raise UsageError(f"depth {self.depth} is not {form}")
        if not 0 < self.compression <= 1:
            raise UsageError(f"compression {self.compression} is not above 0 and up to 1")

    @property
    def features(self) -> Sequence:
        """Stem, and dense blocks with transitions between."""
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
        """Global average and one fully connected layer."""
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
    """Raises ``UsageError`` for a tuple of the wrong length or with a number that is not between 1 and ``highest``."""
    if not lowest_length <= len(values) <= 16 or not all(1 <= value <= highest for value in values):
        raise UsageError(f"{name} {values} are not {lowest_length} to 16 numbers between 1 and {highest}")


@register
def alexnet() -> ZooEntry:
    """AlexNet with its convolutions in two groups, what SqueezeNet is measured against."""
    config = AlexNetConfig()
    return ZooEntry(config, replace(IMAGENET, size=config.input_size), "arXiv 1602.07360, table 2", 57.2, 80.3)


@register
def vgg16() -> ZooEntry:
    """VGG with 16 layers, configuration D."""
    return ZooEntry(VGGConfig(), IMAGENET, "arXiv 1409.1556, table 3 (D, one scale)", 74.4, 91.9)


@register
def nin() -> ZooEntry:
    """Network in network: no fully connected layers."""
    return ZooEntry(NINConfig(), IMAGENET, "arXiv 1312.4400; accuracy of the authors' Caffe model", 59.36)


@register
def googlenet() -> ZooEntry:
    """GoogLeNet without the auxiliary classifiers of its training."""
    return ZooEntry(GoogLeNetConfig(), IMAGENET, "arXiv 1409.4842, table 3 (one model, one crop)", top5=89.93)


@register
def resnet20() -> ZooEntry:
    """Residual network of 20 layers for 32x32 images."""
    return ZooEntry(ResNetConfig(), CIFAR, "arXiv 1512.03385, table 6 (CIFAR-10)", 91.25)


@register
def resnet56() -> ZooEntry:
    """Residual network of 56 layers for 32x32 images."""
    return ZooEntry(ResNetConfig(depth=56), CIFAR, "arXiv 1512.03385, table 6 (CIFAR-10)", 93.03)


@register
def densenet40() -> ZooEntry:
    """DenseNet of 40 layers that grow by 12 channels, for 32x32 images."""
    return ZooEntry(DenseNetConfig(), CIFAR, "arXiv 1608.06993, table 2 (CIFAR-10+)", 94.76)


@register
def densenet_bc100() -> ZooEntry:
    """DenseNet-BC of 100 layers that grow by 12 channels, for 32x32 images."""
    config = DenseNetConfig(depth=100, bottleneck=True, compression=0.5)
    return ZooEntry(config, CIFAR, "arXiv 1608.06993, table 2 (CIFAR-10+)", 95.49)


@register
def densenet22() -> ZooEntry:
    """The DenseNet of 40 layers with half as many in each block, for experiments on a CPU."""
    return ZooEntry(DenseNetConfig(depth=22), CIFAR, "firebox; for CIFAR-10")


@register
def vgg_cifar() -> ZooEntry:
    """Eight convolutions of VGG's configuration A, narrower, with batch norm, for 32x32 images."""
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
