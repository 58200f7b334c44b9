"""Hardware of a training: devices and memory, and the processes that ``torchrun`` starts to train together."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ...runtime.errors import TrainingError, UsageError

# Keep the group alive: if DDP's reducer held the last reference, torch would join gloo's threads while holding the GIL
# and deadlock. Clearing the list releases the group without the GIL.
_finished: list[Any] = []
atexit.register(_finished.clear)


@dataclass(frozen=True)
class Resources:
    """Device, memory and decoders of a training.

    ``device`` is auto, cpu or cuda; their results differ by rounding. Decoded images are kept in memory up to
    ``memory_bytes``, and ``workers`` decode them (by default one per core).
    """

    device: str = "auto"
    memory_bytes: int = 2 * 1024**3
    workers: int | None = None

    def torch_device(self) -> torch.device:
        """The torch device. Raises ``UsageError`` if it is unknown or unavailable."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"unknown device {self.device!r}; use auto, cpu or cuda")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device cuda is not available; use --device cpu")
        return torch.device(self.device)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training; only the leader, rank 0, writes files and reports progress."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """True for the process that writes files and reports progress."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's part of a batch of indices."""
        return batch[self.rank :: self.size]

    def mean(self, value: float) -> float:
        """The mean of a value over all processes, the same in each."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item() / self.size

    def broadcast(self, value: Any) -> Any:
        """The leader's value, in all processes; a barrier."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def check_equal(self, value: Callable[[], Any], description: str) -> None:
        """Wait for all processes. Raises ``UsageError`` in each of them if their values differ."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value())
        if any(other != values[0] for other in values):
            raise UsageError(f"the processes would train different networks; give all of them the same {description}")

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes; unchanged for a single process."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module)


def is_leader() -> bool:
    """True for the process that reports for all processes of ``torchrun``, and without torchrun."""
    return _environment("WORLD_SIZE", 1) == 1 or _environment("RANK", 0) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The processes that ``torchrun`` started; without torchrun, this process alone.

    Each process uses its own GPU if ``device`` is one. A group that the caller has initialized is used and left open.
    Raises ``TrainingError`` if initialization fails or another process exits.
    """
    if distributed.is_available() and distributed.is_initialized():
        with _lost_process_reported():
            yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    elif _environment("WORLD_SIZE", 1) == 1:
        yield ProcessGroup()
    else:
        _initialize(device)
        try:
            with _lost_process_reported():
                yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
        finally:
            _finished[:] = [distributed.group.WORLD]
            distributed.destroy_process_group()


def _initialize(device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        # nccl reduces the gradients; gloo exchanges objects and scalars.
        backend = "cpu:gloo,cuda:nccl"
        local, gpus = _environment("LOCAL_RANK", 0), torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(
                f"process {local} has no GPU of its own: this machine has {gpus}; start at most {gpus} processes"
            )
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process group initialization failed: {error}; check the addresses and ports that torchrun was given"
        ) from error


@contextmanager
def _lost_process_reported() -> Iterator[None]:
    """Replace the backend's traceback for a lost connection by one line."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            raise
        raise TrainingError("another training process exited; see its output for the cause") from error


def _environment(name: str, default: int) -> int:
    """An integer that ``torchrun`` passes to its processes."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} {text!r} in the environment is not an integer; unset it, torchrun sets it")
    return int(text)
