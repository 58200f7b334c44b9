"""Layers of an int8 network that stay float: to see what they cost, and as a network that runs."""

from collections.abc import Iterable
from dataclasses import replace

from ...runtime.graph import Graph, Op, Tensor, ops
from ..quantization.scales import shares_scale
from .matching import Match


def quantizers(graph: Graph) -> dict[str, str]:
    """The integer tensor in which what an operation (or the input of the network) gives is rounded, by its name.

    Operations that stay float, or give on the integers that they take, have none.
    """
    found = {name: name for name in graph.inputs if graph.tensors[name].quantization}
    for op in graph.ops:
        if _without_quantizer(graph, op):
            continue
        if isinstance(op, ops.Quantize) and graph.tensors[op.inputs[0]].quantization is None:
            found[op.inputs[0]] = op.output
        elif graph.tensors[op.output].quantization is not None:
            found[op.output] = op.output
    return found


def with_float_layer(found: Match, layer: str) -> Graph:
    """The int8 network with one layer's weight, and what that layer gives, left in float; all else as it is.

    ``layer`` is one of ``quantizers``. onnxruntime runs it; TFLite knows no operations on integers and reals at once.
    """
    graph = found.quantized
    real = {quantizers(graph)[layer]}
    for op in graph.ops:
        if real & set(op.inputs) and _without_quantizer(graph, op):
            real.add(op.output)
    tensors = {name: _as_real(tensor) if name in real else tensor for name, tensor in graph.tensors.items()}
    names: dict[str, str] = {}
    operations: list[Op] = []
    for op in graph.ops:
        op = replace(op, inputs=tuple(names.get(name, name) for name in op.inputs))
        if isinstance(op, ops.Quantize | ops.Dequantize) and (op.output in real or op.inputs[0] in real):
            # Nothing is left to turn: its users take what it takes.
            names[op.output] = op.inputs[0]
            continue
        operations.append(_as_float(found, op, tensors) if op.output == layer else op)
    outputs = [names.get(name, name) for name in graph.outputs]
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, outputs)


def adjacent_ops(graph: Graph, tensor: str) -> set[str]:
    """The operations that have to compute in float for an integer tensor, and what it is joined to, to become real."""
    group = _group(graph, tensor)
    around = [op for op in graph.ops if group & {*op.inputs, op.output} and not _without_quantizer(graph, op)]
    return {op.inputs[0] if isinstance(op, ops.Quantize) and op.output in group else op.output for op in around}


def keep_float(found: Match, layers: Iterable[str]) -> Graph:
    """The int8 network with some operations in float, between Dequantize and Quantize; both formats can say it.

    A tensor stays float when all that makes and uses it does; the network's own input and output keep their types.
    """
    graph = found.quantized
    floats, real = _extended(graph, set(layers))
    tensors = {name: _as_real(tensor) if name in real else tensor for name, tensor in graph.tensors.items()}
    operations: dict[str, Op] = {}
    for op in graph.ops:
        parts = _in_float(found, op, tensors) if op.output in floats else [op]
        operations.update((part.output, part) for part in parts if part.output not in operations)
    return Graph.of(graph.name, tensors.values(), operations.values(), graph.inputs, graph.outputs)


def _without_quantizer(graph: Graph, op: Op) -> bool:
    """Whether an operation has no quantizer of its own: it gives on its inputs' integers, or their mean."""
    if isinstance(op, ops.Dequantize):
        return True
    output = graph.tensors[op.output]
    sources = [graph.tensors[name].quantization for name in op.inputs]
    if output.quantization is None or None in sources:
        return shares_scale(op) and output.quantization is None and sources == [None] * len(sources)
    same = all(source is not None and source.scale == output.quantization.scale for source in sources)
    return same and (shares_scale(op) or isinstance(op, ops.Quantize))


def _group(graph: Graph, tensor: str) -> set[str]:
    """The tensors that hold the same integers as one, or a part of them: all that passing on joins."""
    group = {tensor}
    joined = [{*op.inputs, op.output} for op in graph.ops if _without_quantizer(graph, op)]
    while grown := set[str]().union(*(names for names in joined if names & group)) - group:
        group |= grown
    return group


def _extended(graph: Graph, layers: set[str]) -> tuple[set[str], set[str]]:
    """Layers that compute in float with what only passes on between them, and the tensors that need no integers."""
    floats, real = set(layers), set[str]()
    for layer, tensor in quantizers(graph).items():
        group = _group(graph, tensor)
        if layer in layers and adjacent_ops(graph, tensor) <= layers and not group & {*graph.inputs, *graph.outputs}:
            real |= group
            floats |= {op.output for op in graph.ops if op.output in group}
    return floats, real


def _in_float(found: Match, op: Op, tensors: dict[str, Tensor]) -> list[Op]:
    """An operation in float, and what turns its inputs and its output where those are integers."""
    integers = [name for name in op.inputs if tensors[name].data is None and tensors[name].quantization]
    parts: list[Op] = [ops.Dequantize((name,), f"{name}/dequantized") for name in integers]
    inner = ops.rename(op, {part.inputs[0]: part.output for part in parts})
    after: list[Op] = []
    if tensors[op.output].quantization:
        inner = replace(inner, output=f"{op.output}/unquantized")
        after = [ops.Quantize((inner.output,), op.output)]
    for name, turned in [*((part.inputs[0], part.output) for part in parts), (op.output, inner.output)]:
        tensors[turned] = _as_real(tensors[name], turned) if turned != name else tensors[name]
    named = replace(inner, output=op.output)
    return [*parts, replace(_as_float(found, named, tensors), output=inner.output), *after]


def _as_float(found: Match, op: Op, tensors: dict[str, Tensor]) -> Op:
    """An operation with the float network's weights, put among the tensors, and its rectifier.

    The rectifier may be missing where integers end at zero, as in files of onnxruntime's quantizer.
    """
    layer = found.layer(op)
    if isinstance(op, ops.Layer):
        names = f"{op.name}/float_weight", f"{op.name}/float_bias"
        for name, source in zip(names, layer.inputs[1:], strict=True):
            tensors[name] = replace(found.reference.constant(source), name=name)
        op = replace(op, inputs=(op.inputs[0], *names))
    if isinstance(op, ops.Fusing) and isinstance(layer, ops.Fusing):
        op = replace(op, activation=layer.activation)
    return op


def _as_real(tensor: Tensor, name: str = "") -> Tensor:
    return replace(tensor, name=name or tensor.name, dtype="float32", quantization=None)
