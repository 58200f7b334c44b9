"""Exact scales: ratios of integers, so that no sum or mean is a tie between two integers.

If scales are ``ka``, ``kb`` and ``kc`` times one unit, an addition gives ``(ka * a + kb * b) / kc`` steps of its output
and a mean of ``n`` values gives ``k * sum / (n * kc)``. Such a fraction is a tie only if its reduced denominator is
even. With an odd denominator every runtime rounds to the same integer (``runtime/exactness/rounding.py``). Scales
change by at most 3 %, those of sums by less than 0.1 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...runtime.exactness.rounding import ADD_MARGIN, MEAN_MARGIN
from ...runtime.graph import Graph, ops

# The largest odd denominators that keep results this far from a tie, with room to spare.
_ADD_DENOMINATOR = int(0.45 / ADD_MARGIN)
_MEAN_DENOMINATOR = int(0.35 / MEAN_MARGIN)
# A scale that would have to change more keeps its value; runtimes may then differ by one step.
_LARGEST_CHANGE = 0.03
_SHIFTS = np.linspace(-0.02, 0.02, 9)
_MOST = 2**20
# Relative deviation of float32 scales from exact ratios.
_FLOAT32 = 2e-7


@dataclass(frozen=True)
class _Sum:
    """An addition (``count`` 1) or a mean of ``count`` values, with the scale groups of its inputs and output."""

    inputs: tuple[str, ...]
    output: str
    count: int = 1

    @property
    def twos(self) -> int:
        """The exponent of two in ``count``."""
        return (self.count & -self.count).bit_length() - 1

    @property
    def limit(self) -> int:
        """The largest odd part of the output's multiple."""
        if self.count == 1:
            return _ADD_DENOMINATOR
        return max(1, _MEAN_DENOMINATOR // (self.count >> self.twos))


@dataclass
class _System:
    """Additions and means that are linked by common scale groups."""

    sums: list[_Sum] = field(default_factory=list)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(name for item in self.sums for name in (*item.inputs, item.output)))

    def twos(self) -> dict[str, int] | None:
        """The least exponent of two for each group; ``None`` if a cycle of means has no solution."""
        found = dict.fromkeys(self.groups, 0)
        for _ in range(len(found) + 1):
            before = dict(found)
            for item in self.sums:
                for name in item.inputs:
                    found[name] = max(found[name], found[item.output] + item.twos)
            if found == before:
                return found
        return None


def exact_scales(graph: Graph, groups: Mapping[str, str], scales: Mapping[str, float]) -> dict[str, float]:
    """Adjust scales (by group, float32) to exact ratios for all additions and means.

    ``groups`` maps activations to groups. Groups without a scale are fixed; scales that are already exact are kept.
    """
    found = dict(scales)
    for system in _systems(graph, groups):
        if set(system.groups) <= set(scales) and not _is_exact(system, found):
            adjusted = _solve(system, found) or _solve(_without_means(system), found)
            found |= adjusted or {}
    return found


def _systems(graph: Graph, groups: Mapping[str, str]) -> list[_System]:
    sums = []
    for op in graph.ops:
        if isinstance(op, ops.Add):
            sums.append(_Sum(tuple(groups[name] for name in op.inputs), groups[op.output]))
        elif isinstance(op, ops.GlobalAveragePool):
            _, rows, columns, _ = graph.tensors[op.inputs[0]].shape
            sums.append(_Sum((groups[op.inputs[0]],), groups[op.output], rows * columns))
    systems: list[_System] = []
    for item in sums:
        linked = [system for system in systems if {*item.inputs, item.output} & set(system.groups)]
        systems = [system for system in systems if system not in linked]
        systems.append(_System([*(other for system in linked for other in system.sums), item]))
    return systems


def _without_means(system: _System) -> _System:
    return _System([item for item in system.sums if item.count == 1])


def _is_exact(system: _System, scales: Mapping[str, float]) -> bool:
    """True if these scales already are multiples of one unit, as ``exact_scales`` returns them."""
    twos = system.twos()
    return twos is not None and _nearest(system, twos, scales, np.zeros(1))[0] < _FLOAT32


def _solve(system: _System, scales: Mapping[str, float]) -> dict[str, float] | None:
    """The nearest exact scales, or ``None`` if they differ too much."""
    twos = system.twos()
    if not system.sums or twos is None:
        return None
    error, best = _nearest(system, twos, scales, _SHIFTS)
    return best if error <= _LARGEST_CHANGE else None


def _nearest(
    system: _System, twos: Mapping[str, int], scales: Mapping[str, float], shifts: np.ndarray
) -> tuple[float, dict[str, float]]:
    """The exact scales with the smallest maximum relative change, and that change."""
    names = list(twos)
    limits = np.array([min((s.limit for s in system.sums if s.output == name), default=_MOST) for name in names])
    wanted, powers = np.array([scales[name] for name in names]), 2.0 ** np.array([twos[name] for name in names])
    must_be_odd = limits < _MOST
    # Try every odd multiple for the output with the smallest denominator, at slightly shifted scales.
    anchor = int(np.argmin(limits))
    odd = np.arange(1, limits[anchor] + 1, 2)
    units = (wanted[anchor] * (1 + shifts[:, None]) / (powers[anchor] * odd)).reshape(-1, 1)
    parts = wanted / (units * powers)
    whole = np.where(must_be_odd, 2 * np.rint((parts - 1) / 2) + 1, np.rint(parts))
    whole = np.clip(whole, 1, limits - (limits % 2 == 0) * must_be_odd)
    found = (units * whole * powers).astype(np.float32)
    changes = np.abs(found / wanted - 1).max(axis=1)
    best = int(np.argmin(changes))
    return float(changes[best]), dict(zip(names, map(float, found[best]), strict=True))
