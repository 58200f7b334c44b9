"""The arena of tflite-micro: activations and scratch memory at its head, persistent memory in its tail.

The allocator takes temporary memory from the head and persistent memory from the tail: its own state, a
``TfLiteEvalTensor`` per tensor, a ``NodeAndRegistration`` per operation, the options of each operation, the data of
each kernel, and a ``TfLiteTensor`` per input and output (``micro_allocator.cc`` and ``micro_interpreter.cc``, in this
order). Sizes hold for a 64-bit host and the recording allocator of the Python package (``tflite-micro`` 0.dev2026);
with 32-bit pointers they are smaller.

All figures apply to the file that ``write_tflite`` writes for a graph.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from ..formats.tflite_legalize import legalize, pad_before
from ..graph import Graph, Op, ops
from .allocation import ALIGNMENT, Block, Layout, LiveRange, align, allocate, live_ranges
from .hybrid import hybrid_weight

# Allocators, memory planner and the subgraph table.
_FIXED = 488
EVAL_TENSOR = 24
_NODE = 64
_POINTER = 8
# TfLiteTensor and TfLiteAffineQuantization, without the zero points.
_TENSOR = 64
_QUANTIZATION = 24
_SCRATCH_HANDLE = 8
# 513 16-bit values.
_TABLE = 2 * 513
# Temporary memory at the head while the allocator prepares operations and plans.
_SCRATCH_REQUEST = 16
_SCRATCH_REQUESTS_OF_AN_OP = 12
_ALLOCATION_INFO = 32
_PLANNED_BUFFER = 40


@dataclass(frozen=True)
class _Kernel:
    """Persistent bytes of an operation: its parsed options with their alignment, and the data of its kernel."""

    options: int
    data: int
    alignment: int = 4


_KERNELS: Mapping[type[Op], _Kernel] = {
    ops.Add: _Kernel(8, 60),
    ops.AveragePool: _Kernel(40, 32),
    ops.Concat: _Kernel(8, 80),
    ops.Conv: _Kernel(28, 80),
    ops.Dequantize: _Kernel(0, 32),
    ops.FullyConnected: _Kernel(32, 72, alignment=8),
    ops.GlobalAveragePool: _Kernel(1, 44, alignment=1),
    ops.MaxPool: _Kernel(40, 32),
    ops.Pad: _Kernel(0, 56),
    ops.Quantize: _Kernel(0, 32),
    ops.Relu: _Kernel(0, 28),
    ops.Reshape: _Kernel(36, 0),
    ops.Slice: _Kernel(0, 0),
    ops.Softmax: _Kernel(4, 80),
    ops.Transpose: _Kernel(0, 0),
}
_RELU6 = _Kernel(0, 8)


def unplanned(graph: Graph) -> str | None:
    """The reason why the memory of a graph cannot be planned, or ``None``."""
    weight = hybrid_weight(graph)
    if weight is None:
        return None
    return f"tflite-micro has no kernel for {weight.dtype} weights between float32 activations ({weight.name!r})"


def lay_out(graph: Graph, offsets: Mapping[str, int]) -> Layout:
    """The head of the arena, greedy by size with scratch among the activations; the total includes the tail.

    Activations with an offset keep it, and their rows are freed one by one: whoever chose the offsets relies on that.
    tflite-micro does not: it keeps the tensors that it places itself clear of the whole activation.
    """
    graph = legalize(graph)
    ranges = live_ranges(graph)
    rowwise = live_ranges(graph, rowwise=True) if offsets else ranges
    scratch = [
        LiveRange(f"{op.name}/scratch{i}", nbytes, (Block(step, step, 0, align(nbytes)),))
        for step, op in enumerate(graph.ops)
        for i, nbytes in enumerate(scratch_buffers(graph, op))
    ]
    fixed = {live.tensor: live.at(offsets[live.tensor]) for live in rowwise if live.tensor in offsets}
    whole = [live.at(offsets[live.tensor]) for live in ranges if live.tensor in offsets]
    free = [live for live in [*ranges, *scratch] if live.tensor not in fixed]
    allocated = fixed | {buffer.tensor: buffer for buffer in allocate(free, fixed=whole)}
    layout = Layout(
        graph,
        tuple(allocated[live.tensor] for live in ranges),
        tuple(allocated[live.tensor] for live in scratch),
        offsets=offsets,
    )
    return replace(layout, total_bytes=total_bytes(graph, layout.arena_bytes))


def tail_bytes(graph: Graph) -> int:
    """Bytes of the tail."""
    return _Arena.of(legalize(graph)).tail


def total_bytes(graph: Graph, head_bytes: int) -> int:
    """The smallest ``arena_size`` for ``head_bytes`` of activations and scratch.

    It is the sum of head and tail, except for tiny networks, whose preparation needs more than the head.
    """
    arena = _Arena.of(legalize(graph))
    return max(arena.tail + align(head_bytes), align(arena.peak))


def op_tail_bytes(graph: Graph, op: Op) -> int:
    """Bytes that an operation and its output add to the tail, without constants, which operations may share.

    Up to about 20 bytes of alignment, the tail is the sum of these, 24 bytes for each input and each constant
    (weights, biases and ``constants``), and 712 bytes for one quantized input and one quantized output.
    """
    pad = pad_before(graph, op)
    kernel = _kernel(op)
    own = EVAL_TENSOR + _NODE + align(kernel.options, 4) + align(kernel.data) + sum(_channel_arrays(graph, op))
    scratch = _SCRATCH_HANDLE * len(scratch_buffers(graph, op))
    return own + scratch + (op_tail_bytes(graph, pad) if pad else 0)


def part_tail_bytes(graph: Graph) -> int:
    """An upper bound of what the operations of a part of a network add to the tail.

    Constants count once per operation; the tail of the network is smaller if operations share them.
    """
    return sum(op_tail_bytes(graph, op) + EVAL_TENSOR * len(constants(op)) for op in graph.ops)


def scratch_buffers(graph: Graph, op: Op) -> tuple[int, ...]:
    """Bytes of each scratch buffer that the kernel of an operation requests; only a mean requests any."""
    if not isinstance(op, ops.GlobalAveragePool):
        return ()
    x, y = (graph.tensors[name] for name in (op.inputs[0], op.output))
    sums = () if x.dtype == "float32" else (4 * math.prod(y.shape),)
    indices, axes = 4 * len(x.shape), 4 * 2
    return (*sums, indices, axes)


def scratch_bytes(graph: Graph, op: Op) -> int:
    """Scratch bytes of an operation in the arena, with each buffer aligned."""
    return sum(map(align, scratch_buffers(graph, op)))


def constants(op: Op) -> tuple[Hashable, ...]:
    """Keys of the small constants that are tensors in TFLite and attributes in a graph; equal ones are shared."""
    match op:
        case ops.GlobalAveragePool():
            return ("rows_and_columns",)
        case ops.Reshape():
            return ((op.name, "shape"),)
        case ops.Pad():
            return ((op.name, "pads"), (op.name, "value")) if op.value != 0 else ((op.name, "pads"),)
        case ops.Transpose():
            return (("transpose", op.order),)
        case ops.Slice():
            return (("slice", op.begin), ("slice", op.size))
    return ()


@dataclass
class _Arena:
    """The state of the allocator: the size of the tail, and the peak of head and tail together."""

    tail: int = _FIXED
    peak: int = 0

    @classmethod
    def of(cls, graph: Graph) -> "_Arena":
        """The state before the first inference; allocations follow the order of tflite-micro."""
        arena = cls()
        tensors = len({*graph.inputs, *(name for op in graph.ops for name in (*op.inputs, op.output))})
        tensors += len({constant for op in graph.ops for constant in constants(op)})
        arena.keep(EVAL_TENSOR * tensors, 8)
        arena.keep(_NODE * len(graph.ops), 8)
        for op in graph.ops:
            arena.keep(_kernel(op).options, _kernel(op).alignment)
        for op in graph.ops:
            arena.keep(_kernel(op).data)
        scratch = arena._prepare(graph)
        arena.keep(_SCRATCH_HANDLE * scratch, 8)
        planning = _requests(scratch) + align(_POINTER + _ALLOCATION_INFO * (tensors + scratch))
        arena.lend(planning + _PLANNED_BUFFER * (len(graph.activations) + scratch) + ALIGNMENT)
        for names in (graph.inputs, graph.outputs):
            arena.keep(_POINTER * len(names))
            for name in names:
                arena.keep(_tensor_bytes(graph, name), 8)
        return arena

    def keep(self, nbytes: int, alignment: int = ALIGNMENT) -> None:
        """Allocate from the tail; an empty allocation does not align it."""
        if nbytes:
            self.tail = align(self.tail + nbytes, alignment)

    def lend(self, nbytes: int) -> None:
        """Allocate temporarily from the head."""
        self.peak = max(self.peak, self.tail + nbytes)

    def _prepare(self, graph: Graph) -> int:
        """Prepare each operation, with a ``TfLiteTensor`` per operand; returns the number of scratch buffers."""
        scratch = 0
        for op in graph.ops:
            for array in _channel_arrays(graph, op):
                self.keep(array)
            # A convolution requests each operand twice before it releases the first.
            times = 2 if isinstance(op, ops.Conv) else 1
            self.lend(_requests(scratch) + times * sum(_tensor_bytes(graph, n) for n in (*op.inputs, op.output)))
            scratch += len(scratch_buffers(graph, op))
        return scratch


def _kernel(op: Op) -> _Kernel:
    return _RELU6 if isinstance(op, ops.Relu) and op.activation == "relu6" else _KERNELS[type(op)]


def _channel_arrays(graph: Graph, op: Op) -> tuple[int, ...]:
    """Bytes of the arrays per output channel, multipliers and shifts, which operations do not share.

    For a 16-bit softmax, its tables of exponentials and reciprocals.
    """
    if isinstance(op, ops.Softmax) and graph.tensors[op.inputs[0]].dtype == "int16":
        return (align(_TABLE),) * 2
    weight = graph.tensors[op.inputs[1]] if isinstance(op, ops.Layer) else None
    per_channel = weight is not None and weight.quantization is not None and weight.quantization.axis is not None
    # The kernel of a convolution allocates the arrays for floats, too.
    if isinstance(op, ops.Conv) or per_channel:
        return (align(4 * graph.tensors[op.output].shape[-1]),) * 2
    return ()


def _tensor_bytes(graph: Graph, name: str) -> int:
    """Bytes of a ``TfLiteTensor`` with its quantization; the zero points are an array with a length."""
    quantization = graph.tensors[name].quantization
    if quantization is None:
        return _TENSOR
    return _TENSOR + _QUANTIZATION + align(4 + 4 * len(quantization.scale), 8)


def _requests(scratch: int) -> int:
    return _SCRATCH_REQUEST * (scratch + _SCRATCH_REQUESTS_OF_AN_OP)
