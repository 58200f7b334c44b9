"""Quantization of a float graph with calibrated ranges to int8.

The scheme is TensorFlow Lite's (Jacob et al., arXiv 1712.05877): activations int8 with one scale and zero point,
weights int8, symmetric, with one scale per output channel, biases int32 at the product of both scales.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...runtime.errors import QuantizationError
from ...runtime.graph import Graph, Op, Quantization, Tensor, ops
from ...runtime.graph.rewrite import averages_as_convolutions
from .gptq import Moments, compensate, importance, mean_error, round_weight
from .ranges import Range
from .scales import activation_scales
from .weight_grid import DEFAULT_RANGE, FULL, WeightGrid, WeightRange, fit_scales, layer_grid

_MAX_BIAS = 2**30


def quantize(
    graph: Graph,
    ranges: Mapping[str, Range],
    moments: Mapping[str, Moments] | None = None,
    weight_range: WeightRange = DEFAULT_RANGE,
) -> Graph:
    """Quantize a graph to int8; activations that must share a scale, such as a Concat's, get one for their union.

    Weights of layers in ``moments`` are rounded by GPTQ, others to nearest; ``weight_range`` limits their integers.
    Scales are adjusted and average pools become convolutions so that all runtimes round the same way (``exact_scales``,
    ``averages_as_convolutions``). Raises ``QuantizationError`` when the graph has integers, a range is missing or a
    weight is not finite.
    """
    check_float(graph)
    scales = activation_scales(graph, ranges)
    graph = averages_as_convolutions(graph)
    tensors: dict[str, Tensor] = {}
    for tensor in graph.activations:
        tensors[tensor.name] = replace(tensor, dtype="int8", quantization=scales[tensor.name])
    operations: list[Op] = []
    for op in graph.ops:
        if isinstance(op, ops.Layer):
            weight, bias = (graph.constant(name).real() for name in op.inputs[1:])
            constants = quantize_layer(
                op.name,
                weight,
                bias,
                scales[op.inputs[0]],
                (moments or {}).get(op.name),
                layer_grid(graph, op, weight_range),
            )
            tensors.update((tensor.name, tensor) for tensor in constants)
            op = replace(op, inputs=(op.inputs[0], *(tensor.name for tensor in constants)))
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def check_float(graph: Graph) -> None:
    """Raise ``QuantizationError`` for a graph that is already quantized."""
    integer = next((tensor.name for tensor in graph.tensors.values() if tensor.quantization), None)
    if integer is not None:
        raise QuantizationError(
            f"{graph.name} has integers in {integer!r}, so it is quantized already; pass the float network"
        )


def compensate_layers(
    graph: Graph,
    ranges: Mapping[str, Range],
    moments: Mapping[str, Moments],
    weight_range: WeightRange = DEFAULT_RANGE,
) -> Graph:
    """The float graph that, rounded to nearest, has the weights and biases of ``quantize`` with ``moments``."""
    scales, tensors, operations = activation_scales(graph, ranges), dict(graph.tensors), list[Op]()
    for op in graph.ops:
        if isinstance(op, ops.Layer) and op.name in moments:
            weight, bias = (graph.constant(name).real() for name in op.inputs[1:])
            x, own, grid = scales[op.inputs[0]], moments[op.name], layer_grid(graph, op, weight_range)
            per_channel = _weight_scales(op.name, weight, bias, x, own, grid)
            real = compensate(weight, per_channel, own, grid)
            error = mean_error(weight, per_channel.dequantize(round_weight(real, per_channel, None, grid)), own)
            constants = [
                Tensor(f"{op.name}/weight", weight.shape, data=real.astype(np.float32)),
                Tensor(f"{op.name}/bias", bias.shape, data=_integer_bias(op.name, bias - error, x, per_channel).real()),
            ]
            tensors.update((tensor.name, tensor) for tensor in constants)
            op = replace(op, inputs=(op.inputs[0], *(tensor.name for tensor in constants)))
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def with_input_type(graph: Graph, dtype: str) -> Graph:
    """An int8 graph with ``dtype`` (int8 or uint8) input; a first operation converts uint8 by subtracting 128."""
    if dtype == "int8":
        return graph
    (name,) = graph.inputs
    source = graph.tensors[name]
    assert source.quantization is not None
    inner = f"{name}/int8"
    outer = replace(
        source,
        dtype="uint8",
        quantization=replace(source.quantization, zero_point=source.quantization.zero_point + 128),
    )
    operations = [replace(op, inputs=tuple(inner if n == name else n for n in op.inputs)) for op in graph.ops]
    tensors = {**graph.tensors, name: outer, inner: replace(source, name=inner)}
    return Graph.of(
        graph.name, tensors.values(), [ops.Quantize((name,), inner), *operations], graph.inputs, graph.outputs
    )


def quantize_layer(
    name: str,
    weight: np.ndarray,
    bias: np.ndarray,
    x: Quantization,
    moments: Moments | None = None,
    grid: WeightGrid = FULL,
) -> tuple[Tensor, Tensor]:
    """Quantize a layer's weight (out, ...) to int8 on a grid and its bias (out,) to int32, for inputs like ``x``.

    Raises ``QuantizationError`` with the layer's name when a value is not finite.
    """
    per_channel = _weight_scales(name, weight, bias, x, moments, grid)
    integers = round_weight(weight, per_channel, moments, grid)
    error = mean_error(weight, per_channel.dequantize(integers), moments)
    # Constants are named after the operation: a layer used twice has a pair for each use.
    return (
        Tensor(f"{name}/weight", weight.shape, "int8", per_channel, integers),
        _integer_bias(name, bias - error, x, per_channel),
    )


def _weight_scales(
    name: str, weight: np.ndarray, bias: np.ndarray, x: Quantization, moments: Moments | None, grid: WeightGrid
) -> Quantization:
    """The scale of each output channel of a weight."""
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise QuantizationError(f"weights of {name!r} are not finite; the checkpoint is damaged")
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    # The bias of a channel with (nearly) zero weights must still fit 32 bits.
    floor = np.abs(bias) / (x.scale[0] * _MAX_BIAS)
    scale = np.maximum(largest / grid.largest, np.maximum(floor, np.finfo(np.float32).tiny / x.scale[0])).astype(
        np.float32
    )
    scale[largest == 0] = np.maximum(floor, 1.0)[largest == 0]
    rows = weight.reshape(len(weight), -1)
    scale = fit_scales(rows, scale, grid, importance(moments, rows.shape[1]))
    return Quantization(tuple(map(float, scale)), 0, 0)


def _integer_bias(name: str, bias: np.ndarray, x: Quantization, weight: Quantization) -> Tensor:
    """An int32 bias at the input's scale times each channel's."""
    steps = Quantization(tuple(float(np.float32(x.scale[0]) * np.float32(s)) for s in weight.scale), 0, 0)
    return Tensor(f"{name}/bias", bias.shape, "int32", steps, steps.quantize(bias, "int32"))
