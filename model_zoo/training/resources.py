"""Where a training runs."""

from dataclasses import dataclass

import torch

from ...runtime.errors import UsageError


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
