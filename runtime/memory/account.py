"""An account of memory: lines of bytes that were planned, measured or are unknown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["planned", "measured", "unknown"]


@dataclass(frozen=True)
class MemoryLine:
    """One line of an account of memory: bytes, and whether they were planned, measured or are unknown."""

    name: str
    nbytes: int | None
    source: Source


def memory_json(lines: Sequence[MemoryLine]) -> dict[str, Any]:
    """An account as JSON values."""
    return {line.name: {"bytes": line.nbytes, "source": line.source} for line in lines}
