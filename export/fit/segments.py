"""Segments of a network between two cut points: their cost untiled, and tilings that stay below a memory limit.

A cut point is an activation through which all data flows from the operations before it to those after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from ...runtime.formats.tflite_legalize import explicit_padding
from ...runtime.graph import Graph, ops
from ...runtime.memory import Target, align, live_ranges
from ...runtime.memory.tflm import scratch_bytes
from .tiling import MAX_JOINED, Region, can_tile, needs, reach, tile, tile_of

# Numbers of tiles per band to try. Bands of at least ``_HIGH`` rows are not split further.
_COLUMNS = (1, 2, 3, 4)
_HIGH = 4
# The last band may be this many times higher than the one before it.
_FINISH = 3
# Maximum number of windows larger than a pixel in a tile; each adds to the halo.
_MAX_WINDOWS = 4
# Cost of an operation in multiply-accumulates.
_OP_WORTH = 1_000


@dataclass(frozen=True)
class TargetCosts:
    """Memory costs on a target.

    ``rowwise``: the memory of a tensor's rows can be reused one by one. ``tail``: bytes that the runtime keeps for the
    operations of a graph.
    """

    rowwise: bool
    tail: Callable[[Graph], int]

    @classmethod
    def of(cls, target: Target) -> "TargetCosts":
        """The costs on a target."""
        return cls(target.takes_offsets, target.part_tail_bytes)


@dataclass(frozen=True)
class Cost:
    """Costs of a segment: peak memory, multiply-accumulates, tail bytes and number of operations."""

    peak: int
    macs: int
    tail: int
    operations: int

    def weighed(self, byte_worth: float) -> float:
        """The cost in multiply-accumulates, with ``byte_worth`` of them for each byte of the tail."""
        return self.macs + byte_worth * self.tail + _OP_WORTH * self.operations


@dataclass(frozen=True)
class Stage:
    """A segment with its tiling: ``graph`` unchanged, or computed in ``bands`` of tiles."""

    graph: Graph
    bands: tuple[tuple[Region, ...], ...]
    cost: Cost

    @property
    def source(self) -> str:
        """The cut point at which the segment starts."""
        return self.graph.inputs[0]

    @property
    def target(self) -> str:
        """The cut point at which the segment ends."""
        return self.graph.outputs[0]

    def rewritten(self) -> Graph:
        """The segment's graph, tiled if there are bands."""
        return tile(self.graph, self.bands) if self.bands else self.graph


def _alive(graph: Graph, without: str = "") -> list[int]:
    """Bytes live during each operation, with its scratch memory, ``without`` one activation."""
    alive = [scratch_bytes(graph, op) for op in graph.ops]
    for live in live_ranges(graph):
        if live.tensor == without:
            continue
        for step in range(live.first, live.last + 1):
            alive[step] += live.blocks[0].end
    return alive


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor that remain to be computed, from ``top`` to before ``bottom``."""

    top: int
    bottom: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    def __bool__(self) -> bool:
        return self.bottom > self.top

    def part(self, count: int, last: bool) -> "Rows":
        """The last or the first ``count`` rows."""
        return Rows(self.bottom - count, self.bottom) if last else Rows(self.top, self.top + count)

    def without(self, count: int, last: bool) -> "Rows":
        """The rows without that part."""
        return Rows(self.top, self.bottom - count) if last else Rows(self.top + count, self.bottom)


@dataclass(frozen=True)
class _TileCost:
    """Costs of a tile: bytes live until its last read of the segment's input, and after that; bytes of its output."""

    before: int
    after: int
    output: int
    macs: int
    tail: int
    operations: int


class Segment:
    """A part of a network between two cut points, with its cost and its tilings."""

    def __init__(self, graph: Graph, costs: TargetCosts):
        self.graph = graph
        self.costs = costs
        self.source, self.target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
        self._tiles: dict[Region, _TileCost | None] = {}
        self._costs: dict[tuple[object, ...], _TileCost | None] = {}
        self._ends: dict[Rows, int] = {}

    @cached_property
    def untiled(self) -> Stage:
        """The segment without tiles."""
        graph = explicit_padding(self.graph)
        cost = Cost(max(_alive(graph)), graph.macs, self.costs.tail(graph), len(graph.ops))
        return Stage(self.graph, (), cost)

    @cached_property
    def _join_tail(self) -> int:
        """Tail bytes of a concatenation of two tiles."""
        shape = self.target.shape
        both = replace(self.target, name="both", shape=(shape[0], 2 * shape[1], *shape[2:]))
        op = ops.Concat((self.target.name, self.target.name), both.name, 1)
        tensors = {tensor.name: tensor for tensor in (self.target, both)}
        return self.costs.tail(Graph("join", tensors, (op,), (self.target.name,), (both.name,)))

    @cached_property
    def can_tile(self) -> bool:
        """True if the segment can be tiled with a reasonable halo."""
        windows = [op for op in self.graph.ops if isinstance(op, ops.Windowed) and _is_wide(self.graph, op)]
        return len(windows) <= _MAX_WINDOWS and can_tile(self.graph)

    def tiled(self, limit: int, byte_worth: float, *, last_first: bool = True) -> Stage | None:
        """The segment in bands, each as high as ``limit`` allows; ``None`` if no band fits.

        Bands start with the last or the first rows, never in the middle, so that the rows of the source still needed
        remain contiguous.
        """
        if max(self.source.nbytes, 2 * self.target.nbytes) > limit:
            return None
        left, kept, guess = Rows(0, self.target.shape[1]), 0, 1
        bands: list[tuple[Region, ...]] = []
        while left:
            band = self._best_band(left, limit - kept, guess, byte_worth, last_first)
            if band is None:
                return None
            bands.append(band)
            guess = band[0].bottom - band[0].top
            left = left.without(guess, last_first)
            kept += self._bytes(band)
        if kept + align(self.target.nbytes) > limit:
            return None
        return Stage(self.graph, tuple(bands), self._cost(bands, limit))

    def _bytes(self, band: Sequence[Region]) -> int:
        return align((band[0].bottom - band[0].top) * (self.target.nbytes // self.target.shape[1]))

    def _cost(self, bands: Sequence[Sequence[Region]], limit: int) -> Cost:
        tiles = [self._tile(region) for band in bands for region in band]
        joins = -(-(len(bands) - 1) // (MAX_JOINED - 1)) + sum(len(band) > 1 for band in bands)
        macs = sum(cost.macs for cost in tiles if cost)
        tail = sum(cost.tail for cost in tiles if cost) + joins * self._join_tail
        return Cost(limit, macs, tail, sum(cost.operations for cost in tiles if cost) + joins)

    def _best_band(
        self, left: Rows, room: int, guess: int, byte_worth: float, last_first: bool
    ) -> tuple[Region, ...] | None:
        """The next band of the remaining rows: the one with the lowest cost per row."""
        found = []
        for columns in _COLUMNS:
            guess = self._highest(left, columns, room, guess, last_first)
            if guess:
                band = self._band(left.part(guess, last_first), columns)
                cost = self._cost([band], 0)
                found.append((cost.weighed(byte_worth) / guess, band))
            if guess >= min(left.count, _HIGH):
                break
        return min(found, key=lambda item: item[0])[1] if found else None

    def _highest(self, left: Rows, columns: int, room: int, guess: int, last_first: bool) -> int:
        """Rows of the highest band that fits in ``room`` bytes; 0 if none fits."""

        def fits(height: int) -> bool:
            band = self._band(left.part(height, last_first), columns)
            peak = self._band_peak(band, left, left.without(height, last_first))
            return peak is not None and peak <= room

        if columns > self.target.shape[2]:
            return 0
        # The last band frees the whole source, so that it may be higher than the others.
        if left.count <= _FINISH * max(guess, 1) and fits(left.count):
            return left.count
        # Exponential search from the guess, then binary search.
        low, high, step = 0, left.count, 1
        height = min(max(guess, 1), left.count - 1)
        while low < height < high:
            low, high = (height, high) if fits(height) else (low, height)
            height = height + step if low == height else height - step
            step *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _band(self, rows: Rows, columns: int) -> tuple[Region, ...]:
        width = self.target.shape[2]
        edges = [width * column // columns for column in range(columns + 1)]
        return tuple(Region(rows.top, rows.bottom, left, right) for left, right in pairwise(edges))

    def _band_peak(self, band: Sequence[Region], before: Rows, after: Rows) -> int | None:
        """Peak memory while a band is computed, without the bands before it; ``None`` if a tile is impossible."""
        kept = peak = 0
        for region in band:
            cost = self._tile(region)
            if cost is None:
                return None
            behind = self._needed(after if region is band[-1] else before)
            peak = max(peak, self._needed(before) + cost.before + kept, behind + cost.after + kept)
            kept += cost.output
        return max(peak, self._needed(after) + kept + self._bytes(band)) if len(band) > 1 else peak

    def _needed(self, rows: Rows) -> int:
        """Bytes of the source that the remaining rows of the target depend on."""
        if not rows:
            return 0
        if not self.costs.rowwise:
            return align(self.source.nbytes)
        if rows not in self._ends:
            region = Region(rows.top, rows.bottom, 0, self.target.shape[2])
            part = needs(self.graph, region)[self.source.name]
            self._ends[rows] = align((part.bottom - part.top) * (self.source.nbytes // self.source.shape[1]))
        return self._ends[rows]

    def _tile(self, region: Region) -> _TileCost | None:
        if region not in self._tiles:
            alike = self._likeness(region)
            if alike not in self._costs:
                graph = tile_of(self.graph, region, "tile")
                self._costs[alike] = self._measured(explicit_padding(graph)) if graph and graph.ops else None
            self._tiles[region] = self._costs[alike]
        return self._tiles[region]

    def _likeness(self, region: Region) -> tuple[object, ...]:
        """A key that is equal for tiles of equal cost: their geometry apart from their position."""
        wanted, alike = needs(self.graph, region), []
        for op in self.graph.ops:
            made, read = wanted[op.output], wanted[op.inputs[0]]
            inside, pads = reach(self.graph, op, made)
            alike.append(
                (
                    inside.top - read.top,
                    inside.bottom - read.top,
                    inside.left - read.left,
                    inside.right - read.left,
                    made.bottom - made.top,
                    made.right - made.left,
                    pads,
                )
            )
        return tuple(alike)

    def _measured(self, graph: Graph) -> _TileCost:
        source = graph.inputs[0]
        reads = max((step for step, op in enumerate(graph.ops) if source in op.inputs), default=-1)
        alive = _alive(graph, without=source)
        output = align(graph.tensors[graph.outputs[0]].nbytes)
        before, after = max(alive[: reads + 1], default=0), max(alive[reads + 1 :], default=0)
        return _TileCost(before, after, output, graph.macs, self.costs.tail(graph), len(graph.ops))


def _is_wide(graph: Graph, op: ops.Windowed) -> bool:
    return (op.window if isinstance(op, ops.Pool) else graph.tensors[op.inputs[1]].shape[1:3]) != (1, 1)
