"""Where activations lie in an arena: lifetimes, row by row where an operation tells what it reads, and offsets.

A tensor that is only read by slices of its rows dies row by row: what nothing reads any more is free for others. Only
a runtime that takes its offsets from the file (tflite-micro's offline memory planner) can make use of that.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .graph import Graph, Op, Slice, Tensor

ALIGNMENT = 16


@dataclass(frozen=True)
class _Effort:
    """How long ``pack`` looks: so many walks from the order of ``place``, each of so many changes to it, and how often
    it turns back before it gets farther than it was."""

    walks: int
    changes: int
    dead_ends: int


_EFFORTS = (_Effort(1, 20, 12), _Effort(2, 60, 10), _Effort(4, 120, 4))


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
    padded = -(-tensor.nbytes // alignment) * alignment
    rows = tensor.shape[1] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else 1
    if not rowwise or rows == 1 or not any(isinstance(op, Slice) for _, op in reads):
        return (Block(first, max([stays, *(step for step, _ in reads)]), 0, padded),)
    last = np.full(rows, stays)
    for step, op in reads:
        read = slice(op.begin[1], op.begin[1] + op.size[1]) if isinstance(op, Slice) else slice(None)
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
    return _in_order(lives, {life.tensor: -_extent(life) for life in lives}, alignment, fixed)


def pack(lives: Sequence[Life], limit: int, *, quick: bool = False) -> tuple[Buffer, ...] | None:
    """Offsets with which all ends at or below ``limit``, or None where none were found, ``quick`` soon. Deterministic.

    Between two moments at which a single activation is alive the order of ``place`` is changed at random until
    nothing stands out; that activation lies at the bottom, at the top or where the order puts it, and is moved to the
    next of these when what follows finds no place.
    """
    limit -= limit % ALIGNMENT
    windows = _windows(lives)
    for effort in _EFFORTS[:1] if quick else _EFFORTS:
        placed = _through(windows, limit, effort)
        if placed is not None:
            return tuple(placed[life.tensor] for life in lives)
    return None


def most_alive(lives: Sequence[Life]) -> int:
    """The most bytes that are alive at once: no placement ends below."""
    change = np.zeros(max(life.last for life in lives) + 2, np.int64)
    for life in lives:
        for block in life.blocks:
            change[block.first] += block.end - block.offset
            change[block.last + 1] -= block.end - block.offset
    return int(np.cumsum(change).max())


def _through(windows: Sequence[tuple[list[Life], list[Life]]], limit: int, effort: _Effort) -> dict[str, Buffer] | None:
    """One window after the other; back to the one before when one finds no place."""
    placed: dict[str, Buffer] = {}
    tries = [_placements(windows[0], placed, limit, effort)]
    farthest = dead_ends = 0
    while tries and dead_ends < effort.dead_ends:
        found = next(tries[-1], None)
        if found is None:
            tries.pop()
            dead_ends += 1
            continue
        placed.update((buffer.tensor, buffer) for buffer in found)
        if len(tries) == len(windows):
            return placed
        if len(tries) > farthest:
            farthest, dead_ends = len(tries), 0
        tries.append(_placements(windows[len(tries)], placed, limit, effort))
    return None


def _windows(lives: Sequence[Life]) -> list[tuple[list[Life], list[Life]]]:
    """The lives between moments at which a single activation is alive: (that one before, all others)."""
    end = max(life.last for life in lives)
    alive = np.zeros(end + 1, int)
    for life in lives:
        alive[life.first : life.last] += 1
    # Alone between an operation and the next.
    edges = [-1, *np.flatnonzero(alive[:end] == 1).tolist(), end]
    windows: list[tuple[list[Life], list[Life]]] = []
    starts = sorted(lives, key=lambda life: life.first)
    position = 0
    for start, stop in pairwise(edges):
        inside = []
        while position < len(starts) and starts[position].first <= stop:
            inside.append(starts[position])
            position += 1
        before = [life for life in windows[-1][1] + windows[-1][0] if life.last > start] if windows else []
        windows.append((before, inside))
    return windows


def _placements(
    window: tuple[list[Life], list[Life]], placed: Mapping[str, Buffer], limit: int, effort: _Effort
) -> Iterator[tuple[Buffer, ...]]:
    """Ways to place the lives of a window below the limit; they differ in where the last to live lies."""
    before, inside = window
    fixed = [placed[life.tensor] for life in before]
    if not inside:
        yield ()
        return
    final = max(inside, key=lambda life: life.last)
    others = [life for life in inside if life is not final]
    # Room is found from the end on at which what is there already lies.
    flipped = any(buffer.offset > 0 for buffer in fixed)
    for offset in (*_ends(final, limit), None):
        pinned = [placed_at(final, offset)] if offset is not None else []
        if any(_meet(pin, buffer) for pin in pinned for buffer in fixed):
            continue
        free, there = others if pinned else inside, [*fixed, *pinned]
        for seed in range(effort.walks):
            found = _descend(free, there, limit, flipped, np.random.default_rng(seed), effort.changes)
            if not _excess(found, limit):
                yield (*found, *pinned)
                break


def _ends(life: Life, limit: int) -> list[int]:
    """The bottom and the top of the arena; first the one from which what dies last is farthest away."""
    ends = [0, limit - _extent(life)]
    from_last = len(life.blocks) > 1 and life.blocks[0].last > life.blocks[-1].last
    return [end for end in (ends if from_last else ends[::-1]) if 0 <= end <= limit - _extent(life)]


def _meet(one: Buffer, other: Buffer) -> bool:
    return any(
        a.first <= b.last and b.first <= a.last and a.offset < b.end and b.offset < a.end
        for a in one.blocks
        for b in other.blocks
    )


def _descend(
    lives: Sequence[Life], fixed: Sequence[Buffer], limit: int, flipped: bool, random: np.random.Generator, rounds: int
) -> tuple[Buffer, ...]:
    """Change the order, one activation at a time, as long as no more stands out than before."""
    if flipped:
        upside_down = [_flipped_life(life) for life in lives]
        found = _descend(upside_down, [_flipped(buffer, limit) for buffer in fixed], limit, False, random, rounds)
        return tuple(_flipped(buffer, limit) for buffer in found)
    order = {life.tensor: -float(_extent(life)) for life in lives}
    best = _in_order(lives, order, ALIGNMENT, fixed)
    excess = _excess(best, limit)
    for _ in range(rounds):
        if not excess:
            break
        changed = _promoted(order, best, limit, random)
        found = _in_order(lives, changed, ALIGNMENT, fixed)
        if _excess(found, limit) <= excess:
            order, best, excess = changed, found, _excess(found, limit)
    return best


def _flipped_life(life: Life) -> Life:
    return replace(life, blocks=_flipped_blocks(life.blocks, _extent(life)))


def _flipped(buffer: Buffer, limit: int) -> Buffer:
    blocks = _flipped_blocks(buffer.blocks, limit)
    return replace(buffer, offset=blocks[0].offset, blocks=blocks)


def _flipped_blocks(blocks: Sequence[Block], limit: int) -> tuple[Block, ...]:
    return tuple(replace(block, offset=limit - block.end, end=limit - block.offset) for block in reversed(blocks))


def _excess(buffers: Sequence[Buffer], limit: int) -> int:
    return sum(max(buffer.end - limit, 0, -buffer.offset) for buffer in buffers)


def _promoted(
    order: dict[str, float], buffers: Sequence[Buffer], limit: int, random: np.random.Generator
) -> dict[str, float]:
    """The order with one of the tensors that stand out, or one that lives at the same time, moved in it."""
    outside = [buffer for buffer in buffers if buffer.end > limit]
    chosen = outside[random.integers(len(outside))]
    if random.random() < 0.5:
        together = [buffer for buffer in buffers if buffer.first <= chosen.last and chosen.first <= buffer.last]
        chosen = together[random.integers(len(together))]
    return {**order, chosen.tensor: order[chosen.tensor] * random.choice([0.5, 0.8, 1.3, 2.0, 4.0])}


def _in_order(
    lives: Sequence[Life], order: Mapping[str, float], alignment: int, fixed: Sequence[Buffer] = ()
) -> tuple[Buffer, ...]:
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


def _extent(life: Life) -> int:
    return life.blocks[-1].end


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
        barred = []
        for block in life.blocks:
            together = placed[(placed[:, 0] <= block.last) & (placed[:, 1] >= block.first)]
            barred.append(np.stack([together[:, 2] - block.end, together[:, 3] - block.offset], axis=1))
        offset = 0
        intervals = np.concatenate(barred)
        for low, high in intervals[np.argsort(intervals[:, 0], kind="stable")].tolist():
            if low >= offset:
                break
            offset = max(offset, math.ceil(high / alignment) * alignment)
        return offset
