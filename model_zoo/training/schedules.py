"""Learning rates as functions of the step."""

import math

from ...runtime.errors import UsageError
from ..training_config import Schedule


def learning_rate(
    step: int, total: int, base: float, schedule: Schedule, *, warmup: int = 0, power: float = 1.0
) -> float:
    """The learning rate of step ``step`` (from 0) of ``total``.

    It rises linearly to ``base`` over the first ``warmup`` steps, then falls to 0: ``cosine`` along half a cosine
    (Loshchilov and Hutter, arXiv 1608.03983), ``polynomial`` as ``(1 - t) ** power``. The authors of SqueezeNet used a
    power of 1.
    """
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    done = (step - warmup) / (total - warmup)
    if schedule == "cosine":
        return base * half_cosine(done)
    return base * (1 - done) ** power


def half_cosine(position: float, end: float = 1.0) -> float:
    """Half a cosine that falls from 1 at 0 to 0 at ``end``."""
    return (1 + math.cos(math.pi * position / end)) / 2


def cyclic_cosine(step: int, total: int, cycles: int, base: float) -> float:
    """The learning rate of step ``step`` (from 0) of ``total``: half a cosine from ``base`` to 0 in each cycle.

    Huang et al., arXiv 1704.00109, equation 2, where steps count from 1.
    """
    cycle = math.ceil(total / cycles)
    return base * half_cosine(step % cycle, cycle)


def check_cycles(total: int, cycles: int) -> int:
    """The number of steps in each cycle. Raises ``UsageError`` unless ``cycles`` divides ``total``."""
    if not 1 <= cycles <= total:
        raise UsageError(f"{cycles} snapshots do not fit into {total} steps; use 1 to {total}")
    if total % cycles:
        fewer = total - total % cycles
        raise UsageError(
            f"{total} steps cannot be divided into {cycles} cycles; train {fewer or cycles} or {fewer + cycles} steps, "
            "or a whole number of epochs per cycle"
        )
    return total // cycles
