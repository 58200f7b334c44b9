"""Smaller variants of a network that need less memory: shapes for planning, not trained networks."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...runtime.errors import UnsupportedError
from ...runtime.graph import Graph, Op, Tensor, ops

# Input sizes to try, as shares of the network's and rounded to multiples of 32, and the share of channels to keep.
_SIDES = (6 / 7, 5 / 7, 4 / 7, 3 / 7)
_MULTIPLE = 32
_CHANNELS = 0.5


def smaller_alternatives(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """Pairs of a description and a smaller variant of the graph, smallest changes first."""
    if any(isinstance(op, ops.Add) for op in graph.ops):
        yield "without its bypasses", without_bypass(graph)
    shape = graph.tensors[graph.inputs[0]].shape
    if len(shape) != 4:
        return
    try:
        for share in _SIDES:
            rows, columns = (round(side * share / _MULTIPLE) * _MULTIPLE for side in shape[1:3])
            if 0 < rows < shape[1] and 0 < columns < shape[2]:
                yield f"at {rows}x{columns}", rebuilt(graph, (rows, columns))
        yield f"with {_CHANNELS:.0%} of its channels", rebuilt(graph, (shape[1], shape[2]), _CHANNELS)
    except UnsupportedError:
        # The network depends on its input size or its channel counts: no further variants.
        return


def rebuilt(graph: Graph, size: tuple[int, int], channels: float = 1.0) -> Graph:
    """The network for images of another size, with a share of the channels in all convolutions but the last.

    Raises ``UnsupportedError`` if the network depends on its size or channel counts.
    """
    last = next((op for op in reversed(graph.ops) if isinstance(op, ops.Conv)), None)
    source = graph.tensors[graph.inputs[0]]
    tensors = {source.name: replace(source, shape=(source.shape[0], *size, source.shape[3]))}
    operations: list[Op] = []
    for op in graph.ops:
        constants = [graph.tensors[name] for name in op.inputs if graph.tensors[name].data is not None]
        if isinstance(op, ops.Conv) and op.groups == 1:
            weight, bias = constants
            out = weight.shape[0] if op is last else max(1, round(weight.shape[0] * channels))
            depth = tensors[op.inputs[0]].shape[3]
            constants = [_part(weight, (out, *weight.shape[1:3], depth)), _part(bias, (out,))]
        tensors.update((tensor.name, tensor) for tensor in constants)
        shapes = [tensors[name].shape for name in op.inputs]
        if isinstance(op, ops.Reshape) and len(op.shape) == 2:
            op = replace(op, shape=(op.shape[0], math.prod(shapes[0]) // op.shape[0]))
        try:
            tensors[op.output] = replace(graph.tensors[op.output], shape=op.output_shape(*shapes))
        except (ValueError, IndexError) as error:
            raise UnsupportedError(f"{op.kind} {op.name!r} depends on its input size: {error}") from error
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _part(constant: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first values of a constant along each axis."""
    assert constant.data is not None
    data = np.ascontiguousarray(constant.data[tuple(slice(size) for size in shape)])
    quantization = constant.quantization
    if quantization and quantization.axis is not None:
        quantization = replace(quantization, scale=quantization.scale[: shape[quantization.axis]])
    return replace(constant, shape=data.shape, data=data, quantization=quantization)


def without_bypass(graph: Graph) -> Graph:
    """The network without its residual additions: only the branch computed last remains."""
    made = {op.output: step for step, op in enumerate(graph.ops)}
    names: dict[str, str] = {}
    operations: list[Op] = []
    for op in graph.ops:
        if isinstance(op, ops.Add):
            names[op.output] = max((names.get(name, name) for name in op.inputs), key=lambda name: made.get(name, -1))
        else:
            operations.append(ops.rename(op, names))
    outputs = [names.get(name, name) for name in graph.outputs]
    return Graph.of(graph.name, graph.tensors.values(), operations, graph.inputs, outputs)
