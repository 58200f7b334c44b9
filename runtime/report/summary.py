"""The figures of a report for other tools: a CSV with the columns of Arm's Vela, and node data for Model Explorer."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from ..graph import Graph
from ..memory import Budget, MemoryPlan, Verdict
from ..profiling import Profile

_KIB = 1024

# From low to high; the end is dark enough for Model Explorer to use white text.
_GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 0.5, "bgColor": "#f6b26b"}, {"stop": 1, "bgColor": "#a61c00"})

# Columns with the same meaning as in ``write_summary_metrics_csv`` of Vela's stats_writer.py, with its names and units:
# arena_cache_size (the budget without its reserve) and sram_memory_used (the arena) in KiB, inference_time in seconds.
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
    "flash_needed_bytes",
    "peak_op",
    "sram_bytes",
    "reserve_bytes",
    "flash_bytes",
    "fits",
    "margin_bytes",
    "flash_margin_bytes",
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
    """One line per plan, named by its key (Vela's ``experiment``); ``profile`` and ``verdict`` belong to the last plan.

    Vela's columns come first, with its names and units (KiB, seconds); the names of firebox's own columns carry the
    unit. Unknown values are empty.
    """
    text = io.StringIO()
    columns: list[str] = [*_VELA_COLUMNS, *_OWN_COLUMNS]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    last = list(plans)[-1:]
    for name, plan in plans.items():
        row = {"experiment": name, "network": network or plan.graph.name, **_planned(plan)}
        if verdict is not None:
            row |= _budget(verdict.budget)
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
        "flash_needed_bytes": plan.flash.nbytes,
        "peak_op": peak.name.encode(errors="replace").decode() if peak else "",
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "arena_cache_size": budget.available_bytes / _KIB,
        "sram_bytes": budget.sram_bytes,
        "reserve_bytes": budget.reserve_bytes,
        "flash_bytes": budget.flash_bytes,
    }


def _judged(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    return {
        "fits": "" if verdict.fits is None else str(verdict.fits).lower(),
        "margin_bytes": verdict.margin_bytes,
        "flash_margin_bytes": verdict.flash_margin_bytes,
    }


def _measured(profile: Profile | None, macs: int) -> dict[str, Any]:
    if profile is None:
        return {}
    seconds = profile.p50_ms / 1000
    return {
        "inferences_per_second": 1 / seconds,
        "inference_time": seconds,
        # Vela counts multiplications and additions separately.
        "nn_tops": 2 * macs / seconds / 1e12,
        "backend": profile.backend,
        "threads": profile.threads,
        "p90_ms": profile.p90_ms,
        "p99_ms": profile.p99_ms,
    }


def model_explorer_node_data(plan: MemoryPlan, profile: Profile | None = None) -> dict[str, str]:
    """Custom node data for Google's Model Explorer: the JSON of one file per figure (``alive_bytes``, ``macs``, ...).

    A file holds one value per node. Nodes are named by their output tensor; without the name of a graph, Model Explorer
    applies the data to the open graph (``GraphNodeData`` in its ``node_data_builder.py``). ``time_ms`` is included if
    the profile has per-operation timing.
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
    """Node data of one figure for Model Explorer; ``values`` by output tensor."""
    # Model Explorer cannot draw a gradient over equal values.
    gradient = _GRADIENT if len(set(values.values())) > 1 else ()
    results = {name: {"value": value} for name, value in values.items()}
    return json.dumps({"results": results, "gradient": gradient}, indent=1, allow_nan=False)


def op_times(graph: Graph, profile: Profile | None) -> tuple[dict[str, float], float] | None:
    """Milliseconds of each operation by name, and of all other steps; ``None`` without per-operation timing.

    A runtime may split an operation, such as ``features.0`` into ``features.0/linear`` and ``features.0/relu``: a part
    counts towards the operation with the longest matching prefix.
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
