"""A check of row plans: the schedule is run on the addresses alone, and each byte of the arena knows its owner.

Every write takes ownership of its bytes; every read names the values that it expects. A plan whose tensors overlap in
time and bytes is thereby found before any C exists, whatever the values.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ...errors import PlanError
from ...graph import Op, ops
from .graph import Mean, Real, Sums
from .plan import SLACK, WHOLE, Group, Root, RowPlan, Step, Strip, actions
from .windows import driving_shape, reads_of

# Owners: 0 is nobody. A value of a root is its number times two, plus one while it is still incomplete.
_NOBODY = 0


def check_plan(plan: RowPlan) -> None:
    """Run a row plan with an owner for every byte.

    Raises ``PlanError`` that names operation, row and owner if an operation reads a byte that another has taken, a
    value that is incomplete or was never written, or bytes beyond the arena; and if a value is computed twice or not at
    all.
    """
    try:
        _Check(plan).run()
    except IndexError as error:
        raise PlanError(f"{plan.graph.name}: an operation reads or writes beyond the arena") from error


class _Check:
    def __init__(self, plan: RowPlan):
        self.plan, self.graph = plan, plan.graph
        self.owner = np.zeros(plan.arena_bytes, np.int64)
        self.first: dict[str, int] = {}
        self.roots = dict(plan.roots)
        source = self.roots[self.source]
        if WHOLE in plan.buffers:
            self.roots[WHOLE] = Root(WHOLE, "ring", source.height, source.width, source.channels, rows=source.height)
        at = 1
        for name, root in self.roots.items():
            # One value more for each channel of padding; all pixels of padding are alike.
            self.first[name] = at
            at += max(root.height, 1) * root.width * root.channels + root.channels + 4 * root.channels
        self.computed = {
            op.output: np.zeros(driving_shape(plan.graph, op)[1:3], np.int64)
            for group in plan.groups
            for op in group.ops
        }
        self.where = "the input"

    @property
    def source(self) -> str:
        """The root of the input."""
        return self.plan.places[self.graph.inputs[0]].root

    # Owners and addresses of values, as arrays (rows, columns, channels).

    def values(self, root: str, rows: np.ndarray, columns: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """The owners of values; rows and columns beyond the image are padding."""
        found = self.roots[root]
        r, c, k = rows[:, None, None], columns[None, :, None], channels[None, None, :]
        inside = (r >= 0) & (r < found.height) & (c >= 0) & (c < found.width)
        pixels = (r * found.width + c) * found.channels + k
        padding = found.height * found.width * found.channels + k
        return 2 * (self.first[root] + np.where(inside, pixels, padding))

    def addresses(
        self, root: str, rows: np.ndarray, columns: np.ndarray, channels: np.ndarray, start: int = 0
    ) -> np.ndarray:
        """Where the emitter finds values; ``start`` is the first column of a strip's buffer."""
        found = self.roots[root]
        if root == WHOLE:
            base = self.plan.input_offset + rows * found.pitch
        else:
            lines = self.plan.rows(root)
            base = np.array([lines.at(int(row) + found.top) for row in rows])
        x = columns - start if found.kind == "strip" else columns + found.left
        return base[:, None, None] + x[None, :, None] * found.channels + channels[None, None, :]

    def channels(self, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """Channels of an activation in its root."""
        place = self.plan.places[name]
        count = self.graph.tensors[name].shape[3] if count is None else count
        return place.channel + first + np.arange(count)

    def read(
        self,
        name: str,
        rows: Sequence[int] | np.ndarray,
        columns: Sequence[int] | np.ndarray,
        start: int,
        channels: np.ndarray | None = None,
        incomplete: int = 0,
    ) -> None:
        """Read pixels of an activation, in the padding too."""
        root, channels = self.plan.places[name].root, self.channels(name) if channels is None else channels
        rows, columns = np.asarray(rows, int), np.asarray(columns, int)
        if len(rows) and len(columns):
            found = self.addresses(root, rows, columns, channels, start)
            self.expect(found, self.values(root, rows, columns, channels) + incomplete)

    def expect(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Compare owners, and keep kernels that read beyond a run within the arena."""
        if addresses.size and (addresses.min() < 0 or addresses.max() + SLACK > len(self.owner)):
            raise PlanError(f"{self.where} reads byte {addresses.max()} of an arena of {len(self.owner)}")
        wrong = self.owner[addresses] != values
        if wrong.any():
            at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            found, wanted = int(self.owner[addresses][at]), int(values[at])
            raise PlanError(
                f"{self.where} reads byte {addresses[at]} as {self.named(wanted)}, but it holds {self.named(found)}"
            )

    def named(self, owner: int) -> str:
        """An owner in words: root, row, column, channel."""
        value, incomplete = divmod(owner, 2)
        if value == _NOBODY:
            return "nothing"
        name = max((name for name, first in self.first.items() if first <= value), key=self.first.__getitem__)
        root, value = self.roots[name], value - self.first[name]
        rest, channel = divmod(value, root.channels)
        row, column = divmod(rest, root.width)
        what = f"row {row}, column {column}" if row < root.height else "padding"
        return f"{name} {what}, channel {channel}" + (", incomplete" if incomplete else "")

    def write(
        self,
        root: str,
        rows: Sequence[int] | np.ndarray,
        columns: Sequence[int] | np.ndarray,
        channels: np.ndarray,
        start: int = 0,
        incomplete: int = 0,
    ) -> None:
        """Take pixels of a root; ``rows`` and ``columns`` count from the image."""
        rows, columns = np.asarray(rows, int), np.asarray(columns, int)
        if not len(rows) or not len(columns):
            return
        addresses = self.addresses(root, rows, columns, channels, start)
        low, high = (self.plan.input_offset, self.plan.arena_bytes) if root == WHOLE else self.extent(root)
        if addresses.min() < low or addresses.max() >= min(high, self.plan.state_offset - SLACK + 1):
            raise PlanError(f"{self.where} writes beyond {root}, bytes {low} to {high}")
        self.owner[addresses] = self.values(root, rows, columns, channels) + incomplete

    def extent(self, root: str) -> tuple[int, int]:
        """The bytes of a root in the arena."""
        low = self.plan.offset(root)
        return low, low + self.roots[root].nbytes

    def sums(self, name: str, incomplete: int) -> tuple[np.ndarray, np.ndarray]:
        """Addresses and owners of the bytes of sums."""
        root = self.plan.places[name].root
        count = self.roots[root].nbytes
        return self.plan.offset(root) + np.arange(count), 2 * (self.first[root] + np.arange(count)) + incomplete

    # The schedule.

    def run(self) -> None:
        """All steps, then the output."""
        if self.plan.input == "whole":
            root = self.roots[WHOLE if WHOLE in self.roots else self.source]
            self.write(root.name, np.arange(root.height), np.arange(root.width), np.arange(root.channels))
        for step in self.plan.schedule:
            if step.group < 0:
                self.where = f"the input's row {step.row}"
                self.arrive(step.row)
            else:
                group = self.plan.groups[step.group]
                if step.row >= group.height:
                    self.fill(group, step.row - group.height)
                for op, row, strip, first, end in self.actions(group, step):
                    self.where = f"{op.kind} {op.name!r} row {row}"
                    self.act(group, op, step.row, row, first, end, strip)
        self.where = "the output"
        name = self.graph.outputs[0]
        root = self.roots[self.plan.places[name].root]
        if root.kind == "sums":
            self.expect(*self.sums(name, 0))
        else:
            self.read(name, np.arange(root.height), np.arange(root.width), 0)
        for name, count in self.computed.items():
            if (count != 1).any():
                row, column = np.argwhere(count != 1)[0]
                raise PlanError(f"{name!r} row {row}, column {column} is computed {count[row, column]} times")

    def actions(self, group: Group, step: Step) -> Iterator[tuple[Op, int, Strip, int, int]]:
        """What a step computes, with the columns that strips keep for a pool."""
        before: Strip | None = None
        for op, row, first, end, strip in actions(self.plan, step):
            if before is not None and strip is not before and group.pool is not None and strip.first > strip.start:
                self.carry(group, step.row, before, strip)
            before = strip
            if end > first:
                yield op, row, strip, first, end

    def carry(self, group: Group, y: int, before: Strip, strip: Strip) -> None:
        """Move the columns that the next windows of a pool need to the start of the buffer."""
        assert group.pool is not None
        self.where = f"the strip before {group.pool.name!r} row {y}"
        root = self.plan.places[group.pool.inputs[0]].root
        columns, channels = np.arange(strip.start, strip.first), np.arange(self.roots[root].channels)
        row = np.array([y])
        self.expect(
            self.addresses(root, row, columns, channels, before.start), self.values(root, row, columns, channels)
        )
        self.write(root, row, columns, channels, strip.start)

    def arrive(self, y: int) -> None:
        """A row of input, with the padding around it."""
        root = self.roots[self.source]
        columns, channels = np.arange(root.width), np.arange(root.channels)
        if self.plan.input == "whole" and not root.is_padded:
            # The row lies in the arena already; only its stored form may change.
            self.read(root.name, [y], columns, 0, channels)
            return
        everything = np.arange(-root.left, root.width + root.right)
        if y >= root.height:
            self.write(root.name, [y], everything, channels)
            return
        if y == 0:
            self.write(root.name, np.arange(-root.top, 0), everything, channels)
        if self.plan.input == "whole":
            found = self.addresses(WHOLE, np.array([y]), columns, channels)
            self.expect(found, self.values(WHOLE, np.array([y]), columns, channels))
        if (root.left or root.right) and y + root.top < root.rows:
            self.write(root.name, [y], everything, channels)
        self.write(root.name, [y], columns, channels)

    def fill(self, group: Group, below: int) -> None:
        """A row of padding below the image."""
        for op in group.fills:
            root = self.roots[self.plan.places[op.output].root]
            self.where = f"the padding below {op.name!r}"
            if below < root.bottom:
                columns = np.arange(-root.left, root.width + root.right)
                self.write(root.name, [root.height + below], columns, self.channels(op.output))

    def open_row(self, op: Op, row: int, first: int) -> None:
        """Padding around a row, when its memory is used for the first time."""
        root = self.roots[self.plan.places[op.output].root]
        if root.kind != "ring" or not root.is_padded or first:
            return
        sides = np.concatenate([np.arange(-root.left, 0), root.width + np.arange(root.right)])
        if row == 0:
            columns = np.arange(-root.left, root.width + root.right)
            self.write(root.name, np.arange(-root.top, 0), columns, self.channels(op.output))
        if row + root.top < root.rows:
            self.write(root.name, [row], sides, self.channels(op.output))

    # Operations.

    def act(self, group: Group, op: Op, y: int, row: int, first: int, end: int, strip: Strip) -> None:
        """One operation on columns ``first`` to ``end`` of a row."""
        root = self.roots[self.plan.places[op.output].root]
        if op is group.pool:
            self.pool(group, y, row, first, end, strip)
            return
        start = strip.pooled if op in group.behind else strip.start
        if root.kind != "sums":
            self.open_row(op, row, first)
        if isinstance(op, Mean | Real):
            self.expect(*self.sums(op.inputs[0], 0))
        else:
            self.reads(op, row, first, end, start)
        self.computed[op.output][row, first:end] += 1
        if root.kind == "sums":
            _, height, width, _ = driving_shape(self.graph, op)
            addresses, values = self.sums(op.output, 0)
            is_last = row == height - 1 and end == width
            if isinstance(op, Sums) and (row or first):
                self.expect(addresses, values + 1)
            self.owner[addresses] = values if is_last else values + 1
        else:
            self.write(root.name, [row], np.arange(first, end), self.channels(op.output), start)

    def reads(self, op: Op, row: int, first: int, end: int, start: int) -> None:
        """What one row of an operation reads."""
        columns = np.arange(first, end)
        if isinstance(op, ops.Windowed):
            self.window(op, row, columns, start)
        elif isinstance(op, ops.Reshape | ops.Transpose):
            self.anywhere(op, row)
        elif isinstance(op, ops.Slice):
            channels = self.channels(op.inputs[0], op.begin[3], op.size[3])
            self.read(op.inputs[0], [row + op.begin[1]], columns + op.begin[2], start, channels)
        else:
            for read in reads_of(self.graph, op):
                _, height, width, _ = self.graph.tensors[read.tensor].shape
                y, x = read.rows.start(row), columns + read.columns.start(0)
                if 0 <= y < height:
                    self.read(read.tensor, [y], x[(x >= 0) & (x < width)], start)

    def window(self, op: ops.Windowed, row: int, columns: np.ndarray, start: int) -> None:
        """The windows of a convolution or pool over a ring, or the pixels of a 1x1 convolution over a strip."""
        x = op.inputs[0]
        _, height, width, _ = self.graph.tensors[x].shape
        if isinstance(op, ops.Conv):
            _, taps, across, _ = self.graph.tensors[op.inputs[1]].shape
            dilation = op.dilation
        else:
            assert isinstance(op, ops.Pool)
            (taps, across), dilation = op.window, (1, 1)
        rows = row * op.stride[0] - op.padding[0] + np.arange(taps) * dilation[0]
        found = columns[:, None] * op.stride[1] - op.padding[2] + np.arange(across) * dilation[1]
        found = np.unique(found)
        if not isinstance(op, ops.Conv):
            rows, found = rows[(rows >= 0) & (rows < height)], found[(found >= 0) & (found < width)]
        self.read(x, rows, found, start)

    def anywhere(self, op: Op, row: int) -> None:
        """The values of one row of a reshaped or transposed image."""
        x = op.inputs[0]
        shape, (_, _, columns, channels) = self.graph.tensors[x].shape, self.graph.tensors[op.output].shape
        flat = np.arange(int(np.prod(shape))).reshape(shape)
        moved = flat.transpose(op.order) if isinstance(op, ops.Transpose) else flat.reshape(-1, columns * channels)
        part = (moved[0, row] if isinstance(op, ops.Transpose) else moved[row]).reshape(-1)
        rows, rest = np.divmod(part, shape[2] * shape[3])
        across, channel = np.divmod(rest, shape[3])
        root = self.plan.places[x].root
        for y in np.unique(rows):
            at = np.flatnonzero(rows == y)
            everything = np.array([y]), np.arange(shape[2]), self.channels(x)
            addresses, values = self.addresses(root, *everything)[0], self.values(root, *everything)[0]
            self.expect(addresses[across[at], channel[at]], values[across[at], channel[at]])

    def pool(self, group: Group, y: int, row: int, first: int, end: int, strip: Strip) -> None:
        """A pool takes one row of a strip."""
        pool = group.pool
        assert pool is not None
        x, target = pool.inputs[0], self.plan.places[pool.output].root
        columns, channels = np.arange(first, end), self.channels(pool.output)
        if self.roots[target].kind == "ring":
            self.open_row(pool, row, first)
        if not group.is_first(row, y):
            addresses = self.addresses(target, np.array([row]), columns, channels)
            self.expect(addresses, self.values(target, np.array([row]), columns, channels) + 1)
        found = np.unique(columns[:, None] * pool.stride[1] - pool.padding[2] + np.arange(pool.window[1]))
        found = found[(found >= 0) & (found < self.graph.tensors[x].shape[2])]
        self.read(x, [y], found, strip.start)
        is_last = group.is_last(row, y)
        self.write(target, [row], columns, channels, incomplete=int(not is_last))
        self.computed[pool.output][row, first:end] += is_last
