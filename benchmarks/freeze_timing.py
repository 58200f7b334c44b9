"""Time saved by FreezeOut: steps with frozen layers, timed in alternation with steps without."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from firebox.model_zoo.training.distributed import ProcessGroup
from firebox.model_zoo.training.learner import Learner
from firebox.model_zoo.weights import Checkpoint

_ROUNDS = 5
_EPOCH_STEPS = 1000


def measure_saving(checkpoint: Checkpoint) -> dict[str, float]:
    """The shares of arithmetic (``predicted``) and of time (``measured``) that the schedule of a finished run saves.

    Each round times a step for every phase of the schedule, with the layers frozen in that phase, relative to the
    round's step without freezing. Phases are weighted by their length; the median over rounds counts.
    """
    first = _learner(checkpoint, 0.0)
    freezeout = first.freezeout
    assert freezeout is not None
    begins = [0.0, *[*freezeout.times.values()][:-1]]
    lengths = np.diff([*begins, 1.0])
    ratios = _in_turns([first, *(_learner(checkpoint, begin) for begin in begins[1:])], _ROUNDS)
    return {
        "predicted": freezeout.predicted(first.module, (checkpoint.config.in_channels, *checkpoint.config.input_size)),
        "measured": float(((1 - ratios) * lengths).sum()),
    }


def measure_step(checkpoint: Checkpoint, compiled: bool) -> float:
    """The share of a step's time saved by freezing the first half of the layers."""
    checkpoint = replace(checkpoint, training=replace(checkpoint.training, compile=compiled))
    first = _learner(checkpoint, 0.0)
    assert first.freezeout is not None
    ends = [*first.freezeout.times.values()]
    return float(1 - _in_turns([first, _learner(checkpoint, ends[len(ends) // 2 - 1])], 4 * _ROUNDS)[1])


def _in_turns(learners: Sequence[Learner], rounds: int) -> np.ndarray:
    """The step time of each learner relative to the first one's, as the median over rounds."""
    torch.set_num_threads(1)
    start = learners[0].start
    pixels = torch.randint(256, (start.training.batch_size, 3, *start.config.input_size), dtype=torch.uint8)
    labels = torch.randint(start.config.num_classes, (len(pixels),))
    # Two rounds of warm-up: the first may compile, and a learner that compiles can make others compile again.
    times = np.array([[_timed(each, pixels, labels) for each in learners] for _ in range(rounds + 2)])[2:]
    return np.median(times / times[:, :1], axis=0)


def _learner(checkpoint: Checkpoint, begin: float) -> Learner:
    """A learner at a share of its steps, with the layers frozen that the schedule has frozen by then."""
    start = replace(checkpoint, epoch=0, step=0, optimizer={}, callbacks={})
    learner = Learner(start, torch.device("cpu"), _EPOCH_STEPS, ProcessGroup())
    learner.state.step = int(np.ceil(begin * learner.state.total_steps))
    learner.callbacks.after_step(learner.state)
    return learner


def _timed(learner: Learner, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """The time of one step, in seconds; the position in the schedule stays the same."""
    place, begin = learner.state.step, time.perf_counter()
    learner.step(pixels, labels)
    learner.state.step = place
    return time.perf_counter() - begin
