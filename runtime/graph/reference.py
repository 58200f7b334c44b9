"""Reference implementation of integer graphs in numpy, against which runtimes and generated code are compared.

Products are accumulated as integers, without loss. One float32 multiplier requantizes each sum, with rounding half to
even and saturation, as in XNNPACK (``xnn_qs8_requantize_fp32``) and onnxruntime. The code is slow and meant to be read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import UnsupportedError, UsageError
from . import ops
from .graph import Graph, Quantization, Tensor
from .ops import Op

# Accumulates the products of a layer ``op``: windows (rows, columns) and weights (outputs, columns), integers minus
# their zero points, give sums (rows, outputs). The last argument is the zero point of the windows.
LayerSums = Callable[[Op, np.ndarray, np.ndarray, int], np.ndarray]


def exact_sums(op: Op, windows: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """Exact sums of products: float64 holds integers up to 2**53, and its matrix product is fast."""
    return windows.astype(np.float64) @ weight.T.astype(np.float64)


def run_reference(graph: Graph, x: np.ndarray, layer_sums: LayerSums = exact_sums) -> dict[str, np.ndarray]:
    """All activations of ``graph`` by name, for an input ``x`` of the graph's own shape (NHWC) and type.

    ``Quantize`` and ``Dequantize`` are the only operations on float32. Raises ``UsageError`` if ``x`` does not match
    the graph's input, and ``UnsupportedError`` for other float operations and for integers that are not 8 bits wide.
    """
    (name,) = graph.inputs
    source = graph.tensors[name]
    if x.shape != source.shape or x.dtype != source.dtype:
        raise UsageError(f"the input must be {source.dtype} {source.shape}, got {x.dtype} {x.shape}")
    values = {name: x}
    for op in graph.ops:
        values[op.output] = run_operation(graph, op, values, layer_sums)
    return values


def run_operation(
    graph: Graph, op: Op, values: Mapping[str, np.ndarray], layer_sums: LayerSums = exact_sums
) -> np.ndarray:
    """The output of one operation; ``values`` holds its inputs by name. Raises as ``run_reference`` does."""
    inputs, output = [graph.tensors[name] for name in op.inputs], graph.tensors[op.output]
    _check(op, inputs, output)
    arrays = [values[tensor.name] if tensor.data is None else tensor.data for tensor in inputs]
    if isinstance(op, ops.Layer):
        return _layer(op, inputs, output, arrays, layer_sums)
    return _RUNNERS[type(op)](op, inputs, output, arrays)


def _check(op: Op, inputs: list[Tensor], output: Tensor) -> None:
    reals = isinstance(op, ops.Quantize) and inputs[0].dtype == "float32"
    reals = reals or (isinstance(op, ops.Dequantize) and output.dtype == "float32")
    eight_bit = all(t.quantization and t.dtype in ("int8", "uint8") for t in (inputs[0], output))
    if not reals and not eight_bit:
        raise UnsupportedError(f"{op.kind} {op.name!r} is not between 8-bit integers; the reference supports no others")


def _multiplier(numerator: float, denominator: float, factor: float | np.ndarray = 1.0) -> np.ndarray:
    """A ratio of scales in float32, evaluated in the same order as in the runtimes."""
    return np.float32(numerator) * np.asarray(factor, np.float32) / np.float32(denominator)


def _requantized(scaled: np.ndarray, output: Tensor, activation: str = "none") -> np.ndarray:
    """Integers of the output from real values already divided by its scale."""
    assert output.quantization is not None
    low, high = _limits(output, activation)
    return np.clip(np.rint(scaled) + output.quantization.zero_point, low, high).astype(output.dtype)


def _limits(output: Tensor, activation: str) -> tuple[int, int]:
    assert output.quantization is not None
    limits = np.iinfo(output.dtype)
    low = limits.min if activation == "none" else output.quantization.zero_point
    high = limits.max
    if activation == "relu6":
        high = int(output.quantization.quantize(np.array(6.0), output.dtype))
    return max(low, limits.min), high


def _centered(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Integers minus their zero point."""
    assert tensor.quantization is not None
    return array.astype(np.int32) - tensor.quantization.zero_point


def _layer(
    op: Any, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray], layer_sums: LayerSums
) -> np.ndarray:
    x, weight = inputs[:2]
    assert x.quantization is not None and output.quantization is not None
    if weight.quantization is None:
        raise UnsupportedError(f"{op.kind} {op.name!r} has float weights; the reference supports integer weights only")
    values, kernel = _centered(arrays[0], x), _centered(arrays[1], weight)
    bias = _bias(inputs[2], x.quantization, weight.quantization)
    groups = op.groups if isinstance(op, ops.Conv) else 1
    windows = _windows(op, values, kernel.shape, 0) if isinstance(op, ops.Conv) else values
    outputs, channels = kernel.shape[0] // groups, kernel.shape[-1]
    sums = []
    for group in range(groups):
        rows = kernel[group * outputs : (group + 1) * outputs].reshape(outputs, -1)
        part = windows[..., group * channels : (group + 1) * channels].reshape(-1, rows.shape[1])
        sums.append(layer_sums(op, part, rows, x.quantization.zero_point))
    total = np.concatenate(sums, axis=1) + bias
    scale = _multiplier(x.quantization.scale[0], output.quantization.scale[0], np.array(weight.quantization.scale))
    return _requantized(total.astype(np.float32) * scale, output, op.activation).reshape(output.shape)


def _bias(bias: Tensor, x: Quantization, weight: Quantization) -> np.ndarray:
    """A bias as integers on the scale of the sums."""
    assert bias.data is not None
    if bias.dtype != "float32":
        return bias.data.astype(np.int64)
    steps = np.float32(x.scale[0]) * np.asarray(weight.scale, np.float32)
    return np.rint(bias.data / steps).astype(np.int64)


def _windows(op: ops.Windowed, values: np.ndarray, kernel: tuple[int, ...], fill: int) -> np.ndarray:
    """Windows of a convolution or pool: (N, rows, columns, window rows, window columns, channels)."""
    top, bottom, left, right = op.padding
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    window = kernel[1:3] if isinstance(op, ops.Conv) else op.window
    dilation = op.dilation if isinstance(op, ops.Conv) else (1, 1)
    extent = tuple((k - 1) * d + 1 for k, d in zip(window, dilation, strict=True))
    view: Any = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(1, 2))  # pyright: ignore[reportCallIssue, reportArgumentType]
    view = view[:, :: op.stride[0], :: op.stride[1], :, :: dilation[0], :: dilation[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)


def _max_pool(op: ops.MaxPool, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    windows = _windows(op, arrays[0], (), int(np.iinfo(arrays[0].dtype).min))
    return windows.max(axis=(3, 4))


def _average_pool(op: ops.AveragePool, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    """Means of the window values that lie within the input."""
    counts = _windows(op, np.ones_like(arrays[0], np.int32), (), 0).sum(axis=(3, 4))
    sums = _windows(op, _centered(arrays[0], inputs[0]), (), 0).sum(axis=(3, 4))
    ratio = _multiplier(_scale(inputs[0]), _scale(output))
    return _requantized(sums.astype(np.float32) / counts.astype(np.float32) * ratio, output)


def _global_average(op: Op, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    _, rows, columns, _ = inputs[0].shape
    sums = _centered(arrays[0], inputs[0]).sum(axis=(1, 2), keepdims=True)
    scale = np.float32(_scale(inputs[0])) / (np.float32(_scale(output)) * np.float32(rows * columns))
    return _requantized(sums.astype(np.float32) * scale, output)


def _add(op: ops.Add, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    terms = [
        _centered(array, tensor).astype(np.float32) * _multiplier(_scale(tensor), _scale(output))
        for array, tensor in zip(arrays, inputs, strict=True)
    ]
    return _requantized(terms[0] + terms[1], output, op.activation)


def _relu(op: ops.Relu, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    ratio = _multiplier(_scale(inputs[0]), _scale(output))
    return _requantized(_centered(arrays[0], inputs[0]).astype(np.float32) * ratio, output, op.activation)


def _concat(op: ops.Concat, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    parts = [_rescaled(array, tensor, output) for array, tensor in zip(arrays, inputs, strict=True)]
    return np.concatenate(parts, axis=op.axis)


def _pad(op: ops.Pad, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    assert output.quantization is not None
    top, bottom, left, right = op.padding
    fill = output.quantization.quantize(np.array(op.value), output.dtype)
    moved = _rescaled(arrays[0], inputs[0], output)
    return np.pad(moved, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)


def _slice(op: ops.Slice, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0][tuple(slice(begin, begin + size) for begin, size in zip(op.begin, op.size, strict=True))]


def _softmax(op: Op, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    reals = _centered(arrays[0], inputs[0]) * np.float64(_scale(inputs[0]))
    shares = np.exp(reals - reals.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return _requantized(shares / np.float64(_scale(output)), output)


def _quantize(op: Op, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    assert output.quantization is not None
    if inputs[0].dtype == "float32":
        return output.quantization.quantize(arrays[0], output.dtype)
    return _rescaled(arrays[0], inputs[0], output)


def _dequantize(op: Op, inputs: list[Tensor], output: Tensor, arrays: list[np.ndarray]) -> np.ndarray:
    assert inputs[0].quantization is not None
    return inputs[0].quantization.dequantize(arrays[0])


def _rescaled(array: np.ndarray, tensor: Tensor, output: Tensor) -> np.ndarray:
    """Integers requantized to the output's scale; unchanged if scale and zero point are equal."""
    ratio = _multiplier(_scale(tensor), _scale(output))
    return _requantized(_centered(array, tensor).astype(np.float32) * ratio, output)


def _scale(tensor: Tensor) -> float:
    assert tensor.quantization is not None
    return tensor.quantization.scale[0]


_RUNNERS: Mapping[type[Op], Callable[[Any, list[Tensor], Tensor, list[np.ndarray]], np.ndarray]] = {
    ops.Add: _add,
    ops.AveragePool: _average_pool,
    ops.Concat: _concat,
    ops.Dequantize: _dequantize,
    ops.GlobalAveragePool: _global_average,
    ops.MaxPool: _max_pool,
    ops.Pad: _pad,
    ops.Quantize: _quantize,
    ops.Relu: _relu,
    ops.Reshape: lambda op, inputs, output, arrays: arrays[0].reshape(op.shape),
    ops.Slice: _slice,
    ops.Softmax: _softmax,
    ops.Transpose: lambda op, inputs, output, arrays: arrays[0].transpose(op.order),
}
