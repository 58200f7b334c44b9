"""The command ``profile``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import note, print_json, progress_unless, table
from .options import backend_option, budget_options, json_option, model_argument, seconds_option, threads_option
from .plan import show_memory

if TYPE_CHECKING:
    from ..memory import Budget
    from ..profiling import Profile

_SLOWEST = 10


@click.command("profile")
@model_argument
@budget_options
@backend_option
@threads_option
@seconds_option
@json_option
@click.pass_context
def profile_command(
    context: click.Context,
    model: Path,
    budget: "Budget | None",
    backend: str,
    threads: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure latency and memory of MODEL on this machine, in total and per operation.

    Exit code 3 if the memory planned for tflite-micro (or for a static compiler, if tflite-micro has no kernels for
    MODEL) does not fit the budget, 4 if that is undecided, as in firebox plan.

    \b
    Example:
      firebox profile model.int8.tflite --sram 1MiB
      firebox profile model.int8.onnx --threads 4 --json
    """
    from ..profiling import profile

    found = profile(
        model,
        sram=budget,
        backend=backend,
        threads=threads,
        max_seconds=seconds,
        progress=progress_unless(as_json),
    )
    if as_json:
        print_json(found.to_json())
    else:
        _show(found, seconds)
    context.exit(found.verdict.exit_code if found.verdict else 0)


def _show(found: "Profile", seconds: float) -> None:
    latency = (("load", found.load_ms), ("first inference", found.first_ms))
    quantiles = (("p50", found.p50_ms), ("p90", found.p90_ms), ("p99", found.p99_ms))
    rows = [(name, f"{value:,.3f} ms") for name, value in (*latency, *quantiles)]
    title = f"{found.model} on {found.backend}, threads: {found.threads}, runs: {found.runs}"
    table(title, ("latency", "measured"), rows)
    facts = found.facts
    runs_on = (
        ("backend", f"{facts.backend} {facts.version}"),
        ("processor", facts.processor),
        ("weights", facts.weights),
        ("golden pair", facts.golden),
    )
    table("Run on", ("", ""), runs_on)
    if not found.settled:
        note(f"the median did not settle within {seconds:g} s; other processes may be using this machine")
    if found.op_ms:
        slowest = sorted(found.op_ms.items(), key=lambda item: -item[1])[:_SLOWEST]
        table("Slowest operations", ("operation", "mean"), [(name, f"{ms:,.3f} ms") for name, ms in slowest])
    show_memory(f"Memory on {found.target}", found.memory, found.verdict)
