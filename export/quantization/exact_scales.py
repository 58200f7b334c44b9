"""Scales in ratios of whole numbers, so that no sum or mean lies in the middle between two integers.

An addition gives ``(ka * a + kb * b) / kc`` steps of its output when the scales are ``ka``, ``kb`` and ``kc`` times one
unit, and a mean of ``n`` values ``k * sum / (n * kc)``. Such a fraction is a half only if its denominator is even: with
an odd one, once common factors of two are gone, no runtime has to decide, and all agree
(``runtime/exactness/rounding.py``). Scales move by at most 3 %, those of sums by less than 0.1 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...runtime.exactness.rounding import ADD_MARGIN, MEAN_MARGIN
from ...runtime.graph import Graph, ops

# The largest odd denominators that keep results this far from a middle, with room to spare.
_ADD_DENOMINATOR = int(0.45 / ADD_MARGIN)
_MEAN_DENOMINATOR = int(0.35 / MEAN_MARGIN)
# A scale that would have to move further keeps its value, and the operation its promise of one step.
_LARGEST_MOVE = 0.03
_SHIFTS = np.linspace(-0.02, 0.02, 9)
_MOST = 2**20
# Ratios of float32 scales are as near as this to the fractions that they stand for.
_FLOAT32 = 2e-7


@dataclass(frozen=True)
class _Sum:
    """One operation: the groups that it takes, the group that it gives, and of a mean how many values it has."""

    inputs: tuple[str, ...]
    output: str
    count: int = 1

    @property
    def twos(self) -> int:
        """How often ``count`` can be halved."""
        return (self.count & -self.count).bit_length() - 1

    @property
    def limit(self) -> int:
        """The largest odd part of the output's multiple."""
        if self.count == 1:
            return _ADD_DENOMINATOR
        return max(1, _MEAN_DENOMINATOR // (self.count >> self.twos))


@dataclass
class _Family:
    """Groups of scales whose ratios must be exact."""

    sums: list[_Sum] = field(default_factory=list)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.sums for name in (*one.inputs, one.output)))

    def twos(self) -> dict[str, int] | None:
        """How many factors of two each group needs at least; ``None`` where a circle of means asks for ever more."""
        found = dict.fromkeys(self.groups, 0)
        for _ in range(len(found) + 1):
            before = dict(found)
            for one in self.sums:
                for name in one.inputs:
                    found[name] = max(found[name], found[one.output] + one.twos)
            if found == before:
                return found
        return None


def exact_scales(graph: Graph, groups: Mapping[str, str], scales: Mapping[str, float]) -> dict[str, float]:
    """The scales (by group, float32) moved to exact ratios wherever operations add or average.

    ``groups`` names each activation's group; groups without a scale are fixed, and what is exact already stays.
    """
    found = dict(scales)
    for family in _families(graph, groups):
        if set(family.groups) <= set(scales) and not _is_exact(family, found):
            moved = _solved(family, found) or _solved(_without_means(family), found)
            found |= moved or {}
    return found


def _families(graph: Graph, groups: Mapping[str, str]) -> list[_Family]:
    sums = []
    for op in graph.ops:
        if isinstance(op, ops.Add):
            sums.append(_Sum(tuple(groups[name] for name in op.inputs), groups[op.output]))
        elif isinstance(op, ops.GlobalAveragePool):
            _, rows, columns, _ = graph.tensors[op.inputs[0]].shape
            sums.append(_Sum((groups[op.inputs[0]],), groups[op.output], rows * columns))
    families: list[_Family] = []
    for one in sums:
        mine = [family for family in families if {*one.inputs, one.output} & set(family.groups)]
        families = [family for family in families if family not in mine]
        families.append(_Family([*(other for family in mine for other in family.sums), one]))
    return families


def _without_means(family: _Family) -> _Family:
    return _Family([one for one in family.sums if one.count == 1])


def _is_exact(family: _Family, scales: Mapping[str, float]) -> bool:
    """Whether these scales are multiples of one unit already, as they are after this module chose them."""
    twos = family.twos()
    return twos is not None and _nearest(family, twos, scales, np.zeros(1))[0] < _FLOAT32


def _solved(family: _Family, scales: Mapping[str, float]) -> dict[str, float] | None:
    """The nearest exact scales, or ``None`` where they are too far."""
    twos = family.twos()
    if not family.sums or twos is None:
        return None
    error, best = _nearest(family, twos, scales, _SHIFTS)
    return best if error <= _LARGEST_MOVE else None


def _nearest(
    family: _Family, twos: Mapping[str, int], scales: Mapping[str, float], shifts: np.ndarray
) -> tuple[float, dict[str, float]]:
    """The exact scales of which the one that moves most moves least, and by what share it does."""
    names = list(twos)
    limits = np.array([min((s.limit for s in family.sums if s.output == name), default=_MOST) for name in names])
    wanted, powers = np.array([scales[name] for name in names]), 2.0 ** np.array([twos[name] for name in names])
    must_be_odd = limits < _MOST
    # The output with the smallest denominator has each odd multiple in turn, of a scale moved this way or that.
    anchor = int(np.argmin(limits))
    odd = np.arange(1, limits[anchor] + 1, 2)
    units = (wanted[anchor] * (1 + shifts[:, None]) / (powers[anchor] * odd)).reshape(-1, 1)
    parts = wanted / (units * powers)
    whole = np.where(must_be_odd, 2 * np.rint((parts - 1) / 2) + 1, np.rint(parts))
    whole = np.clip(whole, 1, limits - (limits % 2 == 0) * must_be_odd)
    found = (units * whole * powers).astype(np.float32)
    moves = np.abs(found / wanted - 1).max(axis=1)
    best = int(np.argmin(moves))
    return float(moves[best]), dict(zip(names, map(float, found[best]), strict=True))
