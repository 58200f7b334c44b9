"""Which integers the weights of a layer may be: all of 8 bits, 7 bits, or those that no kernel can saturate on.

Kernels that accumulate pairs of products in 16 bits (``runtime/exactness/saturation.py``) need ``|w1 + w2| <= 128`` for
the weights that they pair. Few pairs break that; they are cut, and each channel's scale is chosen so that cutting and
rounding together cost least.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...runtime.exactness.saturation import LIMIT, weight_pairs
from ...runtime.graph import Graph, ops

WeightRange = Literal["saturation-free", "full", "7-bit"]
DEFAULT_RANGE: WeightRange = "saturation-free"

# By what the scale of a channel with pairs to cut may be widened; at 127 / 64 nothing is left to cut.
_WIDENINGS = np.linspace(1, 127 / (LIMIT // 2), 9)
_LARGEST = 127


@dataclass(frozen=True)
class WeightGrid:
    """Integers from ``-largest`` to ``largest``; in each walk of kernels the columns of ``pairs``, (pairs, 2), together
    within ``LIMIT``. No column is twice in one walk."""

    largest: int = _LARGEST
    pairs: tuple[np.ndarray, ...] = ()

    def partners(self, columns: int) -> list[list[int]]:
        """For each column those that it is paired with."""
        found: list[list[int]] = [[] for _ in range(columns)]
        for first, second in (pair for walk in self.pairs for pair in walk.tolist()):
            found[first].append(second)
            found[second].append(first)
        return found


FULL = WeightGrid()


def layer_grid(graph: Graph, op: ops.Layer, weight_range: WeightRange) -> WeightGrid:
    """The grid of a layer's weights, its columns in the order of the graph's weight (rows, columns, channels)."""
    if weight_range != "saturation-free":
        return FULL if weight_range == "full" else WeightGrid(LIMIT // 2)
    return WeightGrid(pairs=tuple(weight_pairs(graph, op)))


def fit_scales(weight: np.ndarray, scales: np.ndarray, grid: WeightGrid, importance: np.ndarray) -> np.ndarray:
    """The scale of each output for which a weight (outputs, columns) loses least on the grid, float32.

    ``scales`` are those at which nothing is clipped; ``importance`` weighs the squared error of each column.
    """
    chosen = scales.copy()
    integers = np.rint(weight / scales[:, None])
    over = [np.abs(integers[:, walk].sum(axis=2)).max(axis=1, initial=0) > LIMIT for walk in grid.pairs]
    offending = np.flatnonzero(np.any(over, axis=0)) if over else []
    if not len(offending):
        return chosen
    rows, own = weight[offending], scales[offending]
    best = np.full(len(rows), np.inf)
    for widening in _WIDENINGS:
        tried = (own * np.float32(widening)).astype(np.float32)[:, None]
        error = ((round_to_grid(rows / tried, grid, importance) * tried - rows) ** 2 * importance).sum(axis=1)
        better = error < best
        chosen[offending[better]] = tried[better, 0]
        best[better] = error[better]
    return chosen


def round_to_grid(steps: np.ndarray, grid: WeightGrid, importance: np.ndarray) -> np.ndarray:
    """The nearest integers (rows, columns), pairs cut where they are too large: the less important weight more."""
    found = np.clip(np.rint(steps), -grid.largest, grid.largest)
    # Cutting a pair makes none of another walk larger.
    for left, right in (walk.T for walk in grid.pairs):
        excess = np.abs(found[:, left] + found[:, right]) - LIMIT
        rows, pairs = np.nonzero(excess > 0)
        if len(rows):
            first, second, over = left[pairs], right[pairs], excess[rows, pairs]
            cut = np.clip(np.rint(over * importance[second] / (importance[first] + importance[second])), 0, over)
            sign = np.sign(found[rows, first])
            found[rows, first] -= sign * cut
            found[rows, second] -= sign * (over - cut)
    return found


def integer_bounds(
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
