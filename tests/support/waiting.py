"""Waiting for what a test needs to have happened, however long that takes on a busy machine."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firebox.model_zoo.weights import Checkpoint

# Seconds after which something will not happen any more; no test is meant to get here.
CEILING = 600
# What keeps lines about progress, of which there is one every few seconds, off the standard error of a process.
QUIET = "from firebox.runtime.commands import console; console._LOG_INTERVAL = float('inf')"


def wait_until(happened: Callable[[], bool], what: str, going_on: Callable[[], bool] = lambda: True) -> None:
    """Return once ``happened``; fail when it cannot any more, as ``going_on`` no longer holds, or after the ceiling."""
    end = time.monotonic() + CEILING
    while not happened():
        alive = going_on()
        # What has just ended may have done it before.
        assert happened() or (alive and time.monotonic() < end), f"in vain: {what}"
        time.sleep(0.01)


def hold_after(epoch: int) -> None:
    """In this process, trainings that have come to the end of an epoch wait there to be stopped or killed.

    A signal that is sent before reaches them wherever they are by then; one that a busy machine sends late is not too
    late.
    """
    from firebox.model_zoo.training.run import Run

    write = Run.write

    def hold(run: Run, checkpoint: "Checkpoint", *rows, **last) -> None:
        write(run, checkpoint, *rows, **last)
        while checkpoint.epoch >= epoch:
            time.sleep(0.01)

    Run.write = hold


def held_after(epoch: int, work: Callable[..., object], *arguments: object) -> None:
    """A training, for a process of its own: it ends by a signal only."""
    hold_after(epoch)
    work(*arguments)


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """What is within takes this thread less; what else the machine does is not counted."""
    start = time.thread_time()
    yield
    assert time.thread_time() - start < seconds
