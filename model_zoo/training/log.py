"""What is written down of every epoch of a training."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

LOG = "log.csv"


@dataclass(frozen=True)
class LogRow:
    """One epoch: its last step and learning rate, mean loss, shares of right answers, and the time of its steps.

    The training accuracy is counted while learning, on augmented images (mixed ones by the class that has the larger
    share); the validation accuracy afterwards, and NaN where there was no validation.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float


def read_log(folder: Path, last_epoch: int) -> list[LogRow]:
    """The rows up to an epoch, as far as the log is there and can be read."""
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
    """The text of a log, a header and one line per epoch."""
    header = ",".join(field.name for field in fields(LogRow))
    lines = (
        ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in astuple(row)) for row in rows
    )
    return "\n".join([header, *lines]) + "\n"
