"""The schedule: the order of all steps, and how long each root lives, by a run on row numbers alone."""

import heapq
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...graph import Graph, Op
from .groups import Grouping
from .plan import Group, Root, Step
from .windows import Read

_FOREVER = 1 << 60


@dataclass
class Life:
    """What the simulation finds out about a root: its height, its first and last step, and when each row was born."""

    rows: int = 1
    first: int = -1
    last: int = -1
    births: list[int] = field(default_factory=list)


@dataclass
class Simulated:
    """The schedule, the lives of all roots, and the last step that reads each row of the input."""

    roots: dict[str, Root]
    groups: list[Group]
    schedule: list[Step]
    lives: dict[str, Life]
    row_deaths: list[int]


class Simulation:
    """Runs the schedule on row numbers alone. Rows are counted with the padding above the image."""

    def __init__(self, graph: Graph, grouping: Grouping, groups: list[Group], roots: dict[str, Root]):
        self.graph, self.grouping, self.roots = graph, grouping, roots
        self.source = grouping.places[graph.inputs[0]].root
        self.groups = [self._with_fills(group) for group in groups]
        # Rows that each operation has completed; the input's rows that have arrived.
        self.done = {op.output: 0 for op in grouping.ops} | {self.source: 0}
        # Rows of padding below the image that each has written.
        self.filled = dict.fromkeys(self.done, 0)
        self.position = [0] * len(groups)
        self.lives = {name: Life() for name in roots}
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
        below = {op.output: self.roots[self.grouping.places[op.output].root] for op in group.ops}
        fills = tuple(op for op in group.ops if below[op.output].kind == "ring" and below[op.output].bottom)
        bottom = max((below[op.output].bottom for op in fills), default=0)
        return replace(group, steps=group.height + bottom, fills=fills)

    def _reads(self, group: Group) -> list[tuple[str, Op, Read]]:
        """What a group reads from rings that are written before its step."""
        found = []
        inside = {self.grouping.places[op.output].root for op in group.ops}
        for op in group.ops:
            for read in self.grouping.reads[op.output]:
                root = self.grouping.places[read.tensor].root
                is_stored = self.roots[root].kind in ("ring", "sums")
                if is_stored and not (root in inside and self._is_inner(group, read)):
                    found.append((root, op, read))
        return found

    def _is_inner(self, group: Group, read: Read) -> bool:
        """True if the group itself computes the row that it reads in the same step."""
        own = {op.output for op in group.ops}
        return all(leaf in own for leaf in self.grouping.leaves[read.tensor])

    def needed(self, group: Group, op: Op, read: Read, y: int) -> tuple[int, int]:
        """First row and end that a step needs, counted with padding; an end of 0 means none yet."""
        root = self.roots[self.grouping.places[read.tensor].root]
        if y >= group.height:
            return _FOREVER, 0
        rows, is_due = range(y, y + 1), True
        if op in group.behind:
            assert group.pool is not None
            height = self.graph.tensors[group.pool.output].shape[1]
            open_rows = group.pool_rows(y, height)
            due = [row for row in open_rows if group.is_last(row, y)]
            is_due = bool(due)
            # Between two windows no row is open, and the next one is still needed.
            rows = range(due[0], due[-1] + 1) if due else range(open_rows.start, height)
            if not rows:
                return _FOREVER, 0
        first, end = read.rows.start(rows[0]), read.rows.start(rows[-1]) + read.rows.extent
        if not read.padded:
            first, end = max(first, 0), min(end, root.height)
        return first + root.top, end + root.top if is_due and end > first else 0

    def available(self, root: Root, read: Read) -> int:
        """Rows of a tensor that can be read, counted with padding."""
        leaves = self.grouping.leaves[read.tensor]
        done = min(self.done[leaf] for leaf in leaves)
        if root.kind == "sums":
            return done
        if done < root.height:
            # The padding above is written together with the first row.
            return done + root.top if done else 0
        return root.top + root.height + min(self.filled[leaf] for leaf in leaves)

    def is_ready(self, group: Group) -> bool:
        """True if a group can compute its next row."""
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
        return {self.grouping.places[name].root for name in self.graph.outputs}

    def run(self) -> Simulated:
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
        return Simulated(self.roots, self.groups, schedule, self.lives, self.row_deaths)

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
                root = self.roots[self.grouping.places[op.output].root]
                if below < root.bottom:
                    self.filled[op.output] += 1
                    self.write(root.name, root.top + root.height + below, step)
                    touched.append(root.name)
            return touched
        for op in group.before:
            touched += self.finish(op, y, step, y == group.height - 1)
        if group.pool is not None:
            root = self.grouping.places[group.pool.output].root
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
        root = self.roots[self.grouping.places[op.output].root]
        if root.kind == "sums":
            self.write(root.name, 0, step)
            self.done[op.output] = int(last)
            return [root.name] if last else []
        self.write(root.name, row + root.top, step)
        self.done[op.output] += 1
        return [root.name] if root.kind == "ring" else []
