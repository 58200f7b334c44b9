"""The row plan: roots, groups and schedule, and where everything lies in the arena."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ...graph import Graph, Op, ops
from ..allocation import Buffer, align

# The kinds of roots, as the module ``rows`` describes them.
Kind = Literal["ring", "strip", "running", "sums"]
# How the input arrives: all of it in the arena, or row by row.
Input = Literal["whole", "rows"]
# Kernels read up to 15 bytes beyond a row.
SLACK = 16
# The buffer that the strips of all groups share, since only one group runs at a time.
STRIPS = "strips"
# The buffer of a whole input whose rows are copied to a ring with padding.
WHOLE = "whole input"


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
        return leaves_of(self.graph)


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


def is_view(op: Op) -> bool:
    """True for a channel concat, whose operands are computed inside its output."""
    return isinstance(op, ops.Concat) and op.axis == 3


def leaves_of(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For each activation the outputs of operations (or the input) whose bytes it consists of."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in graph.inputs}
    for op in graph.ops:
        found[op.output] = tuple(leaf for name in op.inputs for leaf in found[name]) if is_view(op) else (op.output,)
    return found
