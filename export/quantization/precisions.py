"""Other precisions: float16 weights, int8 weights between float32 activations, 16-bit activations of single layers.

Each is a function from graph to graph; the writers of both formats say what comes out as their format has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from ...runtime.errors import QuantizationError, UsageError
from ...runtime.graph import Graph, Op, Quantization, Tensor, ops
from .gptq import Moments, mean_error, round_weight

# 16 bits reach so many times as far as the 8 bits did, whose range may cut the tails; the steps are still far finer.
_HEADROOM = 4


def with_float16_weights(graph: Graph) -> Graph:
    """A float32 graph whose weights are stored as float16; activations and biases stay float32.

    Raises ``QuantizationError`` for a weight that float16 cannot hold.
    """
    tensors = dict(graph.tensors)
    for op in _layers(graph):
        weight = graph.constant(op.inputs[1])
        tensors[weight.name] = _half(weight, op)
    return replace(graph, tensors=tensors)


def with_int8_weights(graph: Graph, moments: Mapping[str, Moments] | None = None) -> Graph:
    """A float32 graph whose weights are int8, symmetric, one scale per output channel of a convolution.

    TFLite calls it dynamic-range quantization: its kernels quantize each input of a layer by the range it just has, so
    that nothing has to be calibrated. Layers in ``moments`` have their weights rounded for the least error of the
    output, the others to the nearest. Raises ``QuantizationError`` for a weight that is not finite.
    """
    tensors, operations = dict(graph.tensors), {op.name: op for op in graph.ops}
    for op in _layers(graph):
        weight, bias = _int8(graph, op, (moments or {}).get(op.name))
        tensors |= {weight.name: weight, bias.name: bias}
        operations[op.name] = replace(op, inputs=(op.inputs[0], weight.name, bias.name))
    return Graph.of(graph.name, tensors.values(), operations.values(), graph.inputs, graph.outputs)


def with_int16_layers(graph: Graph, layers: Sequence[str]) -> Graph:
    """An int8 graph in which some layers read and write 16-bit activations, symmetric, beside int8 weights.

    ``layers`` are names of operations or patterns of them (``fire9/*``). What passes from 8 to 16 bits or back goes
    through a ``Quantize``; a tensor gains where both the layer that makes it and the one that reads it are named.
    Biases become int64. Raises ``UsageError`` for a name that no operation has and ``QuantizationError`` for a graph
    that is not int8.
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
                # Read in other bits than it is made in: one Quantize for all that do.
                passed = replace(_wide(tensor, op) if wide else tensor, name=f"{name}/{'int16' if wide else 'int8'}")
                if passed.name not in tensors:
                    tensors[passed.name] = passed
                    operations.append(ops.Quantize((name,), passed.name))
                inputs.append(passed.name)
            else:
                inputs.append(name)
        if wide and isinstance(op, ops.Layer):
            bias = _wide_bias(graph.constant(inputs[2]), tensors[inputs[0]], graph.constant(inputs[1]), op)
            inputs[2], tensors[bias.name] = bias.name, bias
        operations.append(replace(op, inputs=tuple(inputs)))
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def find_layers(graph: Graph, layers: Sequence[str]) -> set[str]:
    """The names of the operations that are called like any of ``layers``. Raises ``UsageError`` for one of no use."""
    found: set[str] = set()
    for layer in layers:
        names = {op.name for op in graph.ops if fnmatchcase(op.name, layer)}
        if not names:
            called = f"they are called {graph.ops[0].name} to {graph.ops[-1].name}, as firebox plan lists them"
            raise UsageError(f"no layer is called {layer!r}; {called}")
        found |= names
    return found


def _wide(tensor: Tensor, op: Op) -> Tensor:
    """An int8 activation in 16 bits: with zero in the middle, as TFLite's kernels want it."""
    quantization = tensor.quantization
    if tensor.dtype != "int8" or quantization is None:
        raise QuantizationError(f"{op.name!r} has {tensor.dtype} activations; only layers of int8 go to 16 bits")
    if "int16" in op.fixed_output_scale and tensor.name == op.output:
        scale, zero_point = op.fixed_output_scale["int16"]
        return replace(tensor, dtype="int16", quantization=Quantization((scale,), zero_point))
    reach = max(127 - quantization.zero_point, 128 + quantization.zero_point) * quantization.scale[0]
    return replace(tensor, dtype="int16", quantization=Quantization((float(np.float32(_HEADROOM * reach / 32767)),)))


def _wide_bias(bias: Tensor, x: Tensor, weight: Tensor, op: Op) -> Tensor:
    """The same bias in steps of the 16-bit input times the weight."""
    assert x.quantization is not None and weight.quantization is not None
    scale = tuple(float(np.float32(x.quantization.scale[0]) * np.float32(s)) for s in weight.quantization.scale)
    quantization = Quantization(scale, 0, weight.quantization.axis)
    values = np.rint(bias.real().astype(np.float64) / np.array(scale)).astype(np.int64)
    return Tensor(f"{op.name}/bias/int64", bias.shape, "int64", quantization, values)


def _layers(graph: Graph) -> list[ops.Layer]:
    """The operations that have weights. Raises ``QuantizationError`` for a graph that is not float32."""
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
    """Weight and bias of a layer; the bias takes up the mean error of the weight."""
    weight, bias = (graph.constant(name) for name in op.inputs[1:])
    values = weight.real()
    if not np.isfinite(values).all():
        raise QuantizationError(f"weights of {op.name!r} are not finite; the checkpoint is damaged")
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    scale = np.where(largest == 0, 1, np.maximum(largest / 127, np.finfo(np.float32).tiny)).astype(np.float32)
    quantization = Quantization(tuple(map(float, scale)), 0, 0)
    if isinstance(op, ops.FullyConnected):
        # tflite-runtime 2.14 reads one scale for all of a fully connected layer, whatever the file says.
        quantization = Quantization((float(max(scale[largest > 0], default=np.float32(1))),))
    integers = round_weight(values, quantization, moments)
    error = mean_error(values, quantization.dequantize(integers), moments)
    # Both belong to one input: a layer used twice gets them for each use.
    return (
        Tensor(f"{op.name}/weight", weight.shape, "int8", quantization, integers),
        Tensor(f"{op.name}/bias", bias.shape, data=(bias.real() - error).astype(np.float32)),
    )
