"""Grouping: which tensors share memory, which are strips, and which operations compute a row together."""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from ...graph import Graph, Op, ops
from .graph import SUM_BYTES, Mean, Real, Sums
from .plan import Group, Kind, Place, Root, Strip, is_view, leaves_of
from .windows import Read, driving_shape, reads_of

# Most operations in a group: joining groups takes time proportional to their size.
_MOST_OPERATIONS = 64


class Grouping:
    """Which tensors share a root, which roots are strips, and which operations form a group."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.ops = [op for op in graph.ops if not is_view(op)]
        self.order = {op.output: index for index, op in enumerate(self.ops)}
        self.places = places_of(graph)
        self.reads = {op.output: reads_of(graph, op) for op in self.ops}
        self.producers: dict[str, list[Op]] = {}
        self.readers: dict[str, list[tuple[Op, Read]]] = {}
        for op in self.ops:
            self.producers.setdefault(self.places[op.output].root, []).append(op)
            for read in self.reads[op.output]:
                self.readers.setdefault(self.places[read.tensor].root, []).append((op, read))
        self.leaves = leaves_of(graph)
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
        if any(self._widens_early(root, op) for op, _ in readers):
            return "ring"
        return ("running" if is_pool else "strip") if self._join(root, producers, readers, pool, is_pool) else "ring"

    def _widens_early(self, root: str, op: Op) -> bool:
        """True if an operation makes more channels for a sum whose other term takes rows of ``root`` by windows.

        Its rows would wait for that term: it is computed later, from rows of ``root``, which are smaller.
        """
        place, channels = self.places[op.output], self.graph.tensors[op.output].shape[3]
        if not isinstance(op, ops.Conv) or channels <= self.graph.tensors[root].shape[3]:
            return False
        return any(
            isinstance(reader, ops.Add) and any(self._has_windows(root, name) for name in reader.inputs)
            for reader, _ in self.readers.get(place.root, [])
        )

    def _has_windows(self, root: str, name: str) -> bool:
        """True if a window of more than one row lies on a path from ``root`` to a tensor."""
        first = min((self.order[op.output] for op in self.producers[root]), default=0)
        open_, seen = [(self.places[name].root, False)], set()
        while open_:
            at = open_.pop()
            if at in seen:
                continue
            seen.add(at)
            for op in self.producers.get(at[0], []):
                for read in self.reads[op.output] if self.order[op.output] > first else ():
                    source, windowed = self.places[read.tensor].root, at[1] or not read.rows.is_pointwise
                    if source == root and windowed:
                        return True
                    open_.append((source, windowed))
        return False

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
        self, root: str, producers: Sequence[Op], readers: Sequence[tuple[Op, Read]], pool: Op | None, is_pool: bool
    ) -> bool:
        """Join the groups around a root, if every operation can then still run in time."""
        names = dict.fromkeys(self.group[op.output] for op in (*producers, *(op for op, _ in readers)))
        merged = [op for name in names for op in self.members[name]]
        if len(merged) > _MOST_OPERATIONS:
            return False
        pools = [self.pools[name] for name in names if name in self.pools] + ([pool] if pool is not None else [])
        if len(pools) > 1 and any(one is not pools[0] for one in pools):
            return False
        sides = {op.output in self.behind for op in producers}
        if len(sides) > 1:
            return False
        is_behind = is_pool or True in sides
        if pool is not None and is_behind:
            return False
        new_behind = {op.output for op, _ in readers} if is_behind else set()
        for op, _ in readers:
            in_strips = any(self._in_strips(op, other) for other in merged)
            if in_strips and (op.output in self.behind) != is_behind:
                return False
        # Whoever reads an operand of a concat that is a strip already runs before the pool.
        moved = [op for op, _ in readers if op.output in new_behind - self.behind]
        if any(self.kinds.get(self.places[op.output].root) in ("strip", "running") for op in moved):
            return False
        if not self._is_possible(root, merged, pools[0] if pools else None, new_behind):
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

    def _is_possible(self, joined: str, merged: Sequence[Op], pool: Op | None, new_behind: set[str]) -> bool:
        """True if no operation of the group waits for another group that waits for this one, or for a later row.

        ``joined`` is the root whose producers and readers form the group; others inside may be rings later.
        """
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
                pointwise = read.rows.is_pointwise and read.columns.is_pointwise
                if root != joined and not (pointwise and same_side):
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
            _, height, width, _ = driving_shape(self.graph, lead)
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


def places_of(graph: Graph) -> dict[str, Place]:
    """Operands of channel concats lie in the output of the concat; everything else is a root."""
    parents: dict[str, tuple[str, int]] = {}
    for op in graph.ops:
        if is_view(op):
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
