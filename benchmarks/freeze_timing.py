"""How much time FreezeOut saves: steps of every phase of its schedule, timed in turns."""

import time
from dataclasses import replace

import numpy as np
import torch
from firebox.model_zoo import FreezeOut
from firebox.model_zoo.callbacks import call
from firebox.model_zoo.checkpoint import Checkpoint
from firebox.model_zoo.distributed import Workers
from firebox.model_zoo.freezeout import macs_of, predicted_saving
from firebox.model_zoo.learner import Learner

_ROUNDS = 5
_EPOCH_STEPS = 1000


def measure_saving(checkpoint: Checkpoint) -> dict[str, float]:
    """The shares of arithmetic (``predicted``) and of time (``measured``) that the schedule of a finished run saves.

    In each round a step is timed with as many layers frozen as each phase of the schedule freezes; the ratio of
    each to the round's own step without freezing counts with the length of its phase, and rounds by their median.
    """
    torch.set_num_threads(1)
    start = replace(checkpoint, epoch=0, step=0, optimizer={}, callbacks={})
    config = checkpoint.config
    size = (config.in_channels, *config.input_size)
    batch = int(checkpoint.training["batch_size"])
    pixels = torch.randint(256, (batch, *size), dtype=torch.uint8)
    labels = torch.randint(config.num_classes, (batch,))
    first = _learner(start, 0.0)
    freezeout = next(each for each in first.callbacks if isinstance(each, FreezeOut))
    ends = [*freezeout.times.values()]
    begins = [0.0, *ends[:-1]]
    lengths = np.diff([*begins, 1.0])
    learners = [first, *(_learner(start, begin) for begin in begins[1:])]
    times = np.array([[_timed(each, pixels, labels) for each in learners] for _ in range(_ROUNDS + 1)])[1:]
    ratios = np.median(times / times[:, :1], axis=0)
    return {
        "predicted": predicted_saving(macs_of(first.module, size), ends),
        "measured": float(((1 - ratios) * lengths).sum()),
    }


def _learner(start: Checkpoint, begin: float) -> Learner:
    """A training at a share of its steps, with the layers frozen whose time has come."""
    learner = Learner(start, torch.device("cpu"), _EPOCH_STEPS, Workers())
    learner.loop.step = int(np.ceil(begin * learner.loop.total_steps))
    call(learner.callbacks, "after_step", learner.loop)
    return learner


def _timed(learner: Learner, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of a step, at the same place of the schedule each time."""
    place, begin = learner.loop.step, time.perf_counter()
    learner.step(pixels, labels)
    learner.loop.step = place
    return time.perf_counter() - begin
