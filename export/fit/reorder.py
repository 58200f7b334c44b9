"""Exact rewrites that compute the same integers in another order, with a lower memory peak or with better tiles.

Padding becomes a separate operation, max pools move before concatenations, and convolutions followed by a pool are
computed in groups of output channels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ...runtime.graph import Graph, Op, Quantization, Tensor, ops
from .tiling import MAX_JOINED

# Numbers of groups of output channels; XNNPACK concatenates at most five.
_GROUPS = (2, 4)


def reorderings(graph: Graph) -> list[Graph]:
    """The graph itself, followed by its distinct rewrites."""
    found = [graph, with_padding_ahead(graph)]
    found += [with_pools_before_concat(other) for other in found]
    found += [with_channels_split(other, groups) for other in found for groups in _GROUPS]
    unique: dict[tuple[Op, ...], Graph] = {}
    for other in found:
        unique.setdefault(other.ops, other)
    return list(unique.values())


def with_padding_ahead(graph: Graph) -> Graph:
    """The graph with the padding of convolutions as separate operations.

    Other operations on such a tensor slice it out of the padded one, so that only the padded tensor stays in memory
    while tiles are computed from it.
    """
    tensors, operations = dict(graph.tensors), []
    renamed: dict[str, str] = {}
    for op in graph.ops:
        x = op.inputs[0]
        if isinstance(op, ops.Conv) and any(op.padding) and x not in renamed:
            pads = {o.padding for o in graph.consumers[x] if isinstance(o, ops.Conv) and any(o.padding)}
            if len(pads) == 1:
                _pad_ahead(graph, x, op.padding, tensors, operations, renamed)
        if isinstance(op, ops.Conv) and any(op.padding) and x in renamed:
            op = replace(op, inputs=(f"{x}/padded", *op.inputs[1:]), padding=ops.NO_PADS)
        else:
            op = ops.rename(op, {name: renamed[name] for name in op.inputs if name in renamed})
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _pad_ahead(
    graph: Graph, x: str, padding: ops.Pads, tensors: dict[str, Tensor], operations: list[Op], renamed: dict[str, str]
) -> None:
    tensor = graph.tensors[x]
    pad = ops.Pad((x,), f"{x}/padded", padding)
    shape = pad.output_shape(tensor.shape)
    cut = ops.Slice((pad.output,), f"{x}/inner", (0, padding[0], padding[2], 0), tensor.shape)
    # The padding precedes all operations on the tensor.
    first = next((i for i, op in enumerate(operations) if x in op.inputs), len(operations))
    later = [ops.rename(op, {x: cut.output}) for op in operations[first:]]
    operations[first:] = [pad, cut, *later]
    tensors[pad.output] = replace(tensor, name=pad.output, shape=shape)
    tensors[cut.output] = replace(tensor, name=cut.output)
    renamed[x] = cut.output


def with_pools_before_concat(graph: Graph) -> Graph:
    """The graph with each max pool of concatenated channels moved before the concatenation, to each of its inputs."""
    tensors, taken = dict(graph.tensors), {}
    for op in graph.ops:
        joined = graph.producers.get(op.inputs[0])
        if (
            isinstance(op, ops.MaxPool)
            and isinstance(joined, ops.Concat)
            and joined.axis == 3
            and graph.only_consumer(joined.output) is op
            and len(set(joined.inputs)) == len(joined.inputs)
            # Concatenations in files from other converters may rescale their inputs; pools cannot.
            and all(tensors[n].quantization == tensors[joined.output].quantization for n in joined.inputs)
        ):
            taken[joined.output] = op
    moved: dict[str, list[Op]] = {}
    operations: list[Op] = []
    gone = {op.output for op in taken.values()}
    for op in graph.ops:
        if op.output in taken:
            pool, parts = taken[op.output], []
            for index, name in enumerate(op.inputs):
                part = replace(pool, inputs=(name,), output=f"{pool.output}/{index}")
                tensors[part.output] = replace(
                    tensors[pool.output], name=part.output, shape=part.output_shape(tensors[name].shape)
                )
                moved.setdefault(name, []).append(part)
                parts.append(part.output)
            operations.append(ops.Concat(tuple(parts), pool.output, 3))
        elif op.output not in gone:
            operations.append(op)
    return Graph.of(graph.name, tensors.values(), _with_moved(operations, moved), graph.inputs, graph.outputs)


def _with_moved(operations: Iterable[Op], moved: Mapping[str, list[Op]]) -> list[Op]:
    """``operations`` with the ``moved`` ones inserted directly after their input is computed."""
    operations = list(operations)
    made = {op.output for op in operations}
    placed = [part for name, parts in moved.items() if name not in made for part in parts]
    for op in operations:
        placed += [op, *moved.get(op.output, [])]
    return placed


def with_channels_split(graph: Graph, groups: int) -> Graph:
    """The graph with each convolution that only a pool reads, and the pool, computed in ``groups`` of channels."""
    tensors, operations = dict(graph.tensors), []
    done: dict[str, list[str]] = {}
    for op in graph.ops:
        after = graph.only_consumer(op.output)
        if (
            isinstance(op, ops.Conv)
            and op.groups == 1
            and isinstance(after, ops.MaxPool | ops.AveragePool | ops.GlobalAveragePool)
        ):
            channels = graph.tensors[op.output].shape[3]
            edges = [channels * i // groups for i in range(groups + 1)]
            if channels >= groups:
                done[after.output] = []
                for start, stop in pairwise(edges):
                    part = _channels(tensors, op, start, stop)
                    pool = replace(after, inputs=(part.output,), output=f"{after.output}/channels{start}-{stop}")
                    operations += [part, pool]
                    for made in (part, pool):
                        shape = made.output_shape(*(tensors[name].shape for name in made.inputs))
                        like = op.output if made is part else after.output
                        tensors[made.output] = replace(tensors[like], name=made.output, shape=shape)
                    done[after.output].append(pool.output)
                continue
        if op.output in done:
            op = ops.Concat(tuple(done[op.output]), op.output, 3)
        operations.append(op)
    return _flat(Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs))


def _flat(graph: Graph) -> Graph:
    """The graph with nested concatenations merged, up to ``MAX_JOINED`` inputs."""
    inner: dict[str, Op] = {}
    operations: list[Op] = []
    for op in graph.ops:
        if isinstance(op, ops.Concat):
            parts = [inner[name].inputs if name in inner else (name,) for name in op.inputs]
            if sum(map(len, parts)) <= MAX_JOINED:
                op = replace(op, inputs=tuple(name for part in parts for name in part))
            else:
                operations += [inner.pop(name) for name in op.inputs if name in inner]
            after = graph.only_consumer(op.output)
            if isinstance(after, ops.Concat) and after.axis == op.axis:
                inner[op.output] = op
                continue
        operations.append(op)
    return Graph.of(graph.name, graph.tensors.values(), operations, graph.inputs, graph.outputs)


def _channels(tensors: dict[str, Tensor], op: ops.Conv, start: int, stop: int) -> ops.Conv:
    """A convolution of some of the output channels; its constants are added to ``tensors``."""
    names = []
    for name in op.inputs[1:]:
        tensor = tensors[name]
        assert tensor.data is not None
        data = np.ascontiguousarray(tensor.data[start:stop])
        quantization = tensor.quantization
        if quantization and quantization.axis is not None:
            quantization = Quantization(quantization.scale[start:stop], quantization.zero_point, quantization.axis)
        part = Tensor(f"{name}/channels{start}-{stop}", data.shape, tensor.dtype, quantization, data)
        tensors[part.name] = part
        names.append(part.name)
    return replace(op, inputs=(op.inputs[0], *names), output=f"{op.output}/channels{start}-{stop}")
