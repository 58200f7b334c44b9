"""The memory of compiled C: the row plan of a graph for a budget, or the smallest."""

from ..errors import FireboxError
from ..graph import Graph
from ..units import format_size
from .row_graph import row_graph
from .rows import STRIPS, Input, RowPlan, plan_rows

# Sizes of strips, from the fastest plan to the smallest: whole rows first.
STRIP_BYTES = (None, 8192, 4096, 2048, 1280, 640, 320, 1)


class BudgetError(FireboxError):
    """A network that no row plan fits into ``sram_bytes``: the smallest needs ``smallest_bytes``."""

    exit_code = 3

    def __init__(self, message: str, *, sram_bytes: int, smallest_bytes: int, binding: tuple[str, ...]):
        super().__init__(message)
        self.sram_bytes = sram_bytes
        self.smallest_bytes = smallest_bytes
        self.binding = binding


def plan_compiled(graph: Graph, *, input: Input = "rows", sram_bytes: int | None = None) -> RowPlan:
    """The fastest row plan of a quantized graph whose arena fits ``sram_bytes``; without a budget the fastest of all.

    Raises ``BudgetError`` if none fits, and ``UnsupportedError`` as ``row_graph`` does.
    """
    rows = row_graph(graph)
    if sram_bytes is None:
        return plan_rows(rows, input=input)
    plans = []
    for strip_bytes in STRIP_BYTES:
        plans.append(plan_rows(rows, input=input, strip_bytes=strip_bytes))
        if plans[-1].arena_bytes <= sram_bytes:
            return plans[-1]
    raise _too_small(min(plans, key=lambda plan: plan.arena_bytes), sram_bytes)


def smallest_plan(graph: Graph, *, input: Input = "rows") -> RowPlan:
    """The row plan with the smallest arena. Raises ``UnsupportedError`` as ``row_graph`` does."""
    rows = row_graph(graph)
    plans = [plan_rows(rows, input=input, strip_bytes=strip_bytes) for strip_bytes in STRIP_BYTES]
    return min(plans, key=lambda plan: plan.arena_bytes)


def _too_small(plan: RowPlan, sram_bytes: int) -> BudgetError:
    largest = sorted(plan.buffers.values(), key=lambda buffer: -(buffer.end - buffer.offset))[:3]
    binding = tuple(buffer.tensor for buffer in largest)
    named = ", ".join(f"{_described(plan, b.tensor)} {format_size(b.end - b.offset)}" for b in largest)
    advice = "deliver the input by rows, or use" if plan.input == "whole" else "use"
    return BudgetError(
        f"{plan.graph.name} does not fit {format_size(sram_bytes)}: the smallest arena is {plan.arena_bytes:,} bytes, "
        f"of which the largest are {named}; {advice} a smaller input or fewer filters",
        sram_bytes=sram_bytes,
        smallest_bytes=plan.arena_bytes,
        binding=binding,
    )


def _described(plan: RowPlan, name: str) -> str:
    root = plan.roots.get(name)
    if name == STRIPS or root is None:
        return name
    if root.kind == "ring" and root.rows > 1:
        return f"{root.rows} rows of {name}"
    return f"{name}"
