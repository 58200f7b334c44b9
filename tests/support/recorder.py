"""A progress that tests can look at."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from firebox.runtime.progress import Advance, Progress


class Recorder(Progress):
    """Counts the steps of each task and keeps the notes."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        def advance(steps: int = 1, text: str = "") -> None:
            self.steps[description] += steps

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)
