"""Exact rewrites: batch norm into convolutions, rectifiers into what they follow, padding out of what it precedes."""

import math
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from . import ops
from .graph import Graph, Quantization, Tensor
from .ops import Op

# Operations that pass integers on, in the scale that they get them in.
_PASSING = (ops.AveragePool, ops.MaxPool, ops.Pad, ops.Reshape, ops.Slice, ops.Transpose)
# TFLite fixes softmax's output: its integers cover 0 to 1.
SOFTMAX_SCALES = {"int8": Quantization((1 / 256,), -128), "int16": Quantization((1 / 32768,))}


def fuse_activations(graph: Graph) -> Graph:
    """Take each ReLU or ReLU6 into the convolution, fully connected layer or addition before it."""
    taken: dict[str, Op] = {}
    for op in graph.ops:
        before = graph.producers.get(op.inputs[0])
        if (
            isinstance(op, ops.Relu)
            and isinstance(before, ops.Conv | ops.FullyConnected | ops.Add)
            and before.activation == "none"
            and graph.only_consumer(before.output) is op
        ):
            taken[before.name] = op
    gone = {op.name for op in taken.values()}
    operations = [_with_activation(op, taken.get(op.name)) for op in graph.ops if op.name not in gone]
    return Graph.of(graph.name, graph.tensors.values(), operations, graph.inputs, graph.outputs)


def _with_activation(op: Op, relu: Op | None) -> Op:
    if relu is None:
        return op
    assert isinstance(op, ops.Conv | ops.FullyConnected | ops.Add) and isinstance(relu, ops.Relu)
    return replace(op, activation=relu.activation, output=relu.output)


def fold_batch_norm(graph: Graph) -> Graph:
    """Multiply each per-channel scale (a batch norm as graphs hold it: a depthwise 1x1 convolution) into the
    convolution or fully connected layer before it (Jacob et al., arXiv 1712.05877, section 3.2)."""
    tensors = dict(graph.tensors)
    operations: list[Op] = []
    index: dict[str, int] = {}
    for op in graph.ops:
        before = operations[index[op.inputs[0]]] if op.inputs[0] in index else None
        if (
            _is_channel_scale(graph, op)
            and isinstance(before, ops.Conv | ops.FullyConnected)
            and before.activation == "none"
            and graph.only_consumer(op.inputs[0]) is op
        ):
            weight, bias = _folded(tensors, before, op)
            tensors.update({weight.name: weight, bias.name: bias})
            merged = replace(before, inputs=(before.inputs[0], weight.name, bias.name), output=op.output)
            operations[index[op.inputs[0]]] = replace(merged, activation=op.activation)  # pyright: ignore[reportAttributeAccessIssue]
            index[op.output] = index[op.inputs[0]]
        else:
            index[op.output] = len(operations)
            operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _is_channel_scale(graph: Graph, op: Op) -> bool:
    if not isinstance(op, ops.Conv):
        return False
    x, weight = graph.shapes(op)[:2]
    plain = op.stride == (1, 1) and op.padding == ops.NO_PADS and graph.tensors[op.inputs[1]].dtype == "float32"
    return plain and weight == (x[3], 1, 1, 1) and op.groups == x[3]


def _folded(tensors: dict[str, Tensor], before: ops.Conv | ops.FullyConnected, scale: Op) -> tuple[Tensor, Tensor]:
    weight, bias = (tensors[name].real() for name in before.inputs[1:])
    factor, offset = (tensors[name].real() for name in scale.inputs[1:])
    factor = factor.reshape(-1)
    new_weight = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    new_bias = (bias * factor + offset).astype(np.float32)
    names = (f"{scale.output}/weight", f"{scale.output}/bias")
    return tuple(Tensor(n, a.shape, data=a) for n, a in zip(names, (new_weight, new_bias), strict=True))  # pyright: ignore[reportReturnType]


def integer_ends(graph: Graph) -> Graph:
    """The graph from its first integers to its last: without a Quantize that alone takes the input, and without the
    Dequantize that makes the output. Files of other makers often begin and end in float32 around integers."""
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    for op in graph.ops:
        x = op.inputs[0]
        real = graph.tensors[x].dtype == "float32"
        if isinstance(op, ops.Quantize) and real and x in graph.inputs and graph.only_consumer(x) is op:
            inputs[inputs.index(x)] = op.output
        if isinstance(op, ops.Dequantize) and op.output in graph.outputs and not graph.consumers[op.output]:
            outputs[outputs.index(op.output)] = x
    if (tuple(inputs), tuple(outputs)) == (graph.inputs, graph.outputs):
        return graph
    gone = set(inputs) - set(graph.inputs)
    operations = [op for op in graph.ops if op.output not in gone]
    return Graph.of(graph.name, graph.tensors.values(), operations, inputs, outputs)


def averages_as_convolutions(graph: Graph, only: Container[str] | None = None) -> Graph:
    """A float graph whose average pools of an even number of values (or of those, the pools in ``only``) are depthwise
    convolutions of equal weights.

    Half of their integer means lie in the middle between two integers, and kernels for pools round that in different
    ways; those for convolutions share theirs. Pools whose padding does not count stay: their divisor varies.
    """
    tensors, operations = dict(graph.tensors), list[Op]()
    for op in graph.ops:
        even = isinstance(op, ops.AveragePool) and op.padding == ops.NO_PADS and math.prod(op.window) % 2 == 0
        if isinstance(op, ops.AveragePool) and even and (only is None or op.name in only):
            channels = tensors[op.output].shape[3]
            values = {
                f"{op.name}/weight": np.full((channels, *op.window, 1), 1 / math.prod(op.window), np.float32),
                f"{op.name}/bias": np.zeros(channels, np.float32),
            }
            tensors |= {name: Tensor(name, data.shape, data=data) for name, data in values.items()}
            op = ops.Conv((*op.inputs, *values), op.output, stride=op.stride, groups=channels)
        operations.append(op)
    return (
        graph
        if operations == list(graph.ops)
        else Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)
    )


def explicit_padding(graph: Graph) -> Graph:
    """The graph as TFLite says it: padding that is neither SAME nor VALID is a ``Pad`` of its own.

    The padding of an average pool, which must not count, stays where it is.
    """
    pads = {op.name: pad_before(graph, op) for op in graph.ops}
    if not any(pads.values()):
        return graph
    tensors, operations = dict(graph.tensors), []
    for op in graph.ops:
        pad = pads[op.name]
        if pad is not None:
            assert isinstance(op, ops.Conv | ops.Pool)
            x = tensors[pad.inputs[0]]
            tensors[pad.output] = replace(x, name=pad.output, shape=pad.output_shape(x.shape))
            operations.append(pad)
            op = replace(op, inputs=(pad.output, *op.inputs[1:]), padding=ops.NO_PADS)
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def pad_before(graph: Graph, op: Op) -> ops.Pad | None:
    """The ``Pad`` that ``explicit_padding`` puts before an operation, if it does."""
    if not isinstance(op, ops.Conv | ops.MaxPool) or padding_word(graph, op) is not None:
        return None
    x = graph.tensors[op.inputs[0]]
    return ops.Pad((x.name,), f"{op.name}/pad", op.padding, _lowest(x) if isinstance(op, ops.MaxPool) else 0.0)


def padding_word(graph: Graph, op: ops.Conv | ops.Pool) -> Literal["VALID", "SAME"] | None:
    """TFLite's word for an operation's padding, if it has one."""
    if op.padding == ops.NO_PADS:
        return "VALID"
    _, rows, columns, _ = graph.tensors[op.inputs[0]].shape
    if isinstance(op, ops.Conv):
        _, *window, _ = graph.tensors[op.inputs[1]].shape
        window = [(k - 1) * d + 1 for k, d in zip(window, op.dilation, strict=True)]
        if any(extent < step for extent, step in zip(window, op.stride, strict=True)):
            # Where a window steps over pixels tflite-runtime 2.14 reads SAME wrongly along the other axis.
            return None
    else:
        window = list(op.window)
    same = (*ops.same_pads(rows, window[0], op.stride[0]), *ops.same_pads(columns, window[1], op.stride[1]))
    return "SAME" if op.padding == same else None


def for_tflite(graph: Graph) -> Graph:
    """The graph in TFLite's own words: one operation for each of the file's, but for those on constants."""
    return shared_scales(explicit_padding(graph))


def shared_scales(graph: Graph) -> Graph:
    """The graph as TFLite's kernels take it: what passes integers on has one scale for all of its tensors.

    Inputs of a join in another scale than the output's go through a ``Quantize`` of their own, and so does what others
    give, as a softmax in the one scale that its kernels have: before a mean is taken, its narrower range would cut.
    """
    tensors, operations = dict(graph.tensors), []
    for op in graph.ops:
        output = graph.tensors[op.output]
        if isinstance(op, ops.Concat) and output.quantization is not None:
            others = [name for name in dict.fromkeys(op.inputs) if tensors[name].quantization != output.quantization]
            for name in others:
                rescaled = replace(output, name=f"{op.name}/{name}", shape=tensors[name].shape)
                tensors[rescaled.name] = rescaled
                operations.append(ops.Quantize((name,), rescaled.name))
            op = ops.rename(op, {name: f"{op.name}/{name}" for name in others})
        given = _scale_given(op, tensors)
        if given is not None and given != output.quantization:
            inner = replace(output, name=f"{op.name}/unscaled", quantization=given)
            tensors[inner.name] = inner
            operations += [replace(op, output=inner.name), ops.Quantize((inner.name,), op.output)]
        else:
            operations.append(op)
    if len(operations) == len(graph.ops):
        return graph
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _scale_given(op: Op, tensors: Mapping[str, Tensor]) -> Quantization | None:
    """The scale in which TFLite's kernel of an operation gives its integers, where that is not free."""
    x, output = tensors[op.inputs[0]], tensors[op.output]
    if isinstance(op, ops.Softmax):
        return SOFTMAX_SCALES.get(output.dtype)
    return x.quantization if isinstance(op, _PASSING) and x.dtype == output.dtype else None


def _lowest(x: Tensor) -> float:
    if x.quantization is None:
        return float(np.finfo(np.float32).min)
    return float(x.quantization.dequantize(np.array(np.iinfo(x.dtype).min)))
