"""The config base class of all networks: sizes, checks and JSON; no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ...runtime.errors import FormatError, UsageError
from ..fields import check_fields

LIMIT = 65536
_MOST_PARAMETERS = 1_000_000_000
# Configs written by the first version name no family.
_FIRST_FAMILY = "squeezenet"


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """The architecture of a network as plain numbers; each subclass is a family.

    ``family`` identifies the subclass in files; defining it registers the subclass. ``input_size`` is (height, width).
    ``batch_norm`` adds batch norm to the convolutions, where the family places it. Raises ``UsageError`` for values
    that do not make a network.
    """

    family: ClassVar[str]
    _families: ClassVar[dict[str, type["NetworkConfig"]]] = {}

    in_channels: int = 3
    num_classes: int = 1000
    input_size: tuple[int, int] = (224, 224)
    batch_norm: bool = False
    dropout: float = 0.5

    def __init_subclass__(cls) -> None:
        if "family" in vars(cls):
            NetworkConfig._families[cls.family] = cls

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_between(1, LIMIT, "in_channels", "num_classes")
        if len(self.input_size) != 2 or not all(1 <= length <= 4096 for length in self.input_size):
            raise UsageError(f"input_size {self.input_size} is not (height, width) between 1 and 4096")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout} is not in [0, 1)")

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Number of trainable parameters."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions and fully connected layers for one image."""

    @property
    def batch_norm_folds(self) -> bool:
        """True if each batch norm follows a convolution and can be folded into it."""
        return True

    def check_between(self, lowest: int, highest: int, *names: str) -> None:
        """Raise ``UsageError`` for the first field whose value is out of range."""
        for name in names:
            if not lowest <= getattr(self, name) <= highest:
                raise UsageError(f"{name} {getattr(self, name)} is not between {lowest} and {highest}")

    def check_parameters(self) -> None:
        """Raise ``UsageError`` for more parameters than can be trained in practice."""
        if self.parameters > _MOST_PARAMETERS:
            raise UsageError(
                f"{self.parameters:,} parameters are more than {_MOST_PARAMETERS:,}; use a narrower network"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"family": self.family, **values}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "NetworkConfig":
        """The config of the family that ``values`` name; absent keys take their defaults. Raises ``FormatError``."""
        if not isinstance(values, Mapping):
            raise FormatError(f"a network config is a JSON object, not {values!r}")
        plain = dict(values)
        plain.update({key: tuple(value) for key, value in values.items() if isinstance(value, list)})
        family, families = plain.pop("family", _FIRST_FAMILY), NetworkConfig._families
        if not isinstance(family, str) or family not in families:
            raise FormatError(f"no family {family!r} of networks is known, only {', '.join(sorted(families))}")
        unknown = sorted(set(plain) - {field.name for field in fields(families[family])})
        if unknown:
            raise FormatError(f"network config has an unknown key {unknown[0]!r}")
        try:
            return families[family](**plain)
        except UsageError as error:
            raise FormatError(f"network config cannot be used: {error}") from error
