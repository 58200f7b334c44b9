"""One network judged on many devices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..formats.read import read_placed
from .devices import Device
from .plan import MemoryPlan, plan
from .targets import TARGETS, TFLM
from .verdict import Verdict

# Targets that a microcontroller can run: the interpreter, and compiled C code.
_JUDGED = (TFLM.name, "c")


@dataclass(frozen=True)
class Judgement:
    """The verdict on a device with a target; ``None`` with the ``reason`` if the target's memory cannot be planned."""

    device: Device
    target: str
    verdict: Verdict | None
    reason: str = ""

    @property
    def fits(self) -> bool | None:
        """As in the verdict; ``None`` without one."""
        return self.verdict.fits if self.verdict else None

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
        return {
            "device": self.device.id,
            "target": self.target,
            "fits": self.fits,
            "reason": self.reason,
            "verdict": self.verdict.to_json() if self.verdict else None,
        }


def judging_targets() -> tuple[str, ...]:
    """The targets by which devices are judged unless others are named: tflite-micro, and ``c`` if it is registered."""
    return tuple(name for name in _JUDGED if name in TARGETS)


def judge(
    model: str | Path | bytes, devices: Iterable[Device], targets: Sequence[str] | None = None
) -> tuple[Judgement, ...]:
    """Judge a file (path or bytes) on the budget of each device, for each target (default: ``judging_targets``).

    Raises ``UsageError`` for an unknown target, and ``FormatError`` or ``UnsupportedError`` for a file that cannot be
    read.
    """
    # A file that cannot be read is no property of a target.
    read_placed(model)
    plans = {target: _planned(model, target) for target in targets or judging_targets()}
    return tuple(_judged(device, target, found) for device in devices for target, found in plans.items())


def overall_exit_code(judgements: Iterable[Judgement]) -> int:
    """0 if the network fits at least one device, 3 if it fits none, 4 if it is undecided on some and fits none."""
    found = {judgement.fits for judgement in judgements}
    if True in found:
        return 0
    return 4 if None in found else 3


def _planned(model: str | Path | bytes, target: str) -> MemoryPlan | UnsupportedError:
    try:
        return plan(model, target)
    except UnsupportedError as error:
        return error


def _judged(device: Device, target: str, found: MemoryPlan | UnsupportedError) -> Judgement:
    if isinstance(found, UnsupportedError):
        return Judgement(device, target, None, str(found))
    return Judgement(device, target, found.verdict(device.budget))
