"""Legalization for TFLite: graphs rewritten to operations, paddings and scales that its kernels support."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from ..graph import Graph, Op, Quantization, Tensor, ops


def legalize(graph: Graph) -> Graph:
    """The graph with one operation for each operator that the TFLite file will have, except those on constants."""
    return shared_scales(explicit_padding(graph))


def explicit_padding(graph: Graph) -> Graph:
    """The graph with a ``Pad`` for each padding that is neither SAME nor VALID.

    An average pool keeps its padding, which must not count.
    """
    pads = {op.name: pad_before(graph, op) for op in graph.ops}
    if not any(pads.values()):
        return graph
    tensors, operations = dict(graph.tensors), []
    for op in graph.ops:
        pad = pads[op.name]
        if pad is not None:
            assert isinstance(op, ops.Windowed)
            x = tensors[pad.inputs[0]]
            tensors[pad.output] = replace(x, name=pad.output, shape=pad.output_shape(x.shape))
            operations.append(pad)
            op = replace(op, inputs=(pad.output, *op.inputs[1:]), padding=ops.NO_PADS)
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def pad_before(graph: Graph, op: Op) -> ops.Pad | None:
    """The ``Pad`` that ``explicit_padding`` inserts before an operation, or ``None``."""
    if not isinstance(op, ops.Conv | ops.MaxPool) or tflite_padding(graph, op) is not None:
        return None
    x = graph.tensors[op.inputs[0]]
    return ops.Pad((x.name,), f"{op.name}/pad", op.padding, _lowest(x) if isinstance(op, ops.MaxPool) else 0.0)


def tflite_padding(graph: Graph, op: ops.Windowed) -> Literal["VALID", "SAME"] | None:
    """TFLite's name for the padding of an operation, or ``None`` if it has none."""
    if op.padding == ops.NO_PADS:
        return "VALID"
    window = op.extent(*graph.shapes(op))
    if isinstance(op, ops.Conv) and any(extent < step for extent, step in zip(window, op.stride, strict=True)):
        # If a window skips pixels along one axis, tflite-runtime 2.14 misreads SAME along the other.
        return None
    _, rows, columns, _ = graph.tensors[op.inputs[0]].shape
    same = (*ops.same_pads(rows, window[0], op.stride[0]), *ops.same_pads(columns, window[1], op.stride[1]))
    return "SAME" if op.padding == same else None


def shared_scales(graph: Graph) -> Graph:
    """The graph with one scale for all tensors of each operation that does not rescale, as TFLite's kernels require.

    A ``Quantize`` rescales each input of a concatenation whose scale differs from the output's. It also follows each
    operation whose kernel prescribes another output scale than the graph's, such as softmax: an average pool in a
    narrower output scale would clip before it takes the mean.
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
        prescribed = _kernel_scale(op, tensors)
        if prescribed is not None and prescribed != output.quantization:
            inner = replace(output, name=f"{op.name}/unscaled", quantization=prescribed)
            tensors[inner.name] = inner
            operations += [replace(op, output=inner.name), ops.Quantize((inner.name,), op.output)]
        else:
            operations.append(op)
    if len(operations) == len(graph.ops):
        return graph
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _kernel_scale(op: Op, tensors: Mapping[str, Tensor]) -> Quantization | None:
    """Output scale and zero point that TFLite's kernel of an operation prescribes, or ``None`` if they are free."""
    x, output = tensors[op.inputs[0]], tensors[op.output]
    if output.dtype in op.fixed_output_scale:
        scale, zero_point = op.fixed_output_scale[output.dtype]
        return Quantization((scale,), zero_point)
    rescales = isinstance(op, ops.Concat) or not op.requires_same_scale
    return x.quantization if not rescales and x.dtype == output.dtype else None


def _lowest(x: Tensor) -> float:
    if x.quantization is None:
        return float(np.finfo(np.float32).min)
    return float(x.quantization.dequantize(np.array(np.iinfo(x.dtype).min)))
