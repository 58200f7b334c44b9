"""The run folder of a training: ``config.json``, ``log.csv``, ``curves.png`` and the checkpoint.

``tensorboard/`` holds the log for TensorBoard, ``snapshots/`` the checkpoints of a snapshot ensemble.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

from ...runtime.errors import UsageError
from ...runtime.files import remove_unfinished, sha256, write_files
from ..weights.checkpoint import FILE_NAME, Checkpoint, pack_checkpoint
from .curves import draw_curves
from .log import LOG, LogRow, to_csv

CONFIG, CURVES, SNAPSHOTS = "config.json", "curves.png", "snapshots"
_TENSORBOARD = "tensorboard"
RUN_FILES = (FILE_NAME, CONFIG, LOG)

# Minimum seconds between two drawings of the curves, which take longer than a short epoch.
_REDRAW_SECONDS = 10.0


@dataclass
class Run:
    """A run folder, with the ``command`` that started it and its number of ``processes``."""

    folder: Path
    command: str = ""
    processes: int = 1
    _drawn: float = 0.0

    def tidy(self) -> None:
        """Remove partial files of a process that was killed."""
        for folder in (self.folder, self.folder / SNAPSHOTS):
            remove_unfinished(folder)

    def initial_processes(self) -> int | None:
        """The number of processes that started the run; ``None`` if ``config.json`` cannot be read."""
        try:
            return int(json.loads((self.folder / CONFIG).read_text())["processes"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @property
    def is_new(self) -> bool:
        """True if the folder has no checkpoint yet."""
        return not (self.folder / FILE_NAME).exists()

    def begin(self, checkpoint: Checkpoint) -> None:
        """Write the config of the training and its state before the first step. Raises ``WriteError``."""
        summary = json.dumps(self._summary(checkpoint), indent=2) + "\n"
        write_files(self.folder, {LOG: to_csv([]), CONFIG: summary, FILE_NAME: pack_checkpoint(checkpoint)})

    def write(self, checkpoint: Checkpoint, rows: Sequence[LogRow], last: bool = False) -> None:
        """Write the state after an epoch, each file completely or not at all. Raises ``WriteError``."""
        # The checkpoint comes last: a resume drops rows of the log that are newer than the checkpoint.
        files: dict[str, bytes | str] = {LOG: to_csv(rows)}
        if last or time.monotonic() - self._drawn > _REDRAW_SECONDS:
            files[CURVES] = draw_curves(rows, checkpoint.model)
            self._drawn = time.monotonic()
        files[FILE_NAME] = pack_checkpoint(checkpoint)
        write_files(self.folder, files)

    @contextmanager
    def tensorboard(self, epoch: int) -> Iterator[Callable[[LogRow], None]]:
        """Yields ``add_scalars(row)``, which logs to TensorBoard; earlier events after ``epoch`` are purged."""
        _wait_for_a_later_name(self.folder / _TENSORBOARD)
        with SummaryWriter(str(self.folder / _TENSORBOARD), purge_step=epoch + 1) as writer:

            def add_scalars(row: LogRow) -> None:
                for name, value in asdict(row).items():
                    if name != "epoch" and not math.isnan(value):
                        writer.add_scalar(name, value, row.epoch)
                writer.flush()

            yield add_scalars

    def _summary(self, checkpoint: Checkpoint) -> dict[str, object]:
        return {
            "command": self.command,
            "processes": self.processes,
            "model": checkpoint.model,
            "config": checkpoint.config.to_json(),
            "preprocessing": checkpoint.preprocessing.to_json(),
            "training": checkpoint.training.to_json(),
            "origin_sha256": checkpoint.origin_sha256,
            "teachers_sha256": checkpoint.teachers_sha256,
            "train_images": checkpoint.images[0],
            "val_images": checkpoint.images[1],
            "classes": checkpoint.classes,
        }


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file sorts last: TensorBoard sorts by name, that is by second, then process id."""
    while any(folder.glob(f"*.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes on this machine. Raises ``UsageError`` if it is locked."""
    # The lock lies outside the folder, because a training that cannot start must leave the folder unchanged.
    digest = sha256(str(folder.resolve()).encode())[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"firebox-{digest}.lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise UsageError(f"another process is training in {folder}; wait for it, or choose another folder") from error


def check_unused(folder: Path) -> None:
    """Raise ``UsageError`` if the folder holds a run, or files that a run would overwrite."""
    if (folder / FILE_NAME).exists():
        raise UsageError(
            f"{folder} already holds a run ({FILE_NAME}); continue it with --resume {folder} or choose another --out"
        )
    for name in (*RUN_FILES, SNAPSHOTS):
        if (folder / name).exists():
            raise UsageError(f"{folder} has a {name} but no checkpoint to resume; remove it or choose another --out")


def snapshot_file(folder: Path, number: int) -> Path:
    """The path of a run's snapshot; numbers start at 1."""
    return folder / SNAPSHOTS / f"snapshot{number}.safetensors"


def remove_run(folder: Path) -> None:
    """Remove the files of a run, and no others, from its folder."""
    for name in (*RUN_FILES, CURVES):
        (folder / name).unlink(missing_ok=True)
    for name in (_TENSORBOARD, SNAPSHOTS):
        shutil.rmtree(folder / name, ignore_errors=True)
