"""The result of a training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..weights.checkpoint import FILE_NAME
from .freezeout import measured_saving
from .learner import Learner
from .log import LogRow
from .run import snapshot_file


@dataclass(frozen=True)
class TrainingResult:
    """Final metrics and files of a training; accuracies are shares of 1, int8 accuracies if ``quantized``.

    ``seconds`` is the duration of all its steps, ``snapshots`` the files of a snapshot ensemble. With FreezeOut,
    ``predicted_saving`` is a share of the arithmetic and ``measured_saving`` a share of the time, compared with the
    epochs before the first layer was frozen (``None`` if there are none).
    """

    out: Path
    checkpoint: Path
    model: str
    parameters: int
    train_images: int
    val_images: int
    epochs: int
    steps: int
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float
    quantized: bool
    snapshots: tuple[Path, ...] = ()
    predicted_saving: float | None = None
    measured_saving: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        paths = {"out": str(self.out), "checkpoint": str(self.checkpoint), "snapshots": [*map(str, self.snapshots)]}
        return asdict(self) | paths


def training_result(folder: Path, learner: Learner, rows: Sequence[LogRow]) -> TrainingResult:
    """The result of a finished training in ``folder``."""
    checkpoint = learner.start
    last, predicted, measured = rows[-1], None, None
    if freezeout := learner.freezeout:
        predicted = freezeout.predicted(learner.module, (checkpoint.config.in_channels, *checkpoint.config.input_size))
        measured = measured_saving(rows, min(freezeout.times.values()) * learner.state.total_steps)
    return TrainingResult(
        out=folder,
        checkpoint=folder / FILE_NAME,
        model=checkpoint.model,
        parameters=checkpoint.config.parameters,
        train_images=checkpoint.images[0],
        val_images=checkpoint.images[1],
        epochs=last.epoch,
        steps=last.step,
        train_loss=last.train_loss,
        train_accuracy=last.train_accuracy,
        val_accuracy=last.val_accuracy,
        seconds=sum(row.seconds for row in rows),
        quantized=bool(checkpoint.ranges),
        snapshots=tuple(snapshot_file(folder, number + 1) for number in range(learner.config.snapshots)),
        predicted_saving=predicted,
        measured_saving=measured,
    )
