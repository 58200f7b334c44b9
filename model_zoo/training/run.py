"""The folder of a training: ``config.json`` to read, ``log.csv`` and ``curves.png`` to look at, the checkpoint.

Beside them ``tensorboard/`` has the log for TensorBoard, ``snapshots/`` those of a snapshot ensemble.
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

# Seconds between drawings of the curves: short epochs would take less time than their image.
_REDRAW_SECONDS = 10.0


@dataclass
class Run:
    """The folder of a training, with the ``command`` that began it and the number of its ``processes``."""

    folder: Path
    command: str = ""
    processes: int = 1
    _drawn: float = 0.0

    def tidy(self) -> None:
        """Remove what writing that was killed has left."""
        for folder in (self.folder, self.folder / SNAPSHOTS):
            remove_unfinished(folder)

    def begun_by(self) -> int | None:
        """The number of processes that began the run, as far as that can be read."""
        try:
            return int(json.loads((self.folder / CONFIG).read_text())["processes"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @property
    def is_new(self) -> bool:
        """Whether the folder holds no checkpoint yet."""
        return not (self.folder / FILE_NAME).exists()

    def begin(self, checkpoint: Checkpoint) -> None:
        """Write what the training is, and its state before the first step. Raises ``WriteError``."""
        summary = json.dumps(self._summary(checkpoint), indent=2) + "\n"
        write_files(self.folder, {LOG: to_csv([]), CONFIG: summary, FILE_NAME: pack_checkpoint(checkpoint)})

    def write(self, checkpoint: Checkpoint, rows: Sequence[LogRow], last: bool = False) -> None:
        """Write the state of a training after an epoch, whole or not at all. Raises ``WriteError``."""
        # The checkpoint comes last: a log that is an epoch ahead is cut when the run is resumed.
        files: dict[str, bytes | str] = {LOG: to_csv(rows)}
        if last or time.monotonic() - self._drawn > _REDRAW_SECONDS:
            files[CURVES] = draw_curves(rows, checkpoint.model)
            self._drawn = time.monotonic()
        files[FILE_NAME] = pack_checkpoint(checkpoint)
        write_files(self.folder, files)

    @contextmanager
    def scalars(self, epoch: int, wanted: bool = True) -> Iterator[Callable[[LogRow], None]]:
        """Yields what takes each row for TensorBoard, from ``epoch`` on; rows of a run that was stopped are dropped."""
        if not wanted:
            yield lambda row: None
            return
        _wait_for_a_later_name(self.folder / _TENSORBOARD)
        with SummaryWriter(str(self.folder / _TENSORBOARD), purge_step=epoch + 1) as writer:

            def tell(row: LogRow) -> None:
                for name, value in asdict(row).items():
                    if name != "epoch" and not math.isnan(value):
                        writer.add_scalar(name, value, row.epoch)
                writer.flush()

            yield tell

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
    """TensorBoard reads files by name: by the second in which they were begun, and then by the process's number."""
    while any(folder.glob(f"*.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a run's folder. Raises ``UsageError`` if one is in it."""
    # Not within the folder, which is left as it was where a training cannot begin.
    digest = sha256(str(folder.resolve()).encode())[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"firebox-{digest}.lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise UsageError(f"another process is training in {folder}; wait for it, or choose another folder") from error


def check_unused(folder: Path) -> None:
    """Raise ``UsageError`` if the folder already belongs to a training, or has files of the same names."""
    if (folder / FILE_NAME).exists():
        raise UsageError(
            f"{folder} already holds a run ({FILE_NAME}); go on with --resume {folder} or choose another --out"
        )
    for name in (*RUN_FILES, SNAPSHOTS):
        if (folder / name).exists():
            raise UsageError(f"{folder} has a {name}, but no run to go on with; remove it or choose another --out")


def snapshot_file(folder: Path, number: int) -> Path:
    """The file of a run's snapshot; the first number is 1."""
    return folder / SNAPSHOTS / f"snapshot{number}.safetensors"


def remove_run(folder: Path) -> None:
    """Remove everything of a training from its folder, and nothing else."""
    for name in (*RUN_FILES, CURVES):
        (folder / name).unlink(missing_ok=True)
    for name in (_TENSORBOARD, SNAPSHOTS):
        shutil.rmtree(folder / name, ignore_errors=True)
