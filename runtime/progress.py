"""Progress of long work: library functions report to a ``Progress``, and their callers decide how to show it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports finished steps of a task, and optionally a short text about the latest one."""

    def __call__(self, steps: int = 1, text: str = "") -> None:
        """Report ``steps`` more steps."""


class Progress:
    """Receives progress and shows nothing; subclasses show it (the commands: as bars on stderr).

    Library functions take one as ``progress`` and pass it on to the functions that they call.
    """

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """One piece of work of ``total`` steps (``None``: unknown); yields ``advance(steps=1, text="")``."""
        yield _ignore

    def note(self, text: str) -> None:
        """One line that the user should see, such as a fallback or a download."""


def _ignore(steps: int = 1, text: str = "") -> None:
    pass


SILENT = Progress()
