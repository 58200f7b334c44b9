"""The charts of a report as bokeh figures: memory over time, and the cost of each operation.

Colours that depend on the light or dark theme come from the page (bokeh reads ``--bk-*`` from its style sheet). The
colours of blocks and bars have a contrast of 3:1 or more on both (WCAG 2.2, 1.4.11).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import MissingExtraError
from ..graph import Graph, ops
from ..memory import Block, Buffer, MemoryPlan
from ..units import format_size

if TYPE_CHECKING:
    from bokeh.models import Range1d
    from bokeh.plotting import figure

KIB = 1024

# Kinds of tensors, as named in the legend, and their colours.
COLOURS: Mapping[str, str] = {
    "input": "#7b8794",
    "squeeze": "#d97706",
    "convolution": "#3b82d6",
    "concat": "#8b6fd6",
    "pool": "#12967f",
    "slice or pad": "#d0558f",
    "other": "#8f8a2e",
    "kernel scratch": "#8d6e63",
}
OVERHEAD_COLOUR = COLOURS["kernel scratch"]
BUDGET_COLOUR = "#e0423f"

_KINDS: Mapping[str, str] = {
    "Concat": "concat",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "GlobalAveragePool": "pool",
    "Slice": "slice or pad",
    "Pad": "slice or pad",
}
_FRAME = "#0e1116"
# With more operations than this, outlines would hide blocks and bars.
_MANY = 150
_LONGEST_NAME = 120


def load_bokeh() -> Any:
    """Import bokeh. Raises ``MissingExtraError`` without the extra ``report``."""
    try:
        import bokeh
    except ImportError as error:
        raise MissingExtraError("bokeh", "report") from error
    return bokeh


def printable(name: str) -> str:
    """A name from a file, safe to display: shortened, and without control or bidirectional characters."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    half = _LONGEST_NAME // 2
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: half - 1]}…{shown[-half:]}"


def tensor_kind(graph: Graph, name: str) -> str:
    """The kind of a tensor: a key of ``COLOURS``.

    A squeeze is a 1x1 convolution that reduces the number of channels (Iandola et al., arXiv 1602.07360, section 3.2).
    """
    op = graph.producers.get(name)
    if op is None:
        return "input"
    if isinstance(op, ops.Conv):
        weight, channels = graph.tensors[op.inputs[1]].shape, graph.tensors[op.inputs[0]].shape[3]
        return "squeeze" if weight[1:3] == (1, 1) and weight[0] < channels else "convolution"
    return _KINDS.get(op.kind, "other")


def shape_text(graph: Graph, name: str) -> str:
    """Shape and type: ``1 x 55 x 55 x 64 int8``."""
    tensor = graph.tensors[name]
    return f"{' x '.join(map(str, tensor.shape))} {tensor.dtype}"


def steps(plan: MemoryPlan) -> int:
    """Number of operations, at least 1: a graph without operations still has its input."""
    return max(len(plan.graph.ops), 1)


def time_range(plan: MemoryPlan) -> "Range1d":
    """The time axis: moment n, which is operation n unless these run by rows, covers n - 0.5 to n + 0.5, from 1 on."""
    return _range(moments(plan))


def operation_range(plan: MemoryPlan, times: "Range1d") -> "Range1d":
    """The axis of operations: that of time if each operation is one moment, so that both zoom together."""
    return times if moments(plan) == steps(plan) else _range(steps(plan))


def moments(plan: MemoryPlan) -> int:
    """Length of the time axis in moments, at least 1."""
    return max(len(plan.moments), 1)


def _range(count: int) -> "Range1d":
    from bokeh.models import Range1d

    bounds = (0.5, count + 0.5)
    return Range1d(start=bounds[0], end=bounds[1], bounds=bounds, min_interval=min(4, count))


def memory_range(plans: Iterable[MemoryPlan], budget: int | None) -> "Range1d":
    """The memory axis in KiB, from 0 to slightly above all plans and the budget."""
    from bokeh.models import Range1d

    top = max(plan.total_bytes or plan.arena_bytes for plan in plans)
    return Range1d(start=0, end=max(top, budget or 0, 1) / KIB * 1.06)


def memory_chart(plan: MemoryPlan, times: "Range1d", sizes: "Range1d", budget: int | None = None) -> "figure":
    """One rectangle per block: its live range along x, its bytes in the arena along y. A dashed line is the budget."""
    from bokeh.models import Span

    chart = _figure(times, sizes, "arena, KiB")
    by_rows = moments(plan) != steps(plan)
    chart.xaxis.axis_label = "step (a row of an operation)" if by_rows else "operation"
    _overhead(chart, plan)
    source = _source(_blocks(plan))
    frame = 1 if moments(plan) <= _MANY else 0.2
    sides: dict[str, Any] = {side: side for side in ("left", "right", "bottom", "top")}
    quads = chart.quad(source=source, **sides, fill_color="colour", line_color=_FRAME, line_alpha=0.7, line_width=frame)
    quads.nonselection_glyph = quads.selection_glyph = None
    _hover(
        chart,
        quads,
        [
            ("tensor", "@tensor"),
            ("kind", "@what"),
            ("size", "@size"),
            ("offset", "@offset"),
            ("alive", "@alive"),
        ],
    )
    peak = max(range(len(plan.timeline)), key=lambda moment: plan.timeline[moment])
    chart.add_layout(Span(location=peak + 1, dimension="height", line_dash="dotted", line_width=1.5))
    if budget is not None:
        line = {"line_color": BUDGET_COLOUR, "line_dash": "dashed", "line_width": 2.5}
        ends = _source({"x": [0.5, moments(plan) + 0.5], "y": [budget / KIB] * 2})
        chart.line("x", "y", source=ends, **line)
    return chart


def bar_chart(
    plan: MemoryPlan, times: "Range1d", label: str, bars: Mapping[str, Sequence[float]], text: Callable[[float], str]
) -> "figure":
    """One bar per operation; of two series, the first is drawn paler behind the second. ``text`` formats a value."""
    from bokeh.models import Range1d

    top = max((max(values, default=0) for values in bars.values()), default=0)
    chart = _figure(times, Range1d(start=0, end=top * 1.08 or 1), label, tools=False)
    graph = plan.graph
    rows: dict[str, list[Any]] = {
        "x": list(range(1, len(graph.ops) + 1)),
        "op": [printable(op.name) for op in graph.ops],
        "kind": [op.kind for op in graph.ops],
        "colour": [COLOURS[tensor_kind(graph, op.output)] for op in graph.ops],
    }
    for name, values in bars.items():
        rows[name] = list(values)
        rows[f"{name} text"] = [text(value) for value in values]
    source = _source(rows)
    frame = "colour" if steps(plan) <= _MANY else None
    look = {"x": "x", "width": 0.8, "source": source, "fill_color": "colour", "line_color": frame}
    alphas = (0.3, 1.0)[-len(bars) :]
    glyphs = [chart.vbar(top=name, fill_alpha=alpha, **look) for name, alpha in zip(bars, alphas, strict=True)]
    tips = [("operation", "@x: @op"), ("kind", "@kind"), *((name, f"@{{{name} text}}") for name in bars)]
    _hover(chart, glyphs[0], tips, mode="vline")
    return chart


def _blocks(plan: MemoryPlan) -> dict[str, list[Any]]:
    graph = plan.graph
    rows = []
    for buffer in plan.buffers:
        kind, shape = tensor_kind(graph, buffer.tensor), shape_text(graph, buffer.tensor)
        rows += [_block(plan, buffer, block, kind, f"{kind}, {shape}") for block in buffer.blocks]
    for buffer in plan.layout.scratch or ():
        rows += [_block(plan, buffer, block, "kernel scratch", "kernel scratch") for block in buffer.blocks]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _block(plan: MemoryPlan, buffer: Buffer, block: Block, kind: str, what: str) -> dict[str, Any]:
    names = plan.moments
    ends = dict.fromkeys(step for step in (block.first, block.last) if step < len(names))
    return {
        "left": block.first + 0.5,
        "right": block.last + 1.5,
        "bottom": block.offset / KIB,
        "top": block.end / KIB,
        "colour": COLOURS[kind],
        "tensor": printable(buffer.tensor),
        "what": what,
        "size": f"{format_size(buffer.nbytes)} ({buffer.nbytes:,} bytes)",
        "offset": f"{format_size(block.offset)} ({block.offset:,} bytes)",
        "alive": " to ".join(f"{step + 1}: {printable(names[step])}" for step in ends),
    }


def _overhead(chart: "figure", plan: MemoryPlan) -> None:
    """The overhead of the runtime, if known, as a band above the arena over the whole time axis."""
    if not plan.total_bytes:
        return
    size = plan.total_bytes - plan.arena_bytes
    columns = {
        "left": [0.5],
        "right": [moments(plan) + 0.5],
        "bottom": [plan.arena_bytes / KIB],
        "top": [plan.total_bytes / KIB],
        "size": [f"{format_size(size)} ({size:,} bytes)"],
    }
    sides: dict[str, Any] = {side: side for side in ("left", "right", "bottom", "top")}
    colours: dict[str, Any] = dict.fromkeys(("fill_color", "line_color", "hatch_color"), OVERHEAD_COLOUR)
    band = chart.quad(source=_source(columns), fill_alpha=0.25, hatch_pattern="/", **sides, **colours)
    _hover(chart, band, [("outside the arena", "runtime overhead"), ("size", "@size")])


def _figure(times: "Range1d", values: "Range1d", label: str, *, tools: bool = True) -> "figure":
    from bokeh.models import BasicTicker, NumeralTickFormatter
    from bokeh.plotting import figure

    chart = figure(
        x_range=times,
        y_range=values,
        sizing_mode="stretch_both",
        tools="xpan,xbox_zoom,xzoom_in,xzoom_out,reset" if tools else "",
        toolbar_location="above" if tools else None,
        # Without an active tool, a finger scrolls the page.
        active_drag=None,
        active_scroll=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=78,
        min_border_right=8,
        # Follow the width of the page.
        min_width=120,
    )
    chart.toolbar.logo = None
    chart.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    chart.xaxis.formatter = NumeralTickFormatter(format="0")
    chart.yaxis.formatter = NumeralTickFormatter(format="0,0.[0000]")
    chart.yaxis.ticker = BasicTicker(desired_num_ticks=5, num_minor_ticks=0)
    chart.yaxis.axis_label = label
    chart.axis.axis_label_text_font_style = "normal"
    chart.xgrid.visible = False
    return chart


def _hover(
    chart: "figure", renderer: Any, tips: list[tuple[str, str]], mode: Literal["mouse", "vline"] = "mouse"
) -> None:
    from bokeh.models import HoverTool

    look: dict[str, Any] = {
        "point_policy": "follow_mouse",
        "attachment": "vertical",
        "show_arrow": False,
        "visible": False,
    }
    # Bokeh's default tooltip has a blue that is too pale on white. Values of @ fields are inserted as text.
    lines = [f'<div><span style="color: var(--muted)">{label}</span> {value}</div>' for label, value in tips]
    chart.add_tools(HoverTool(renderers=[renderer], tooltips="".join(lines), mode=mode, **look))


def _source(columns: Mapping[str, Any]) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(data=dict(columns))
