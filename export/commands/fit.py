"""The command ``fit``, for which no torch is needed. Everything heavy is imported when it runs."""

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
    from ...runtime.memory.targets import Target
    from ..fit import DoesNotFitError


@click.command("fit")
@model_argument
@required_budget_options
@fit_target_option
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the files.  [default: MODEL.fit]")
@click.option(
    "--images",
    "source",
    help="Images to compare on: a folder, .tar, .zip or 'digits'.  [default: a test card, noise]",
)
@json_option
@click.pass_context
def fit_command(
    context: click.Context,
    model: Path,
    sram_bytes: int,
    target: "Target",
    out: Path | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Rewrite MODEL (an int8 .onnx or .tflite) until all that it needs for an inference fits a budget.

    The rewritten network gives the same integers, bit for bit: it is computed in stripes and patches, with channels in
    groups and pools moved, as far as needed. Written are NAME.fit.tflite, which tells tflite-micro where to put what,
    NAME.fit.onnx, report.html, fit.json, fit.csv and node data for Model Explorer, after both were compared with MODEL
    on images. Exit code 3 when no way to fit was found: then the least that was reached is told, and what would need
    less.

    \b
    Example:
      firebox fit model.int8.tflite --sram 256KiB
      firebox fit model.int8.tflite --device stm32h743 --images images.tar -o build/fitted
    """
    from ...runtime.images import open_images
    from ..fit import DoesNotFitError
    from ..fit.files import fit_file

    images = open_images(source) if source is not None else None
    try:
        fitted = fit_file(model, sram_bytes, out or Path(f"{model}.fit"), target=target, images=images, quiet=as_json)
    except DoesNotFitError as error:
        advise(error, as_json)
        raise
    except UnknownOperationError as error:
        # What it computes from which rows is not known, nor where its memory is: no verdict but this one is honest.
        error.exit_code = DoesNotFitError.exit_code
        raise
    if as_json:
        print_json({**fitted.report, "files": list(map(str, fitted.files))})
    else:
        show_fit(fitted.report, str(model))
        if fitted.report["integer_ends"]:
            note(f"{model} takes or gives float32; the fitted files take and give the integers behind that")
        for path in fitted.files:
            say(f"{path}  {format_size(path.stat().st_size)}")
    context.exit(fitted.report["verdict"]["exit_code"])


def show_fit(report: Mapping[str, Any], title: str) -> None:
    """A fit as tables, with its verdict."""
    before, after, measured = report["before"], report["after"], report["measured"]
    rows = [
        ("arena", format_size(before["arena_bytes"]), format_size(after["arena_bytes"])),
        ("total in SRAM", _size(before["total_bytes"]), _size(after["total_bytes"])),
        ("measured", "", _size(measured["total_bytes"] if measured else None)),
        ("MACs", f"{before['macs'] / 1e6:,.1f} M", f"{after['macs'] / 1e6:,.1f} M ({report['extra_macs']:+.2%})"),
        ("operations", f"{before['ops']:,}", f"{after['ops']:,}"),
    ]
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
    else:
        note("not compared: no runtime that runs this network is installed; pip install 'firebox[onnx,litert]'")
    if measured is None and report["target"] == "tflm":
        note("not measured: pip install 'firebox[micro]' brings tflite-micro, to run it in an arena of this size")
    if not find_spec("bokeh"):
        note("no report.html: pip install 'firebox[report]' brings what draws it")
    say(report["verdict"]["text"])


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes:,} bytes"


def advise(error: "DoesNotFitError", as_json: bool) -> None:
    """What would need less than the network of an error, each with its number."""
    from ..fit import alternatives, least_bytes

    found: list[dict[str, Any]] = []
    progress = progress_unless(as_json)
    for change, graph in alternatives(error.graph):
        found.append({"change": change, "about_bytes": least_bytes(graph, error.target, progress)})
    if as_json:
        names = ("target", "sram_bytes", "smallest_bytes", "binding")
        print_json({"fits": False, **{name: getattr(error, name) for name in names}, "alternatives": found})
        return
    rows = [(str(item["change"]), f"{item['about_bytes']:,} bytes", _fits(item, error.sram_bytes)) for item in found]
    if rows:
        table("What would need less (shapes only: it has to be trained)", ("change", "about", ""), rows)


def _fits(alternative: dict[str, Any], sram_bytes: int) -> str:
    return "fits" if alternative["about_bytes"] <= sram_bytes else "does not fit"
