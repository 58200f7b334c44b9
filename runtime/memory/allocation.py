"""Where activations lie in an arena: lifetimes, row by row where an operation tells what it reads, and offsets.

A tensor that is only read by slices of its rows dies row by row: what nothing reads any more is free for others. Only
a runtime that takes its offsets from the file (tflite-micro's offline memory planner) can make use of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..graph import Graph, Op, Tensor, ops

ALIGNMENT = 16


def align(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of ``alignment``, in bytes."""
    return -(-nbytes // alignment) * alignment


@dataclass(frozen=True)
class Block:
    """Bytes ``offset`` to ``end`` of the arena, taken from operation ``first`` to operation ``last``, both included."""

    first: int
    last: int
    offset: int
    end: int


@dataclass(frozen=True)
class Life:
    """One activation and how long it lives, as blocks whose offsets count from the tensor's own first byte."""

    tensor: str
    nbytes: int
    blocks: tuple[Block, ...]

    @property
    def first(self) -> int:
        """The operation that makes it."""
        return self.blocks[0].first

    @property
    def last(self) -> int:
        """The last operation that uses any of it."""
        return max(block.last for block in self.blocks)

    @property
    def extent(self) -> int:
        """Bytes from its first to its last, alignment included."""
        return self.blocks[-1].end


@dataclass(frozen=True)
class Buffer:
    """One activation in the arena: alive from operation ``first`` to operation ``last``, both included."""

    tensor: str
    nbytes: int
    first: int
    last: int
    offset: int
    blocks: tuple[Block, ...]

    @property
    def end(self) -> int:
        """First byte after it."""
        return max(block.end for block in self.blocks)


def lifetimes(graph: Graph, *, rowwise: bool = False, alignment: int = ALIGNMENT) -> list[Life]:
    """The life of every activation, in the order in which they come to life; ``rowwise`` lets rows die one by one."""
    steps = {op.output: step for step, op in enumerate(graph.ops)}
    end = max(len(graph.ops) - 1, 0)
    lives = []
    for tensor in graph.activations:
        first = steps.get(tensor.name, 0)
        reads = [(steps[op.output], op) for op in graph.consumers[tensor.name]]
        stays = end if tensor.name in graph.outputs else first
        lives.append(Life(tensor.name, tensor.nbytes, _blocks(tensor, first, stays, reads, rowwise, alignment)))
    return lives


def _blocks(
    tensor: Tensor, first: int, stays: int, reads: Sequence[tuple[int, Op]], rowwise: bool, alignment: int
) -> tuple[Block, ...]:
    padded = align(tensor.nbytes, alignment)
    rows = tensor.shape[1] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else 1
    if not rowwise or rows == 1 or not any(isinstance(op, ops.Slice) for _, op in reads):
        return (Block(first, max([stays, *(step for step, _ in reads)]), 0, padded),)
    last = np.full(rows, stays)
    for step, op in reads:
        read = slice(op.begin[1], op.begin[1] + op.size[1]) if isinstance(op, ops.Slice) else slice(None)
        last[read] = np.maximum(last[read], step)
    edges = [0, *(np.flatnonzero(np.diff(last)) + 1), rows]
    row = tensor.nbytes // rows
    return tuple(
        Block(first, int(last[start]), int(start) * row, padded if stop == rows else int(stop) * row)
        for start, stop in pairwise(edges)
    )


def place(lives: Sequence[Life], alignment: int = ALIGNMENT, fixed: Sequence[Buffer] = ()) -> tuple[Buffer, ...]:
    """An offset for each: one after the other, each at the lowest that is free during its whole life.

    The order is greedy by size (Pisarchyk and Lee, arXiv 2001.03288, section 5.2), in the variant of tflite-micro's
    ``GreedyMemoryPlanner``: of two of one size the younger one comes first. ``fixed`` is there already.
    """
    return in_order(lives, {life.tensor: -life.extent for life in lives}, alignment, fixed)


def most_alive(lives: Sequence[Life]) -> int:
    """The most bytes that are alive at once: no placement ends below."""
    change = np.zeros(max(life.last for life in lives) + 2, np.int64)
    for life in lives:
        for block in life.blocks:
            change[block.first] += block.end - block.offset
            change[block.last + 1] -= block.end - block.offset
    return int(np.cumsum(change).max())


def in_order(
    lives: Sequence[Life], order: Mapping[str, float], alignment: int, fixed: Sequence[Buffer] = ()
) -> tuple[Buffer, ...]:
    """As ``place``, from the lowest to the highest key of ``order``."""
    blocks = sum(len(life.blocks) for life in lives) + sum(len(buffer.blocks) for buffer in fixed)
    taken = _Taken(blocks)
    for buffer in fixed:
        taken.take(buffer.blocks)
    youngest_first = lives[::-1]
    placed = {}
    for life in sorted(youngest_first, key=lambda life: order[life.tensor]):
        placed[life.tensor] = placed_at(life, taken.lowest(life, alignment))
        taken.take(placed[life.tensor].blocks)
    return tuple(placed[life.tensor] for life in lives)


def placed_at(life: Life, offset: int) -> Buffer:
    """An activation at an offset that is given."""
    blocks = tuple(Block(b.first, b.last, offset + b.offset, offset + b.end) for b in life.blocks)
    return Buffer(life.tensor, life.nbytes, life.first, life.last, offset, blocks)


class _Taken:
    """The blocks placed so far, as columns (first, last, offset, end)."""

    def __init__(self, blocks: int):
        self.blocks = np.zeros((blocks, 4), np.int64)
        self.count = 0

    def take(self, blocks: Sequence[Block]) -> None:
        """Mark bytes as taken."""
        for block in blocks:
            self.blocks[self.count] = block.first, block.last, block.offset, block.end
            self.count += 1

    def lowest(self, life: Life, alignment: int) -> int:
        """The lowest offset at which none of a life's blocks meets another in time and bytes."""
        placed = self.blocks[: self.count]
        # Offsets that are not possible, as intervals (low, high), both excluded.
        lows, highs = [], []
        for block in life.blocks:
            together = placed[(placed[:, 0] <= block.last) & (placed[:, 1] >= block.first)]
            lows += (together[:, 2] - block.end).tolist()
            highs += (together[:, 3] - block.offset).tolist()
        offset = 0
        for low, high in sorted(zip(lows, highs, strict=True)):
            if low >= offset:
                break
            offset = max(offset, align(high, alignment))
        return offset
