"""The log of a training: one row per epoch, kept as ``log.csv``."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

LOG = "log.csv"


@dataclass(frozen=True)
class LogRow:
    """One epoch: its last step and learning rate, mean loss, accuracies, and the duration of its steps.

    ``train_accuracy`` is measured while training, on augmented images (for mixed images, the class with the larger
    share counts). ``val_accuracy`` is measured after the epoch; it is NaN in epochs without validation.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float


def read_log(folder: Path, last_epoch: int) -> list[LogRow]:
    """The rows of a run's log up to ``last_epoch``; stops at the first line that cannot be parsed."""
    try:
        lines = (folder / LOG).read_text().splitlines()[1:]
    except (OSError, ValueError):
        return []
    rows: list[LogRow] = []
    for line in lines:
        try:
            epoch, step, *numbers = line.split(",")
            row = LogRow(int(epoch), int(step), *map(float, numbers))
        except (ValueError, TypeError):
            break
        if row.epoch <= last_epoch:
            rows.append(row)
    return rows


def to_csv(rows: Sequence[LogRow]) -> str:
    """The text of a log: a header and one line per epoch."""
    header = ",".join(field.name for field in fields(LogRow))
    lines = (
        ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in astuple(row)) for row in rows
    )
    return "\n".join([header, *lines]) + "\n"
