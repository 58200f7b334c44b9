"""What a file runs on, as far as its memory goes: how each target places the activations of one inference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..errors import UnsupportedError
from ..formats.tflite_legalize import legalize
from ..graph import Graph, Tensor, ops
from . import litert, tflm
from .allocation import Block, Buffer, LiveRange, align, allocate, live_ranges

Target = Literal["tflm", "litert-reference", "litert", "onnxruntime", "static"]
TARGETS: tuple[Target, ...] = get_args(Target)

# Of onnxruntime's allocator (BFCArena).
_ONNXRUNTIME_ALIGNMENT = 256


@dataclass(frozen=True)
class Layout:
    """The memory of one inference on a target.

    ``graph`` is what the target runs; ``buffers`` hold its activations, except for ``views``, which lie within another
    (by name); ``scratch`` is what kernels take while they run, and ``total_bytes`` everything together. ``None`` stands
    for what cannot be planned.
    """

    graph: Graph
    buffers: tuple[Buffer, ...]
    scratch: tuple[Buffer, ...] | None = None
    total_bytes: int | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    # Where the file tells the target to put activations.
    offsets: Mapping[str, int] = field(default_factory=dict)

    @property
    def arena_bytes(self) -> int:
        """Everything that was placed."""
        return max((buffer.end for buffer in (*self.buffers, *(self.scratch or ()))), default=0)


def lay_out(graph: Graph, target: Target, offsets: Mapping[str, int] | None = None) -> Layout:
    """Place the activations of a graph as a target does, or where ``offsets`` say when the target is tflite-micro.

    Raises ``UnsupportedError`` where ``unplanned`` has a reason to.
    """
    reason = unplanned(graph, target)
    if reason is not None:
        others = ", ".join(other for other in TARGETS if unplanned(graph, other) is None)
        raise UnsupportedError(f"{reason}; plan it for another target: {others}")
    return _tflm(graph, offsets) if target == "tflm" else _LAYOUTS[target](graph)


def unplanned(graph: Graph, target: Target) -> str | None:
    """Why it is not known what a graph takes on a target, if it is not."""
    mixed = mixed_weight(graph)
    if target == "tflm" and mixed is not None:
        return f"tflite-micro has no kernel for {mixed.dtype} weights between float32 activations ({mixed.name!r})"
    if target in ("litert", "litert-reference") and mixed is not None and mixed.dtype != "float16":
        return (
            f"LiteRT's scratch memory for {mixed.dtype} weights between float32 activations ({mixed.name!r}) is unknown"
        )
    wide = next((tensor for tensor in graph.activations if tensor.dtype == "int16"), None)
    if target == "litert" and wide is not None:
        return f"the scratch memory of LiteRT's optimized kernels for 16-bit activations ({wide.name!r}) is unknown"
    return None


def mixed_weight(graph: Graph) -> Tensor | None:
    """The first weight of fewer bits than the float32 activations of its layer, if there is one."""
    layers = (op for op in graph.ops if isinstance(op, ops.Layer))
    weights = (graph.tensors[op.inputs[1]] for op in layers if graph.tensors[op.inputs[0]].dtype == "float32")
    return next((weight for weight in weights if weight.dtype != "float32"), None)


def _tflm(graph: Graph, offsets: Mapping[str, int] | None) -> Layout:
    """Head of the arena greedy by size, scratch with the activations; its tail is known to the byte.

    What has an offset goes there first. Rows that nothing reads any more are free then: who gave the offsets knows.
    tflite-micro does not: what it places itself it keeps clear of the whole.
    """
    graph = legalize(graph)
    offsets = offsets or {}
    ranges = live_ranges(graph)
    rowwise = live_ranges(graph, rowwise=True) if offsets else ranges
    scratch = [
        LiveRange(f"{op.name}/scratch{i}", nbytes, (Block(step, step, 0, align(nbytes)),))
        for step, op in enumerate(graph.ops)
        for i, nbytes in enumerate(tflm.scratch_buffers(graph, op))
    ]
    fixed = {live.tensor: live.at(offsets[live.tensor]) for live in rowwise if live.tensor in offsets}
    whole = [live.at(offsets[live.tensor]) for live in ranges if live.tensor in offsets]
    free = [live for live in [*ranges, *scratch] if live.tensor not in fixed]
    placed = fixed | {buffer.tensor: buffer for buffer in allocate(free, fixed=whole)}
    layout = Layout(
        graph,
        tuple(placed[live.tensor] for live in ranges),
        tuple(placed[live.tensor] for live in scratch),
        offsets=offsets,
    )
    return replace(layout, total_bytes=tflm.total_bytes(graph, layout.arena_bytes))


def _litert_reference(graph: Graph) -> Layout:
    """LiteRT's arena planner; what the interpreter keeps on the heap beside the arena is not planned.

    That is where it puts the float32 that it makes of float16 weights.
    """
    found = litert.reference_arena(legalize(graph))
    return Layout(found.graph, found.buffers, found.temporaries, views=found.shared)


def _litert(graph: Graph) -> Layout:
    """With XNNPACK, which keeps what lies between its operations in a workspace of its own, which is not planned."""
    found = litert.xnnpack_arena(legalize(graph))
    return Layout(found.graph, found.buffers, views=found.shared)


def _onnxruntime(graph: Graph) -> Layout:
    """Every activation where there is room when it is made; the input is the caller's array.

    What its optimizer makes of the graph, and the scratch memory of its kernels, are not planned.
    """
    ranges = [live for live in live_ranges(graph, alignment=_ONNXRUNTIME_ALIGNMENT) if live.tensor not in graph.inputs]
    return Layout(graph, allocate(ranges, alignment=_ONNXRUNTIME_ALIGNMENT))


def _static(graph: Graph) -> Layout:
    """A compiler as good as can be, without a runtime: joins and parts of tensors are views, not copies.

    What it would need for weights of fewer bits than the activations have is not planned.
    """
    views = _views(graph)
    ranges = live_ranges(graph)
    members: dict[str, list[LiveRange]] = {}
    for live in ranges:
        members.setdefault(_root(views, live.tensor), []).append(live)
    buffers = allocate([_merged(live, members[live.tensor]) for live in ranges if live.tensor in members])
    layout = Layout(graph, buffers, views={name: _root(views, name) for name in views})
    if mixed_weight(graph) is not None:
        return layout
    return replace(layout, scratch=(), total_bytes=layout.arena_bytes)


def _views(graph: Graph) -> dict[str, str]:
    """Which activation lies within which other, one step at a time.

    The operands of a concat are written straight into it, the rows that a slice takes are where they were, and a
    reshape is another look at the same bytes, unless these lie with gaps in a concat.
    """
    views: dict[str, str] = {}
    for op in graph.ops:
        if isinstance(op, ops.Concat):
            for name in op.inputs:
                if name in graph.producers and name not in graph.outputs and _same_numbers(graph, name, op.output):
                    views.setdefault(name, op.output)
    for op in graph.ops:
        if op.output in views:
            continue
        rows = isinstance(op, ops.Slice) and op.output not in graph.outputs and _takes_rows(graph, op)
        if rows or (isinstance(op, ops.Reshape) and op.inputs[0] not in views):
            views[op.output] = op.inputs[0]
    return views


def _takes_rows(graph: Graph, op: ops.Slice) -> bool:
    shape = graph.tensors[op.inputs[0]].shape
    return len(shape) == 4 and shape[0] == 1 and op.size[2:] == shape[2:]


def _same_numbers(graph: Graph, name: str, output: str) -> bool:
    return graph.tensors[name].quantization == graph.tensors[output].quantization


def _root(views: Mapping[str, str], name: str) -> str:
    while name in views:
        name = views[name]
    return name


def _merged(live: LiveRange, members: list[LiveRange]) -> LiveRange:
    """The live of a tensor from the first of its views to the last use of any."""
    first, last = min(member.first for member in members), max(member.last for member in members)
    return LiveRange(live.tensor, live.nbytes, (Block(first, last, 0, live.blocks[-1].end),))


_LAYOUTS: Mapping[Target, Callable[[Graph], Layout]] = {
    "litert-reference": _litert_reference,
    "litert": _litert,
    "onnxruntime": _onnxruntime,
    "static": _static,
}
