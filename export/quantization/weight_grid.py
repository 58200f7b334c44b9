"""Weight grids: the integers that int8 weights may take, so that no kernel's accumulator saturates.

Kernels that accumulate pairs of products in 16 bits (``runtime/exactness/saturation.py``) need ``|w1 + w2| <= 128`` for
the weights that they pair. The few pairs that exceed the limit are reduced, and each channel's scale is chosen to
minimize the squared error of reduction and rounding together.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...runtime.exactness.saturation import LIMIT, weight_pairs
from ...runtime.graph import Graph, ops

WeightRange = Literal["saturation-free", "full", "7-bit"]
DEFAULT_RANGE: WeightRange = "saturation-free"

# Factors tried on the scale of a channel with excessive pairs; at 127 / 64 no pair is excessive.
_WIDENINGS = np.linspace(1, 127 / (LIMIT // 2), 9)
_LARGEST = 127


@dataclass(frozen=True)
class WeightGrid:
    """Integers from ``-largest`` to ``largest``, with the sum of paired columns within ``LIMIT``.

    ``pairs`` has an array (pairs, 2) for each order in which kernels walk the columns; a column occurs at most once in
    each array.
    """

    largest: int = _LARGEST
    pairs: tuple[np.ndarray, ...] = ()

    def partners(self, columns: int) -> list[list[int]]:
        """The columns that each column is paired with."""
        found: list[list[int]] = [[] for _ in range(columns)]
        for first, second in (pair for walk in self.pairs for pair in walk.tolist()):
            found[first].append(second)
            found[second].append(first)
        return found


FULL = WeightGrid()


def layer_grid(graph: Graph, op: ops.Layer, weight_range: WeightRange) -> WeightGrid:
    """The grid of a layer's weights, with columns in the order of the graph's weight (rows, columns, channels)."""
    if weight_range != "saturation-free":
        return FULL if weight_range == "full" else WeightGrid(LIMIT // 2)
    return WeightGrid(pairs=tuple(weight_pairs(graph, op)))


def fit_scales(weight: np.ndarray, scales: np.ndarray, grid: WeightGrid, importance: np.ndarray) -> np.ndarray:
    """The scale of each output that minimizes the error of a weight (outputs, columns) on the grid, float32.

    At the given ``scales`` no weight is clipped; ``importance`` weights the squared error of each column.
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
    """Round to the nearest integers (rows, columns) and reduce excessive pairs, the less important weight more."""
    found = np.clip(np.rint(steps), -grid.largest, grid.largest)
    # Reducing a pair never increases a pair of another walk.
    for left, right in (walk.T for walk in grid.pairs):
        excess = np.abs(found[:, left] + found[:, right]) - LIMIT
        rows, pairs = np.nonzero(excess > 0)
        if len(rows):
            first, second, over = left[pairs], right[pairs], excess[rows, pairs]
            reduction = np.clip(np.rint(over * importance[second] / (importance[first] + importance[second])), 0, over)
            sign = np.sign(found[rows, first])
            found[rows, first] -= sign * reduction
            found[rows, second] -= sign * (over - reduction)
    return found


def integer_bounds(
    column: np.ndarray, others: np.ndarray, rounded: bool, own_share: float, other_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest integer that a column may take, given its partner's values (all in steps).

    A partner that is not rounded yet is expected to be reduced in proportion to the importance of both.
    """
    if not rounded:
        excess = np.maximum(np.abs(column + others) - LIMIT, 0) * (np.sign(column) == np.sign(others))
        others = others - np.sign(others) * excess * own_share / (own_share + other_share)
    high = np.floor(LIMIT - np.maximum(others, 0))
    low = np.ceil(-LIMIT - np.minimum(others, 0))
    return np.maximum(low, -_LARGEST), np.minimum(high, _LARGEST)
