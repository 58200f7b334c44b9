"""Rewrite a graph until it fits: the cheapest way through its cut points, found by dynamic programming.

A cut point is a tensor that alone leads from what is before it to what is behind it. Between two of them a network is
computed as it is, or tile by tile; graphs that compute the same in another order add more ways between the same cut
points. No more may be alive at once than a limit, and what is left of the budget holds what the operations themselves
take (the tail): the more tiles, the lower the limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise

from ..runtime.graph import Conv, Graph, Op, Pool
from ..runtime.placement import ALIGNMENT, Buffer, lifetimes, pack
from ..runtime.rewrite import explicit_padding
from ..runtime.tflm import constants, op_tail_bytes, scratch_bytes, tail_bytes, total_bytes
from .tiling import (
    Region,
    can_tile,
    needs,
    reach,
    tile,
    tile_of,
    with_channels_split,
    with_padding_ahead,
    with_pools_before_concat,
)  # fmt: skip

# What is tried: tiles side by side in a band, groups of output channels.
_COLUMNS = (1, 2, 3, 4)
_GROUPS = (2, 4, 8)
# Rows of a band from which on several tiles side by side are no longer tried.
_HIGH = 4
# Windows larger than a pixel that a tile may span: with each the halo grows.
_MAX_WINDOWS = 4
# Multiply-accumulates that saving a byte of the tail, or an operation, is worth; the first that fits is taken.
_BYTE_WORTH = (0, 10, 100, 1_000, 10_000)
_OP_WORTH = 1_000
# By how much the limit is lowered when no placement reaches it.
_STEP = 0.985


@dataclass(frozen=True)
class Cost:
    """What a stretch takes: bytes alive at once, multiply-accumulates, bytes of the tail and operations."""

    peak: int
    macs: int
    tail: int
    ops: int


@dataclass(frozen=True)
class Stage:
    """A stretch between two cut points: computed as ``graph`` stands, or in bands of tiles."""

    graph: Graph
    bands: tuple[tuple[Region, ...], ...]
    cost: Cost

    @property
    def source(self) -> str:
        """The cut point that it begins at."""
        return self.graph.inputs[0]

    @property
    def target(self) -> str:
        """The cut point that it ends at."""
        return self.graph.outputs[0]

    def rewritten(self) -> Graph:
        """The stretch as it is to be computed."""
        return tile(self.graph, self.bands) if self.bands else self.graph


@dataclass(frozen=True)
class Candidate:
    """A rewritten network with its stages, the placement of its activations and all that it takes."""

    graph: Graph
    stages: tuple[Stage, ...]
    buffers: tuple[Buffer, ...]
    total_bytes: int


def cut_points(graph: Graph) -> list[tuple[int, str]]:
    """The activations that are all that is alive between two operations: (operations before it, name)."""
    last = {name: step for step, op in enumerate(graph.ops) for name in op.inputs}
    last.update(dict.fromkeys(graph.outputs, len(graph.ops)))
    alive, points = set(graph.inputs), [(0, name) for name in graph.inputs]
    for step, op in enumerate(graph.ops):
        alive.add(op.output)
        alive -= {name for name in (*op.inputs, op.output) if last.get(name, step) <= step}
        if len(alive) == 1:
            points.append((step + 1, next(iter(alive))))
    return points


def equivalents(graph: Graph) -> list[Graph]:
    """The graph, and others that compute the same integers in another order."""
    found = [graph, with_padding_ahead(graph)]
    found += [with_pools_before_concat(other) for other in found]
    found += [with_channels_split(other, groups) for other in found for groups in _GROUPS]
    unique: dict[tuple[Op, ...], Graph] = {}
    for other in found:
        unique.setdefault(other.ops, other)
    return list(unique.values())


def _align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _stretch(graph: Graph, start: int, stop: int, source: str, target: str) -> Graph:
    ops = graph.ops[start:stop]
    names = {source, *(name for op in ops for name in (*op.inputs, op.output))}
    return Graph(graph.name, {name: graph.tensors[name] for name in names}, ops, (source,), (target,))


def _tail(graph: Graph) -> int:
    # Constants are counted for each operation; those that operations share make the true tail a little smaller.
    return sum(op_tail_bytes(graph, op) + 24 * len(constants(op)) for op in graph.ops)


def _alive(graph: Graph) -> list[int]:
    """Bytes alive during each operation, its scratch memory included."""
    alive = [scratch_bytes(graph, op) for op in graph.ops]
    for life in lifetimes(graph):
        for step in range(life.first, life.last + 1):
            alive[step] += life.blocks[0].end
    return alive


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor that are still to be computed, the end excluded."""

    top: int
    bottom: int

    @property
    def count(self) -> int:
        """How many."""
        return self.bottom - self.top

    def __bool__(self) -> bool:
        return self.bottom > self.top

    def part(self, count: int, last: bool) -> "Rows":
        """The last or the first of them."""
        return Rows(self.bottom - count, self.bottom) if last else Rows(self.top, self.top + count)

    def without(self, count: int, last: bool) -> "Rows":
        """What is left without that part."""
        return Rows(self.top, self.bottom - count) if last else Rows(self.top + count, self.bottom)


@dataclass(frozen=True)
class _TileCost:
    """One tile: bytes of its own while it still reads the stretch's input, and after that; its output; and more."""

    before: int
    after: int
    output: int
    macs: int
    tail: int
    ops: int


class Stretch:
    """A part of a network between two cut points, what it takes as it is, and how it can be tiled."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.source, self.target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
        self._tiles: dict[Region, _TileCost | None] = {}
        self._costs: dict[tuple[object, ...], _TileCost | None] = {}
        self._ends: dict[Rows, int] = {}

    @cached_property
    def as_it_is(self) -> Stage:
        """Untiled."""
        graph = explicit_padding(self.graph)
        cost = Cost(max(_alive(graph)), graph.macs, _tail(graph), len(graph.ops))
        return Stage(self.graph, (), cost)

    @cached_property
    def can_tile(self) -> bool:
        """Whether tiles are possible and promise something."""
        windows = [op for op in self.graph.ops if isinstance(op, Conv | Pool) and _is_wide(self.graph, op)]
        return len(windows) <= _MAX_WINDOWS and can_tile(self.graph)

    def tiled(self, limit: int, byte_worth: float, *, last_first: bool = True) -> Stage | None:
        """In bands, each as high as fits below ``limit``, the last rows or the first ones first; None when none fits.

        Never from the middle: so what is left of the source is one piece that shrinks from one end.
        """
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
        if len(bands) > 1 and kept + _align(self.target.nbytes) > limit:
            return None
        return Stage(self.graph, tuple(bands), self._cost(bands, limit))

    def _bytes(self, band: Sequence[Region]) -> int:
        return _align((band[0].bottom - band[0].top) * (self.target.nbytes // self.target.shape[1]))

    def _cost(self, bands: Sequence[Sequence[Region]], limit: int) -> Cost:
        tiles = [self._tile(region) for band in bands for region in band]
        joins = (len(bands) > 1) + sum(len(band) > 1 for band in bands)
        macs = sum(cost.macs for cost in tiles if cost)
        tail = sum(cost.tail for cost in tiles if cost) + joins * _JOIN_TAIL
        return Cost(limit, macs, tail, sum(cost.ops for cost in tiles if cost) + joins)

    def _best_band(
        self, left: "Rows", room: int, guess: int, byte_worth: float, last_first: bool
    ) -> tuple[Region, ...] | None:
        """The next band of the rows that are left: the one that costs least for each of its rows."""
        found = []
        for columns in _COLUMNS:
            guess = self._highest(left, columns, room, guess, last_first)
            if guess:
                band = self._band(left.part(guess, last_first), columns)
                cost = self._cost([band], 0)
                found.append(((cost.macs + byte_worth * cost.tail + _OP_WORTH * cost.ops) / guess, band))
            if guess >= min(left.count, _HIGH):
                break
        return min(found, key=lambda item: item[0])[1] if found else None

    def _highest(self, left: "Rows", columns: int, room: int, guess: int, last_first: bool) -> int:
        """Rows of the highest band that fits into what room there is; 0 when none does."""

        def fits(height: int) -> bool:
            band = self._band(left.part(height, last_first), columns)
            peak = self._band_peak(band, left, left.without(height, last_first))
            return peak is not None and peak <= room

        if columns > self.target.shape[2]:
            return 0
        if fits(left.count):
            return left.count
        # From the guess on in steps that double, then between the last two.
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

    def _band(self, rows: "Rows", columns: int) -> tuple[Region, ...]:
        width = self.target.shape[2]
        edges = [width * column // columns for column in range(columns + 1)]
        return tuple(Region(rows.top, rows.bottom, left, right) for left, right in pairwise(edges))

    def _band_peak(self, band: Sequence[Region], before: "Rows", after: "Rows") -> int | None:
        """Bytes alive at most while a band is computed, beside the bands before it."""
        kept = peak = 0
        for region in band:
            cost = self._tile(region)
            if cost is None:
                return None
            behind = self._needed(after if region is band[-1] else before)
            peak = max(peak, self._needed(before) + cost.before + kept, behind + cost.after + kept)
            kept += cost.output
        return max(peak, self._needed(after) + kept + self._bytes(band)) if len(band) > 1 else peak

    def _needed(self, rows: "Rows") -> int:
        """Bytes of the source that rows of the target need, up to the end from which they are not taken."""
        if not rows:
            return 0
        if rows not in self._ends:
            region = Region(rows.top, rows.bottom, 0, self.target.shape[2])
            part = needs(self.graph, region)[self.source.name]
            self._ends[rows] = _align((part.bottom - part.top) * (self.source.nbytes // self.source.shape[1]))
        return self._ends[rows]

    def _tile(self, region: Region) -> _TileCost | None:
        if region not in self._tiles:
            alike = self._likeness(region)
            if alike not in self._costs:
                graph = tile_of(self.graph, region, "tile")
                self._costs[alike] = _tile_cost(explicit_padding(graph)) if graph and graph.ops else None
            self._tiles[region] = self._costs[alike]
        return self._tiles[region]

    def _likeness(self, region: Region) -> tuple[object, ...]:
        """What is the same for all tiles that take the same: all but where they lie."""
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


# What a concatenation adds to the tail, without an operation to ask for it yet.
_JOIN_TAIL = 176


def _is_wide(graph: Graph, op: Conv | Pool) -> bool:
    return (op.window if isinstance(op, Pool) else graph.tensors[op.inputs[1]].shape[1:3]) != (1, 1)


def _tile_cost(graph: Graph) -> _TileCost:
    source = graph.inputs[0]
    reads = max((step for step, op in enumerate(graph.ops) if source in op.inputs), default=-1)
    alive = [0] * len(graph.ops)
    for life in lifetimes(graph):
        if life.tensor != source:
            for step in range(life.first, life.last + 1):
                alive[step] += life.blocks[0].end
    output = _align(graph.tensors[graph.outputs[0]].nbytes)
    before, after = max(alive[: reads + 1], default=0), max(alive[reads + 1 :], default=0)
    return _TileCost(before, after, output, graph.macs, _tail(graph), len(graph.ops))


class Search:
    """All ways through a network, and what has been found out about them."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.equivalents = equivalents(graph)
        self._stretches: dict[tuple[Op, ...], Stretch] = {}
        self._points = [cut_points(other) for other in self.equivalents]

    def cheapest(self, limit: int, byte_worth: float) -> tuple[Stage, ...] | None:
        """The stages that cost least among those below ``limit`` bytes alive at once (Dijkstra's algorithm)."""
        ways: dict[str, list[Stage]] = {}
        for stage in self._stages(limit, byte_worth):
            ways.setdefault(stage.source, []).append(stage)
        start, goal = self.graph.inputs[0], self.graph.outputs[0]
        best: dict[str, float] = {start: 0}
        reached: dict[str, Stage] = {}
        heap: list[tuple[float, str]] = [(0, start)]
        while heap:
            spent, name = heappop(heap)
            if name == goal:
                break
            for stage in ways.get(name, []) if spent == best[name] else []:
                cost = stage.cost
                total = spent + cost.macs + byte_worth * cost.tail + _OP_WORTH * cost.ops
                if total < best.get(stage.target, float("inf")):
                    best[stage.target], reached[stage.target] = total, stage
                    heappush(heap, (total, stage.target))
        if goal not in reached:
            return None
        path = [reached[goal]]
        while path[-1].source != start:
            path.append(reached[path[-1].source])
        return tuple(reversed(path))

    def _stages(self, limit: int, byte_worth: float) -> Iterator[Stage]:
        seen: set[tuple[Op, ...]] = set()
        for graph, points in zip(self.equivalents, self._points, strict=True):
            plain = [self._stretch(graph, here, there) for here, there in pairwise(points)]
            for stretch in plain:
                if stretch.as_it_is.cost.peak <= limit and stretch.graph.ops not in seen:
                    seen.add(stretch.graph.ops)
                    yield stretch.as_it_is
            for index, here in enumerate(points):
                for there in points[index + 1 :]:
                    stretch = self._stretch(graph, here, there)
                    if not stretch.can_tile:
                        break
                    key = (*stretch.graph.ops, *stretch.graph.ops[:1])
                    if key in seen or all(s.as_it_is.cost.peak <= limit for s in plain[index : points.index(there)]):
                        continue
                    seen.add(key)
                    stage = stretch.tiled(limit, byte_worth)
                    if stage:
                        yield stage

    def _stretch(self, graph: Graph, here: tuple[int, str], there: tuple[int, str]) -> Stretch:
        ops = graph.ops[here[0] : there[0]]
        if ops not in self._stretches:
            self._stretches[ops] = Stretch(_stretch(graph, here[0], there[0], here[1], there[1]))
        return self._stretches[ops]

    def assemble(self, stages: Sequence[Stage]) -> Graph:
        """The stages as one graph."""
        parts = [stage.rewritten() for stage in stages]
        tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        ops = [op for part in parts for op in part.ops]
        return explicit_padding(Graph.of(self.graph.name, tensors.values(), ops, self.graph.inputs, self.graph.outputs))

    def sided(self, stages: Sequence[Stage], limit: int, byte_worth: float) -> tuple[Stage, ...]:
        """The stages with their bands in the order in which memory is left in one piece.

        What is made lies at the other end of the arena than what it is made of, unless it is joined from tiles. A
        source at the bottom is best used up from its last row on, one at the top from its first.
        """
        found, bottom = [], True
        for stage in stages:
            if not stage.bands:
                bottom = not bottom
            elif not bottom:
                stretch = self._stretches[stage.graph.ops]
                stage = stretch.tiled(limit, byte_worth, last_first=False) or stage
            found.append(stage)
        return tuple(found)

    def candidate(self, stages: Sequence[Stage], budget: int) -> Candidate | None:
        """The stages as a network, or None when no placement within the budget was found."""
        graph = self.assemble(stages)
        buffers = pack(lifetimes(graph, rowwise=True), budget - tail_bytes(graph))
        if buffers is None:
            return None
        head = max(buffer.end for buffer in buffers)
        return Candidate(graph, tuple(stages), buffers, total_bytes(graph, head))
