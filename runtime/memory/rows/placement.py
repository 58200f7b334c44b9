"""Placement: offsets of all roots in the arena, from their lives in steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...graph import Graph
from ..allocation import ALIGNMENT, Block, Buffer, LiveRange, align, allocate_in_order
from .groups import Grouping
from .plan import STRIPS, WHOLE, Group, Input, Place, Root, RowPlan
from .schedule import Simulated

# Most orders of allocation to try. An order takes time in proportion to the number of roots squared, so that large
# networks get fewer: the number squared times the orders is at most the second figure.
_ROUNDS = 60
_PATIENCE = 1_000_000


def placed(graph: Graph, grouping: Grouping, simulated: Simulated, input: Input) -> RowPlan:
    """The plan, with an offset for each root."""
    source = grouping.places[graph.inputs[0]].root
    roots = {name: replace(root, rows=simulated.lives[name].rows) for name, root in simulated.roots.items()}
    last = len(simulated.schedule) - 1
    ranges, deaths = [], simulated.row_deaths
    if input == "whole":
        if not roots[source].is_padded:
            roots[source] = replace(roots[source], rows=roots[source].height)
        else:
            # Rows of the whole input die when they are copied to their ring.
            arrival = {step.row: index for index, step in enumerate(simulated.schedule) if step.group < 0}
            deaths = [arrival[row] for row in range(roots[source].height)]
        ranges.append(_input_range(WHOLE if roots[source].is_padded else source, roots[source], deaths))
    offsets, strips = _strip_offsets(simulated.groups, grouping.places, roots)
    if strips:
        ranges.append(_live(STRIPS, strips, 0, last))
    for name, root in roots.items():
        life = simulated.lives[name]
        if root.kind != "strip" and not (input == "whole" and name == source and not root.is_padded):
            ranges.append(_live(name, root.nbytes, life.first, life.last, life.births[: root.rows], root.pitch))
    buffers = {buffer.tensor: buffer for buffer in _allocate(ranges)}
    return RowPlan(
        graph, input, grouping.places, roots, tuple(simulated.groups), tuple(simulated.schedule), buffers, offsets
    )


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
    best = found = allocate_in_order(ranges, order, ALIGNMENT)
    for _ in range(rounds - 1):
        top = max((buffer for buffer in found if buffer.tensor not in whole), key=lambda b: b.end, default=None)
        if top is None:
            break
        # Before everything that was allocated so far, apart from the whole input.
        order = {**order, top.tensor: min(value for name, value in order.items() if name not in whole) - 1.0}
        for name in whole:
            order[name] = min(order.values()) - 1.0
        found = allocate_in_order(ranges, order, ALIGNMENT)
        best = min(best, found, key=_end)
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
