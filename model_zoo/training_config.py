"""The options of a training, one value that is stored in its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ..runtime.errors import CheckpointError, UsageError
from .fields import check_fields, with_tuples

Augment = Literal["none", "light", "standard", "cutout"]
Precision = Literal["bf16", "float32"]
Optimizer = Literal["sgd", "muon"]
Schedule = Literal["cosine", "polynomial"]
FreezeSchedule = Literal["linear", "squared", "cubic"]

_LIMITS: Mapping[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "iterations": (1, 1_000_000_000),
    "images_per_class": (1, 1_000_000_000),
    "batch_size": (2, 65_536),
    "accumulation": (1, 65_536),
    "momentum": (0, 1),
    "weight_decay": (0, 1),
    "power": (0, 100),
    "label_smoothing": (0, 0.99),
    "learning_rate": (0, 1e30),
    "muon_rate": (0, 1e30),
    "temperature": (1e-3, 1e3),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "ema": (0, 0.999999),
    "snapshots": (0, 1000),
    "teacher_share": (0, 1),
    "validate_every": (1, 100_000),
    "val_fraction": (0, 1),
    "threads": (1, 1024),
    "seed": (0, 2**63 - 1),
}


# A Beta distribution with a smaller alpha yields 0, 1 or NaN.
_LEAST_ALPHA = 1e-3


@dataclass(frozen=True)
class TrainingConfig:
    """All options that determine the trained weights, bit for bit on the same kind of CPU.

    Options of ``None`` get their values at the start of the training: ``input_size`` and ``dropout`` from the zoo,
    ``learning_rate`` 0.1 with batch norm and 0.02 without, a tenth of that with ``start``; ``warmup_epochs`` 1 if
    ``schedule`` lasts five epochs or more; ``augment`` light for grayscale images and standard otherwise;
    ``precision`` bf16 if the processor supports it; ``threads`` 1 for small networks and one per core otherwise (the
    number changes the order of sums, and so the weights).

    Data: ``images_per_class`` training images of each class are drawn by ``seed``, by default all. ``val_fraction`` of
    the images is held out for validation, every ``validate_every`` epochs and after the last. A step takes
    ``batch_size`` images in ``accumulation`` parts; ``iterations`` counts steps and replaces ``epochs``.

    Network: ``network`` changes values of the zoo's config, such as ``{"bypass": "none"}``. ``start`` names initial
    weights; their head is replaced if the classes differ. ``learn`` selects the trained layers: all, the head alone, or
    the head and the last N blocks. With ``layer_decay``, the learning rate falls by this factor from each block to the
    block below.

    Optimization: with ``optimizer`` muon, kernels followed by batch norm use ``muon_rate``, all other parameters
    ``learning_rate``. ``ema`` is the decay of the moving average that replaces the weights in checkpoints. ``mixup``
    and ``cutmix`` are alphas of Beta distributions. ``snapshots`` is the number of cycles of a snapshot ensemble.
    ``freezeout`` is a schedule of progressive freezing: the first layer freezes after the share ``freeze_first`` of the
    steps (squared or cubed by the schedule), with learning rates ``freeze_scaled`` to each layer's time or not. Both
    replace ``schedule``. ``teachers`` are runs or checkpoints to distil from, as an ensemble, at ``temperature``;
    ``teacher_share`` is the share of that term in the loss.

    Raises ``UsageError`` for values out of range and options that contradict each other.
    """

    model: str = "squeezenet_micro"
    data: str = "digits"
    network: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    epochs: int = 15
    iterations: int | None = None
    images_per_class: int | None = None
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float | None = None
    optimizer: Optimizer = "sgd"
    muon_rate: float = 0.04
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    learn: Literal["all", "head"] | int = "all"
    layer_decay: float = 1.0
    schedule: Schedule = "cosine"
    power: float = 1.0
    warmup_epochs: int | None = None
    label_smoothing: float = 0.1
    dropout: float | None = None
    input_size: tuple[int, int] | None = None
    augment: Augment | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    snapshots: int = 0
    freezeout: FreezeSchedule | None = None
    freeze_first: float = 0.8
    freeze_scaled: bool = True
    teachers: tuple[str, ...] = ()
    temperature: float = 4.0
    teacher_share: float = 0.9
    compile: bool = False
    validate_every: int = 1
    val_fraction: float = 0.2
    precision: Precision | None = None
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.learn, int) and self.learn < 1:
            raise UsageError(f"learn {self.learn} is invalid; use all, head or a positive number of blocks")
        self._check_limits()
        self._check_together()

    def _check_limits(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise UsageError(f"{name} {value} is not between {low} and {high}")
        if not 0 <= (self.warmup_epochs or 0) <= (math.inf if self.iterations else self.epochs):
            raise UsageError(f"warmup_epochs {self.warmup_epochs} is not between 0 and {self.epochs}")
        for name in ("learning_rate", "muon_rate", "layer_decay", "freeze_first"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} {value} is not a positive number")
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < _LEAST_ALPHA:
                raise UsageError(f"{name} {getattr(self, name)} is below {_LEAST_ALPHA}; use 0 to disable it")
        for name in ("model", "data", "start"):
            if getattr(self, name) == "":
                raise UsageError(f"{name} is empty; give a value or leave it out")
        for name in ("layer_decay", "freeze_first"):
            if getattr(self, name) > 1:
                raise UsageError(f"{name} {getattr(self, name)} is above 1; use a value in (0, 1]")

    def _check_together(self) -> None:
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}; change one of them"
            )
        if self.snapshots and self.freezeout:
            raise UsageError("snapshots and freezeout both set the learning rates; use one of them")
        anneals = "snapshots" if self.snapshots else "freezeout" if self.freezeout else ""
        if anneals and self.warmup_epochs:
            raise UsageError(f"{anneals} allows no warm-up; leave out the {self.warmup_epochs} warm-up epochs")
        if anneals and (self.schedule, self.power) != ("cosine", 1.0):
            raise UsageError(f"{anneals} sets the learning rates; leave out schedule {self.schedule} and power")
        if (self.nesterov or self.optimizer == "muon") and not self.momentum:
            name = "nesterov" if self.nesterov else "muon"
            raise UsageError(f"{name} needs momentum, which is 0; raise momentum or leave out {name}")
        for name in sorted(self.network.keys() & {"num_classes", "in_channels", "input_size"}):
            raise UsageError(f"the network's {name} is determined by the images and input_size; leave it out")
        if self.learn != "all" and self.start is None:
            raise UsageError(f"learn {self.learn!r} would freeze layers with random weights; set start")
        if self.learn == "head":
            self._check_head()

    def _check_head(self) -> None:
        cause = "learn head trains on features that are computed once"
        if self.augment not in (None, "none"):
            raise UsageError(f"{cause}, without augment {self.augment!r}; leave it out or train a block too")
        if self.teachers:
            raise UsageError(f"{cause}, and teachers need images; leave them out or train a block too")
        if self.freezeout:
            raise UsageError("learn head leaves freezeout no layer to freeze; leave it out or train a block too")

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingConfig":
        """The inverse of ``to_json``. Raises ``CheckpointError``."""
        try:
            known = {field.name for field in fields(cls)}
            if unknown := sorted(set(values) - known):
                raise UsageError(f"unknown key {unknown[0]!r}; update firebox if a newer version wrote it")
            # Older checkpoints lack the keys added since; all have these two.
            if missing := {"model", "data"} - set(values):
                raise UsageError(f"the key {min(missing)!r} is missing")
            return cls(**with_tuples(values))
        except (TypeError, UsageError) as error:
            raise CheckpointError(f"the training config of the checkpoint cannot be read: {error}") from error
