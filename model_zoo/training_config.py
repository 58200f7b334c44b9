"""What a training does, as one value that travels with its checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ..runtime.errors import CheckpointError, UsageError
from .schedules import Schedule

Augment = Literal["none", "light", "standard"]
Precision = Literal["bf16", "float32"]


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides the trained weights: to the bit, on the same kind of CPU.

    Values of ``None`` are chosen when training starts: ``input_size`` and ``dropout`` as in the
    zoo, ``learning_rate`` 0.1 with batch norm and 0.02 without, ``augment`` light for
    single-channel pictures and standard for others, ``precision`` bf16 where the processor computes
    with it, ``threads`` one for little work and otherwise one per core (sums are taken in another
    order, so it belongs here). Raises ``UsageError``.
    """

    model: str = "squeezenet_micro"
    data: str = "digits"
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    power: float = 1.0
    warmup_epochs: int = 1
    label_smoothing: float = 0.1
    dropout: float | None = None
    input_size: tuple[int, int] | None = None
    augment: Augment | None = None
    val_fraction: float = 0.2
    precision: Precision | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"schedule": Schedule, "augment": Augment, "precision": Precision}
        for name, kind in choices.items():
            value = getattr(self, name)
            if value not in get_args(kind) and (value is not None or name == "schedule"):
                raise UsageError(f"{name} {value!r} is not one of {', '.join(get_args(kind))}")
        limits: dict[str, tuple[float, float]] = {
            "epochs": (1, 100_000),
            "batch_size": (2, 65_536),
            "momentum": (0, 1),
            "weight_decay": (0, 1),
            "power": (0, 100),
            "warmup_epochs": (0, self.epochs),
            "label_smoothing": (0, 0.99),
            "val_fraction": (0, 1),
            "threads": (1, 1024),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise UsageError(f"{name} {value} is not between {low} and {high}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate {self.learning_rate} is not a positive number")

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingConfig":
        """The inverse of ``to_json``. Raises ``CheckpointError``."""
        try:
            plain = {field.name: values[field.name] for field in fields(cls)}
            if plain["input_size"] is not None:
                plain["input_size"] = tuple(plain["input_size"])
            return cls(**plain)
        except (KeyError, TypeError, UsageError) as error:
            raise CheckpointError(f"the training config of the checkpoint cannot be read: {error}") from error
