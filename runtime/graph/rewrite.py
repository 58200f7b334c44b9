"""Exact rewrites from graph to graph: batch norm folding, activation fusion, integer inputs and outputs."""

import math
from collections.abc import Container
from dataclasses import replace

import numpy as np

from . import ops
from .graph import Graph, Tensor
from .ops import Op


def fuse_activations(graph: Graph) -> Graph:
    """The graph with each ReLU and ReLU6 fused into the convolution, fully connected layer or addition before it."""
    taken: dict[str, Op] = {}
    for op in graph.ops:
        before = graph.producers.get(op.inputs[0])
        if (
            isinstance(op, ops.Relu)
            and isinstance(before, ops.Fusing)
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
    assert isinstance(op, ops.Fusing) and isinstance(relu, ops.Relu)
    return replace(op, activation=relu.activation, output=relu.output)


def fold_batch_norm(graph: Graph) -> Graph:
    """The graph with each per-channel scale folded into the convolution or fully connected layer before it.

    Graphs represent a batch norm as a depthwise 1x1 convolution (Jacob et al., arXiv 1712.05877, section 3.2).
    """
    tensors = dict(graph.tensors)
    operations: list[Op] = []
    index: dict[str, int] = {}
    for op in graph.ops:
        before = operations[index[op.inputs[0]]] if op.inputs[0] in index else None
        if (
            _is_channel_scale(graph, op)
            and isinstance(before, ops.Layer)
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


def _folded(tensors: dict[str, Tensor], before: ops.Layer, scale: Op) -> tuple[Tensor, Tensor]:
    weight, bias = (tensors[name].real() for name in before.inputs[1:])
    factor, offset = (tensors[name].real() for name in scale.inputs[1:])
    factor = factor.reshape(-1)
    new_weight = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    new_bias = (bias * factor + offset).astype(np.float32)
    names = (f"{scale.output}/weight", f"{scale.output}/bias")
    return tuple(Tensor(n, a.shape, data=a) for n, a in zip(names, (new_weight, new_bias), strict=True))  # pyright: ignore[reportReturnType]


def integer_ends(graph: Graph) -> Graph:
    """The graph without the ``Quantize`` of its float32 input and the ``Dequantize`` of its float32 output.

    Files from other converters often have float32 inputs and outputs around an integer network. A ``Quantize`` stays
    if another operation reads the float32 input, too.
    """
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
    """A float graph with depthwise convolutions of equal weights in place of average pools over evenly many values.

    Many of their integer means lie halfway between two integers. Runtimes' pool kernels round these differently, their
    convolution kernels alike. Pools with padding stay, since their divisor varies. ``only`` restricts the rewrite to
    the pools with these names.
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
