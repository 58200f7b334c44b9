"""The arena of LiteRT, following ``arena_planner.cc`` and ``simple_memory_arena.cc``.

Inputs are allocated first, for the whole inference. Other tensors follow by size, the largest first (of two equal
sizes the earlier one), each in the smallest gap that is large enough, aligned to 64 bytes. Some operations run in
place. Of the reference kernels only a mean has temporaries.

With XNNPACK the arena holds only inputs, outputs, and the operands of operations that its delegate does not take (as of
LiteRT 2.3). Other tensors are in XNNPACK's own workspace.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..formats.tflite_legalize import legalize
from ..graph import Graph, Op, ops
from .allocation import Block, Buffer, Layout, LiveRange, align
from .hybrid import hybrid_weight

ALIGNMENT = 64

# Scalars are never shared.
_SCALAR_BYTES = 4
# Numbers of operands of a concat that XNNPACK's delegate takes.
_JOINED = range(2, 6)


@dataclass(frozen=True)
class _Node:
    """One step of the interpreter: an operation, or operations taken by a delegate."""

    operations: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    delegated: bool = False

    @classmethod
    def of(cls, op: Op) -> "_Node":
        """A node of one operation."""
        return cls((op,), op.inputs, (op.output,))

    @property
    def op(self) -> Op | None:
        """The operation, or ``None`` for a delegate."""
        return None if self.delegated else self.operations[0]


def unplanned_reference(graph: Graph) -> str | None:
    """The reason why the memory of a graph cannot be planned for the reference kernels, or ``None``."""
    weight = hybrid_weight(graph)
    if weight is None or weight.dtype == "float16":
        return None
    return (
        f"the scratch memory of LiteRT for {weight.dtype} weights between float32 activations ({weight.name!r}) is "
        "unknown"
    )


def unplanned_xnnpack(graph: Graph) -> str | None:
    """The reason why the memory of a graph cannot be planned with XNNPACK, or ``None``."""
    wide = next((tensor for tensor in graph.activations if tensor.dtype == "int16"), None)
    if wide is None or unplanned_reference(graph) is not None:
        return unplanned_reference(graph)
    return f"the scratch memory of LiteRT's optimized kernels for 16-bit activations ({wide.name!r}) is unknown"


def lay_out_reference(graph: Graph) -> Layout:
    """The arena with the reference kernels for all operations.

    The heap of the interpreter is not planned, except for the float32 copies of float16 weights in it.
    """
    graph = legalize(graph)
    layout = _arena(graph, [_Node.of(op) for op in graph.ops])
    constants = (tensor for tensor in layout.graph.tensors.values() if tensor.data is not None)
    return replace(layout, unpacked_bytes=sum(2 * t.nbytes for t in constants if t.dtype == "float16"))


def lay_out_xnnpack(graph: Graph) -> Layout:
    """The arena with XNNPACK for all operations that it takes; its workspace is not planned."""
    graph = legalize(graph)
    return replace(_arena(graph, _partition(graph)), scratch=None)


def _partition(graph: Graph) -> list[_Node]:
    """Nodes in execution order: consecutive delegated operations form one node (``graph_info.cc``)."""
    known = {name for name, tensor in graph.tensors.items() if tensor.data is not None} | set(graph.inputs)
    left, nodes = list(graph.ops), []
    while left:
        kind, group = _is_delegated(graph, next(op for op in left if known.issuperset(op.inputs))), []
        size = -1
        while len(group) > size:
            size = len(group)
            for op in left:
                if op.output not in known and known.issuperset(op.inputs) and _is_delegated(graph, op) == kind:
                    group.append(op)
                    known.add(op.output)
        left = [op for op in left if op.output not in known]
        nodes += [_delegate(graph, group)] if kind else [_Node.of(op) for op in group]
    return nodes


def _is_delegated(graph: Graph, op: Op) -> bool:
    integer = graph.tensors[op.output].dtype != "float32"
    match op:
        case ops.AveragePool() | ops.Relu() | ops.Softmax() if integer:
            return False
        case ops.Pool():
            return all(extent >= step for extent, step in zip(op.window, op.stride, strict=True))
        case ops.Concat():
            return len(op.inputs) in _JOINED
        case ops.Pad():
            return op.value == 0
    return True


def _delegate(graph: Graph, operations: Sequence[Op]) -> _Node:
    made = {op.output for op in operations}
    inputs = dict.fromkeys(name for op in operations for name in op.inputs if name not in made)
    wanted = {*graph.outputs, *(name for op in graph.ops if op.output not in made for name in op.inputs)}
    return _Node(
        tuple(operations), tuple(inputs), tuple(op.output for op in operations if op.output in wanted), delegated=True
    )


def _arena(graph: Graph, nodes: Sequence[_Node]) -> Layout:
    shared = _shared(graph, nodes)
    ranges = _live_ranges(graph, nodes, shared)
    temporaries = [live for step, node in enumerate(nodes) for live in _temporaries(graph, node.op, step)]
    offsets = _best_fit([*ranges, *temporaries], graph.inputs)
    ends = list(accumulate(len(node.operations) for node in nodes))

    def placed(ranges: Sequence[LiveRange]) -> tuple[Buffer, ...]:
        return tuple(_in_operations(live, nodes, ends).at(offsets[live.tensor]) for live in ranges)

    operations = tuple(op for node in nodes for op in node.operations)
    return Layout(replace(graph, ops=operations), placed(ranges), placed(temporaries), views=shared)


def _in_operations(live: LiveRange, nodes: Sequence[_Node], ends: Sequence[int]) -> LiveRange:
    """Convert a live range from steps of the interpreter to operations."""
    first = ends[live.first] - len(nodes[live.first].operations) if nodes else 0
    last = ends[live.last] - 1 if nodes else 0
    return LiveRange(live.tensor, live.nbytes, (Block(first, last, 0, live.nbytes),))


def _best_fit(ranges: Sequence[LiveRange], kept: Sequence[str]) -> dict[str, int]:
    """Offsets: those in ``kept`` first, each in the smallest gap that is free during its whole live range."""
    offsets: dict[str, int] = {}
    placed: list[tuple[int, LiveRange]] = []
    for live in sorted(ranges, key=lambda live: (live.tensor not in kept, -live.nbytes, live.first)):
        offset = _smallest_gap([item for item in placed if _together(item[1], live)], live.nbytes)
        placed.append((offset, live))
        placed.sort(key=lambda item: item[0])
        offsets[live.tensor] = offset
    return offsets


def _smallest_gap(placed: Sequence[tuple[int, LiveRange]], nbytes: int) -> int:
    end, best, smallest = 0, None, math.inf
    for offset, live in placed:
        start = align(end, ALIGNMENT)
        if start + nbytes <= offset and offset - start < smallest:
            best, smallest = start, offset - end
        end = max(end, offset + live.nbytes)
    return best if best is not None else align(end, ALIGNMENT)


def _together(one: LiveRange, other: LiveRange) -> bool:
    return one.first <= other.last and other.first <= one.last


def _shared(graph: Graph, nodes: Sequence[_Node]) -> dict[str, str]:
    """For each operation that runs in place, its output and the activation that it overwrites."""
    uses = Counter(name for node in nodes for name in node.inputs) + Counter((*graph.inputs, *graph.outputs))
    shared: dict[str, str] = {}
    for node in nodes:
        op = node.op
        if not isinstance(op, ops.Add | ops.Reshape | ops.Softmax) or op.output in graph.outputs:
            continue
        for name in op.inputs if isinstance(op, ops.Add) else op.inputs[:1]:
            tensor = graph.tensors[name]
            if name in graph.inputs or tensor.data is not None:
                continue
            # A reshape keeps the values, so other operations may still read them.
            if isinstance(op, ops.Reshape):
                shared[op.output] = shared.get(name, name)
                break
            if uses[name] == 1 and tensor.nbytes > _SCALAR_BYTES:
                if uses[shared.get(name, name)] == 1:
                    shared[op.output] = shared.get(name, name)
                break
    return shared


def _live_ranges(graph: Graph, nodes: Sequence[_Node], shared: Mapping[str, str]) -> list[LiveRange]:
    """Live ranges, in steps of the interpreter, of the activations that have a buffer of their own."""
    end = max(len(nodes) - 1, 0)
    first = dict.fromkeys(graph.inputs, 0) | {name: step for step, node in enumerate(nodes) for name in node.outputs}
    last = first | dict.fromkeys((*graph.inputs, *(shared.get(name, name) for name in graph.outputs)), end)
    for step, node in enumerate(nodes):
        for name in (*node.inputs, *node.outputs):
            place = shared.get(name, name)
            if place in last:
                last[place] = max(last[place], step)
    return [
        LiveRange(t.name, t.nbytes, (Block(first[t.name], last[t.name], 0, t.nbytes),))
        for t in graph.activations
        if t.name in first and t.name not in shared
    ]


def _temporaries(graph: Graph, op: Op | None, step: int) -> list[LiveRange]:
    """Temporaries of a mean: its index, the axes, and a 32-bit sum per output value."""
    if not isinstance(op, ops.GlobalAveragePool):
        return []
    sizes = (4 * len(graph.tensors[op.inputs[0]].shape), 4 * 2, 4 * math.prod(graph.tensors[op.output].shape))
    return [LiveRange(f"{op.name}/temporary{i}", size, (Block(step, step, 0, size),)) for i, size in enumerate(sizes)]
