"""Learning rates as a function of the step."""

import math
from typing import Literal

Schedule = Literal["cosine", "polynomial"]


def learning_rate(
    step: int, total: int, base: float, schedule: Schedule, *, warmup: int = 0, power: float = 1.0
) -> float:
    """The rate of step ``step`` (from 0) of ``total``.

    It rises linearly to ``base`` over the first ``warmup`` steps, then falls to 0: as half a cosine
    (Loshchilov and Hutter, arXiv 1608.03983) or as ``(1 - t) ** power``, of which the SqueezeNet
    authors used the linear one.
    """
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    done = (step - warmup) / (total - warmup)
    if schedule == "cosine":
        return base * (1 + math.cos(math.pi * done)) / 2
    return base * (1 - done) ** power
