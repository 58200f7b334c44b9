"""What a training does, as one value that travels with its checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ..runtime.errors import CheckpointError, UsageError
from .fields import check_kinds, with_tuples

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


# Draws of a Beta distribution with less are 0 or 1, or no numbers at all.
_LEAST_ALPHA = 1e-3


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides the trained weights: to the bit, on the same kind of CPU.

    Values of ``None`` are chosen when training starts: ``input_size`` and ``dropout`` as in the
    zoo, ``learning_rate`` 0.1 with batch norm and 0.02 without, a tenth of that with a ``start``, ``warmup_epochs`` 1
    where ``schedule`` sets the rates of five epochs or more,
    ``augment`` light for single-channel images and standard for others, ``precision`` bf16 where the processor
    computes with it, ``threads`` one for little work and otherwise one per core (sums are taken in another order, so
    it belongs here). ``network`` changes values of the zoo's config, such as ``{"bypass": "none"}``;
    ``start`` names weights to begin with, whose head is replaced where the classes are others.

    ``iterations`` are steps, instead of whole epochs, ``images_per_class`` images of each class are drawn by seed
    to train on, instead of all. A step takes ``batch_size`` images, computed in ``accumulation`` parts. With the
    ``optimizer`` muon, kernels before a batch norm learn at ``muon_rate`` where all else learns at
    ``learning_rate``. ``learn`` says which layers do: all, the head alone, or so many of the last blocks; with
    ``layer_decay`` each block learns at so many times the rate of the one above. ``ema`` is the decay of the
    average of the weights that is kept in their place, ``mixup`` and ``cutmix`` the alphas of their Beta
    distributions, 0 for none of them. ``snapshots`` is a number of cycles (Snapshot Ensembles), ``freezeout`` how
    layers stop learning one after the other (FreezeOut), the first after the share ``freeze_first`` of all steps,
    squared or cubed where it says so, with rates that are ``freeze_scaled`` to the layer's time or not; both set
    the rates in place of ``schedule``. ``teachers`` are runs or checkpoints whose mean answer is learned, at
    ``temperature``, for the share ``teacher_share`` of the loss. Validation comes every ``validate_every``
    epochs, and after the last. Raises ``UsageError``.
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
        check_kinds(self)
        if isinstance(self.learn, int) and self.learn < 1:
            raise UsageError(f"learn {self.learn} is neither 'all' nor 'head' nor a number of blocks")
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
                raise UsageError(f"{name} {getattr(self, name)} is below {_LEAST_ALPHA}; give 0 for none")
        for name in ("model", "data", "start"):
            if getattr(self, name) == "":
                raise UsageError(f"{name} is empty; name one, or leave it out")
        for name in ("layer_decay", "freeze_first"):
            if getattr(self, name) > 1:
                raise UsageError(f"{name} {getattr(self, name)} is above 1; it is a share, in (0, 1]")

    def _check_together(self) -> None:
        if self.batch_size % self.accumulation:
            raise UsageError(f"batch_size {self.batch_size} cannot be computed in {self.accumulation} equal parts")
        if self.snapshots and self.freezeout:
            raise UsageError("snapshots and freezeout both set the rates; choose one")
        anneals = "snapshots" if self.snapshots else "freezeout" if self.freezeout else ""
        if anneals and self.warmup_epochs:
            raise UsageError(f"{anneals} begins at the full rate; leave out the warm-up of {self.warmup_epochs} epochs")
        if anneals and (self.schedule, self.power) != ("cosine", 1.0):
            raise UsageError(f"{anneals} sets the rates; leave out the {self.schedule} schedule and its power")
        if (self.nesterov or self.optimizer == "muon") and not self.momentum:
            name = "nesterov" if self.nesterov else "muon"
            raise UsageError(f"{name} says how momentum is used, and momentum is 0; give one, or leave out {name}")
        for name in sorted(self.network.keys() & {"num_classes", "in_channels", "input_size"}):
            raise UsageError(f"the network's {name} follows from the images and from input_size; leave it out")
        if self.learn != "all" and self.start is None:
            raise UsageError(f"learn {self.learn!r} keeps the weights below as they began, at random; name a start")
        if self.learn == "head":
            self._check_codes()

    def _check_codes(self) -> None:
        learns = "the head learns from codes that are computed once"
        if self.augment not in (None, "none"):
            raise UsageError(f"{learns}, without augment {self.augment!r}; leave it out, or have a block learn, too")
        if self.teachers:
            raise UsageError(f"{learns}, and teachers see images; leave them out, or have a block learn, too")
        if self.freezeout:
            raise UsageError("freezeout has nothing to freeze below the head; leave it out, or have a block learn, too")

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingConfig":
        """The inverse of ``to_json``. Raises ``CheckpointError``."""
        try:
            known = {field.name for field in fields(cls)}
            if unknown := sorted(set(values) - known):
                raise UsageError(f"it has an unknown key {unknown[0]!r}; update firebox if a newer one wrote it")
            # Older checkpoints know nothing of what has been added since; the oldest knew these.
            if missing := {"model", "data"} - set(values):
                raise UsageError(f"it does not say its {min(missing)}")
            return cls(**with_tuples(values))
        except (TypeError, UsageError) as error:
            raise CheckpointError(f"the training config of the checkpoint cannot be read: {error}") from error
