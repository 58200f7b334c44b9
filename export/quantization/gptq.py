"""GPTQ: rounding of weights that minimizes the error of a layer's output, not of each weight.

Optimal brain quantization, column by column (Frantar et al., arXiv 2210.17323, section 3): after a column is rounded,
the remaining columns compensate for its error, as far as the calibration inputs are correlated. The mean error that
remains is folded into the bias (Nagel et al., arXiv 1906.04721, section 4.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.graph import Graph, Op, Quantization, ops
from ...runtime.progress import SILENT, Progress
from ..activations import run_activations
from .weight_grid import FULL, WeightGrid, integer_bounds, round_to_grid

# Input windows sampled for each layer, over all images.
_WINDOWS = 40_000
# Wider layers are rounded to nearest: the covariance of their inputs takes quadratic memory.
_MAX_COLUMNS = 4608
# Share of the mean variance added to each column's, so that the fit ignores the noise of the sample.
_DAMPING = 0.1


@dataclass(frozen=True)
class Moments:
    """Mean, shape (columns,), and covariance, shape (columns, columns), of a layer's input windows."""

    mean: np.ndarray
    covariance: np.ndarray


def input_moments(
    graph: Graph, samples: Sequence[np.ndarray], seed: int = 0, progress: Progress = SILENT
) -> dict[str, Moments]:
    """Input moments of every ungrouped convolution and fully connected layer, by the layer's name.

    ``samples`` are network inputs, NHWC with the batch axis; ``seed`` draws the windows.
    """
    rng = np.random.default_rng(seed)
    layers = [op for op in graph.ops if _columns(graph, op) in range(1, _MAX_COLUMNS + 1)]
    totals = {op.name: (0, np.zeros(_columns(graph, op)), np.zeros((_columns(graph, op),) * 2)) for op in layers}
    with progress.task("collecting layer inputs", len(samples)) as advance:
        for values in run_activations(graph, samples):
            for op in layers:
                windows = _windows(graph, op, values[op.inputs[0]], max(1, _WINDOWS // len(samples)), rng)
                count, first, second = totals[op.name]
                # float32 is twice as fast and enough for the products of one image; only the totals need float64.
                first += windows.sum(0, dtype=np.float64)
                second += windows.T @ windows
                totals[op.name] = count + len(windows), first, second
            advance()
    moments = {}
    for name, (count, first, second) in totals.items():
        mean = first / count
        moments[name] = Moments(mean, second / count - np.outer(mean, mean))
    return moments


def round_weight(
    weight: np.ndarray, quantization: Quantization, moments: Moments | None, grid: WeightGrid = FULL
) -> np.ndarray:
    """Round a weight (out, ...) with one scale per output to int8 on a grid: by GPTQ, or to nearest without moments."""
    real = weight if moments is None else compensate(weight, quantization, moments, grid)
    rows = real.reshape(len(real), -1) / np.asarray(quantization.scale, np.float32)[:, None]
    return round_to_grid(rows, grid, importance(moments, rows.shape[1])).astype(np.int8).reshape(weight.shape)


def compensate(weight: np.ndarray, quantization: Quantization, moments: Moments, grid: WeightGrid = FULL) -> np.ndarray:
    """The real weight, float64 and of the same shape, that rounded to nearest preserves the layer's output best."""
    scale = np.asarray(quantization.scale, np.float64)
    rows = weight.reshape(len(weight), -1).astype(np.float64) / scale[:, None]
    variance = np.diag(moments.covariance)
    # Columns of high variance are rounded first, while most others can still compensate for their error.
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
            least, most = integer_bounds(rows[:, column], others, bool(at < column), shares[original], shares[partner])
            low, high = np.maximum(low, least), np.minimum(high, most)
        within = np.clip(rows[:, column], low, high)
        error = (rows[:, column] - np.rint(within)) / factor[column, column]
        rows[:, column] = within
        rows[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return (rows[:, position] * scale[:, None]).reshape(weight.shape)


def importance(moments: Moments | None, columns: int) -> np.ndarray:
    """Weight of each column's squared error in the output's, shape (columns,)."""
    if moments is None:
        return np.ones(columns)
    variance = np.diag(moments.covariance)
    return variance + _DAMPING * variance.mean() + 1e-12


def mean_error(weight: np.ndarray, rounded: np.ndarray, moments: Moments | None) -> np.ndarray:
    """Mean shift of each output by a rounded weight (dequantized), shape (out,)."""
    if moments is None:
        return np.zeros(len(weight), np.float32)
    return ((rounded - weight).reshape(len(weight), -1).astype(np.float64) @ moments.mean).astype(np.float32)


def _columns(graph: Graph, op: Op) -> int:
    """Weights per output of an ungrouped layer; 0 for every other operation."""
    if isinstance(op, ops.FullyConnected) or (isinstance(op, ops.Conv) and op.groups == 1):
        return int(np.prod(graph.tensors[op.inputs[1]].shape[1:]))
    return 0


def _windows(graph: Graph, op: Op, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sampled input windows of a layer, shape (count, columns), ordered like its weight; ``x`` is NCHW or (N, C)."""
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
