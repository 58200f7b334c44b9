"""Row plans for several threads, which take tasks from one list.

A task is some consecutive rows of one group. Threads take the tasks in the order of the list, whoever is free; a task
waits until the rows that it reads are complete. A task stands behind those that it waits for, so that somebody has
always taken them. Unlike a fixed share for each thread, this keeps all of them busy when one is slowed down.

Rings have all their rows and no two roots share bytes, because lives in steps mean nothing between threads, and each
group has strips of its own. The order is that of a simulation in which the task with the longest way to the end goes
first (list scheduling by levels: Adam, Chandy and Dickson, 1974).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..graph import ops
from .allocation import Block, Buffer, LiveRange, align
from .rows import STRIPS, Group, RowPlan, reads_of

# Multiply-accumulates that take as long as one output: of a convolution, which is requantized, and of anything else.
_REQUANTIZED, _COPIED = 16, 4
# Rows are joined until a thread has about so many tasks: taking and announcing a task takes some time, too.
_TASKS = 48
# Parts of the input.
_ARRIVALS = 28
# Roots begin on lines of the cache of their own.
_LINE = 64


@dataclass(frozen=True)
class Task:
    """Rows ``first`` to ``end`` of a group, counted with padding below; the group behind the last is the input.

    ``needs`` are groups and the rows that they must have completed, the group itself included.
    """

    group: int
    first: int
    end: int
    needs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TaskPlan:
    """A row plan that several threads can run at once, and the list of its tasks.

    ``speedup`` is the time of one thread divided by that of all, both simulated.
    """

    plan: RowPlan
    threads: int
    tasks: tuple[Task, ...]
    speedup: float


def plan_tasks(plan: RowPlan, threads: int) -> TaskPlan:
    """The tasks of a plan whose input is delivered by rows."""
    costs = _costs(plan)
    tasks = _tasks(plan, costs, _TASKS * threads)
    order, makespan = _scheduled(tasks, costs, threads)
    total = sum(costs[task.group] * (task.end - task.first) for task in tasks)
    return TaskPlan(_separated(plan), threads, tuple(order), total / makespan)


def _costs(plan: RowPlan) -> list[float]:
    """The cost of a row of each group, and of the input, in multiply-accumulates."""
    found = []
    for group in plan.groups:
        total = 0.0
        for op in group.ops:
            outputs = math.prod(plan.graph.tensors[op.output].shape)
            per_output = _REQUANTIZED if isinstance(op, ops.Conv) else _COPIED
            total += plan.graph.op_macs(op) + per_output * outputs
        found.append(total / group.steps)
    _, _, width, channels = plan.graph.tensors[plan.graph.inputs[0]].shape
    return [*found, float(_COPIED * width * channels)]


def _sources(plan: RowPlan, group: Group) -> frozenset[int]:
    """The groups that a group reads from."""
    owner = {op.output: other.index for other in plan.groups for op in other.ops}
    reads = [read for op in group.ops for read in reads_of(plan.graph, op)]
    found = {owner.get(leaf, len(plan.groups)) for read in reads for leaf in plan.leaves[read.tensor]}
    return frozenset(found - {group.index})


def _tasks(plan: RowPlan, costs: Sequence[float], about: int) -> list[Task]:
    """About so many tasks, the input first. Rows that the schedule has before a reader are enough for it."""
    source = len(plan.groups)
    sources = [*(_sources(plan, group) for group in plan.groups), frozenset[int]()]
    # For each step of each group the rows of others that it needs.
    needs: list[list[Mapping[int, int]]] = [[] for _ in sources]
    for step in plan.schedule:
        index = step.group if step.group >= 0 else source
        needs[index].append({other: len(needs[other]) for other in sources[index]})
    total = sum(cost * len(steps) for cost, steps in zip(costs, needs, strict=True))
    found = []
    for index in (source, *range(source)):
        steps = needs[index]
        most = max(1, int(total / about / costs[index])) if costs[index] else len(steps)
        if index == source:
            most = -(-len(steps) // _ARRIVALS)
        for first in range(0, len(steps), most):
            end = min(first + most, len(steps))
            others = [(other, rows) for other, rows in sorted(steps[end - 1].items()) if rows]
            found.append(Task(index, first, end, (*(((index, first),) if first else ()), *others)))
    return found


@dataclass
class _Node:
    """A task in the simulation: its cost, the tasks around it, and the cost of the longest way to the end."""

    task: Task
    cost: float
    before: list["_Node"] = field(default_factory=list)
    level: float = 0.0
    end: float = -1.0

    @property
    def start(self) -> float:
        """When it can start at the earliest."""
        return max((node.end for node in self.before), default=0.0)


def _scheduled(tasks: Sequence[Task], costs: Sequence[float], threads: int) -> tuple[list[Task], float]:
    """The tasks by their starts in the simulation, and its end."""
    nodes = [_Node(task, costs[task.group] * (task.end - task.first)) for task in tasks]
    making = {(node.task.group, row): node for node in nodes for row in range(node.task.first, node.task.end)}
    behind: dict[int, list[_Node]] = {id(node): [] for node in nodes}
    for node in nodes:
        node.before = [making[group, rows - 1] for group, rows in node.task.needs]
        for other in node.before:
            behind[id(other)].append(node)
    # The tasks stand in topological order: the input, then group by group.
    for node in reversed(nodes):
        node.level = node.cost + max((other.level for other in behind[id(node)]), default=0.0)
    free = [0.0] * threads
    waiting = {id(node): len(node.before) for node in nodes}
    ready = [node for node in nodes if not node.before]
    order = []
    while ready:
        now = min(free)
        node = min(ready, key=lambda node: (max(node.start - now, 0.0), -node.level))
        ready.remove(node)
        node.end = max(now, node.start) + node.cost
        free[free.index(now)] = node.end
        order.append(node.task)
        for other in behind[id(node)]:
            waiting[id(other)] -= 1
            if not waiting[id(other)]:
                ready.append(other)
    return order, max(free)


def _separated(plan: RowPlan) -> RowPlan:
    """The plan with whole rings and no bytes in common."""
    roots = {
        name: replace(root, rows=root.top + root.height + root.bottom) if root.kind == "ring" else root
        for name, root in plan.roots.items()
    }
    sizes = {name: root.nbytes for name, root in roots.items() if root.kind != "strip"}
    strips: dict[str, int] = {}
    at = 0
    for group in plan.groups:
        for name in dict.fromkeys(plan.places[op.output].root for op in group.ops):
            if roots[name].kind == "strip":
                strips[name] = at
                at += align(roots[name].nbytes)
        at = align(at, _LINE)
    if strips:
        sizes[STRIPS] = at
    buffers: dict[str, Buffer] = {}
    last, offset = len(plan.schedule) - 1, 0
    for name, nbytes in sizes.items():
        buffers[name] = LiveRange(name, nbytes, (Block(0, last, 0, align(nbytes)),)).at(offset)
        offset += align(nbytes, _LINE)
    return replace(plan, roots=roots, buffers=buffers, strip_offsets=strips)
