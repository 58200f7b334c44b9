"""Other precisions: float16 weights, int8 weights with float32 activations, and 16-bit activations of single layers.

Each is a function from graph to graph; the writers express the result in their formats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from ...runtime.errors import QuantizationError, UsageError
from ...runtime.graph import Graph, Op, Quantization, Tensor, ops
from .gptq import Moments, mean_error, round_weight

# The 16-bit range is this many times the 8-bit one, which may clip outliers; the steps are still far finer.
_HEADROOM = 4


def with_float16_weights(graph: Graph) -> Graph:
    """Store the weights of a float32 graph as float16; activations and biases stay float32.

    Raises ``QuantizationError`` for a weight outside float16's range.
    """
    tensors = dict(graph.tensors)
    for op in _layers(graph):
        weight = graph.constant(op.inputs[1])
        tensors[weight.name] = _half(weight, op)
    return replace(graph, tensors=tensors)


def with_int8_weights(graph: Graph, moments: Mapping[str, Moments] | None = None) -> Graph:
    """Quantize the weights of a float32 graph to int8, symmetric, with one scale per output channel of a convolution.

    This is TFLite's dynamic-range quantization: kernels quantize each layer input by its current range, so nothing is
    calibrated. Weights of layers in ``moments`` are rounded by GPTQ, others to nearest. Raises ``QuantizationError``
    for a weight that is not finite.
    """
    tensors, operations = dict(graph.tensors), {op.name: op for op in graph.ops}
    for op in _layers(graph):
        weight, bias = _int8(graph, op, (moments or {}).get(op.name))
        tensors |= {weight.name: weight, bias.name: bias}
        operations[op.name] = replace(op, inputs=(op.inputs[0], weight.name, bias.name))
    return Graph.of(graph.name, tensors.values(), operations.values(), graph.inputs, graph.outputs)


def with_int16_layers(graph: Graph, layers: Sequence[str]) -> Graph:
    """Give some layers of an int8 graph symmetric 16-bit inputs and outputs; their weights stay int8.

    ``layers`` are names of operations or patterns (``fire9/*``). A ``Quantize`` converts between 8 and 16 bits, so a
    tensor gains precision only if its producer and its consumer are both named. Biases become int64. Raises
    ``UsageError`` for a name that matches no operation and ``QuantizationError`` for a graph that is not int8.
    """
    named = find_layers(graph, layers)
    tensors, operations = dict(graph.tensors), []
    for op in graph.ops:
        wide = op.name in named
        if wide:
            tensors[op.output] = _wide(graph.tensors[op.output], op)
        inputs = []
        for name in op.inputs:
            tensor = graph.tensors[name]
            if tensor.data is None and wide != (name in named):
                # Consumers of the other width share one Quantize.
                converted = replace(_wide(tensor, op) if wide else tensor, name=f"{name}/{'int16' if wide else 'int8'}")
                if converted.name not in tensors:
                    tensors[converted.name] = converted
                    operations.append(ops.Quantize((name,), converted.name))
                inputs.append(converted.name)
            else:
                inputs.append(name)
        if wide and isinstance(op, ops.Layer):
            bias = _wide_bias(graph.constant(inputs[2]), tensors[inputs[0]], graph.constant(inputs[1]), op)
            inputs[2], tensors[bias.name] = bias.name, bias
        operations.append(replace(op, inputs=tuple(inputs)))
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def find_layers(graph: Graph, layers: Sequence[str]) -> set[str]:
    """Names of the operations that match any of ``layers``. Raises ``UsageError`` for a pattern without a match."""
    found: set[str] = set()
    for layer in layers:
        names = {op.name for op in graph.ops if fnmatchcase(op.name, layer)}
        if not names:
            names_range = f"names run from {graph.ops[0].name} to {graph.ops[-1].name}; firebox plan lists them"
            raise UsageError(f"no layer is called {layer!r}; {names_range}")
        found |= names
    return found


def _wide(tensor: Tensor, op: Op) -> Tensor:
    """An int8 activation in 16 bits, symmetric as TFLite's kernels require."""
    quantization = tensor.quantization
    if tensor.dtype != "int8" or quantization is None:
        raise QuantizationError(
            f"{op.name!r} has {tensor.dtype} activations; only int8 layers can be widened to 16 bits"
        )
    if "int16" in op.fixed_output_scale and tensor.name == op.output:
        scale, zero_point = op.fixed_output_scale["int16"]
        return replace(tensor, dtype="int16", quantization=Quantization((scale,), zero_point))
    reach = max(127 - quantization.zero_point, 128 + quantization.zero_point) * quantization.scale[0]
    return replace(tensor, dtype="int16", quantization=Quantization((float(np.float32(_HEADROOM * reach / 32767)),)))


def _wide_bias(bias: Tensor, x: Tensor, weight: Tensor, op: Op) -> Tensor:
    """The same bias as int64, at the scale of the 16-bit input times the weight's."""
    assert x.quantization is not None and weight.quantization is not None
    scale = tuple(float(np.float32(x.quantization.scale[0]) * np.float32(s)) for s in weight.quantization.scale)
    quantization = Quantization(scale, 0, weight.quantization.axis)
    values = np.rint(bias.real().astype(np.float64) / np.array(scale)).astype(np.int64)
    return Tensor(f"{op.name}/bias/int64", bias.shape, "int64", quantization, values)


def _layers(graph: Graph) -> list[ops.Layer]:
    """The operations with weights. Raises ``QuantizationError`` for weights that are not float32."""
    layers = [op for op in graph.ops if isinstance(op, ops.Layer)]
    for op in layers:
        if graph.constant(op.inputs[1]).dtype != "float32":
            raise QuantizationError(
                f"{op.name!r} has {graph.tensors[op.inputs[1]].dtype} weights already; pass float32"
            )
    return layers


def _half(weight: Tensor, op: Op) -> Tensor:
    with np.errstate(over="ignore"):
        data = weight.real().astype(np.float16)
    if not np.isfinite(data).all():
        raise QuantizationError(f"a weight of {op.name!r} is not finite in float16, which ends at 65504; keep float32")
    return replace(weight, dtype="float16", data=data)


def _int8(graph: Graph, op: Op, moments: Moments | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer; the bias corrects the mean error of the weight."""
    weight, bias = (graph.constant(name) for name in op.inputs[1:])
    values = weight.real()
    if not np.isfinite(values).all():
        raise QuantizationError(f"weights of {op.name!r} are not finite; the checkpoint is damaged")
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    scale = np.where(largest == 0, 1, np.maximum(largest / 127, np.finfo(np.float32).tiny)).astype(np.float32)
    quantization = Quantization(tuple(map(float, scale)), 0, 0)
    if isinstance(op, ops.FullyConnected):
        # tflite-runtime 2.14 uses a single scale for a fully connected layer, whatever the file has.
        quantization = Quantization((float(max(scale[largest > 0], default=np.float32(1))),))
    integers = round_weight(values, quantization, moments)
    error = mean_error(values, quantization.dequantize(integers), moments)
    # Constants are named after the operation: a layer used twice has a pair for each use.
    return (
        Tensor(f"{op.name}/weight", weight.shape, "int8", quantization, integers),
        Tensor(f"{op.name}/bias", bias.shape, data=(bias.real() - error).astype(np.float32)),
    )
