"""The figures of a report for other programs: a CSV with the columns of Arm's Vela, node data for Model Explorer."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from ..graph import Graph
from ..memory import MemoryPlan, Verdict
from ..profiling import Profile

_KIB = 1024

# From little to much; dark enough at its end for Model Explorer to set the text in white.
_GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 0.5, "bgColor": "#f6b26b"}, {"stop": 1, "bgColor": "#a61c00"})

# Names and units of ``write_summary_metrics_csv`` in Vela's stats_writer.py, as far as the meaning is the same:
# arena_cache_size (the budget) and sram_memory_used (the arena) in KiB, inference_time in seconds.
_VELA_COLUMNS = (
    "experiment",
    "network",
    "arena_cache_size",
    "inferences_per_second",
    "batch_size",
    "inference_time",
    "sram_memory_used",
    "nn_macs",
    "nn_tops",
)
_OWN_COLUMNS = (
    "operations",
    "arena_bytes",
    "total_bytes",
    "input_bytes",
    "weight_bytes",
    "peak_op",
    "sram_bytes",
    "fits",
    "margin_bytes",
    "backend",
    "threads",
    "p90_ms",
    "p99_ms",
)


def summary_csv(
    plans: Mapping[str, MemoryPlan],
    profile: Profile | None = None,
    verdict: Verdict | None = None,
    *,
    network: str | None = None,
) -> str:
    """A line a plan, called by its key (Vela's ``experiment``); ``profile`` and ``verdict`` are about the last of them.

    Columns that Vela has are called as there, in its units (KiB, seconds); ours follow with theirs in the name. What
    is not known is empty.
    """
    text = io.StringIO()
    columns: list[str] = [*_VELA_COLUMNS, *_OWN_COLUMNS]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    last = list(plans)[-1:]
    for name, plan in plans.items():
        row = {"experiment": name, "network": network or plan.graph.name, **_planned(plan)}
        if verdict is not None:
            row |= {"arena_cache_size": verdict.sram_bytes / _KIB, "sram_bytes": verdict.sram_bytes}
        if [name] == last:
            row |= _judged(verdict) | _measured(profile, plan.graph.macs)
        writer.writerow(row)
    return text.getvalue()


def _planned(plan: MemoryPlan) -> dict[str, Any]:
    peak = plan.peak_op
    shapes = [plan.graph.tensors[name].shape for name in plan.graph.inputs]
    return {
        "batch_size": shapes[0][0] if shapes and shapes[0] else "",
        "sram_memory_used": plan.arena_bytes / _KIB,
        "nn_macs": plan.graph.macs,
        "operations": len(plan.graph.ops),
        "arena_bytes": plan.arena_bytes,
        "total_bytes": plan.total_bytes,
        "input_bytes": plan.input_bytes,
        "weight_bytes": plan.weight_bytes,
        "peak_op": peak.name.encode(errors="replace").decode() if peak else "",
    }


def _judged(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    return {"fits": str(verdict.fits).lower(), "margin_bytes": verdict.margin_bytes}


def _measured(profile: Profile | None, macs: int) -> dict[str, Any]:
    if profile is None:
        return {}
    seconds = profile.p50_ms / 1000
    return {
        "inferences_per_second": 1 / seconds,
        "inference_time": seconds,
        # An operation of Vela's is a multiplication or an addition.
        "nn_tops": 2 * macs / seconds / 1e12,
        "backend": profile.backend,
        "threads": profile.threads,
        "p90_ms": profile.p90_ms,
        "p99_ms": profile.p99_ms,
    }


def model_explorer_node_data(plan: MemoryPlan, profile: Profile | None = None) -> dict[str, str]:
    """Custom node data for Google's Model Explorer: JSON by what it shows, ``alive_bytes``, ``macs`` and so on.

    A file of node data holds one value a node, so there are as many as figures. Nodes are named by the tensor they
    make, and no graph is named, so that the data goes to the graph that is open (``GraphNodeData`` in Model Explorer's
    ``node_data_builder.py``). ``time_ms`` is there when the profile tells the time of operations.
    """
    graph = plan.graph
    figures: dict[str, dict[str, float]] = {
        "alive_bytes": {op.output: plan.alive_bytes(step) for step, op in enumerate(graph.ops)},
        "output_bytes": {op.output: graph.tensors[op.output].nbytes for op in graph.ops},
        "macs": {op.output: graph.op_macs(op) for op in graph.ops},
    }
    times = op_times(graph, profile)
    if times is not None:
        figures["time_ms"] = times[0]
    return {name: node_data(values) for name, values in figures.items()}


def node_data(values: Mapping[str, float]) -> str:
    """One figure of the nodes for Model Explorer, by the tensors that they make."""
    # Of values that are all the same Model Explorer cannot make a gradient.
    gradient = _GRADIENT if len(set(values.values())) > 1 else ()
    results = {name: {"value": value} for name, value in values.items()}
    return json.dumps({"results": results, "gradient": gradient}, indent=1, allow_nan=False)


def op_times(graph: Graph, profile: Profile | None) -> tuple[dict[str, float], float] | None:
    """Milliseconds of each operation by name, and of what the runtime does besides; ``None`` if it does not tell.

    A runtime may split an operation, as ``features.0`` into ``features.0/linear`` and ``features.0/relu``: a part
    counts for the operation with the longest name that begins its own.
    """
    if profile is None or profile.op_ms is None:
        return None
    times, rest = {op.name: 0.0 for op in graph.ops}, 0.0
    for part, milliseconds in profile.op_ms.items():
        name = part
        while name and name not in times:
            name = name.rpartition("/")[0]
        if name:
            times[name] += milliseconds
        else:
            rest += milliseconds
    return times, rest
