"""Weights rounded so that a layer's output changes least, not each weight on its own.

Optimal-brain quantization in the column-by-column form of GPTQ (Frantar et al., arXiv 2210.17323, section 3): after
each column is rounded, the columns that are left make up for its error, as far as the inputs seen in calibration are
correlated. What remains of the mean error goes into the bias (Nagel et al., arXiv 1906.04721, section 4.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.graph import Graph, Op, Quantization, ops
from ..activations import run_activations
from .weight_grid import FULL, WeightGrid, bounds, round_to_grid

# Input windows looked at for each layer, over all samples.
_WINDOWS = 40_000
# Wider layers are rounded to the nearest: the moments of their inputs would take the square of it in memory.
_MAX_COLUMNS = 4608
# Share of the mean variance added to every column, against fitting the windows' noise.
_DAMPING = 0.1


@dataclass(frozen=True)
class Moments:
    """Mean, shape (columns,), and covariance, (columns, columns), of a layer's input windows."""

    mean: np.ndarray
    covariance: np.ndarray


def input_moments(
    graph: Graph, samples: Sequence[np.ndarray], seed: int = 0, tick: Callable[[], None] = lambda: None
) -> dict[str, Moments]:
    """The moments of the inputs of every convolution (ungrouped) and fully connected layer, by the layer's name.

    ``samples`` are network inputs, NHWC with the batch; windows are drawn by ``seed``. ``tick`` is called once a
    sample.
    """
    rng = np.random.default_rng(seed)
    layers = [op for op in graph.ops if _columns(graph, op) in range(1, _MAX_COLUMNS + 1)]
    totals = {op.name: (0, np.zeros(_columns(graph, op)), np.zeros((_columns(graph, op),) * 2)) for op in layers}
    for values in run_activations(graph, samples):
        for op in layers:
            windows = _windows(graph, op, values[op.inputs[0]], max(1, _WINDOWS // len(samples)), rng)
            count, first, second = totals[op.name]
            # Products of one image in float32, which is twice as fast; only sums of many need more.
            first += windows.sum(0, dtype=np.float64)
            second += windows.T @ windows
            totals[op.name] = count + len(windows), first, second
        tick()
    found = {}
    for name, (count, first, second) in totals.items():
        mean = first / count
        found[name] = Moments(mean, second / count - np.outer(mean, mean))
    return found


def round_weight(
    weight: np.ndarray, quantization: Quantization, moments: Moments | None, grid: WeightGrid = FULL
) -> np.ndarray:
    """int8 integers on a grid for a weight (out, ...) with one scale per output; to the nearest without moments."""
    real = weight if moments is None else compensate(weight, quantization, moments, grid)
    rows = real.reshape(len(real), -1) / np.asarray(quantization.scale, np.float32)[:, None]
    return round_to_grid(rows, grid, importance(moments, rows.shape[1])).astype(np.int8).reshape(weight.shape)


def compensate(weight: np.ndarray, quantization: Quantization, moments: Moments, grid: WeightGrid = FULL) -> np.ndarray:
    """The real weight, of the same shape, whose nearest integers keep the layer's output: float64, within the grid."""
    scale = np.asarray(quantization.scale, np.float64)
    rows = weight.reshape(len(weight), -1).astype(np.float64) / scale[:, None]
    variance = np.diag(moments.covariance)
    # The columns that vary most go first, while there are most others left to make up for their error.
    order = np.argsort(-variance)
    damped = moments.covariance[np.ix_(order, order)] + np.eye(len(order)) * (_DAMPING * variance.mean() + 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    rows = rows[:, order]
    position = np.argsort(order)
    partners = grid.partners(len(order))
    shares = importance(moments, len(order))
    for column, original in enumerate(order):
        low, high = -np.float64(grid.largest), np.float64(grid.largest)
        for partner in partners[original]:
            at = position[partner]
            others = np.rint(rows[:, at]) if at < column else rows[:, at]
            least, most = bounds(rows[:, column], others, bool(at < column), shares[original], shares[partner])
            low, high = np.maximum(low, least), np.minimum(high, most)
        within = np.clip(rows[:, column], low, high)
        error = (rows[:, column] - np.rint(within)) / factor[column, column]
        rows[:, column] = within
        rows[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return (rows[:, position] * scale[:, None]).reshape(weight.shape)


def importance(moments: Moments | None, columns: int) -> np.ndarray:
    """By how much the squared error of each column counts in the output."""
    if moments is None:
        return np.ones(columns)
    variance = np.diag(moments.covariance)
    return variance + _DAMPING * variance.mean() + 1e-12


def mean_error(weight: np.ndarray, rounded: np.ndarray, moments: Moments | None) -> np.ndarray:
    """By how much the rounded weight (real values) moves each output on average, shape (out,)."""
    if moments is None:
        return np.zeros(len(weight), np.float32)
    return ((rounded - weight).reshape(len(weight), -1).astype(np.float64) @ moments.mean).astype(np.float32)


def _columns(graph: Graph, op: Op) -> int:
    """Weights per output of a layer whose inputs all meet all outputs; 0 for every other operation."""
    if isinstance(op, ops.FullyConnected) or (isinstance(op, ops.Conv) and op.groups == 1):
        return int(np.prod(graph.tensors[op.inputs[1]].shape[1:]))
    return 0


def _windows(graph: Graph, op: Op, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Input windows of a layer, (count, columns), in the order of its weight's columns; ``x`` is NCHW or (N, C)."""
    if not isinstance(op, ops.Conv):
        return x
    _, *window, _ = graph.tensors[op.inputs[1]].shape
    top, bottom, left, right = op.padding
    padded = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
    extent = [(k - 1) * d + 1 for k, d in zip(window, op.dilation, strict=True)]
    slide: Any = np.lib.stride_tricks.sliding_window_view
    views = slide(padded, extent, axis=(1, 2))
    views = views[:, :: op.stride[0], :: op.stride[1], :: op.dilation[0], :: op.dilation[1]]
    rows, columns = views.shape[1:3]
    chosen = rng.integers(0, rows * columns, min(count, rows * columns))
    return views[:, chosen // columns, chosen % columns].transpose(1, 2, 3, 0).reshape(len(chosen), -1)
