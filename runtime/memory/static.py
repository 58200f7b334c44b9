"""The arena of an ideal static compiler, which has no runtime: concats and slices are views, not copies."""

from collections.abc import Mapping
from dataclasses import replace

from ..graph import Graph, ops
from .allocation import Block, Layout, LiveRange, allocate, live_ranges
from .hybrid import hybrid_weight


def lay_out(graph: Graph) -> Layout:
    """Allocate activations and their views greedily by size.

    The total is unknown for weights with fewer bits than the activations: code that unpacks them needs memory, too.
    """
    views = _views(graph)
    ranges = live_ranges(graph)
    members: dict[str, list[LiveRange]] = {}
    for live in ranges:
        members.setdefault(_root(views, live.tensor), []).append(live)
    buffers = allocate([_merged(live, members[live.tensor]) for live in ranges if live.tensor in members])
    layout = Layout(graph, buffers, views={name: _root(views, name) for name in views})
    if hybrid_weight(graph) is not None:
        return layout
    return replace(layout, scratch=(), total_bytes=layout.arena_bytes)


def _views(graph: Graph) -> dict[str, str]:
    """For each view the activation that contains it, one step at a time.

    Operands of a concat are written straight into its output, a slice of rows stays in place, and a reshape reuses the
    bytes of its input unless they lie with gaps in a concat.
    """
    views: dict[str, str] = {}
    for op in graph.ops:
        if isinstance(op, ops.Concat):
            for name in op.inputs:
                if name in graph.producers and name not in graph.outputs and _same_quantization(graph, name, op.output):
                    views.setdefault(name, op.output)
    for op in graph.ops:
        if op.output in views:
            continue
        rows = isinstance(op, ops.Slice) and op.output not in graph.outputs and _is_contiguous(graph, op)
        if rows or (isinstance(op, ops.Reshape) and op.inputs[0] not in views):
            views[op.output] = op.inputs[0]
    return views


def _is_contiguous(graph: Graph, op: ops.Slice) -> bool:
    """True for a slice of whole rows."""
    shape = graph.tensors[op.inputs[0]].shape
    return len(shape) == 4 and shape[0] == 1 and op.size[2:] == shape[2:]


def _same_quantization(graph: Graph, name: str, output: str) -> bool:
    return graph.tensors[name].quantization == graph.tensors[output].quantization


def _root(views: Mapping[str, str], name: str) -> str:
    while name in views:
        name = views[name]
    return name


def _merged(live: LiveRange, members: list[LiveRange]) -> LiveRange:
    """The live range of a tensor together with its views."""
    first, last = min(member.first for member in members), max(member.last for member in members)
    return LiveRange(live.tensor, live.nbytes, (Block(first, last, 0, live.blocks[-1].end),))
