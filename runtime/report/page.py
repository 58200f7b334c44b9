"""The self-contained HTML page of a report: verdict, memory over time, and cost of each operation."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..files import sha256
from ..memory import Budget, MemoryLine, MemoryPlan, Verdict
from ..profiling import Profile
from ..units import format_size
from . import charts
from .charts import printable
from .summary import op_times

_TEMPLATE = Path(__file__).with_name("report.html")

# The colours of axes come from the page; bokeh must redraw its charts to use them.
_FOLLOW_THEME = """
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const document of Bokeh.documents) document.roots().forEach(chart => chart.change.emit())
})
"""

_MARKS = {True: ("fits", "✓"), False: ("late", "✗"), None: ("none", "?")}


def report_html(
    after: MemoryPlan,
    before: MemoryPlan | None = None,
    verdict: Verdict | None = None,
    profile: Profile | None = None,
    *,
    name: str | None = None,
    data: bytes | None = None,
    account: Sequence[MemoryLine] | None = None,
) -> str:
    """A self-contained page about ``after``, compared with ``before`` if that is given.

    ``verdict`` provides the budget, ``profile`` the latency, and ``data``, the bytes of the file, its size and SHA-256.
    ``account`` defaults to the account of the profile, or else of the plan. Raises ``MissingExtraError`` without the
    extra ``report``.
    """
    charts.load_bokeh()
    account = account or (profile.memory if profile else after.account())
    budget = verdict.budget if verdict else None
    line = budget.available_bytes if budget else None
    script, divisions = _embed(_figures(after, before, profile, line))
    scripts = [*_library(), script, _FOLLOW_THEME]
    title = printable(name or after.graph.name)
    parts = {
        "hashes": " ".join(_csp_hash(text) for text in scripts),
        "title": escape(f"{title}: memory report"),
        "name": escape(title),
        "verdict": _verdict(after, before, verdict),
        "figures": _key_figures(after, before, profile, budget),
        "legend": _legend(after, before, budget),
        "memory": _memory(after, before, divisions),
        "costs": _costs(after, profile, divisions),
        "count": str(len(after.graph.ops)),
        "operations": _operations(after, profile),
        "account": _account((*account, *(budget.account() if budget else ()))),
        "facts": _facts(after, profile, data),
        "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(parts)


def _figures(
    after: MemoryPlan, before: MemoryPlan | None, profile: Profile | None, budget: int | None
) -> dict[str, Any]:
    times = charts.time_range(after)
    sizes = charts.memory_range([plan for plan in (before, after) if plan], budget)
    figures = {"after": charts.memory_chart(after, times, sizes, budget)}
    if before is not None:
        figures["before"] = charts.memory_chart(before, charts.time_range(before), sizes, budget)
    graph = after.graph
    times = charts.operation_range(after, times)
    alive = [after.alive_bytes(step) / charts.KIB for step in range(len(graph.ops))]
    made = [graph.tensors[op.output].nbytes / charts.KIB for op in graph.ops]
    macs = [graph.op_macs(op) / 1e6 for op in graph.ops]
    figures["bytes"] = charts.bar_chart(after, times, "KiB", {"alive": alive, "output": made}, _kib)
    figures["macs"] = charts.bar_chart(after, times, "million", {"MACs": macs}, lambda value: f"{value:,.3f} M")
    if (found := op_times(graph, profile)) is not None:
        spent = [found[0][op.name] for op in graph.ops]
        figures["time"] = charts.bar_chart(after, times, "ms", {"time": spent}, lambda value: f"{value:,.4f} ms")
    return figures


def _kib(value: float) -> str:
    return format_size(round(value * charts.KIB))


def _embed(figures: dict[str, Any]) -> tuple[str, dict[str, str]]:
    from bokeh.embed import components

    script, divisions = components(figures, wrap_script=False)
    return script, divisions


def _library() -> list[str]:
    """The scripts of bokeh."""
    from bokeh.resources import Resources

    return list(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)


def _csp_hash(script: str) -> str:
    """The hash by which the page's policy allows a script, and no other (CSP level 3, section 8.3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _verdict(after: MemoryPlan, before: MemoryPlan | None, verdict: Verdict | None) -> str:
    look, mark, text = "none", "○", "No budget given"
    if verdict is not None:
        look, mark = _MARKS[verdict.fits]
        text = verdict.text()[:1].upper() + verdict.text()[1:]
    detail = _needs(after)
    if before is not None:
        detail += f" Before: {_needs(before)}"
    return (
        f'<div class="verdict {look}"><span class="mark" aria-hidden="true">{mark}</span>'
        f"<p><strong>{escape(text)}</strong>{escape(detail)}</p></div>"
    )


def _needs(plan: MemoryPlan) -> str:
    arena = f"the arena takes {format_size(plan.arena_bytes)}"
    if plan.total_bytes is None:
        return f"{arena[:1].upper()}{arena[1:]}; the overhead of the runtime is unknown."
    return f"{format_size(plan.total_bytes)} in total, of which {arena}."


def _key_figures(after: MemoryPlan, before: MemoryPlan | None, profile: Profile | None, budget: Budget | None) -> str:
    rows = [
        ("Arena", *_figure(lambda plan: plan.arena_bytes, format_size, after, before)),
        ("Multiply-accumulates", *_figure(lambda plan: plan.graph.macs, _millions, after, before)),
        ("Operations", f"{len(after.graph.ops):,}", f"before {len(before.graph.ops):,}" if before else ""),
        ("Weights", format_size(after.weight_bytes), "in flash, not in the arena"),
    ]
    if budget is not None and budget.flash_bytes is not None:
        rows.append(("Flash", format_size(after.flash.nbytes), f"of {format_size(budget.flash_bytes)}"))
    if profile is not None:
        rows.append(
            ("Latency", f"{profile.p50_ms:,.2f} ms", f"median on {profile.backend}, threads: {profile.threads}")
        )
    return "\n".join(
        f"<div><dt>{label}</dt><dd>{value}{f'<small>{escape(note)}</small>' if note else ''}</dd></div>"
        for label, value, note in rows
    )


def _figure(
    value: Callable[[MemoryPlan], int], text: Callable[[int], str], after: MemoryPlan, before: MemoryPlan | None
) -> tuple[str, str]:
    """A figure as text, and its value before."""
    if before is None:
        return text(value(after)), ""
    new, old = value(after), value(before)
    change = f", {new / old - 1:+.1%}".replace("-", "\N{MINUS SIGN}") if old else ""
    return text(new), "unchanged" if new == old else f"before {text(old)}{change}"


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"


def _legend(after: MemoryPlan, before: MemoryPlan | None, budget: Budget | None) -> str:
    plans = [plan for plan in (after, before) if plan]
    there = {charts.tensor_kind(plan.graph, buffer.tensor) for plan in plans for buffer in plan.buffers}
    there |= {"kernel scratch" for plan in plans if plan.layout.scratch}
    block = '<rect width="22" height="16" rx="2" fill="{}"/>'
    items = [(kind, block.format(colour)) for kind, colour in charts.COLOURS.items() if kind in there]
    if any(plan.total_bytes for plan in plans):
        band = (
            '<rect width="22" height="16" fill="{0}" fill-opacity=".25"/><path d="M2 16 14 0m0 16 8-11" stroke="{0}"/>'
        )
        items.append(("runtime overhead", band.format(charts.OVERHEAD_COLOUR)))
    if budget is not None:
        line = f'<path d="M0 8h22" stroke="{charts.BUDGET_COLOUR}" stroke-width="4" stroke-dasharray="6 3"/>'
        items.append((f"budget {budget.text()}", line))
    items.append(("peak", '<path d="M11 0v16" stroke="currentColor" stroke-width="3" stroke-dasharray="3 2"/>'))
    return "\n".join(
        f'<li><svg viewBox="0 0 22 16" aria-hidden="true">{drawing}</svg>{escape(label)}</li>'
        for label, drawing in items
    )


def _memory(after: MemoryPlan, before: MemoryPlan | None, divisions: dict[str, str]) -> str:
    plans = [("before", "Before", before), ("after", "After", after)] if before else [("after", "", after)]
    return "\n".join(_chart(key, title, _peak(plan), divisions[key]) for key, title, plan in plans if plan)


def _peak(plan: MemoryPlan) -> str:
    peak = plan.peak_op
    alive = plan.alive(plan.peak_step)
    names = ", ".join(f"{printable(buffer.tensor)} ({format_size(buffer.nbytes)})" for buffer in alive)
    at = f"operation {plan.peak_step + 1}, {peak.kind} {printable(peak.name)}" if peak else "the input"
    return (
        f"The arena takes {format_size(plan.arena_bytes)}. Its peak is at {at}, with "
        f"{format_size(plan.alive_bytes(plan.peak_step))} alive: {names}."
    )


def _costs(after: MemoryPlan, profile: Profile | None, divisions: dict[str, str]) -> str:
    found = op_times(after.graph, profile)
    parts = []
    if found is not None:
        text = f"Measured mean latency per operation. Other steps of the runtime take {found[1]:,.3f} ms."
        parts.append(_chart("time", "Latency", text, divisions["time"], low=True))
    elif profile is not None:
        parts.append(f"<p>Per-operation timing is not available from {escape(profile.backend)}.</p>")
    else:
        parts.append("<p>Latency was not measured.</p>")
    text = "Pale: tensors alive during the operation. Solid: its output."
    parts.append(_chart("bytes", "Bytes", text, divisions["bytes"], low=True))
    parts.append(_chart("macs", "Multiply-accumulates", _millions(after.graph.macs), divisions["macs"], low=True))
    return "\n".join(parts)


def _chart(key: str, title: str, text: str, division: str, *, low: bool = False) -> str:
    heading = f'<h3 id="{key}-title">{title}</h3>' if title else ""
    label = f'aria-labelledby="{key}-title"' if title else 'aria-label="Memory over time"'
    look = "chart low" if low else "chart"
    return (
        f'<figure {label}>{heading}<figcaption id="{key}-text">{escape(text)}</figcaption>'
        f'<div class="{look}" role="group" aria-describedby="{key}-text">{division}</div></figure>'
    )


def _operations(plan: MemoryPlan, profile: Profile | None) -> str:
    found = op_times(plan.graph, profile)
    graph, peak = plan.graph, plan.peak_step
    columns = ["#", "operation", "kind", "output", "size", "alive", "MACs", *(["time"] if found else [])]
    rows = [
        [
            str(step + 1),
            printable(op.name),
            op.kind,
            charts.shape_text(graph, op.output),
            format_size(graph.tensors[op.output].nbytes),
            format_size(plan.alive_bytes(step)) + (" (peak)" if step == peak else ""),
            f"{graph.op_macs(op):,}",
            *([f"{found[0][op.name]:,.4f} ms"] if found else []),
        ]
        for step, op in enumerate(graph.ops)
    ]
    return _table("Operations in execution order", columns, rows, heading=1, figures={0, 4, 5, 6, 7})


def _account(account: Iterable[MemoryLine]) -> str:
    rows = [
        [
            printable(line.name),
            "unknown" if line.nbytes is None else format_size(line.nbytes),
            "" if line.nbytes is None else f"{line.nbytes:,}",
            line.source,
        ]
        for line in account
    ]
    return _table("Memory of an inference", ["memory", "size", "bytes", "source"], rows, figures={1, 2})


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, figures: set[int], heading: int = 0
) -> str:
    """A table; column ``heading`` names the row, and columns in ``figures`` are right-aligned."""
    looks = [' class="figure"' if index in figures else "" for index in range(len(columns))]
    tags = ["th" if index == heading else "td" for index in range(len(columns))]
    scopes = [' scope="row"' if index == heading else "" for index in range(len(columns))]
    head = "".join(f'<th scope="col"{look}>{escape(text)}</th>' for text, look in zip(columns, looks, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<{tag}{scope}{look}>{escape(text)}</{tag}>"
            for text, tag, scope, look in zip(row, tags, scopes, looks, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table aria-label="{escape(caption)}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _facts(plan: MemoryPlan, profile: Profile | None, data: bytes | None) -> str:
    graph = plan.graph
    facts = [("planned for", plan.target)]
    facts += [("input", f"{printable(name)}: {charts.shape_text(graph, name)}") for name in graph.inputs]
    facts += [("output", f"{printable(name)}: {charts.shape_text(graph, name)}") for name in graph.outputs]
    facts.append(("multiply-accumulates", f"{graph.macs:,}"))
    if data is not None:
        facts += [("file", f"{format_size(len(data))} ({len(data):,} bytes)"), ("SHA-256", sha256(data))]
    if profile is not None:
        settled = "" if profile.settled else "; the median did not settle"
        facts += [
            ("measured on", f"{profile.backend}, threads: {profile.threads}, runs: {profile.runs}{settled}"),
            ("p50, p90, p99", f"{profile.p50_ms:,.3f}, {profile.p90_ms:,.3f}, {profile.p99_ms:,.3f} ms"),
            ("load, first inference", f"{profile.load_ms:,.1f}, {profile.first_ms:,.1f} ms"),
        ]
    return "\n".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in facts)
