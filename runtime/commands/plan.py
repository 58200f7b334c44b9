"""The command ``plan``."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..units import format_size
from .console import print_json, say, table
from .options import budget_options, json_option, model_argument, target_option

if TYPE_CHECKING:
    from ..memory import Budget, MemoryLine, MemoryPlan, Verdict


@click.command("plan")
@model_argument
@budget_options
@target_option
@click.option("--measure", is_flag=True, help="Also run MODEL in the target's runtime and measure its memory.")
@json_option
@click.pass_context
def plan_command(
    context: click.Context, model: Path, budget: "Budget | None", target: str | None, measure: bool, as_json: bool
) -> None:
    """Plan the memory of MODEL (.onnx or .tflite): the arena, its peak and the tensors alive at the peak.

    Targets are tflite-micro (all that it needs, to the byte), LiteRT with its reference kernels or with XNNPACK,
    onnxruntime, and an ideal static compiler.

    Exit code 3 if SRAM or flash does not fit the budget. Flash is judged by the file, or by the weights if the target
    does not run MODEL itself: the runtime's code is unknown. Where a part of the demand for SRAM is unknown, --sram
    alone is judged by the arena; with flash or a reserve the verdict is undecided and the exit code 4.

    \b
    Example:
      firebox plan model.int8.tflite --sram 256KiB
      firebox plan model.int8.tflite --sram 256KiB --reserve 16KiB --flash 1MiB
      firebox plan model.int8.tflite --device stm32h743
      firebox plan model.int8.tflite --target litert-reference --measure
      firebox plan model.int8.onnx --json
    """
    from ..memory import measure_arena, plan

    planned = plan(model, target)
    measured = measure_arena(model, planned.target, exact=True) if measure else None
    verdict = planned.verdict(budget) if budget is not None else None
    if measured is not None and budget is not None:
        verdict = measured.verdict(budget, planned.flash)
    if as_json:
        found = {
            "measured": measured.to_json() if measured else None,
            "verdict": verdict.to_json() if verdict else None,
        }
        print_json(planned.to_json() | found)
    else:
        _show_operations(model, planned)
        account = (*planned.account(), *(measured.account() if measured else ()))
        show_memory(f"Memory on {planned.target}", account, verdict)
        alive = planned.alive(planned.peak_step)
        tensors = ", ".join(f"{buffer.tensor} {format_size(buffer.nbytes)}" for buffer in alive)
        say(f"arena: {planned.arena_bytes:,} bytes; alive at its peak (▶): {tensors}")
        say(f"{planned.graph.macs / 1e6:,.1f} M multiply-accumulates")
    context.exit(verdict.exit_code if verdict else 0)


def _show_operations(model: Path, planned: "MemoryPlan") -> None:
    rows = [
        (
            ("▶ " if step == planned.peak_step else "  ") + op.name,
            op.kind,
            "x".join(map(str, planned.graph.tensors[op.output].shape[1:])),
            format_size(planned.graph.tensors[op.output].nbytes),
            format_size(planned.alive_bytes(step)),
            f"{planned.graph.op_macs(op) / 1e6:,.2f} M",
        )
        for step, op in enumerate(planned.graph.ops)
    ]
    table(str(model), ("operation", "kind", "output", "size", "alive", "MACs"), rows)


def show_memory(title: str, account: "Iterable[MemoryLine]", verdict: "Verdict | None") -> None:
    """Print an account of memory as a table that ends with the verdict."""
    lines = (*account, *(verdict.budget.account() if verdict else ()))
    rows = [(line.name, "-" if line.nbytes is None else format_size(line.nbytes), line.source) for line in lines]
    if verdict is not None:
        rows.append(("verdict", verdict.sram_text(), verdict.arena_source))
        if verdict.flash and verdict.budget.flash_bytes is not None:
            rows.append(("verdict on flash", verdict.flash_text(), verdict.flash.source))
    table(title, ("", "size", "source"), rows)
