"""Int8 networks in which some layers compute in float: to measure a layer's error, or for deployment."""

from collections.abc import Iterable
from dataclasses import replace

from ...runtime.graph import Graph, Op, Tensor, ops
from ..quantization.scales import shares_scale
from .matching import Match


def quantizers(graph: Graph) -> dict[str, str]:
    """Map each operation (or network input) whose output is quantized to the integer tensor of that output.

    Float operations, and operations that do not rescale, have no entry.
    """
    found = {name: name for name in graph.inputs if graph.tensors[name].quantization}
    for op in graph.ops:
        if _has_no_quantizer(graph, op):
            continue
        if isinstance(op, ops.Quantize) and graph.tensors[op.inputs[0]].quantization is None:
            found[op.inputs[0]] = op.output
        elif graph.tensors[op.output].quantization is not None:
            found[op.output] = op.output
    return found


def with_float_layer(found: Match, layer: str) -> Graph:
    """Restore the weight and the output of one layer to float; the rest of the int8 network is unchanged.

    ``layer`` is a key of ``quantizers``. onnxruntime runs the result; TFLite has no operations with mixed inputs.
    """
    graph = found.quantized
    real = {quantizers(graph)[layer]}
    for op in graph.ops:
        if real & set(op.inputs) and _has_no_quantizer(graph, op):
            real.add(op.output)
    tensors = {name: _as_real(tensor) if name in real else tensor for name, tensor in graph.tensors.items()}
    names: dict[str, str] = {}
    operations: list[Op] = []
    for op in graph.ops:
        op = replace(op, inputs=tuple(names.get(name, name) for name in op.inputs))
        if isinstance(op, ops.Quantize | ops.Dequantize) and (op.output in real or op.inputs[0] in real):
            # Nothing is left to convert: consumers take its input directly.
            names[op.output] = op.inputs[0]
            continue
        operations.append(_as_float(found, op, tensors) if op.output == layer else op)
    outputs = [names.get(name, name) for name in graph.outputs]
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, outputs)


def adjacent_ops(graph: Graph, tensor: str) -> set[str]:
    """The operations that must compute in float for a tensor, and the tensors that share its scale, to be float."""
    group = _sharing_scale(graph, tensor)
    adjacent = [op for op in graph.ops if group & {*op.inputs, op.output} and not _has_no_quantizer(graph, op)]
    return {op.inputs[0] if isinstance(op, ops.Quantize) and op.output in group else op.output for op in adjacent}


def keep_float(found: Match, layers: Iterable[str]) -> Graph:
    """Compute some operations of the int8 network in float, between Dequantize and Quantize; both formats support it.

    A tensor stays float if its producer and all its consumers do; the network's input and output keep their types.
    """
    graph = found.quantized
    floats, real = _float_parts(graph, set(layers))
    tensors = {name: _as_real(tensor) if name in real else tensor for name, tensor in graph.tensors.items()}
    operations: dict[str, Op] = {}
    for op in graph.ops:
        parts = _in_float(found, op, tensors) if op.output in floats else [op]
        operations.update((part.output, part) for part in parts if part.output not in operations)
    return Graph.of(graph.name, tensors.values(), operations.values(), graph.inputs, graph.outputs)


def _has_no_quantizer(graph: Graph, op: Op) -> bool:
    """True if an operation has no quantizer of its own: its output keeps the scale of its inputs, or is float."""
    if isinstance(op, ops.Dequantize):
        return True
    output = graph.tensors[op.output]
    sources = [graph.tensors[name].quantization for name in op.inputs]
    if output.quantization is None or None in sources:
        return shares_scale(op) and output.quantization is None and sources == [None] * len(sources)
    same = all(source is not None and source.scale == output.quantization.scale for source in sources)
    return same and (shares_scale(op) or isinstance(op, ops.Quantize))


def _sharing_scale(graph: Graph, tensor: str) -> set[str]:
    """All tensors that share a tensor's scale, linked by operations without a quantizer."""
    group = {tensor}
    joined = [{*op.inputs, op.output} for op in graph.ops if _has_no_quantizer(graph, op)]
    while grown := set[str]().union(*(names for names in joined if names & group)) - group:
        group |= grown
    return group


def _float_parts(graph: Graph, layers: set[str]) -> tuple[set[str], set[str]]:
    """The layers with the non-rescaling operations between them, and the tensors that can be float."""
    floats, real = set(layers), set[str]()
    for layer, tensor in quantizers(graph).items():
        group = _sharing_scale(graph, tensor)
        if layer in layers and adjacent_ops(graph, tensor) <= layers and not group & {*graph.inputs, *graph.outputs}:
            real |= group
            floats |= {op.output for op in graph.ops if op.output in group}
    return floats, real


def _in_float(found: Match, op: Op, tensors: dict[str, Tensor]) -> list[Op]:
    """An operation in float, with the conversions of its integer inputs and output."""
    integers = [name for name in op.inputs if tensors[name].data is None and tensors[name].quantization]
    parts: list[Op] = [ops.Dequantize((name,), f"{name}/dequantized") for name in integers]
    inner = ops.rename(op, {part.inputs[0]: part.output for part in parts})
    after: list[Op] = []
    if tensors[op.output].quantization:
        inner = replace(inner, output=f"{op.output}/unquantized")
        after = [ops.Quantize((inner.output,), op.output)]
    for name, converted in [*((part.inputs[0], part.output) for part in parts), (op.output, inner.output)]:
        tensors[converted] = _as_real(tensors[name], converted) if converted != name else tensors[name]
    named = replace(inner, output=op.output)
    return [*parts, replace(_as_float(found, named, tensors), output=inner.output), *after]


def _as_float(found: Match, op: Op, tensors: dict[str, Tensor]) -> Op:
    """An operation with the float network's weights, which are added to ``tensors``, and its activation.

    The int8 operation lacks a ReLU if its integers already end at zero, as in files of onnxruntime's quantizer.
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
