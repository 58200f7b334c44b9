"""The command ``fit``, which does not need torch."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...runtime.commands.console import note, print_json, progress_unless, say, table
from ...runtime.commands.options import fit_target_option, json_option, model_argument, required_budget_options
from ...runtime.errors import UnknownOperationError
from ...runtime.units import format_size

if TYPE_CHECKING:
    from ...runtime.memory import Budget
    from ..fit import DoesNotFitError


@click.command("fit")
@model_argument
@required_budget_options
@fit_target_option
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Output folder.  [default: MODEL.fit]")
@click.option(
    "--images",
    "source",
    help="Images to compare on: a folder, .tar, .zip or 'digits'.  [default: a test card and noise]",
)
@json_option
@click.pass_context
def fit_command(
    context: click.Context,
    model: Path,
    budget: "Budget",
    target: str,
    out: Path | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Rewrite MODEL (an int8 .onnx or .tflite) so that one inference fits a memory budget.

    The rewritten network computes the same integers, bit for bit: in stripes and patches, with grouped channels and
    moved pools, as far as needed. NAME.fit.tflite (with offsets for tflite-micro), NAME.fit.onnx, report.html,
    fit.json, fit.csv and node data for Model Explorer are written after both files were compared with MODEL. If no fit
    exists, the command exits with code 3 and reports the smallest arena found and smaller alternatives. Flash is judged
    by the weights before and by the file afterwards; a rewrite makes neither smaller.

    \b
    Example:
      firebox fit model.int8.tflite --sram 256KiB
      firebox fit model.int8.tflite --device stm32h743 --images images.tar -o build/fitted
    """
    from ...runtime.images import open_images
    from ..fit import DoesNotFitError
    from ..fit.files import fit_file

    images = open_images(source) if source is not None else None
    out = out or Path(f"{model}.fit")
    try:
        fitted = fit_file(model, budget, out, target=target, images=images, progress=progress_unless(as_json))
    except DoesNotFitError as error:
        advise(error, as_json)
        raise
    except UnknownOperationError as error:
        # Neither the memory nor the data flow of an unknown operation is known, so the network cannot be said to fit.
        error.exit_code = DoesNotFitError.exit_code
        raise
    if as_json:
        print_json({**fitted.report, "files": list(map(str, fitted.files))})
    else:
        show_fit(fitted.report, str(model))
        if fitted.report["integer_ends"]:
            note(f"{model} has float32 input or output; the fitted files have the integer input and output inside them")
        for path in fitted.files:
            say(f"{path}  {format_size(path.stat().st_size)}")
    context.exit(fitted.report["verdict"]["exit_code"])


def show_fit(report: Mapping[str, Any], title: str) -> None:
    """Print a fit as tables, and its verdict."""
    before, after, measured = report["before"], report["after"], report["measured"]
    rows = [
        ("arena", format_size(before["arena_bytes"]), format_size(after["arena_bytes"])),
        ("total in SRAM", _size(before["total_bytes"]), _size(after["total_bytes"])),
        ("measured", "", _size(measured["total_bytes"] if measured else None)),
        ("MACs", f"{before['macs'] / 1e6:,.1f} M", f"{after['macs'] / 1e6:,.1f} M ({report['extra_macs']:+.2%})"),
        ("operations", f"{before['ops']:,}", f"{after['ops']:,}"),
    ]
    verdict = report["verdict"]
    rows.append((f"flash ({verdict['flash_about']})", "", _size(verdict["flash_needed_bytes"])))
    if verdict["reserve_bytes"]:
        rows.append(("reserve", "", _size(verdict["reserve_bytes"])))
    table(f"{title} on {report['target']}", ("", "before", "after"), rows)
    stages = [
        (stage["from"], stage["to"], str(len(stage["bands"])), str(sum(band["tiles"] for band in stage["bands"])))
        for stage in report["stages"]
    ]
    if stages:
        table("Computed in tiles", ("from", "to", "bands", "tiles"), stages)
    compared = report["compared_images"]
    if compared:
        say(f"the same integers as before on {max(compared.values())} images in {', '.join(compared)}")
    _note_missing(report)
    say(verdict["text"])


def _note_missing(report: Mapping[str, Any]) -> None:
    """Note the steps that were skipped because a package is not installed."""
    from ...runtime.memory import find_target

    runtime = find_target(report["target"]).runtime
    if not report["compared_images"]:
        note("not compared: no runtime for this network is installed; run: pip install 'firebox[onnx,litert]'")
    if report["measured"] is None and runtime is not None:
        note(f"not measured: {runtime.package} is not installed; run: pip install 'firebox[{runtime.extra}]'")
    if not find_spec("bokeh"):
        note("no report.html: bokeh is not installed; run: pip install 'firebox[report]'")


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes:,} bytes"


def advise(error: "DoesNotFitError", as_json: bool) -> None:
    """Print alternatives to a network that does not fit, each with the memory that it needs."""
    from ...runtime.memory import plan
    from ..fit import least_bytes, smaller_alternatives

    found: list[dict[str, Any]] = []
    progress = progress_unless(as_json)
    for change, graph in smaller_alternatives(error.graph):
        flash = plan(graph, error.target).flash.nbytes
        about = least_bytes(graph, error.target, progress)
        found.append({"change": change, "about_bytes": about, "flash_needed_bytes": flash})
    if as_json:
        names = ("target", "smallest_bytes", "binding")
        figures = vars(error.budget) | {name: getattr(error, name) for name in names}
        print_json({"fits": False, **figures, "alternatives": found})
        return
    rows = [
        (
            str(item["change"]),
            _size(item["about_bytes"]),
            _size(item["flash_needed_bytes"]),
            _fits(item, error.budget),
        )
        for item in found
    ]
    if rows:
        columns = ("change", "about", "flash", "")
        table("Smaller alternatives (by shape alone: they must be trained)", columns, rows)


def _fits(alternative: dict[str, Any], budget: "Budget") -> str:
    in_flash = budget.flash_bytes is None or alternative["flash_needed_bytes"] <= budget.flash_bytes
    return "fits" if in_flash and alternative["about_bytes"] <= budget.available_bytes else "does not fit"
