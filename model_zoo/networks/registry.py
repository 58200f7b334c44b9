"""The networks of the zoo by name: ``@register`` adds one, ``create_model`` builds one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import UsageError, suggestion
from ...runtime.images import Preprocessing
from .baselines import AlexNetConfig, DenseNetConfig, GoogLeNetConfig, NINConfig, ResNetConfig, VGGConfig
from .config import NetworkConfig
from .families import build
from .squeezenet import EARLY, SqueezeNetConfig

if TYPE_CHECKING:
    from .modules import NetworkModule

_TORCHVISION = "https://download.pytorch.org/models"
_IMAGENET = Preprocessing(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_SMALL = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class PublicFile:
    """Weights that others publish: where, and the first hexadecimal digits of their SHA-256."""

    url: str
    sha256: str


@dataclass(frozen=True)
class ZooEntry:
    """A network with what is published: accuracies in percent, where they stand, and weights by name.

    Accuracies are those on ImageNet unless ``source`` says otherwise.
    """

    config: NetworkConfig
    preprocessing: Preprocessing
    source: str
    top1: float | None = None
    top5: float | None = None
    public: Mapping[str, PublicFile] = field(default_factory=dict)


_ENTRIES: dict[str, ZooEntry] = {}


def register(entry: Callable[[], ZooEntry]) -> Callable[[], ZooEntry]:
    """Put what the function returns into the zoo, under the function's name."""
    _ENTRIES[entry.__name__] = entry()
    return entry


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a glob such as ``squeezenet1_*``, sorted."""
    return sorted(name for name in _ENTRIES if fnmatchcase(name, pattern))


def find_model(name: str) -> ZooEntry:
    """The entry of that name. Raises ``UsageError`` with near matches."""
    if name not in _ENTRIES:
        raise UsageError(f"no model {name!r} in the zoo; {suggestion(name, _ENTRIES)}")
    return _ENTRIES[name]


def model_config(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_size: tuple[int, int] | None = None,
    **overrides: Any,
) -> NetworkConfig:
    """The config of a zoo network with some of its values changed. Raises ``UsageError``."""
    config = find_model(name).config
    known = {value.name for value in fields(config)}
    for key in overrides.keys() - known:
        raise UsageError(f"{name} has no {key!r}; {suggestion(key, known)}")
    given = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
    overrides.update({key: value for key, value in given.items() if value is not None})
    return replace(config, **overrides)


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    input_size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    **overrides: Any,
) -> "NetworkModule":
    """A zoo network, in training mode; with new weights any value of its config can be changed.

    ``create_model("squeezenet1_1", num_classes=10, bypass="simple")``. With ``weights``, a file or a name (``default``:
    those that come with firebox; ``imagenet``: downloaded), it is the network that they are of. Raises ``UsageError``,
    ``CheckpointError`` and ``DownloadError``.
    """
    if weights is not None:
        from .. import load_network

        if overrides:
            raise UsageError(f"{', '.join(overrides)} of {name} cannot be changed with weights; leave one of them out")
        sizes: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
        return load_network(name, weights, **sizes).module.train()
    return build(model_config(name, num_classes, in_channels, input_size, **overrides))


def fit_preprocessing(preprocessing: Preprocessing, config: NetworkConfig) -> Preprocessing:
    """The same preprocessing for the input size and the channels of a config.

    The margin around the crop keeps its share, and a single channel gets the average of mean and
    std.
    """
    if config.in_channels not in (1, 3):
        raise UsageError(f"images have 1 or 3 channels, the network {config.in_channels}; preprocess them yourself")
    if config.input_size != preprocessing.size:
        resize = preprocessing.resize and round(preprocessing.resize * max(config.input_size) / max(preprocessing.size))
        preprocessing = replace(preprocessing, size=config.input_size, resize=resize)
    if config.in_channels == preprocessing.depth:
        return preprocessing
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    channels = "L" if config.in_channels == 1 else "RGB"
    depth = config.in_channels
    return replace(preprocessing, channels=channels, mean=(mean,) * depth, std=(std,) * depth)


@register
def squeezenet1_0() -> ZooEntry:
    """SqueezeNet v1.0, table 1 of the paper."""
    public = {"imagenet": PublicFile(f"{_TORCHVISION}/squeezenet1_0-b66bff10.pth", "b66bff10")}
    return ZooEntry(SqueezeNetConfig(), _IMAGENET, "arXiv 1602.07360, tables 1 and 2", 57.5, 80.3, public)


@register
def squeezenet1_1() -> ZooEntry:
    """SqueezeNet v1.1: a 3x3 stem of 64 filters and early pools, 2.4 times less work than v1.0."""
    config = SqueezeNetConfig(stem_channels=64, stem_kernel=3, pools=EARLY)
    public = {"imagenet": PublicFile(f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")}
    return ZooEntry(config, _IMAGENET, "authors' repository; accuracy of torchvision's weights", 58.178, 80.624, public)


@register
def squeezenet1_0_simple_bypass() -> ZooEntry:
    """v1.0 with the input of fire3, 5, 7 and 9 added to their output."""
    config = SqueezeNetConfig(bypass="simple")
    return ZooEntry(config, _IMAGENET, "arXiv 1602.07360, section 6, table 3", 60.4, 82.5)


@register
def squeezenet1_0_complex_bypass() -> ZooEntry:
    """v1.0 with 1x1 convolutions as bypass of fire2, 4, 6 and 8 beside the simple bypass.

    Its 1,589,672 float32 parameters are 6.4 MB. Table 3 prints 7.7 MB, which no reading of section
    6 reproduces.
    """
    config = SqueezeNetConfig(bypass="complex")
    return ZooEntry(config, _IMAGENET, "arXiv 1602.07360, section 6, table 3", 58.8, 82.0)


@register
def squeezenet_cifar() -> ZooEntry:
    """Six fire modules for 32x32 images: stride-1 stem, batch norm, bypass before the ReLU."""
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
    return ZooEntry(config, _SMALL, "firebox; for CIFAR-10")


@register
def squeezenet_cifar_small() -> ZooEntry:
    """The sibling of squeezenet_cifar with four fire modules and a fifth of its parameters."""
    config = find_model("squeezenet_cifar").config
    small = replace(config, stem_channels=32, num_fires=4, base_e=64, incr_e=80, freq=2, pools=(1, 3))
    return ZooEntry(small, _SMALL, "firebox; for CIFAR-10")


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
    return ZooEntry(config, _SMALL, "firebox; for microcontrollers")


@register
def alexnet() -> ZooEntry:
    """AlexNet with its convolutions in two groups, what SqueezeNet is measured against."""
    config = AlexNetConfig()
    return ZooEntry(config, replace(_IMAGENET, size=config.input_size), "arXiv 1602.07360, table 2", 57.2, 80.3)


@register
def vgg16() -> ZooEntry:
    """VGG with 16 layers, configuration D."""
    return ZooEntry(VGGConfig(), _IMAGENET, "arXiv 1409.1556, table 3 (D, one scale)", 74.4, 91.9)


@register
def nin() -> ZooEntry:
    """Network in network: no fully connected layers."""
    return ZooEntry(NINConfig(), _IMAGENET, "arXiv 1312.4400; accuracy of the authors' Caffe model", 59.36)


@register
def googlenet() -> ZooEntry:
    """GoogLeNet without the auxiliary classifiers of its training."""
    return ZooEntry(GoogLeNetConfig(), _IMAGENET, "arXiv 1409.4842, table 3 (one model, one crop)", top5=89.93)


@register
def resnet20() -> ZooEntry:
    """Residual network of 20 layers for 32x32 images."""
    return ZooEntry(ResNetConfig(), _SMALL, "arXiv 1512.03385, table 6 (CIFAR-10)", 91.25)


@register
def resnet56() -> ZooEntry:
    """Residual network of 56 layers for 32x32 images."""
    return ZooEntry(ResNetConfig(depth=56), _SMALL, "arXiv 1512.03385, table 6 (CIFAR-10)", 93.03)


@register
def densenet40() -> ZooEntry:
    """DenseNet of 40 layers that grow by 12 channels, for 32x32 images."""
    return ZooEntry(DenseNetConfig(), _SMALL, "arXiv 1608.06993, table 2 (CIFAR-10+)", 94.76)


@register
def densenet_bc100() -> ZooEntry:
    """DenseNet-BC of 100 layers that grow by 12 channels, for 32x32 images."""
    config = DenseNetConfig(depth=100, bottleneck=True, compression=0.5)
    return ZooEntry(config, _SMALL, "arXiv 1608.06993, table 2 (CIFAR-10+)", 95.49)


@register
def densenet22() -> ZooEntry:
    """The DenseNet of 40 layers with half as many in each block, for experiments on a CPU."""
    return ZooEntry(DenseNetConfig(depth=22), _SMALL, "firebox; for CIFAR-10")


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
    return ZooEntry(config, _SMALL, "firebox; for CIFAR-10")
