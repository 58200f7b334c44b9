"""The memory of compiled C: the row plan of a graph for a budget, or the smallest."""

from collections.abc import Iterator

from ..errors import FireboxError, UnsupportedError
from ..graph import Graph, Op, ops
from ..units import format_size
from .allocation import Block, Buffer, Layout
from .rows import STRIPS, Input, RowPlan, plan_rows
from .rows.graph import Mean, Real, is_table, row_graph

# Sizes of strips, from the fastest plan to the smallest: whole rows first.
STRIP_BYTES = (None, 8192, 4096, 2048, 1280, 640, 320, 1)
# The code of a network on a Cortex-M: the kernels, and what each operation adds; an upper estimate, held to the figures
# of a compiler by tests.
_CODE_BYTES = 8192
_CODE_BYTES_PER_OP = 200
# A multiplier and a bias for each output channel, padded to panels of 16 channels.
_CHANNEL_BYTES = 8
# The values of an elementwise operation, and the exponentials of a softmax.
_TABLE_BYTES, _SOFTMAX_BYTES = 256, 8 * 256
_PANEL = 16


class BudgetError(FireboxError):
    """A network that no row plan fits into ``sram_bytes``: the smallest needs ``smallest_bytes``."""

    exit_code = 3

    def __init__(self, message: str, *, sram_bytes: int, smallest_bytes: int, binding: tuple[str, ...]):
        super().__init__(message)
        self.sram_bytes = sram_bytes
        self.smallest_bytes = smallest_bytes
        self.binding = binding


def plan_compiled(
    graph: Graph, *, input: Input = "rows", sram_bytes: int | None = None, real_output: bool = False
) -> RowPlan:
    """The fastest row plan of a quantized graph whose arena fits ``sram_bytes``; without a budget the fastest of all.

    ``real_output`` is that of ``row_graph``. Raises ``BudgetError`` if none fits, and ``UnsupportedError`` as
    ``row_graph`` does.
    """
    rows = row_graph(graph, real_output=real_output)
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


def unplanned(graph: Graph) -> str | None:
    """The reason why no C can be generated for a graph, or ``None``."""
    try:
        row_graph(graph)
    except UnsupportedError as error:
        return str(error)
    return None


def lay_out(graph: Graph, input: Input) -> Layout:
    """The arena of the smallest row plan; its moments are the steps of the schedule."""
    plan = smallest_plan(graph, input=input)
    last = len(plan.schedule) - 1
    offset = plan.state_offset
    state = (Block(0, last, offset, offset + plan.state_bytes),)
    buffers = (*plan.buffers.values(), Buffer("state", plan.state_bytes, 0, last, offset, state))
    return Layout(
        plan.graph,
        tuple(buffer for buffer in buffers if buffer.tensor != STRIPS),
        scratch=tuple(buffer for buffer in buffers if buffer.tensor == STRIPS),
        total_bytes=plan.arena_bytes,
        views={name: place.root for name, place in plan.places.items() if place.root != name},
        moments=tuple(_moments(plan)),
        runs=_runs(plan),
    )


def _moments(plan: RowPlan) -> Iterator[str]:
    for step in plan.schedule:
        name = plan.graph.inputs[0] if step.group < 0 else plan.groups[step.group].ops[0].output
        yield f"{name}, row {step.row}"


def _runs(plan: RowPlan) -> dict[str, tuple[int, ...]]:
    moments: dict[int, list[int]] = {}
    for moment, step in enumerate(plan.schedule):
        moments.setdefault(step.group, []).append(moment)
    found = {op.output: tuple(moments[group.index]) for group in plan.groups for op in group.ops}
    for op in plan.graph.ops:
        # The operands of a concat are computed inside it.
        found.setdefault(op.output, found.get(op.inputs[0], (0,)))
    return found


def flash_bytes(graph: Graph) -> int:
    """Bytes of flash of the C of a graph in the form of ``row_graph``: constants, and an estimate of the code.

    The constants are weights, multipliers, biases, tables and the schedule. The names of the classes are not among
    them: a linker drops them unless the firmware uses them.
    """
    found = _CODE_BYTES + _CODE_BYTES_PER_OP * len(graph.ops)
    found += sum(_constant_bytes(graph, op) for op in graph.ops)
    # The schedule has a byte for each row of a group, of which an operation is the least part.
    return found + sum(graph.tensors[name].shape[1] for name in (*graph.inputs, *(op.output for op in graph.ops)))


def _constant_bytes(graph: Graph, op: Op) -> int:
    if isinstance(op, ops.Conv):
        outputs, rows, columns, channels = graph.tensors[op.inputs[1]].shape
        # A depthwise convolution has its channels side by side, not in groups.
        groups = 1 if channels == 1 and outputs == op.groups else op.groups
        padded = -(-outputs // groups // _PANEL) * _PANEL * groups
        return padded * (rows * -(-columns * channels // 4) * 4 + _CHANNEL_BYTES)
    if isinstance(op, ops.Softmax):
        return _SOFTMAX_BYTES
    if isinstance(op, Mean | Real):
        # For each channel the scale of a real output, and the value of the border.
        sizes = (4 if isinstance(op, Real) else 0) + (2 if op.outside else 0)
        return sizes * graph.tensors[op.output].shape[3]
    return _TABLE_BYTES if is_table(op) else 0
