"""Search for a rewrite that fits a budget: the cheapest path through a network's cut points (Dijkstra's algorithm).

A cut point is a tensor through which all data flows. The edges between two cut points are the segment between them
untiled, the segment tiled, and the same for each reordering of the graph. Live activations must stay below a limit;
the rest of the budget holds the tail, which the runtime keeps for the operations. More tiles need a longer tail and
therefore a lower limit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

from ...runtime.errors import FireboxError, UsageError
from ...runtime.formats.tflite_legalize import explicit_padding
from ...runtime.graph import Graph, Op
from ...runtime.memory import (
    TARGETS,
    Budget,
    MemoryPlan,
    Target,
    allocate_within,
    find_target,
    live_ranges,
    peak_live_bytes,
    plan,
)
from ...runtime.memory.verdict import as_budget
from ...runtime.progress import SILENT, Advance, Progress
from ...runtime.units import format_size
from .reorder import reorderings
from .segments import Segment, Stage, TargetCosts

# Multiply-accumulates that a byte of the tail is worth: first for the shortest tail, then for the least extra work.
_SAVING = 1_000.0
_CHEAPER = (0.0, 10.0, 100.0)
# Maximum number of cut points in a tiled segment, to bound the search in chains of small windows.
_CUT_POINTS = 24
# Factor by which the limit is lowered if no allocation reaches it.
_STEP = 0.985
# Large and small steps of the search for the smallest budget, and the number of small ones to either side.
_FAR = 1.08
_NEAR = 0.005
_STEPS = 8
# Limits to allocate for one budget in the search for the smallest.
_TRIES = 2
# Ratios of allocated to live bytes, tried in turn.
_ROOMS = (1.003, 1.01, 1.03, 1.06, 1.1, 1.2, 1.5, 2.0)


class DoesNotFitError(FireboxError):
    """A network cannot be made to fit a budget on ``target``: neither its SRAM nor, if that is named, its flash.

    The search reached ``smallest_bytes`` of SRAM, where the operation ``binding`` determines the peak. It does not
    start if the flash is too small for the weights: no rewrite makes them smaller.
    """

    exit_code = 3

    def __init__(self, message: str, *, graph: Graph, target: str, budget: Budget, smallest_bytes: int, binding: str):
        super().__init__(message)
        self.graph = graph
        self.target = target
        self.budget = budget
        self.sram_bytes = budget.sram_bytes
        self.smallest_bytes = smallest_bytes
        self.binding = binding


@dataclass(frozen=True)
class Fit:
    """A network rewritten to fit a budget: the same integers, with its plan before and after."""

    graph: Graph
    budget: Budget
    before: MemoryPlan
    after: MemoryPlan
    stages: tuple[Stage, ...] = field(repr=False)

    @property
    def sram_bytes(self) -> int:
        """The SRAM of the budget, with its reserve."""
        return self.budget.sram_bytes

    @property
    def offsets(self) -> dict[str, int] | None:
        """Arena offsets of the activations for tflite-micro; ``None`` if it allocates them itself."""
        return dict(self.after.offsets) if self.after.offsets else None

    @property
    def extra_macs(self) -> float:
        """Extra multiply-accumulates as a share of the network's; negative if the rewrite skips unused rows."""
        before = self.before.graph.macs
        return self.graph.macs / before - 1 if before else 0.0


def fit(
    graph: Graph,
    budget: Budget | int,
    target: str = "tflm",
    offsets: Mapping[str, int] | None = None,
    progress: Progress = SILENT,
) -> Fit:
    """Rewrite an int8 graph until all that ``target`` needs for an inference fits a budget (a number: bytes of SRAM).

    The rewritten graph computes the same integers, with as few extra multiply-accumulates, then operations, as the
    search finds. ``offsets`` are the arena offsets in the graph's file (``read_placed``). Raises ``DoesNotFitError``
    with the smallest SRAM reached, or if the weights exceed the flash, and ``UsageError`` for a graph that is not int8
    or a target without memory plans.
    """
    budget = as_budget(budget)
    on = find_target(target)
    if not on.plans_all:
        names = ", ".join(other.name for other in TARGETS.values() if other.plans_all)
        raise UsageError(f"memory on {target!r} cannot be planned in advance; use one of {names}")
    _check(graph)
    before = plan(graph, target, offsets)
    if budget.flash_bytes is not None and before.flash.nbytes > budget.flash_bytes:
        raise _too_large(graph, budget, before)
    room = budget.available_bytes
    if needed(before) <= room:
        return Fit(graph, budget, before, before, ())
    if not on.rewrites:
        raise _too_small(graph, budget, before)
    with progress.task("fitting") as advance:
        search = Search(graph, on, advance)
        found = search.within(room) or search.smallest(needed(before))
    if found is None or needed(found.after) > room:
        plans = [before, found.after] if found else [before]
        raise _too_small(graph, budget, min(plans, key=needed))
    return Fit(found.after.graph, budget, before, found.after, found.stages)


def least_bytes(graph: Graph, target: str = "tflm", progress: Progress = SILENT) -> int:
    """An estimate of the smallest budget that a graph can fit: live bytes and tail, without an allocation."""
    with progress.task("estimating the smallest budget") as advance:
        return Search(graph, find_target(target), advance).least(needed(plan(graph, target)))


def needed(planned: MemoryPlan) -> int:
    """Bytes of a plan: its total if that is known, otherwise its arena."""
    return planned.arena_bytes if planned.total_bytes is None else planned.total_bytes


def _check(graph: Graph) -> None:
    floats = next((tensor for tensor in graph.activations if tensor.dtype == "float32"), None)
    if floats is not None and any(tensor.quantization for tensor in graph.activations):
        raise UsageError(
            f"{graph.name} has float32 activations, first {floats.name!r}; fit supports int8 only: quantize the whole "
            "network, including its input and output"
        )
    if floats is not None:
        raise UsageError(
            f"{graph.name} is a float32 network, first {floats.name!r}; fit supports int8 only: export it as int8 first"
        )
    wide = next((tensor for tensor in graph.activations if tensor.dtype not in ("int8", "uint8")), None)
    if wide is not None:
        raise UsageError(f"{graph.name} has {wide.dtype} activations, first {wide.name!r}; fit supports int8 only")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UsageError(
            f"{graph.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; fit supports one of each"
        )


def _too_small(graph: Graph, budget: Budget, smallest: MemoryPlan) -> DoesNotFitError:
    peak = smallest.peak_op
    name = f"{peak.kind} {peak.name!r}" if peak else "its input"
    reason = f"the smallest rewrite found needs {needed(smallest):,} bytes, and {name} is its peak"
    return _does_not_fit(graph, budget, smallest, budget.text(), reason)


def _too_large(graph: Graph, budget: Budget, planned: MemoryPlan) -> DoesNotFitError:
    """The error for a network with more weights than flash."""
    flash = f"{format_size(budget.flash_bytes or 0)} of flash"
    reason = f"its {planned.flash.about} take {planned.flash.nbytes:,} bytes; export a smaller network"
    return _does_not_fit(graph, budget, planned, flash, reason)


def _does_not_fit(graph: Graph, budget: Budget, smallest: MemoryPlan, memory: str, reason: str) -> DoesNotFitError:
    binding = smallest.peak_op
    return DoesNotFitError(
        f"{graph.name} does not fit {memory} on {smallest.target}: {reason}",
        graph=graph,
        target=smallest.target,
        budget=budget,
        smallest_bytes=needed(smallest),
        binding=binding.name if binding else graph.inputs[0],
    )


def cut_points(graph: Graph) -> list[tuple[int, str]]:
    """The activations that alone are live between two operations, as (number of operations before it, name)."""
    last = {name: step for step, op in enumerate(graph.ops) for name in op.inputs}
    last.update(dict.fromkeys(graph.outputs, len(graph.ops)))
    alive, points = set(graph.inputs), [(0, name) for name in graph.inputs]
    for step, op in enumerate(graph.ops):
        alive.add(op.output)
        alive -= {name for name in (*op.inputs, op.output) if last.get(name, step) <= step}
        if len(alive) == 1:
            points.append((step + 1, next(iter(alive))))
    return points


@dataclass(frozen=True)
class Candidate:
    """Consecutive stages, and the memory plan of the network that they form."""

    stages: tuple[Stage, ...]
    after: MemoryPlan


class Search:
    """The search over all stages of a network, with a cache of its segments."""

    def __init__(self, graph: Graph, target: Target, advance: Advance):
        self.graph = graph
        self.target = target
        self.advance = advance
        self.costs = TargetCosts.of(target)
        self.reorderings = [(other, cut_points(other)) for other in reorderings(graph)]
        self._by_ops: dict[tuple[Op, ...], Segment] = {}
        self._segments: dict[tuple[int, int, int], Segment] = {}

    def within(self, sram_bytes: int) -> Candidate | None:
        """The network with the least extra work found within a budget, or ``None``."""
        limit, step = sram_bytes, _STEP
        while True:
            stages = self.cheapest(limit, _SAVING)
            if stages is None:
                return None
            room = sram_bytes - self.tail(self.assemble(stages))
            if limit > room:
                # A lower limit only makes the tail longer, so that this tail bounds the room for activations.
                limit = min(room, int(limit * _STEP)) if room > 0 else 0
                continue
            found = self.candidate(stages, limit, sram_bytes, _SAVING)
            if found:
                return self._cheaper(found, limit, sram_bytes)
            # Each failed allocation lowers the limit further.
            limit, step = int(limit * step), step * _STEP

    def _cheaper(self, found: Candidate, limit: int, sram_bytes: int) -> Candidate:
        """A candidate with less work and a longer tail that also fits, or ``found``."""
        for byte_worth in _CHEAPER:
            stages = self.cheapest(limit, byte_worth)
            graph = self.assemble(stages) if stages else found.after.graph
            if stages and graph.macs < found.after.graph.macs and limit + self.tail(graph) <= sram_bytes:
                cheaper = self.candidate(stages, limit, sram_bytes, byte_worth)
                if cheaper:
                    return cheaper
        return found

    def smallest(self, upper: int) -> Candidate | None:
        """The smallest network found; the original needs ``upper`` bytes."""
        totals = self._totals(upper)
        best: Candidate | None = None
        budgets = [int(min(totals.values(), default=upper) * room) for room in _ROOMS]
        for budget in budgets:
            best = self._at([limit for limit in totals if totals[limit] <= budget], budget) or self.within(budget)
            if best or budget > upper:
                break
        for step in (_STEP, 1 - _NEAR):
            while best and (found := self.within(int(needed(best.after) * step))):
                best = found
        return best

    def _at(self, limits: Sequence[int], sram_bytes: int) -> Candidate | None:
        """A network within a budget at one of these limits, lowest first, or ``None``."""
        for limit in sorted(limits)[:_TRIES]:
            stages = self.cheapest(limit, _SAVING)
            found = self.candidate(stages, limit, sram_bytes, _SAVING) if stages else None
            if found:
                return found
        return None

    def least(self, upper: int) -> int:
        """An estimate of the bytes of the smallest network: live bytes and tail, without an allocation."""
        return min(self._totals(upper).values(), default=upper)

    def _totals(self, upper: int) -> dict[int, int]:
        """Sums of limit and resulting tail, by limit.

        A lower limit makes a longer tail. The search takes large steps up from the lowest possible limit, then small
        ones around the minimum.
        """
        totals: dict[int, int] = {}
        low, high = 0, upper
        while high - low > _NEAR * high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._look(middle, totals) else (middle, high)
        limit = high
        while limit < min(totals.values(), default=upper):
            self._look(limit, totals)
            limit = int(limit * _FAR) + 1
        around = min(totals, key=lambda limit: totals[limit], default=upper)
        for step in range(-_STEPS, _STEPS + 1):
            self._look(int(around * (1 + step * _NEAR)), totals)
        return totals

    def _look(self, limit: int, totals: dict[int, int]) -> bool:
        stages = self.cheapest(limit, _SAVING)
        if stages:
            totals[limit] = limit + self.tail(self.assemble(stages))
        return stages is not None

    def tail(self, graph: Graph) -> int:
        """Bytes that the runtime keeps for the operations of a graph."""
        return self.target.tail_bytes(graph)

    def cheapest(self, limit: int, byte_worth: float) -> tuple[Stage, ...] | None:
        """The stages of lowest total cost with at most ``limit`` live bytes, or ``None`` (Dijkstra's algorithm)."""
        edges: dict[str, list[Stage]] = {}
        for stage in self._stages(limit, byte_worth):
            edges.setdefault(stage.source, []).append(stage)
        start, goal = self.graph.inputs[0], self.graph.outputs[0]
        best: dict[str, float] = {start: 0}
        reached: dict[str, Stage] = {}
        heap: list[tuple[float, str]] = [(0, start)]
        while heap:
            spent, name = heappop(heap)
            for stage in edges.get(name, []) if spent == best[name] else []:
                total = spent + stage.cost.weighed(byte_worth)
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
        """All stages within ``limit``; a stage that several reorderings share is yielded once."""
        untiled: set[int] = set()
        tiled: set[int] = set()
        for index, (_, points) in enumerate(self.reorderings):
            plain = [self._segment(index, here, there) for here, there in pairwise(points)]
            too_high = [segment.untiled.cost.peak > limit for segment in plain]
            for segment, high in zip(plain, too_high, strict=True):
                if not high and id(segment) not in untiled:
                    yield segment.untiled
                untiled.add(id(segment))
            for start, here in enumerate(points):
                for stop in range(start + 1, min(start + _CUT_POINTS, len(points))):
                    segment = self._segment(index, here, points[stop])
                    if not segment.can_tile:
                        break
                    if any(too_high[start:stop]) and id(segment) not in tiled:
                        tiled.add(id(segment))
                        stage = segment.tiled(limit, byte_worth)
                        if stage:
                            yield stage
            self.advance(1, f"limit {format_size(limit)}")

    def _segment(self, index: int, here: tuple[int, str], there: tuple[int, str]) -> Segment:
        key = index, here[0], there[0]
        if key not in self._segments:
            graph = self.reorderings[index][0]
            ops = graph.ops[here[0] : there[0]]
            if ops not in self._by_ops:
                names = {here[1], *(name for op in ops for name in (*op.inputs, op.output))}
                tensors = {name: graph.tensors[name] for name in names}
                part = Graph(graph.name, tensors, ops, (here[1],), (there[1],))
                self._by_ops[ops] = Segment(part, self.costs)
            self._segments[key] = self._by_ops[ops]
        return self._segments[key]

    def assemble(self, stages: Sequence[Stage]) -> Graph:
        """The graph of consecutive stages."""
        parts = [stage.rewritten() for stage in stages]
        tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        ops = [op for part in parts for op in part.ops]
        return explicit_padding(Graph.of(self.graph.name, tensors.values(), ops, self.graph.inputs, self.graph.outputs))

    def candidate(self, stages: Sequence[Stage], limit: int, sram_bytes: int, byte_worth: float) -> Candidate | None:
        """The network of the stages with its plan, or ``None`` if no allocation within the budget was found."""
        stages = self._sided(stages, limit, byte_worth)
        graph = self.assemble(stages)
        if not self.target.takes_offsets:
            after = plan(graph, self.target.name)
        else:
            ranges, room = live_ranges(graph, rowwise=True), sram_bytes - self.tail(graph)
            least = peak_live_bytes(ranges)
            # A tighter allocation than the budget, if one is found quickly.
            limits = (limit for limit in (least, (least + room) // 2) if limit <= room)
            tight = (allocate_within(ranges, limit, quick=True) for limit in limits)
            buffers = next(filter(None, tight), None) or allocate_within(ranges, room)
            if buffers is None:
                return None
            after = plan(graph, self.target.name, offsets={buffer.tensor: buffer.offset for buffer in buffers})
        return Candidate(tuple(stages), after) if needed(after) <= sram_bytes else None

    def _sided(self, stages: Sequence[Stage], limit: int, byte_worth: float) -> tuple[Stage, ...]:
        """The stages with bands in the order that keeps free memory contiguous.

        An output lies at the opposite end of the arena from its input, unless it is concatenated from tiles. A source
        at the bottom is best consumed from its last row on, one at the top from its first.
        """
        found, bottom = [], True
        for stage in stages:
            if not stage.bands:
                bottom = not bottom
            elif not bottom:
                segment = self._by_ops[stage.graph.ops]
                stage = segment.tiled(limit, byte_worth, last_first=False) or stage
            found.append(stage)
        return tuple(found)
