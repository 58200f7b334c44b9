"""Offsets below a limit: the order of placement, searched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .allocation import ALIGNMENT, Block, Buffer, Life, in_order, placed_at


@dataclass(frozen=True)
class _Effort:
    """So many walks from the order of ``place``, each of so many changes to it, and how often to turn back before it
    gets farther than it was."""

    walks: int
    changes: int
    dead_ends: int


_EFFORTS = (_Effort(1, 20, 12), _Effort(2, 60, 10), _Effort(4, 120, 4))
# Activations that are placed before it gives up: a count, so that it ends alike on every machine.
_PATIENCE = 100_000
_QUICK = 20_000


def pack(lives: Sequence[Life], limit: int, *, quick: bool = False) -> tuple[Buffer, ...] | None:
    """Offsets with which all ends at or below ``limit``, or None where none were found, ``quick`` soon. Deterministic.

    Between two moments at which a single activation is alive the order of ``place`` is changed at random until
    nothing stands out; that activation lies at the bottom, at the top or where the order puts it, and is moved to the
    next of these when what follows finds no place.
    """
    packer = _Packer(lives, limit - limit % ALIGNMENT, _QUICK if quick else _PATIENCE)
    for effort in _EFFORTS[:1] if quick else _EFFORTS:
        placed = packer.through(effort)
        if placed is not None:
            return tuple(placed[life.tensor] for life in lives)
    return None


@dataclass(frozen=True)
class _Window:
    """Lives between two moments at which a single activation is alive: that one before, and all others."""

    before: list[Life]
    inside: list[Life]


class _Packer:
    def __init__(self, lives: Sequence[Life], limit: int, patience: int):
        self.windows = _windows(lives)
        self.limit = limit
        self.patience = patience
        self.placed: dict[str, Buffer] = {}

    def through(self, effort: _Effort) -> dict[str, Buffer] | None:
        """One window after the other; back to the one before when one finds no place."""
        tries = [self.placements(self.windows[0], effort)]
        farthest = dead_ends = 0
        while tries and dead_ends < effort.dead_ends:
            found = next(tries[-1], None)
            if found is None:
                tries.pop()
                dead_ends += 1
                continue
            self.placed.update((buffer.tensor, buffer) for buffer in found)
            if len(tries) == len(self.windows):
                return self.placed
            if len(tries) > farthest:
                farthest, dead_ends = len(tries), 0
            tries.append(self.placements(self.windows[len(tries)], effort))
        return None

    def placements(self, window: _Window, effort: _Effort) -> Iterator[tuple[Buffer, ...]]:
        """Ways to place the lives of a window below the limit; they differ in where the last to live lies."""
        if not window.inside:
            yield ()
            return
        fixed = [self.placed[life.tensor] for life in window.before]
        final = max(window.inside, key=lambda life: life.last)
        others = [life for life in window.inside if life is not final]
        # Room is found from the end on at which what is there already lies.
        flipped = any(buffer.offset > 0 for buffer in fixed)
        for offset in (*_ends(final, self.limit), None):
            pinned = [placed_at(final, offset)] if offset is not None else []
            if any(_meet(pin, buffer) for pin in pinned for buffer in fixed):
                continue
            free, there = others if pinned else window.inside, [*fixed, *pinned]
            for seed in range(effort.walks):
                found = self.walk(free, there, flipped, np.random.default_rng(seed), effort.changes)
                if not _excess(found, self.limit):
                    yield (*found, *pinned)
                    break

    def walk(
        self, lives: Sequence[Life], fixed: Sequence[Buffer], flipped: bool, random: np.random.Generator, changes: int
    ) -> tuple[Buffer, ...]:
        """Change the order, one activation at a time, as long as no more stands out than before."""
        if flipped:
            upside_down = [_flipped_life(life) for life in lives]
            there = [_flipped(buffer, self.limit) for buffer in fixed]
            found = self.walk(upside_down, there, False, random, changes)
            return tuple(_flipped(buffer, self.limit) for buffer in found)
        order = {life.tensor: -float(life.extent) for life in lives}
        best = in_order(lives, order, ALIGNMENT, fixed)
        excess = _excess(best, self.limit)
        for _ in range(changes):
            if not excess or self.patience < 0:
                break
            changed = _promoted(order, best, self.limit, random)
            found = in_order(lives, changed, ALIGNMENT, fixed)
            self.patience -= len(lives)
            if _excess(found, self.limit) <= excess:
                order, best, excess = changed, found, _excess(found, self.limit)
        return best


def _windows(lives: Sequence[Life]) -> list[_Window]:
    end = max(life.last for life in lives)
    alive = np.zeros(end + 1, int)
    for life in lives:
        alive[life.first : life.last] += 1
    # Alone between an operation and the next.
    edges = [-1, *np.flatnonzero(alive[:end] == 1).tolist(), end]
    windows: list[_Window] = []
    starts = sorted(lives, key=lambda life: life.first)
    position = 0
    for start, stop in pairwise(edges):
        inside = []
        while position < len(starts) and starts[position].first <= stop:
            inside.append(starts[position])
            position += 1
        earlier = [*windows[-1].inside, *windows[-1].before] if windows else []
        windows.append(_Window([life for life in earlier if life.last > start], inside))
    return windows


def _ends(life: Life, limit: int) -> list[int]:
    """The bottom and the top of the arena; first the one from which what dies last is farthest away."""
    ends = [0, limit - life.extent]
    from_last = len(life.blocks) > 1 and life.blocks[0].last > life.blocks[-1].last
    return [end for end in (ends if from_last else ends[::-1]) if 0 <= end <= limit - life.extent]


def _meet(one: Buffer, other: Buffer) -> bool:
    return any(
        a.first <= b.last and b.first <= a.last and a.offset < b.end and b.offset < a.end
        for a in one.blocks
        for b in other.blocks
    )


def _flipped_life(life: Life) -> Life:
    return replace(life, blocks=_flipped_blocks(life.blocks, life.extent))


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
    outside = [buffer for buffer in buffers if buffer.end > limit or buffer.offset < 0]
    chosen = outside[random.integers(len(outside))]
    if random.random() < 0.5:
        together = [buffer for buffer in buffers if buffer.first <= chosen.last and chosen.first <= buffer.last]
        chosen = together[random.integers(len(together))]
    return {**order, chosen.tensor: order[chosen.tensor] * random.choice([0.5, 0.8, 1.3, 2.0, 4.0])}
