"""Registry of networks: ``@register`` adds one by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from ...runtime.errors import UsageError, suggestion
from ...runtime.images import Preprocessing
from .config import NetworkConfig

IMAGENET = Preprocessing(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class PublicFile:
    """A published weight file: its URL and the first hexadecimal digits of its SHA-256."""

    url: str
    sha256: str


@dataclass(frozen=True)
class ZooEntry:
    """A network with its preprocessing and published figures: accuracies in percent, and weights by name.

    Accuracies are on ImageNet unless ``source``, the publication, names other images.
    """

    config: NetworkConfig
    preprocessing: Preprocessing
    source: str
    top1: float | None = None
    top5: float | None = None
    public: Mapping[str, PublicFile] = field(default_factory=dict)


_ENTRIES: dict[str, ZooEntry] = {}


def register(entry: Callable[[], ZooEntry]) -> Callable[[], ZooEntry]:
    """Decorator: add the entry that the function returns to the zoo, under the function's name."""
    _ENTRIES[entry.__name__] = entry()
    return entry


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names that match a glob pattern such as ``squeezenet1_*``."""
    return sorted(name for name in _ENTRIES if fnmatchcase(name, pattern))


def find_model(name: str) -> ZooEntry:
    """The entry of a name. Raises ``UsageError`` that suggests similar names."""
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
    """The config of a zoo network with the given values changed. Raises ``UsageError``."""
    config = find_model(name).config
    known = {value.name for value in fields(config)}
    for key in overrides.keys() - known:
        raise UsageError(f"{name} has no {key!r}; {suggestion(key, known)}")
    given = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
    overrides.update({key: value for key, value in given.items() if value is not None})
    return replace(config, **overrides)
