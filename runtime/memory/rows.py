"""Row plans: a network computed row by row, with a few rows of each tensor in memory instead of all.

A *root* is a block of memory: a tensor, with the operands of a channel concat inside it. It is one of

* a *ring* of rows: as many as its readers' windows and lags need, row ``r`` in slot ``r % rows``;
* a *strip*: some columns of one row, which all readers take as soon as they are computed;
* rows of *running* maxima, of a pool that reads a strip: those whose windows are open;
* *sums*, integers of each channel, or real numbers;
* the input as a *whole*, whose rows die one by one.

Operations connected by strips form a *group*, which computes one row at a time, strip by strip. The *schedule* is the
order of these steps: after each row of input, everything that it makes possible, the last group first. It does not
depend on data, so that lives, heights and offsets of all roots follow from simulating it once.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from ..graph import Graph, Op, ops
from .allocation import ALIGNMENT, Block, Buffer, LiveRange, align, allocate_in_order
from .row_graph import SUM_BYTES, Mean, Real, Sums

Kind = Literal["ring", "strip", "running", "sums"]
Input = Literal["whole", "rows"]

# Kernels read up to 15 bytes beyond a row.
SLACK = 16
# The strips of all groups, of which only one runs at a time, share these bytes.
STRIPS = "strips"
WHOLE = "whole input"
_FOREVER = 1 << 60
# Most operations in a group: joining groups takes time proportional to their size.
_MOST_OPERATIONS = 64
# Orders of allocation to try, and the number of roots squared times orders: the time of large networks is bounded.
_ROUNDS = 60
_PATIENCE = 1_000_000


@dataclass(frozen=True)
class Window:
    """The rows (or columns) of an input that row ``y`` of the output reads: ``extent`` from ``y * stride - before``."""

    extent: int = 1
    stride: int = 1
    before: int = 0

    @property
    def is_pointwise(self) -> bool:
        """True if row ``y`` reads row ``y`` alone."""
        return (self.extent, self.stride, self.before) == (1, 1, 0)

    def start(self, y: int) -> int:
        """The first row that row ``y`` reads, negative in the padding."""
        return y * self.stride - self.before


@dataclass(frozen=True)
class Read:
    """One activation that an operation reads, with its windows; ``padded`` reads include rows beyond the tensor."""

    tensor: str
    rows: Window
    columns: Window
    padded: bool = False


def reads_of(graph: Graph, op: Op) -> tuple[Read, ...]:
    """The activations that an operation reads."""
    shape = graph.tensors[op.inputs[0]].shape
    if isinstance(op, ops.Windowed):
        extent = op.extent(*graph.shapes(op))
        rows, columns = (Window(extent[axis], op.stride[axis], op.padding[2 * axis]) for axis in (0, 1))
        return (Read(op.inputs[0], rows, columns, isinstance(op, ops.Conv)),)
    if isinstance(op, ops.Reshape | ops.Transpose):
        return (Read(op.inputs[0], Window(shape[1], 0), Window(shape[2], 0)),)
    if isinstance(op, ops.Pad):
        return (Read(op.inputs[0], Window(before=op.padding[0]), Window(before=op.padding[2])),)
    if isinstance(op, ops.Slice):
        return (Read(op.inputs[0], Window(before=-op.begin[1]), Window(before=-op.begin[2])),)
    if isinstance(op, ops.Concat) and op.axis != 3:
        reads, at = [], 0
        for name in op.inputs:
            rows, columns = (Window(before=at if axis == op.axis else 0) for axis in (1, 2))
            reads.append(Read(name, rows, columns))
            at += graph.tensors[name].shape[op.axis]
        return tuple(reads)
    names = op.inputs[:1] if isinstance(op, Mean | Real) else op.inputs
    return tuple(Read(name, Window(), Window()) for name in dict.fromkeys(names))


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which root, from which channel on."""

    root: str
    channel: int = 0


@dataclass(frozen=True)
class Root:
    """A block of memory. Rows have ``width`` columns of ``channels`` bytes, and padding around them.

    ``rows`` is the height of a ring, or of running maxima; ``columns`` is the capacity of a strip.
    """

    name: str
    kind: Kind
    height: int
    width: int
    channels: int
    zero_point: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    rows: int = 1
    columns: int = 0
    # The size of one sum.
    sum_bytes: int = 4

    @property
    def pitch(self) -> int:
        """Bytes from one row to the next."""
        return (self.left + self.width + self.right) * self.channels

    @property
    def is_padded(self) -> bool:
        """True if convolutions read beyond the tensor."""
        return bool(self.top or self.bottom or self.left or self.right)

    @property
    def nbytes(self) -> int:
        """Size in the arena."""
        if self.kind == "sums":
            return self.sum_bytes * self.channels
        return self.columns * self.channels if self.kind == "strip" else self.rows * self.pitch


@dataclass(frozen=True)
class Rows:
    """Where the rows of a root begin: row ``y``, counted with the padding above, at ``base + y % rows * pitch``.

    ``rows`` is 1 where all rows share their bytes, and 0 where each row has its own.
    """

    base: int
    pitch: int
    rows: int

    def at(self, row: int) -> int:
        """The first byte of a row counted with the padding above."""
        return self.base + (row % self.rows if self.rows else row) * self.pitch


@dataclass(frozen=True)
class Strip:
    """Part of a row: columns ``first`` to ``end`` are computed; the buffer begins with column ``start``.

    A pool that reads the strip completes its columns ``pooled`` to ``pooled_end``.
    """

    start: int
    first: int
    end: int
    pooled: int = 0
    pooled_end: int = 0


@dataclass(frozen=True)
class Group:
    """Operations that compute one row together, strip by strip.

    ``before`` run on each strip of row ``y``; then ``pool``, if there is one, takes the strip, and ``behind`` run on
    the columns that it completes. ``steps`` is the number of rows, with rows of padding below the image, which the
    operations in ``fills`` write to their channels.
    """

    index: int
    before: tuple[Op, ...]
    pool: ops.MaxPool | None
    behind: tuple[Op, ...]
    height: int
    strips: tuple[Strip, ...]
    steps: int
    fills: tuple[Op, ...] = ()

    @property
    def ops(self) -> tuple[Op, ...]:
        """All operations, in the order in which they run."""
        return (*self.before, *((self.pool,) if self.pool else ()), *self.behind)

    def pool_rows(self, y: int, height: int) -> range:
        """The rows of the pool that row ``y`` of its input belongs to; ``height`` is the number of rows of the pool."""
        assert self.pool is not None
        window, stride, before = self.pool.window[0], self.pool.stride[0], self.pool.padding[0]
        first = max(0, -(-(y + before - window + 1) // stride))
        return range(first, min(height, (y + before) // stride + 1))

    def is_last(self, row: int, y: int) -> bool:
        """True if row ``y`` is the last of the window of row ``row`` of the pool."""
        assert self.pool is not None
        last = row * self.pool.stride[0] - self.pool.padding[0] + self.pool.window[0] - 1
        return y == min(last, self.height - 1)

    def is_first(self, row: int, y: int) -> bool:
        """True if row ``y`` is the first of the window of row ``row`` of the pool."""
        assert self.pool is not None
        return y == max(0, row * self.pool.stride[0] - self.pool.padding[0])


@dataclass(frozen=True)
class Step:
    """One row of one group; ``group`` -1 is the arrival of a row of input."""

    group: int
    row: int


@dataclass(frozen=True)
class RowPlan:
    """A network's row plan: groups, schedule, and where every root lies in the arena.

    ``graph`` has the form of ``row_graph``. ``buffers`` live from step to step; the input, if it is ``whole``, is the
    root of its own name unless convolutions read padding around it: then it is the buffer ``WHOLE``, from which its
    rows are copied to the ring of its name.
    """

    graph: Graph
    input: Input
    places: Mapping[str, Place]
    roots: Mapping[str, Root]
    groups: tuple[Group, ...]
    schedule: tuple[Step, ...]
    buffers: Mapping[str, Buffer]
    strip_offsets: Mapping[str, int] = field(default_factory=dict)

    @property
    def input_offset(self) -> int:
        """Offset of the whole input in the arena."""
        return self.buffers[WHOLE if WHOLE in self.buffers else self.graph.inputs[0]].offset

    @property
    def state_offset(self) -> int:
        """Offset of the state, behind the tensors and the bytes that kernels read beyond the last row."""
        return align(max((buffer.end for buffer in self.buffers.values()), default=0) + SLACK, 8)

    @property
    def state_bytes(self) -> int:
        """Size of the state: the next step, the rows that have arrived, and the next row of each group."""
        return align(4 + 2 + 2 * len(self.groups), 8)

    @property
    def arena_bytes(self) -> int:
        """Size of the arena: tensors and state."""
        return self.state_offset + self.state_bytes

    def offset(self, root: str) -> int:
        """Offset of a root in the arena."""
        if self.roots[root].kind == "strip":
            return self.buffers[STRIPS].offset + self.strip_offsets[root]
        return self.buffers[root].offset

    def rows(self, root: str) -> Rows:
        """Where the rows of a root begin."""
        found = self.roots[root]
        total = found.top + found.height + found.bottom
        own = found.kind == "ring" and found.rows > 1 and found.rows >= total
        return Rows(
            self.offset(root), found.pitch, 0 if own else found.rows if found.kind in ("ring", "running") else 1
        )

    def column(self, name: str) -> int:
        """Bytes from the beginning of a row to the first channel of an activation's column 0, a strip's first."""
        place = self.places[name]
        root = self.roots[place.root]
        return root.left * root.channels + place.channel

    @cached_property
    def leaves(self) -> Mapping[str, tuple[str, ...]]:
        """For each tensor the outputs of operations that it consists of."""
        return _leaves(self.graph)


def plan_rows(graph: Graph, *, input: Input = "rows", strip_bytes: int | None = None) -> RowPlan:
    """Plan a graph in the form of ``row_graph``, with the input ``whole`` in the arena or delivered by ``rows``.

    Strips have at most ``strip_bytes`` bytes if their width allows it, and are whole rows without it.
    """
    shape = _Shape(graph)
    groups = shape.groups(strip_bytes)
    roots = shape.roots(groups)
    simulated = _Simulation(graph, shape, groups, roots, input).run()
    return _placed(graph, shape, groups, simulated, input)


class _Shape:
    """Which tensors share a root, which roots are strips, and which operations form a group."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.ops = [op for op in graph.ops if not _is_view(op)]
        self.order = {op.output: index for index, op in enumerate(self.ops)}
        self.places = _places(graph)
        self.reads = {op.output: reads_of(graph, op) for op in self.ops}
        self.producers: dict[str, list[Op]] = {}
        self.readers: dict[str, list[tuple[Op, Read]]] = {}
        for op in self.ops:
            self.producers.setdefault(self.places[op.output].root, []).append(op)
            for read in self.reads[op.output]:
                self.readers.setdefault(self.places[read.tensor].root, []).append((op, read))
        self.leaves = _leaves(graph)
        self.kinds: dict[str, Kind] = {}
        # Group of each operation, and the operations of each group; a pool that takes strips, and what follows it.
        self.group = {op.output: op.output for op in self.ops}
        self.members = {op.output: [op] for op in self.ops}
        self.pools: dict[str, Op] = {}
        self.behind: set[str] = set()
        for root in self._topological():
            self.kinds[root] = self._kind(root)

    def _topological(self) -> list[str]:
        found = dict.fromkeys([self.graph.inputs[0], *(self.places[op.output].root for op in self.ops)])
        return [self.places[name].root if name in self.places else name for name in found]

    def _kind(self, root: str) -> Kind:
        """Decide on a root, and join the groups of its producers and readers if it is a strip."""
        producers, readers = self.producers.get(root, []), self.readers.get(root, [])
        if self.graph.tensors[root].dtype in SUM_BYTES:
            return "sums"
        if not producers or root in {self.places[name].root for name in self.graph.outputs} or not readers:
            return "ring"
        pool = next((op for op, _ in readers if isinstance(op, ops.MaxPool)), None)
        is_pool = any(isinstance(op, ops.MaxPool) and self._takes_strips(op) for op in producers)
        whole_pool = is_pool and len(producers) == 1
        if (is_pool and not whole_pool) or (is_pool and pool is not None) or any(op is pool for op in producers):
            return "ring"
        for op in producers:
            if not is_pool and not all(self._flows(read) for read in self.reads[op.output]):
                return "ring"
        for op, read in readers:
            if not (self._takes_pixels(op, read) or op is pool):
                return "ring"
        return ("running" if is_pool else "strip") if self._join(producers, readers, pool, is_pool) else "ring"

    def _flows(self, read: Read) -> bool:
        """True unless the operation needs rows in another order than they come."""
        return read.rows.stride > 0

    def _takes_pixels(self, op: Op, read: Read) -> bool:
        pointwise = read.rows.is_pointwise and read.columns.is_pointwise
        same = self.graph.tensors[read.tensor].shape[1:3] == self.graph.tensors[op.output].shape[1:3]
        return pointwise and (same or isinstance(op, Sums)) and not isinstance(op, Mean | Real | ops.MaxPool)

    def _takes_strips(self, op: Op) -> bool:
        return self.pools.get(self.group[op.output]) is op

    def _join(
        self, producers: Sequence[Op], readers: Sequence[tuple[Op, Read]], pool: Op | None, is_pool: bool
    ) -> bool:
        """Join the groups around a root, if every operation can then still run in time."""
        names = dict.fromkeys(self.group[op.output] for op in (*producers, *(op for op, _ in readers)))
        merged = [op for name in names for op in self.members[name]]
        if len(merged) > _MOST_OPERATIONS:
            return False
        pools = [self.pools[name] for name in names if name in self.pools] + ([pool] if pool is not None else [])
        if len(pools) > 1 and any(one is not pools[0] for one in pools):
            return False
        behind = {op.output for op in producers if op.output in self.behind} | ({"pool"} if is_pool else set())
        if behind and len(behind) - is_pool < len(producers) - is_pool:
            return False
        new_behind = {op.output for op, _ in readers if op is not pool} if behind else set()
        if pool is not None and behind:
            return False
        for op, _ in readers:
            in_strips = any(self._in_strips(op, other) for other in merged)
            if in_strips and (op.output in self.behind) != bool(behind):
                return False
        # Whoever reads an operand of a concat that is a strip already runs before the pool.
        moved = [op for op, _ in readers if op.output in new_behind - self.behind]
        if any(self.kinds.get(self.places[op.output].root) in ("strip", "running") for op in moved):
            return False
        if not self._is_possible(merged, pools[0] if pools else None, new_behind):
            return False
        first = next(iter(names))
        for name in names:
            for op in self.members[name]:
                self.group[op.output] = first
            if name != first:
                del self.members[name]
            self.pools.pop(name, None)
        self.members[first] = sorted(merged, key=lambda op: self.order[op.output])
        if pools:
            self.pools[first] = pools[0]
        self.behind |= new_behind
        return True

    def _in_strips(self, op: Op, other: Op) -> bool:
        """True if ``op`` already takes a strip that ``other`` writes."""
        root = self.places[other.output].root
        takes = any(self.places[read.tensor].root == root for read in self.reads[op.output])
        return takes and self.kinds.get(root) in ("strip", "running")

    def _is_possible(self, merged: Sequence[Op], pool: Op | None, new_behind: set[str]) -> bool:
        """True if no operation of the group waits for another group that waits for this one, or for a later row."""
        inside = {op.output for op in merged}
        behind = (self.behind | new_behind) & inside
        written = {self.places[op.output].root: op for op in merged}
        for op in merged:
            for read in self.reads[op.output]:
                root = self.places[read.tensor].root
                maker = written.get(root)
                if maker is not None and maker is pool and op.output not in behind:
                    return False
                if maker is None or self.kinds.get(root) in ("strip", "running") or op is pool or maker is pool:
                    continue
                same_side = (maker.output in behind) == (op.output in behind)
                if root in self.kinds and not (read.rows.is_pointwise and read.columns.is_pointwise and same_side):
                    return False
        return not self._has_detour(inside)

    def _has_detour(self, inside: set[str]) -> bool:
        """True if a path leaves the operations of ``inside`` and comes back."""
        last = max(self.order[name] for name in inside)
        seen: set[str] = set()
        open_ = list(inside)
        while open_:
            name = open_.pop()
            for op, _ in self._tensor_readers(name):
                if op.output in inside:
                    if name not in inside:
                        return True
                    continue
                group = self.group[op.output]
                if group not in seen:
                    seen.add(group)
                    # Groups are entered as a whole, but nothing behind the last operation leads back.
                    open_ += [other.output for other in self.members[group] if self.order[other.output] < last]
        return False

    def _tensor_readers(self, name: str) -> Iterable[tuple[Op, Read]]:
        root = self.places[name].root
        return ((op, read) for op, read in self.readers.get(root, []) if name in self.leaves[read.tensor])

    def groups(self, strip_bytes: int | None) -> list[Group]:
        """All groups, in topological order."""
        found = []
        for index, members in enumerate(self._sorted_members()):
            pool = self.pools.get(self.group[members[0].output])
            before = tuple(op for op in members if op.output not in self.behind and op is not pool)
            behind = tuple(op for op in members if op.output in self.behind)
            lead = before[0] if before else members[0]
            _, height, width, _ = self.driving_shape(lead)
            found.append(
                Group(
                    index,
                    before,
                    pool if isinstance(pool, ops.MaxPool) else None,
                    behind,
                    height,
                    self._strips(members, pool, width, strip_bytes),
                    height,
                )
            )
        return found

    def driving_shape(self, op: Op) -> tuple[int, ...]:
        """The shape whose rows drive an operation: its output's, or its input's if it only adds up."""
        return self.graph.tensors[op.inputs[0] if isinstance(op, Sums) else op.output].shape

    def _sorted_members(self) -> list[list[Op]]:
        """Groups so that each stands behind those it reads from."""
        first = {name: self.order[members[0].output] for name, members in self.members.items()}
        waits = {name: set[str]() for name in self.members}
        behind: dict[str, set[str]] = {name: set() for name in self.members}
        for op in self.ops:
            for read in self.reads[op.output]:
                for leaf in self.leaves[read.tensor]:
                    if leaf in self.group and self.group[leaf] != self.group[op.output]:
                        waits[self.group[op.output]].add(self.group[leaf])
                        behind[self.group[leaf]].add(self.group[op.output])
        ready = [(first[name], name) for name, needed in waits.items() if not needed]
        heapq.heapify(ready)
        found = []
        while ready:
            _, name = heapq.heappop(ready)
            found.append(self.members[name])
            for other in behind[name]:
                waits[other].discard(name)
                if not waits[other]:
                    heapq.heappush(ready, (first[other], other))
        assert len(found) == len(self.members)
        return found

    def _strips(self, members: Sequence[Op], pool: Op | None, width: int, strip_bytes: int | None) -> tuple[Strip, ...]:
        before = [op for op in members if op.output not in self.behind and op is not pool]
        roots = {self.places[op.output].root for op in before}
        channels = sum(self.channels(root) for root in roots if self.kinds[root] == "strip")
        most = width if strip_bytes is None or not channels else max(1, strip_bytes // channels)
        if isinstance(pool, ops.MaxPool):
            return _pooled_strips(pool, width, self.graph.tensors[pool.output].shape[2], most)
        count = -(-width // min(most, width))
        size = -(-width // count)
        return tuple(Strip(x, x, min(x + size, width)) for x in range(0, width, size))

    def channels(self, root: str) -> int:
        """Channels of a root."""
        return self.graph.tensors[root].shape[3]

    def roots(self, groups: Sequence[Group]) -> dict[str, Root]:
        """All roots, with padding and the capacity of strips; heights of rings are not known yet."""
        capacity: dict[str, int] = {}
        for group in groups:
            columns = max(strip.end - strip.start for strip in group.strips)
            capacity |= {self.places[op.output].root: columns for op in group.before}
        found = {}
        for name in self._topological():
            tensor = self.graph.tensors[name]
            _, height, width, channels = tensor.shape
            zero = tensor.quantization.zero_point if tensor.quantization else 0
            kind = self.kinds.get(name, "ring")
            columns = 0
            if kind == "strip":
                columns = self._strip_columns(name, groups, capacity)
            sum_bytes = SUM_BYTES.get(tensor.dtype, 0)
            padding = self._padding(name, height, width)
            found[name] = Root(
                name, kind, height, width, channels, zero, *padding, columns=columns, sum_bytes=sum_bytes
            )
        return found

    def _strip_columns(self, name: str, groups: Sequence[Group], capacity: Mapping[str, int]) -> int:
        """Columns that a strip holds: those computed, with those kept for a pool, or those that a pool completes."""
        producer = self.producers[name][0]
        if producer.output not in self.behind:
            return capacity[name]
        group = next(group for group in groups if producer in group.behind)
        return max(strip.pooled_end - strip.pooled for strip in group.strips)

    def _padding(self, root: str, height: int, width: int) -> tuple[int, int, int, int]:
        """Rows and columns around a tensor that convolutions read: top, bottom, left, right."""
        found = [0, 0, 0, 0]
        for op, read in self.readers.get(root, []):
            if read.padded:
                _, rows, columns, _ = self.graph.tensors[op.output].shape
                for at, window, count, size in ((0, read.rows, rows, height), (2, read.columns, columns, width)):
                    found[at] = max(found[at], window.before)
                    found[at + 1] = max(found[at + 1], window.start(count - 1) + window.extent - size)
        return found[0], found[1], found[2], found[3]


def _is_view(op: Op) -> bool:
    return isinstance(op, ops.Concat) and op.axis == 3


def _places(graph: Graph) -> dict[str, Place]:
    """Operands of channel concats lie in the output of the concat; everything else is a root."""
    parents: dict[str, tuple[str, int]] = {}
    for op in graph.ops:
        if _is_view(op):
            at = 0
            for name in op.inputs:
                parents[name] = (op.output, at)
                at += graph.tensors[name].shape[3]
    found: dict[str, Place] = {}
    for tensor in reversed(graph.activations):
        name = tensor.name
        if name in parents:
            parent, at = parents[name]
            found[name] = Place(found[parent].root, found[parent].channel + at)
        else:
            found[name] = Place(name)
    return found


def _leaves(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each activation the outputs of operations (or the input) whose bytes it consists of."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in graph.inputs}
    for op in graph.ops:
        found[op.output] = tuple(leaf for name in op.inputs for leaf in found[name]) if _is_view(op) else (op.output,)
    return found


def _pooled_strips(pool: ops.MaxPool, width: int, pooled: int, most: int) -> tuple[Strip, ...]:
    """Strips whose columns, with those kept from the strip before, hold whole windows of the pool."""
    window, stride, before = pool.window[1], pool.stride[1], pool.padding[2]
    per_strip = min(pooled, max(1, (most - max(window - stride, 0)) // stride)) if most < width else pooled
    count = -(-pooled // per_strip)
    per_strip = -(-pooled // count)
    found, end = [], 0
    for first in range(0, pooled, per_strip):
        last = min(first + per_strip, pooled)
        start = max(0, first * stride - before)
        stop = width if last == pooled else min(width, (last - 1) * stride - before + window)
        found.append(Strip(min(start, end), end, stop, first, last))
        end = stop
    return tuple(found)


@dataclass
class _Life:
    """What the simulation finds out about a root: its height, its first and last step, and when each row was born."""

    rows: int = 1
    first: int = -1
    last: int = -1
    births: list[int] = field(default_factory=list)


@dataclass
class _Simulated:
    roots: dict[str, Root]
    groups: list[Group]
    schedule: list[Step]
    lives: dict[str, _Life]
    row_deaths: list[int]


class _Simulation:
    """Runs the schedule on row numbers alone. Rows are counted with the padding above the image."""

    def __init__(self, graph: Graph, shape: _Shape, groups: list[Group], roots: dict[str, Root], input: Input):
        self.graph, self.shape, self.roots, self.input = graph, shape, roots, input
        self.source = shape.places[graph.inputs[0]].root
        self.groups = [self._with_fills(group) for group in groups]
        self.group_of = {op.output: group for group in self.groups for op in group.ops}
        # Rows that each operation has completed; the input's rows that have arrived.
        self.done = {op.output: 0 for op in shape.ops} | {self.source: 0}
        # Rows of padding below the image that each has written.
        self.filled = dict.fromkeys(self.done, 0)
        self.position = [0] * len(groups)
        self.lives = {name: _Life() for name in roots}
        self.row_deaths = [0] * roots[self.source].height
        self.reading = [self._reads(group) for group in self.groups]
        # The groups that read each root.
        self.waiting: dict[str, list[int]] = {name: [] for name in roots}
        for group, reads in zip(self.groups, self.reading, strict=True):
            for root in dict.fromkeys(root for root, _, _ in reads):
                self.waiting[root].append(group.index)

    def _with_fills(self, group: Group) -> Group:
        """The group with the operations that write padding below the image, each to its own channels.

        A convolution may read the padding below a tensor and write to the same root, as in a DenseNet: no operation
        can fill the row for all.
        """
        below = {op.output: self.roots[self.shape.places[op.output].root] for op in group.ops}
        fills = tuple(op for op in group.ops if below[op.output].kind == "ring" and below[op.output].bottom)
        bottom = max((below[op.output].bottom for op in fills), default=0)
        return replace(group, steps=group.height + bottom, fills=fills)

    def _reads(self, group: Group) -> list[tuple[str, Op, Read]]:
        """What a group reads from rings that are written before its step."""
        found = []
        inside = {self.shape.places[op.output].root for op in group.ops}
        for op in group.ops:
            for read in self.shape.reads[op.output]:
                root = self.shape.places[read.tensor].root
                is_stored = self.roots[root].kind in ("ring", "sums")
                if is_stored and not (root in inside and self._is_inner(group, read)):
                    found.append((root, op, read))
        return found

    def _is_inner(self, group: Group, read: Read) -> bool:
        """True if the group itself computes the row that it reads in the same step."""
        own = {op.output for op in group.ops}
        return all(leaf in own for leaf in self.shape.leaves[read.tensor])

    def needed(self, group: Group, op: Op, read: Read, y: int) -> tuple[int, int]:
        """First row and end that a step needs, counted with padding; an end of 0 means none yet."""
        root = self.roots[self.shape.places[read.tensor].root]
        if y >= group.height:
            return _FOREVER, 0
        rows, is_due = range(y, y + 1), True
        if op in group.behind:
            assert group.pool is not None
            height = self.graph.tensors[group.pool.output].shape[1]
            due = [row for row in group.pool_rows(y, height) if group.is_last(row, y)]
            open_rows = group.pool_rows(y, height)
            is_due = bool(due)
            rows = range(due[0], due[-1] + 1) if due else range(open_rows[0] if open_rows else height, height)
            if not due and not open_rows:
                return (_FOREVER if rows.start >= height else rows.start), 0
        first, end = read.rows.start(rows[0] if len(rows) else 0), read.rows.start(rows[-1] if len(rows) else 0)
        end += read.rows.extent
        if not read.padded:
            first, end = max(first, 0), min(end, root.height)
        return first + root.top, end + root.top if is_due and end > first else 0

    def available(self, root: Root, read: Read) -> int:
        """Rows of a tensor that can be read, counted with padding."""
        leaves = self.shape.leaves[read.tensor]
        done = min(self.done[leaf] for leaf in leaves)
        if root.kind == "sums":
            return done
        if done < root.height:
            # The padding above is written together with the first row.
            return done + root.top if done else 0
        return root.top + root.height + min(self.filled[leaf] for leaf in leaves)

    def is_ready(self, group: Group) -> bool:
        y = self.position[group.index]
        if y >= group.steps:
            return False
        for root, op, read in self.reading[group.index]:
            _, end = self.needed(group, op, read, y)
            if end > self.available(self.roots[root], read):
                return False
        return True

    def oldest(self, root: str) -> int:
        """The first row of a root that a reader still needs."""
        found = _FOREVER
        for index in self.waiting[root]:
            group = self.groups[index]
            y = self.position[index]
            if y < group.steps:
                for name, op, read in self.reading[index]:
                    if name == root:
                        found = min(found, self.needed(group, op, read, y)[0])
        return found

    def write(self, root: str, row: int, step: int) -> None:
        """Note that a row of a root, counted with padding, is written."""
        life, found = self.lives[root], self.roots[root]
        life.first = step if life.first < 0 else life.first
        life.last = step
        if found.kind == "ring" and row >= len(life.births):
            life.births += [step] * (row + 1 - len(life.births))
            start = 0 if root in self.output_roots else self.oldest(root)
            life.rows = max(life.rows, row - min(start, row) + 1)

    @cached_property
    def output_roots(self) -> set[str]:
        """Roots that hold the network's output until the end."""
        return {self.shape.places[name].root for name in self.graph.outputs}

    def run(self) -> _Simulated:
        """Simulate all steps, the last group first."""
        schedule: list[Step] = []
        ready: list[int] = []
        queued = [False] * len(self.groups)

        def queue(index: int) -> None:
            if not queued[index] and self.is_ready(self.groups[index]):
                queued[index] = True
                heapq.heappush(ready, -index)

        for index in range(len(self.groups)):
            queue(index)
        source = self.roots[self.source]
        arrivals = 0
        while True:
            if ready:
                index = -heapq.heappop(ready)
                queued[index] = False
                if not self.is_ready(self.groups[index]):
                    continue
                touched = self.step(index, len(schedule))
                schedule.append(Step(index, self.position[index]))
                self.position[index] += 1
                queue(index)
            elif arrivals < source.height + source.bottom:
                touched = [self.source]
                self.write(self.source, arrivals + source.top, len(schedule))
                if arrivals < source.height:
                    self.done[self.source] += 1
                    self.row_deaths[arrivals] = len(schedule)
                else:
                    self.filled[self.source] += 1
                schedule.append(Step(-1, arrivals))
                arrivals += 1
            else:
                break
            for root in touched:
                for reader in self.waiting[root]:
                    queue(reader)
        assert all(self.position[group.index] == group.steps for group in self.groups)
        for root in self.output_roots:
            self.lives[root].last = len(schedule) - 1
        return _Simulated(self.roots, self.groups, schedule, self.lives, self.row_deaths)

    def step(self, index: int, step: int) -> list[str]:
        """Run one row of a group; the roots that it changed."""
        group, y = self.groups[index], self.position[index]
        touched = []
        for root, op, read in self.reading[index]:
            first, end = self.needed(group, op, read, y)
            if y < group.height:
                self.lives[root].last = max(self.lives[root].last, step)
            if root == self.source and end:
                source = self.roots[root]
                for row in range(max(first - source.top, 0), min(end - source.top, source.height)):
                    self.row_deaths[row] = step
        if y >= group.height:
            below = y - group.height
            for op in group.fills:
                root = self.roots[self.shape.places[op.output].root]
                if below < root.bottom:
                    self.filled[op.output] += 1
                    self.write(root.name, root.top + root.height + below, step)
                    touched.append(root.name)
            return touched
        for op in group.before:
            touched += self.finish(op, y, step, y == group.height - 1)
        if group.pool is not None:
            root = self.shape.places[group.pool.output].root
            height = self.graph.tensors[group.pool.output].shape[1]
            for row in group.pool_rows(y, height):
                self.write(root, row + self.roots[root].top, step)
                if self.roots[root].kind == "running":
                    open_rows = row + 1 - self.done[group.pool.output]
                    self.lives[root].rows = max(self.lives[root].rows, open_rows)
                if group.is_last(row, y):
                    touched += self.finish(group.pool, row, step, row == height - 1)
                    for op in group.behind:
                        touched += self.finish(op, row, step, row == height - 1)
        return touched

    def finish(self, op: Op, row: int, step: int, last: bool) -> list[str]:
        """Note that an operation has completed a row."""
        root = self.roots[self.shape.places[op.output].root]
        if root.kind == "sums":
            self.write(root.name, 0, step)
            self.done[op.output] = int(last)
            return [root.name] if last else []
        self.write(root.name, row + root.top, step)
        self.done[op.output] += 1
        return [root.name] if root.kind == "ring" else []


def _placed(graph: Graph, shape: _Shape, groups: list[Group], found: _Simulated, input: Input) -> RowPlan:
    """The plan, with an offset for each root."""
    source = shape.places[graph.inputs[0]].root
    roots = {name: replace(root, rows=found.lives[name].rows) for name, root in found.roots.items()}
    last = len(found.schedule) - 1
    ranges = []
    if input == "whole":
        if not roots[source].is_padded:
            roots[source] = replace(roots[source], rows=roots[source].height)
        else:
            arrival = {step.row: index for index, step in enumerate(found.schedule) if step.group < 0}
            found.row_deaths[:] = [arrival[row] for row in range(roots[source].height)]
        ranges.append(_input_range(WHOLE if roots[source].is_padded else source, roots[source], found.row_deaths))
    offsets, strips = _strip_offsets(found.groups, shape.places, roots)
    if strips:
        ranges.append(_live(STRIPS, strips, 0, last))
    for name, root in roots.items():
        life = found.lives[name]
        if root.kind != "strip" and not (input == "whole" and name == source and not root.is_padded):
            ranges.append(_live(name, root.nbytes, life.first, life.last, life.births[: root.rows], root.pitch))
    buffers = {buffer.tensor: buffer for buffer in _allocate(ranges)}
    return RowPlan(graph, input, shape.places, roots, tuple(found.groups), tuple(found.schedule), buffers, offsets)


def _allocate(ranges: Sequence[LiveRange]) -> tuple[Buffer, ...]:
    """Offsets of all roots: from several orders, each improved by giving way to the root at the top of the arena.

    The whole input lies at the bottom: what is born early fits its first rows, which die first.
    """
    whole = {live.tensor for live in ranges if live.blocks[0].last < live.last}
    by_size = {live.tensor: -float(live.extent) for live in ranges}
    by_birth = {live.tensor: -1.0 if live.tensor in whole else float(live.first) for live in ranges}
    rounds = min(_ROUNDS, _PATIENCE // (len(ranges) ** 2 + 1))
    found = [_improved(ranges, order, whole, rounds) for order in (by_size, by_birth)]
    return min(found, key=_end)


def _improved(ranges: Sequence[LiveRange], order: dict[str, float], whole: set[str], rounds: int) -> tuple[Buffer, ...]:
    best = allocate_in_order(ranges, order, ALIGNMENT)
    for _ in range(rounds):
        found = allocate_in_order(ranges, order, ALIGNMENT)
        best = min(best, found, key=_end)
        top = max((buffer for buffer in found if buffer.tensor not in whole), key=lambda b: b.end, default=None)
        if top is None:
            break
        # Before everything that was allocated so far, apart from the whole input.
        order = {**order, top.tensor: min(value for name, value in order.items() if name not in whole) - 1.0}
        for name in whole:
            order[name] = min(order.values()) - 1.0
    return best


def _end(buffers: Sequence[Buffer]) -> int:
    return max((buffer.end for buffer in buffers), default=0)


def _live(name: str, nbytes: int, first: int, last: int, births: Sequence[int] = (), pitch: int = 0) -> LiveRange:
    """The life of a root; the rows of a ring may be born one after another."""
    total, last = align(nbytes), max(first, last)
    blocks = [Block(first, last, 0, total)]
    for row, born in enumerate(births):
        if born > blocks[-1].first:
            blocks[-1] = replace(blocks[-1], end=row * pitch)
            blocks.append(Block(born, last, row * pitch, total))
    return LiveRange(name, nbytes, tuple(blocks))


def _input_range(name: str, root: Root, deaths: Sequence[int]) -> LiveRange:
    """The whole input: from the start, each row until its last use."""
    row = root.width * root.channels
    total = align(row * root.height)
    blocks = []
    for y, death in enumerate(deaths):
        end = total if y == root.height - 1 else (y + 1) * row
        if blocks and blocks[-1].last == death:
            blocks[-1] = replace(blocks[-1], end=end)
        else:
            blocks.append(Block(0, death, y * row, end))
    return LiveRange(name, row * root.height, tuple(blocks))


def _strip_offsets(
    groups: Sequence[Group], places: Mapping[str, Place], roots: Mapping[str, Root]
) -> tuple[dict[str, int], int]:
    """Offsets of strips within the bytes that the groups share, and their size."""
    offsets: dict[str, int] = {}
    most = 0
    for group in groups:
        at = 0
        for name in dict.fromkeys(places[op.output].root for op in group.ops):
            if roots[name].kind == "strip":
                offsets[name] = at
                at += align(roots[name].nbytes)
        most = max(most, at)
    return offsets, most


def actions(plan: RowPlan, step: Step) -> Iterator[tuple[Op, int, int, int, Strip]]:
    """What a step of a group computes: operation, output row, first column and end, within which strip.

    A pool that takes strips appears with the row that it adds to and the columns that it completes.
    """
    group = plan.groups[step.group]
    if step.row >= group.height:
        return
    for strip in group.strips:
        for op in group.before:
            yield op, step.row, strip.first, strip.end, strip
        if group.pool is not None:
            height = plan.graph.tensors[group.pool.output].shape[1]
            for row in group.pool_rows(step.row, height):
                yield group.pool, row, strip.pooled, strip.pooled_end, strip
                if group.is_last(row, step.row):
                    for op in group.behind:
                        yield op, row, strip.pooled, strip.pooled_end, strip
