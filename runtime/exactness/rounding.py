"""Operations of an integer graph that all exact runtimes round alike, whatever their input.

Runtimes accumulate integers without loss but requantize the result in different ways: in float32 or fixed point, with
halves rounded up, to even or away from zero. They can differ only if a result lies (almost) halfway between two
integers. This module tries all inputs: 256 * 256 of an addition, and all sums of a mean.
"""

from typing import Literal

import numpy as np

from ..graph import Graph, Op, Tensor, ops

# ``identical`` in onnxruntime, LiteRT (XNNPACK) and the reference; ``one step``: results differ by at most one.
Promise = Literal["identical", "one step", "none"]

# Minimum distance of a result from the middle between two integers. It exceeds the rounding errors of float32 and, for
# an addition of 8-bit values, those of XNNPACK's 21-bit multipliers.
ADD_MARGIN = 4e-4
MEAN_MARGIN = 1e-4
_LEVELS = 256


def promise(graph: Graph, op: Op) -> Promise:
    """The agreement of exact runtimes on one operation with equal inputs, from its kind and its scales."""
    tensors = [graph.tensors[name] for name in (*op.inputs, op.output)]
    if any(t.quantization is None or t.dtype not in ("int8", "uint8") for t in (tensors[0], tensors[-1])):
        # QuantizeLinear divides, XNNPACK multiplies by the reciprocal. Float sums depend on their order.
        return "one step" if isinstance(op, ops.Quantize | ops.Dequantize) else "none"
    if isinstance(op, ops.Add):
        return "identical" if add_margin(*tensors) > ADD_MARGIN else "one step"
    if isinstance(op, ops.GlobalAveragePool):
        return "identical" if mean_margin(graph, op) > MEAN_MARGIN else "one step"
    if isinstance(op, ops.AveragePool):
        _, rows, columns, _ = graph.tensors[op.inputs[0]].shape
        return "identical" if all(count % 2 for count in window_counts(op, rows, columns)) else "one step"
    if isinstance(op, ops.Softmax):
        return "one step"
    if isinstance(op, ops.Concat | ops.Quantize | ops.Relu) and len({_real_zero(t) for t in tensors}) > 1:
        return "one step"
    return "identical"


def add_margin(left: Tensor, right: Tensor, output: Tensor) -> float:
    """The smallest distance of a sum of two tensors from the middle between two integers of the output."""
    steps = []
    for tensor in (left, right):
        assert tensor.quantization is not None and output.quantization is not None
        integers = np.arange(_LEVELS) + np.iinfo(tensor.dtype).min - tensor.quantization.zero_point
        steps.append(integers * (tensor.quantization.scale[0] / output.quantization.scale[0]))
    return _margin(steps[0][:, None] + steps[1][None, :])


def mean_margin(graph: Graph, op: ops.GlobalAveragePool) -> float:
    """The smallest distance of a mean over all pixels from the middle between two integers of the output."""
    x, output = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    assert x.quantization is not None and output.quantization is not None
    count = x.shape[1] * x.shape[2]
    first = count * (int(np.iinfo(x.dtype).min) - x.quantization.zero_point)
    sums = np.arange(first, first + (_LEVELS - 1) * count + 1, dtype=np.float64)
    return _margin(sums * (x.quantization.scale[0] / output.quantization.scale[0] / count))


def window_counts(op: ops.AveragePool, rows: int, columns: int) -> set[int]:
    """Numbers of values in the windows of a pool, including those at the border."""
    top, bottom, left, right = op.padding
    heights = _extents(rows, op.window[0], op.stride[0], top, bottom)
    widths = _extents(columns, op.window[1], op.stride[1], left, right)
    return {height * width for height in heights for width in widths}


def _extents(size: int, window: int, stride: int, before: int, after: int) -> set[int]:
    """Numbers of window positions within the input along one dimension."""
    starts = range(-before, size + after - window + 1, stride)
    return {min(start + window, size) - max(start, 0) for start in starts}


def _margin(values: np.ndarray) -> float:
    return float(np.abs(values - np.floor(values) - 0.5).min())


def _real_zero(tensor: Tensor) -> tuple[tuple[float, ...], int]:
    assert tensor.quantization is not None
    return tensor.quantization.scale, tensor.quantization.zero_point - int(np.iinfo(tensor.dtype).min)
