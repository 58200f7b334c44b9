"""Which integers the weights of a layer may be: all of 8 bits, 7 bits, or those that no kernel can saturate on.

Kernels that add two products in 16 bits (``runtime/saturation.py``) need ``|w1 + w2| <= 128`` for the weights that they
pair. Few pairs break that; they are cut, and each channel's scale is chosen so that cutting and rounding together cost
least.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..runtime.graph import Conv, FullyConnected, Graph
from ..runtime.saturation import LIMIT, weight_pairs

WeightRange = Literal["saturation-free", "full", "7-bit"]
DEFAULT_RANGE: WeightRange = "saturation-free"

# By what the scale of a channel with pairs to cut may be widened; at 127 / 64 nothing is left to cut.
_WIDENINGS = np.linspace(1, 127 / (LIMIT // 2), 9)
_LARGEST = 127


@dataclass(frozen=True)
class WeightGrid:
    """Integers from ``-largest`` to ``largest``; the columns in ``pairs``, shape (pairs, 2), together within
    ``LIMIT``."""

    largest: int = _LARGEST
    pairs: np.ndarray | None = None

    def partners(self, columns: int) -> list[list[int]]:
        """For each column those that it is paired with."""
        found: list[list[int]] = [[] for _ in range(columns)]
        for first, second in () if self.pairs is None else self.pairs.tolist():
            found[first].append(second)
            found[second].append(first)
        return found


FULL = WeightGrid()


def grid_of(graph: Graph, op: Conv | FullyConnected, weight_range: WeightRange) -> WeightGrid:
    """The grid of a layer's weights, its columns in the order of the graph's weight (rows, columns, channels)."""
    if weight_range != "saturation-free":
        return FULL if weight_range == "full" else WeightGrid(LIMIT // 2)
    return WeightGrid(pairs=weight_pairs(graph, op))


def fitted_scales(weight: np.ndarray, scales: np.ndarray, grid: WeightGrid, importance: np.ndarray) -> np.ndarray:
    """The scale of each output for which a weight (outputs, columns) loses least on the grid, float32.

    ``scales`` are those at which nothing is clipped; ``importance`` weighs the squared error of each column.
    """
    if grid.pairs is None or not len(grid.pairs):
        return scales
    chosen = scales.copy()
    offending = np.flatnonzero(_excess(weight / scales[:, None], grid.pairs).any(axis=1))
    if not len(offending):
        return chosen
    rows, own = weight[offending], scales[offending]
    best = np.full(len(rows), np.inf)
    for widening in _WIDENINGS:
        tried = (own * np.float32(widening)).astype(np.float32)[:, None]
        found = on_grid(rows / tried, grid, importance)
        error = ((found * tried - rows) ** 2 * importance).sum(axis=1)
        better = error < best
        chosen[offending[better]] = tried[better, 0]
        best[better] = error[better]
    return chosen


def on_grid(steps: np.ndarray, grid: WeightGrid, importance: np.ndarray | None = None) -> np.ndarray:
    """The nearest integers (rows, columns), pairs cut where they are too large: the less important weight more."""
    found = np.clip(np.rint(steps), -grid.largest, grid.largest)
    if grid.pairs is None:
        return found
    share = np.ones(found.shape[1]) if importance is None else importance + 1e-12
    # A column in two pairs is cut twice at most: cutting never makes another pair larger.
    for pairs in _disjoint(grid.pairs):
        first, second = pairs.T
        excess = np.abs(found[:, first] + found[:, second]) - LIMIT
        rows, which = np.nonzero(excess > 0)
        if not len(rows):
            continue
        left, right, over = first[which], second[which], excess[rows, which]
        cut = np.clip(np.rint(over * share[right] / (share[left] + share[right])), 0, over)
        sign = np.sign(found[rows, left])
        found[rows, left] -= sign * cut
        found[rows, right] -= sign * (over - cut)
    return found


def bounds(
    column: np.ndarray, others: np.ndarray, rounded: bool, own_share: float, other_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest integer that a column may take beside a partner's values, all in steps.

    Of a partner that is not rounded yet as much is expected to be cut as its share of the importance says.
    """
    if not rounded:
        excess = np.maximum(np.abs(column + others) - LIMIT, 0) * (np.sign(column) == np.sign(others))
        others = others - np.sign(others) * excess * own_share / (own_share + other_share)
    high = np.floor(LIMIT - np.maximum(others, 0))
    low = np.ceil(-LIMIT - np.minimum(others, 0))
    return np.maximum(low, -_LARGEST), np.minimum(high, _LARGEST)


def _excess(steps: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    found = np.rint(steps)
    return np.abs(found[:, pairs[:, 0]] + found[:, pairs[:, 1]]) > LIMIT


def _disjoint(pairs: np.ndarray) -> list[np.ndarray]:
    """The pairs in groups in which no column is twice."""
    groups: list[list[list[int]]] = []
    taken: list[set[int]] = []
    for pair in pairs.tolist():
        for group, columns in zip(groups, taken, strict=True):
            if not columns & set(pair):
                group.append(pair)
                columns.update(pair)
                break
        else:
            groups.append([pair])
            taken.append(set(pair))
    return [np.array(group) for group in groups]
