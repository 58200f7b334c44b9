"""Exact rewrites that every graph goes through: batch norm into convolutions, rectifiers into what they follow."""

from dataclasses import replace

import numpy as np

from .graph import NO_PADS, Add, Conv, FullyConnected, Graph, Op, Relu, Tensor


def fuse_activations(graph: Graph) -> Graph:
    """Take each ReLU or ReLU6 into the convolution, fully connected layer or addition before it."""
    taken: dict[str, Op] = {}
    for op in graph.ops:
        before = graph.producers.get(op.inputs[0])
        if (
            isinstance(op, Relu)
            and isinstance(before, Conv | FullyConnected | Add)
            and before.activation == "none"
            and graph.only_consumer(before.output) is op
        ):
            taken[before.name] = op
    gone = {op.name for op in taken.values()}
    ops = [_with_activation(op, taken.get(op.name)) for op in graph.ops if op.name not in gone]
    return Graph.of(graph.name, graph.tensors.values(), ops, graph.inputs, graph.outputs)


def _with_activation(op: Op, relu: Op | None) -> Op:
    if relu is None:
        return op
    assert isinstance(op, Conv | FullyConnected | Add) and isinstance(relu, Relu)
    return replace(op, activation=relu.activation, output=relu.output)


def fold_batch_norm(graph: Graph) -> Graph:
    """Multiply each per-channel scale (a batch norm as graphs hold it: a depthwise 1x1 convolution) into the
    convolution or fully connected layer before it (Jacob et al., arXiv 1712.05877, section 3.2)."""
    tensors = dict(graph.tensors)
    ops: list[Op] = []
    index: dict[str, int] = {}
    for op in graph.ops:
        before = ops[index[op.inputs[0]]] if op.inputs[0] in index else None
        if (
            _is_channel_scale(graph, op)
            and isinstance(before, Conv | FullyConnected)
            and before.activation == "none"
            and graph.only_consumer(op.inputs[0]) is op
        ):
            weight, bias = _folded(tensors, before, op)
            tensors.update({weight.name: weight, bias.name: bias})
            merged = replace(before, inputs=(before.inputs[0], weight.name, bias.name), output=op.output)
            ops[index[op.inputs[0]]] = replace(merged, activation=op.activation)  # pyright: ignore[reportAttributeAccessIssue]
            index[op.output] = index[op.inputs[0]]
        else:
            index[op.output] = len(ops)
            ops.append(op)
    return Graph.of(graph.name, tensors.values(), ops, graph.inputs, graph.outputs)


def _is_channel_scale(graph: Graph, op: Op) -> bool:
    if not isinstance(op, Conv):
        return False
    x, weight = graph.shapes(op)[:2]
    plain = op.stride == (1, 1) and op.padding == NO_PADS and graph.tensors[op.inputs[1]].dtype == "float32"
    return plain and weight == (x[3], 1, 1, 1) and op.groups == x[3]


def _folded(tensors: dict[str, Tensor], before: Conv | FullyConnected, scale: Op) -> tuple[Tensor, Tensor]:
    weight, bias = (tensors[name].real() for name in before.inputs[1:])
    factor, offset = (tensors[name].real() for name in scale.inputs[1:])
    factor = factor.reshape(-1)
    new_weight = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    new_bias = (bias * factor + offset).astype(np.float32)
    names = (f"{scale.output}/weight", f"{scale.output}/bias")
    return tuple(Tensor(n, a.shape, data=a) for n, a in zip(names, (new_weight, new_bias), strict=True))  # pyright: ignore[reportReturnType]
