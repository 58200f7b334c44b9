"""The command ``demo``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime.commands.console import progress_unless, say, table
from ...runtime.commands.options import json_option
from ...runtime.units import format_size, parse_size
from .options import needs_torch

if TYPE_CHECKING:
    from ..demo import Demo


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default="build/demo", show_default=True, help="Output folder.")
@click.option("--sram", default="256KiB", show_default=True, help="SRAM budget for the files.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of weights, batch order, augmentation and split.",
)
@json_option
@click.pass_context
@needs_torch
def demo_command(context: click.Context, out: Path, sram: str, seed: int, as_json: bool) -> None:
    """Train, export, compare, plan and profile a small network on scanned digits, in a few minutes.

    Exit code 3 if an int8 file does not fit the budget.

    \b
    Example:
      firebox demo --sram 128KiB
    """
    budget = parse_size(sram)
    from ..demo import run_demo

    demo = run_demo(out, budget, seed, progress=progress_unless(as_json))
    if as_json:
        say(demo.report.read_text().rstrip())
    else:
        _show(demo, budget)
        say(f"All files are in {out}/; the figures are in {demo.report}.")
        say(f"Next: firebox plan {out}/model.int8.tflite --sram {sram}")
    verdicts = [found.verdict for found in demo.profiles if "int8" in found.model]
    context.exit(max(verdict.exit_code for verdict in verdicts if verdict is not None))


def _show(demo: "Demo", budget: int) -> None:
    torch, *files = demo.evaluations
    rows = [("in torch", f"{torch.top1:.2%}", "", "", "", "", "")]
    for found, measured in zip(files, demo.profiles, strict=True):
        assert measured.verdict is not None
        sizes = {line.name: line.nbytes or 0 for line in measured.memory}
        figures = (format_size(sizes["file"]), format_size(sizes["arena"]), f"{measured.p50_ms:.3f} ms")
        verdict = "fits" if measured.verdict.fits else "does not fit"
        rows.append((found.name, f"{found.top1:.2%}", f"{found.agreement(torch):.2%}", *figures, verdict))
    title = f"{demo.training.model}, {demo.training.parameters:,} parameters, on {len(torch.labels)} unseen scans"
    table(title, ("", "accuracy", "agreement", "size", "arena", "p50", format_size(budget)), rows)
    say("accuracy, and agreement with torch: on scans used neither for training nor for calibration;")
    say("arena: planned memory for input and activations; p50: median latency on this machine")
