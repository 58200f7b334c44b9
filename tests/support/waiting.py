"""Waiting for events that tests depend on, with limits that hold on a busy machine."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firebox.model_zoo.weights import Checkpoint

# Seconds after which a test gives up; no test should take this long.
CEILING = 600
# Code that keeps the periodic lines of progress off a process's stderr.
QUIET = "from firebox.runtime.commands import console; console._LOG_INTERVAL = float('inf')"


def wait_until(happened: Callable[[], bool], what: str, running: Callable[[], bool] = lambda: True) -> None:
    """Return once ``happened``; fail if ``running`` is false before that, or after the ceiling."""
    end = time.monotonic() + CEILING
    while not happened():
        alive = running()
        # The event may have happened just before the end.
        assert happened() or (alive and time.monotonic() < end), f"did not happen: {what}"
        time.sleep(0.01)


def hold_after(epoch: int) -> None:
    """In this process, make trainings wait after an epoch until a signal stops or kills them.

    A signal still arrives at an arbitrary moment before that, and a busy machine cannot send it too late.
    """
    from firebox.model_zoo.training.run import Run

    write = Run.write

    def hold(run: Run, checkpoint: "Checkpoint", *rows, **last) -> None:
        write(run, checkpoint, *rows, **last)
        while checkpoint.epoch >= epoch:
            time.sleep(0.01)

    Run.write = hold


def held_after(epoch: int, work: Callable[..., object], *arguments: object) -> None:
    """Run a training, in a process of its own, that only a signal can end."""
    hold_after(epoch)
    work(*arguments)


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Assert that the block takes less processor time of this thread; other load does not count."""
    start = time.thread_time()
    yield
    assert time.thread_time() - start < seconds
