"""Which operations of an integer graph every exact runtime rounds alike, whatever their input.

Runtimes add integers without loss, but bring the result to the output's scale in float32, in fixed point or by halves
rounded up, to even or away from zero. That shows only where a result lies (nearly) in the middle between two integers.
Where no input leads there, all of them agree. All inputs are tried: 256 * 256 of an addition, and all sums of a mean.
"""

from typing import Literal

import numpy as np

from ..graph import Graph, Op, Tensor, ops

# ``identical`` in onnxruntime, in LiteRT (XNNPACK) and in the reference; ``one step``: apart by one integer at most.
Promise = Literal["identical", "one step", "none"]

# The nearest to a middle that results may come: more than the errors of float32, and for an addition those of
# multipliers of 21 bits (XNNPACK), for values of 8 bits.
ADD_MARGIN = 4e-4
MEAN_MARGIN = 1e-4
_LEVELS = 256


def promise(graph: Graph, op: Op) -> Promise:
    """What is promised of one operation on equal integers, by its kind and its scales."""
    tensors = [graph.tensors[name] for name in (*op.inputs, op.output)]
    if any(t.quantization is None or t.dtype not in ("int8", "uint8") for t in (tensors[0], tensors[-1])):
        # QuantizeLinear divides, XNNPACK multiplies by the reciprocal; float sums depend on their order.
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
    """How near to the middle between two integers of the output a sum of two tensors can come."""
    steps = []
    for tensor in (left, right):
        assert tensor.quantization is not None and output.quantization is not None
        integers = np.arange(_LEVELS) + np.iinfo(tensor.dtype).min - tensor.quantization.zero_point
        steps.append(integers * (tensor.quantization.scale[0] / output.quantization.scale[0]))
    return _margin(steps[0][:, None] + steps[1][None, :])


def mean_margin(graph: Graph, op: ops.GlobalAveragePool) -> float:
    """The same for the mean of all pixels."""
    x, output = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    assert x.quantization is not None and output.quantization is not None
    count = x.shape[1] * x.shape[2]
    first = count * (int(np.iinfo(x.dtype).min) - x.quantization.zero_point)
    sums = np.arange(first, first + (_LEVELS - 1) * count + 1, dtype=np.float64)
    return _margin(sums * (x.quantization.scale[0] / output.quantization.scale[0] / count))


def window_counts(op: ops.AveragePool, rows: int, columns: int) -> set[int]:
    """How many values the windows of a pool hold, those at the border too."""
    top, bottom, left, right = op.padding
    heights = _extents(rows, op.window[0], op.stride[0], top, bottom)
    widths = _extents(columns, op.window[1], op.stride[1], left, right)
    return {height * width for height in heights for width in widths}


def _extents(size: int, window: int, stride: int, before: int, after: int) -> set[int]:
    """How much of each window along one dimension lies within the input."""
    starts = range(-before, size + after - window + 1, stride)
    return {min(start + window, size) - max(start, 0) for start in starts}


def _margin(values: np.ndarray) -> float:
    return float(np.abs(values - np.floor(values) - 0.5).min())


def _real_zero(tensor: Tensor) -> tuple[tuple[float, ...], int]:
    assert tensor.quantization is not None
    return tensor.quantization.scale, tensor.quantization.zero_point - int(np.iinfo(tensor.dtype).min)
