"""The folder of a training: ``config.json`` to read, ``log.csv`` to plot, the checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ..runtime.errors import UsageError
from ..runtime.files import write_files
from .checkpoint import FILE_NAME, Checkpoint, pack_checkpoint

_CONFIG, _LOG = "config.json", "log.csv"
RUN_FILES = (FILE_NAME, _CONFIG, _LOG)


@dataclass(frozen=True)
class LogRow:
    """One epoch: its last step and learning rate, mean loss, shares of right answers, time.

    The training accuracy is counted while learning, on augmented pictures; the validation accuracy
    afterwards.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    seconds: float


def check_unused(folder: Path) -> None:
    """Raise ``UsageError`` if the folder already belongs to a training."""
    for name in RUN_FILES:
        if (folder / name).exists():
            raise UsageError(
                f"{folder} already holds a run ({name}); go on with --resume {folder} or choose another --out"
            )


def write_run(folder: Path, checkpoint: Checkpoint, rows: Sequence[LogRow]) -> None:
    """Write the state of a training whole or not at all. Raises ``WriteError``."""
    header = ",".join(field.name for field in fields(LogRow))
    lines = (
        ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in astuple(row)) for row in rows
    )
    summary = {
        "model": checkpoint.model,
        "config": checkpoint.config.to_json(),
        "preprocessing": checkpoint.preprocessing.to_json(),
        "training": checkpoint.training,
        "origin_sha256": checkpoint.origin_sha256,
        "train_pictures": checkpoint.pictures[0],
        "val_pictures": checkpoint.pictures[1],
        "classes": checkpoint.classes,
    }
    # The checkpoint comes last: a log that is an epoch ahead is cut when the run is resumed.
    files: dict[str, bytes | str] = {
        _CONFIG: json.dumps(summary, indent=2) + "\n",
        _LOG: "\n".join([header, *lines]) + "\n",
        FILE_NAME: pack_checkpoint(checkpoint),
    }
    write_files(folder, files)


def read_log(folder: Path, last_epoch: int) -> list[LogRow]:
    """The rows up to an epoch, as far as the log is there and can be read."""
    try:
        lines = (folder / _LOG).read_text().splitlines()[1:]
    except OSError:
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
