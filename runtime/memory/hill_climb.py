"""Allocation within a limit by hill climbing over the order in which tensors are allocated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .allocation import ALIGNMENT, Block, Buffer, LiveRange, allocate_in_order


@dataclass(frozen=True)
class _Effort:
    """Restarts, moves per restart, and backtracks without progress before giving up."""

    restarts: int
    moves: int
    backtracks: int


_EFFORTS = (_Effort(1, 20, 12), _Effort(2, 60, 10), _Effort(4, 120, 4))
# Allocations of a single tensor before giving up: a count, not a time, so that every machine gives the same result.
_PATIENCE = 100_000
_QUICK = 20_000


def allocate_within(ranges: Sequence[LiveRange], limit: int, *, quick: bool = False) -> tuple[Buffer, ...] | None:
    """Offsets with which every buffer ends at or below ``limit``, or ``None`` if none were found. Deterministic.

    The network is split into windows at moments when a single activation is alive. Within a window the order of
    ``allocate`` is changed at random until no buffer exceeds the limit. The activation between two windows lies at the
    bottom, at the top or at an offset from the search; if the next window cannot be allocated, the search backtracks
    and tries the next of these. ``quick`` gives up early.
    """
    climber = _Climber(ranges, limit - limit % ALIGNMENT, _QUICK if quick else _PATIENCE)
    for effort in _EFFORTS[:1] if quick else _EFFORTS:
        allocated = climber.search(effort)
        if allocated is not None:
            return tuple(allocated[live_range.tensor] for live_range in ranges)
    return None


@dataclass(frozen=True)
class _Window:
    """Live ranges between two moments with a single live activation: the one ``before``, and those that start here."""

    before: list[LiveRange]
    inside: list[LiveRange]


class _Climber:
    def __init__(self, ranges: Sequence[LiveRange], limit: int, patience: int):
        self.windows = _windows(ranges)
        self.limit = limit
        self.patience = patience
        self.allocated: dict[str, Buffer] = {}

    def search(self, effort: _Effort) -> dict[str, Buffer] | None:
        """Allocate window after window, with backtracking to the previous window."""
        attempts = [self.allocations(self.windows[0], effort)]
        farthest = backtracks = 0
        while attempts and backtracks < effort.backtracks:
            found = next(attempts[-1], None)
            if found is None:
                attempts.pop()
                backtracks += 1
                continue
            self.allocated.update((buffer.tensor, buffer) for buffer in found)
            if len(attempts) == len(self.windows):
                return self.allocated
            if len(attempts) > farthest:
                farthest, backtracks = len(attempts), 0
            attempts.append(self.allocations(self.windows[len(attempts)], effort))
        return None

    def allocations(self, window: _Window, effort: _Effort) -> Iterator[tuple[Buffer, ...]]:
        """Allocations of a window below the limit; they differ in the offset of the activation that lives longest."""
        if not window.inside:
            yield ()
            return
        fixed = [self.allocated[live_range.tensor] for live_range in window.before]
        final = max(window.inside, key=lambda live_range: live_range.last)
        others = [live_range for live_range in window.inside if live_range is not final]
        # Search from the end of the arena at which the fixed buffers lie.
        flipped = any(buffer.offset > 0 for buffer in fixed)
        for offset in (*_ends(final, self.limit), None):
            pinned = [final.at(offset)] if offset is not None else []
            if any(_overlap(pin, buffer) for pin in pinned for buffer in fixed):
                continue
            free, there = others if pinned else window.inside, [*fixed, *pinned]
            for seed in range(effort.restarts):
                found = self.climb(free, there, flipped, np.random.default_rng(seed), effort.moves)
                if not _excess(found, self.limit):
                    yield (*found, *pinned)
                    break

    def climb(
        self,
        ranges: Sequence[LiveRange],
        fixed: Sequence[Buffer],
        flipped: bool,
        random: np.random.Generator,
        moves: int,
    ) -> tuple[Buffer, ...]:
        """Move one tensor in the order at a time, and keep each move that does not raise the excess."""
        if flipped:
            upside_down = [_flipped_range(live_range) for live_range in ranges]
            there = [_flipped(buffer, self.limit) for buffer in fixed]
            found = self.climb(upside_down, there, False, random, moves)
            return tuple(_flipped(buffer, self.limit) for buffer in found)
        order = {live_range.tensor: -float(live_range.extent) for live_range in ranges}
        best = allocate_in_order(ranges, order, ALIGNMENT, fixed)
        excess = _excess(best, self.limit)
        for _ in range(moves):
            if not excess or self.patience < 0:
                break
            moved = _moved(order, best, self.limit, random)
            found = allocate_in_order(ranges, moved, ALIGNMENT, fixed)
            self.patience -= len(ranges)
            if _excess(found, self.limit) <= excess:
                order, best, excess = moved, found, _excess(found, self.limit)
        return best


def _windows(ranges: Sequence[LiveRange]) -> list[_Window]:
    end = max(live_range.last for live_range in ranges)
    alive = np.zeros(end + 1, int)
    for live_range in ranges:
        alive[live_range.first : live_range.last] += 1
    # Moments between an operation and the next at which a single activation is alive.
    edges = [-1, *np.flatnonzero(alive[:end] == 1).tolist(), end]
    windows: list[_Window] = []
    starts = sorted(ranges, key=lambda live_range: live_range.first)
    position = 0
    for start, stop in pairwise(edges):
        inside = []
        while position < len(starts) and starts[position].first <= stop:
            inside.append(starts[position])
            position += 1
        earlier = [*windows[-1].inside, *windows[-1].before] if windows else []
        windows.append(_Window([live_range for live_range in earlier if live_range.last > start], inside))
    return windows


def _ends(live_range: LiveRange, limit: int) -> list[int]:
    """Offsets at the bottom and the top of the arena; first the one that keeps the block freed last farthest away."""
    ends = [0, limit - live_range.extent]
    from_last = len(live_range.blocks) > 1 and live_range.blocks[0].last > live_range.blocks[-1].last
    return [end for end in (ends if from_last else ends[::-1]) if 0 <= end <= limit - live_range.extent]


def _overlap(one: Buffer, other: Buffer) -> bool:
    return any(
        a.first <= b.last and b.first <= a.last and a.offset < b.end and b.offset < a.end
        for a in one.blocks
        for b in other.blocks
    )


def _flipped_range(live_range: LiveRange) -> LiveRange:
    return replace(live_range, blocks=_flipped_blocks(live_range.blocks, live_range.extent))


def _flipped(buffer: Buffer, limit: int) -> Buffer:
    blocks = _flipped_blocks(buffer.blocks, limit)
    return replace(buffer, offset=blocks[0].offset, blocks=blocks)


def _flipped_blocks(blocks: Sequence[Block], limit: int) -> tuple[Block, ...]:
    return tuple(replace(block, offset=limit - block.end, end=limit - block.offset) for block in reversed(blocks))


def _excess(buffers: Sequence[Buffer], limit: int) -> int:
    """Bytes outside the arena, summed over the buffers."""
    return sum(max(buffer.end - limit, 0, -buffer.offset) for buffer in buffers)


def _moved(
    order: dict[str, float], buffers: Sequence[Buffer], limit: int, random: np.random.Generator
) -> dict[str, float]:
    """The order with one tensor moved: one that exceeds the limit, or one that is alive at the same time."""
    outside = [buffer for buffer in buffers if buffer.end > limit or buffer.offset < 0]
    chosen = outside[random.integers(len(outside))]
    if random.random() < 0.5:
        together = [buffer for buffer in buffers if buffer.first <= chosen.last and chosen.first <= buffer.last]
        chosen = together[random.integers(len(together))]
    return {**order, chosen.tensor: order[chosen.tensor] * random.choice([0.5, 0.8, 1.3, 2.0, 4.0])}
