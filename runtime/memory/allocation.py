"""Allocation of activations in an arena: live ranges, optionally row by row, and offsets greedy by size.

A tensor that is read only by slices of its rows is freed row by row: rows without further readers can be reused. Only
runtimes that take offsets from the file (tflite-micro's offline memory planner) can exploit this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ..graph import Graph, Op, Tensor, ops

ALIGNMENT = 16


def align(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """``nbytes`` rounded up to a multiple of ``alignment``."""
    return -(-nbytes // alignment) * alignment


@dataclass(frozen=True)
class Block:
    """Bytes ``offset`` to ``end`` of the arena, in use from operation ``first`` through operation ``last``."""

    first: int
    last: int
    offset: int
    end: int


@dataclass(frozen=True)
class LiveRange:
    """One activation and its live range, as blocks whose offsets count from the tensor's first byte."""

    tensor: str
    nbytes: int
    blocks: tuple[Block, ...]

    @property
    def first(self) -> int:
        """The operation that writes it."""
        return self.blocks[0].first

    @property
    def last(self) -> int:
        """The last operation that reads any part of it."""
        return max(block.last for block in self.blocks)

    @property
    def extent(self) -> int:
        """Bytes from its first to its last, alignment included."""
        return self.blocks[-1].end

    def at(self, offset: int) -> "Buffer":
        """The activation allocated at ``offset``."""
        blocks = tuple(Block(b.first, b.last, offset + b.offset, offset + b.end) for b in self.blocks)
        return Buffer(self.tensor, self.nbytes, self.first, self.last, offset, blocks)


@dataclass(frozen=True)
class Buffer:
    """One activation in the arena, alive from operation ``first`` through operation ``last``."""

    tensor: str
    nbytes: int
    first: int
    last: int
    offset: int
    blocks: tuple[Block, ...]

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return max(block.end for block in self.blocks)


@dataclass(frozen=True)
class Layout:
    """The memory of one inference on a target.

    ``graph`` is the graph that the target executes. ``buffers`` hold its activations; ``views`` maps the others to the
    activation that contains them. ``scratch`` are the buffers of kernels, ``total_bytes`` is the whole demand, and
    ``unpacked_bytes`` are float32 copies of float16 weights outside the arena; ``None`` means unknown. ``offsets`` are
    those that the file prescribes.

    Buffers live from operation to operation. Where operations run several times, a row at a time, they live from
    moment to moment: ``moments`` describes each, and ``runs`` are the moments at which each operation runs.
    """

    graph: Graph
    buffers: tuple[Buffer, ...]
    scratch: tuple[Buffer, ...] | None = None
    total_bytes: int | None = None
    unpacked_bytes: int | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)
    moments: tuple[str, ...] = ()
    runs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def arena_bytes(self) -> int:
        """End of the last buffer, scratch included."""
        return max((buffer.end for buffer in (*self.buffers, *(self.scratch or ()))), default=0)


def live_ranges(graph: Graph, *, rowwise: bool = False, alignment: int = ALIGNMENT) -> list[LiveRange]:
    """The live range of each activation, ordered by first use; ``rowwise`` lets each row end on its own."""
    steps = {op.output: step for step, op in enumerate(graph.ops)}
    end = max(len(graph.ops) - 1, 0)
    ranges = []
    for tensor in graph.activations:
        first = steps.get(tensor.name, 0)
        reads = [(steps[op.output], op) for op in graph.consumers[tensor.name]]
        minimum = end if tensor.name in graph.outputs else first
        ranges.append(LiveRange(tensor.name, tensor.nbytes, _blocks(tensor, first, minimum, reads, rowwise, alignment)))
    return ranges


def _blocks(
    tensor: Tensor, first: int, minimum: int, reads: Sequence[tuple[int, Op]], rowwise: bool, alignment: int
) -> tuple[Block, ...]:
    """Blocks of rows that end together; none ends before operation ``minimum``."""
    padded = align(tensor.nbytes, alignment)
    rows = tensor.shape[1] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else 1
    if not rowwise or rows == 1 or not any(isinstance(op, ops.Slice) for _, op in reads):
        return (Block(first, max([minimum, *(step for step, _ in reads)]), 0, padded),)
    last = np.full(rows, minimum)
    for step, op in reads:
        read = slice(op.begin[1], op.begin[1] + op.size[1]) if isinstance(op, ops.Slice) else slice(None)
        last[read] = np.maximum(last[read], step)
    edges = [0, *(np.flatnonzero(np.diff(last)) + 1), rows]
    row = tensor.nbytes // rows
    return tuple(
        Block(first, int(last[start]), int(start) * row, padded if stop == rows else int(stop) * row)
        for start, stop in pairwise(edges)
    )


def peak_live_bytes(ranges: Sequence[LiveRange]) -> int:
    """The most bytes alive at once: a lower bound of every allocation."""
    change = np.zeros(max(live_range.last for live_range in ranges) + 2, np.int64)
    for live_range in ranges:
        for block in live_range.blocks:
            change[block.first] += block.end - block.offset
            change[block.last + 1] -= block.end - block.offset
    return int(np.cumsum(change).max())


def allocate(
    ranges: Sequence[LiveRange], alignment: int = ALIGNMENT, fixed: Sequence[Buffer] = ()
) -> tuple[Buffer, ...]:
    """Allocate greedily by size: the largest first, each at the lowest offset that is free during its live range.

    Follows Pisarchyk and Lee, arXiv 2001.03288, section 5.2, in the variant of tflite-micro's ``GreedyMemoryPlanner``:
    of two equal sizes the later tensor comes first. ``fixed`` buffers are already allocated.
    """
    order = {live_range.tensor: -live_range.extent for live_range in ranges}
    return allocate_in_order(ranges, order, alignment, fixed)


def allocate_in_order(
    ranges: Sequence[LiveRange], order: Mapping[str, float], alignment: int, fixed: Sequence[Buffer] = ()
) -> tuple[Buffer, ...]:
    """Like ``allocate``, from the lowest to the highest value in ``order``."""
    blocks = sum(len(live_range.blocks) for live_range in ranges) + sum(len(buffer.blocks) for buffer in fixed)
    taken = _Taken(blocks)
    for buffer in fixed:
        taken.take(buffer.blocks)
    latest_first = ranges[::-1]
    allocated = {}
    for live_range in sorted(latest_first, key=lambda live_range: order[live_range.tensor]):
        buffer = live_range.at(taken.lowest(live_range, alignment))
        allocated[live_range.tensor] = buffer
        taken.take(buffer.blocks)
    return tuple(allocated[live_range.tensor] for live_range in ranges)


class _Taken:
    """The blocks allocated so far, as columns (first, last, offset, end)."""

    def __init__(self, blocks: int):
        self.blocks = np.zeros((blocks, 4), np.int64)
        self.count = 0

    def take(self, blocks: Sequence[Block]) -> None:
        """Mark bytes as taken."""
        for block in blocks:
            self.blocks[self.count] = block.first, block.last, block.offset, block.end
            self.count += 1

    def lowest(self, live_range: LiveRange, alignment: int) -> int:
        """The lowest offset at which no block overlaps a taken one in both time and bytes."""
        taken = self.blocks[: self.count]
        # Forbidden offsets, as open intervals (low, high).
        lows, highs = [], []
        for block in live_range.blocks:
            together = taken[(taken[:, 0] <= block.last) & (taken[:, 1] >= block.first)]
            lows += (together[:, 2] - block.end).tolist()
            highs += (together[:, 3] - block.offset).tolist()
        offset = 0
        for low, high in sorted(zip(lows, highs, strict=True)):
            if low >= offset:
                break
            offset = max(offset, align(high, alignment))
        return offset
