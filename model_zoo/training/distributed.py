"""Several processes that train one network together, as ``torchrun`` starts them."""

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

# The last group that has ended. Were it for the reducer of DistributedDataParallel to let go of it last, torch would
# wait for the threads of gloo with the interpreter's lock in hand, which such a thread may need to come to its end:
# neither goes on. From here torch lets go of it without the lock.
_ended: list[Any] = []
atexit.register(_ended.clear)


@dataclass(frozen=True)
class Workers:
    """The processes of a training: this one is ``rank`` of ``count``; number 0 leads, and alone writes and speaks."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch of indices."""
        return batch[self.rank :: self.count]

    def mean(self, value: float) -> float:
        """The mean over all processes; each gets the same."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item() / self.count

    def same(self, value: Any) -> Any:
        """What the leading process has, in all of them; the others wait for it here."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def agree(self, value: Callable[[], Any], what: str) -> None:
        """Wait for all processes. Raises ``UsageError`` in all of them where one has another value of ``what``."""
        if self.count == 1:
            return
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value())
        if any(other != values[0] for other in values):
            raise UsageError(f"the processes do not train the same: {what} must be the same for all of them")

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes, or as it is where there is only one."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module)


def is_leader() -> bool:
    """Whether this process speaks for all that ``torchrun`` started; alone it does."""
    return _environment("WORLD_SIZE", 1) == 1 or _environment("RANK", 0) == 0


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """The processes that ``torchrun`` started beside this one; without it, this one alone.

    Each takes a GPU of its own where ``device`` is one. A group that the caller has already made is used and left as it
    is. Raises ``TrainingError`` when the processes do not find each other, or when another one has ended.
    """
    if distributed.is_available() and distributed.is_initialized():
        with _told_of_others():
            yield Workers(distributed.get_rank(), distributed.get_world_size())
    elif _environment("WORLD_SIZE", 1) == 1:
        yield Workers()
    else:
        _begin_group(device)
        try:
            with _told_of_others():
                yield Workers(distributed.get_rank(), distributed.get_world_size())
        finally:
            _ended[:] = [distributed.group.WORLD]
            distributed.destroy_process_group()


def _begin_group(device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        # gloo carries the objects and figures that are exchanged beside the gradients, nccl the gradients.
        backend = "cpu:gloo,cuda:nccl"
        local, gpus = _environment("LOCAL_RANK", 0), torch.cuda.device_count()
        if local >= gpus:
            raise UsageError(f"process {local} of this machine has no GPU of its own, of {gpus}; start fewer")
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes of torchrun do not find each other: {error}") from error


@contextmanager
def _told_of_others() -> Iterator[None]:
    """One line where the connection to another process is gone, instead of the traceback of the backend."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            raise
        raise TrainingError("another process of the training has ended; what it said tells why") from error


def _environment(name: str, default: int) -> int:
    """A number that ``torchrun`` gives its processes."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} {text!r} in the environment is no number; leave it to torchrun")
    return int(text)


@dataclass(frozen=True)
class Resources:
    """Where a training runs, and with how much memory.

    ``device`` is auto, cpu or cuda, which round in other ways; decoded images up to ``memory_bytes`` are kept;
    ``workers`` decode them.
    """

    device: str = "auto"
    memory_bytes: int = 2 * 1024**3
    workers: int | None = None

    def torch_device(self) -> torch.device:
        """The torch device. Raises ``UsageError`` for one that is not there."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device {self.device!r} is not one of auto, cpu, cuda")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device cuda is not available; use --device cpu")
        return torch.device(self.device)
