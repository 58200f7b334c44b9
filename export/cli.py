"""The command ``fit``, for which no torch is needed. Everything heavy is imported when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli import device_options, model_argument, sram_option
from ..runtime.console import json_option, note, print_json, progress, say, table
from ..runtime.errors import DoesNotFitError, UnsupportedError, UsageError
from ..runtime.units import format_size

if TYPE_CHECKING:
    from ..runtime.targets import Target
    from .fitted import Fitted

_TARGETS = ("tflm", "litert-reference", "static")
target_option = click.option(
    "--target", type=click.Choice(_TARGETS), default="tflm", show_default=True, help="What it is to run on."
)


@click.command("fit")
@model_argument
@sram_option
@device_options
@target_option
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the files.  [default: MODEL.fit]")
@click.option(
    "--images",
    "source",
    help="Pictures to compare on: a folder, .tar, .zip or 'digits'.  [default: a test card, noise]",
)
@json_option
@click.pass_context
def fit_command(
    context: click.Context,
    model: Path,
    sram: str | None,
    device: str | None,
    devices: Path | None,
    target: "Target",
    out: Path | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Rewrite MODEL (an int8 .onnx or .tflite) until all that it needs for an inference fits a budget.

    The rewritten network gives the same integers, bit for bit: it is computed in stripes and patches, with channels in
    groups and pools moved, as far as needed. Written are NAME.fit.tflite, which tells tflite-micro where to put what,
    NAME.fit.onnx, report.html, fit.json and fit.csv, after both were compared with MODEL on pictures. Exit code 3 when
    no way to fit was found: then the least that was reached is told, and what would need less.

    \b
    Example:
      firebox fit model.int8.tflite --sram 256KiB
      firebox fit model.int8.tflite --device stm32h743 --images pictures.tar -o build/fitted
    """
    from ..runtime.datasets import open_images
    from ..runtime.devices import budget
    from .fitted import fit_file

    sram_bytes = budget(sram, device, devices)
    if sram_bytes is None:
        raise UsageError("fit needs a budget; give --sram 256KiB, or --device with a name that firebox devices lists")
    images = open_images(source) if source is not None else None
    try:
        fitted = fit_file(model, sram_bytes, out or Path(f"{model}.fit"), target=target, images=images, quiet=as_json)
    except DoesNotFitError as error:
        _advise(model, sram_bytes, target, error, as_json)
        raise
    except UnsupportedError as error:
        raise DoesNotFitError(f"{error}; a network with it cannot be rewritten", 0, "") from error
    if as_json:
        print_json({**fitted.report, "verdict": fitted.verdict.to_json(), "files": list(map(str, fitted.files))})
    else:
        show(fitted)
    context.exit(fitted.verdict.exit_code)


def show(fitted: "Fitted") -> None:
    """A fit as tables."""
    found = fitted.fit
    before, after = found.before, found.after
    rows = [
        ("arena", format_size(before.arena_bytes), format_size(after.arena_bytes)),
        ("total in SRAM", _size(before.total_bytes), _size(after.total_bytes)),
        ("measured", "", _size(fitted.measured.total_bytes if fitted.measured else None)),
        ("MACs", f"{before.graph.macs / 1e6:,.1f} M", f"{after.graph.macs / 1e6:,.1f} M ({found.extra_macs:+.2%})"),
        ("operations", f"{len(before.graph.ops):,}", f"{len(after.graph.ops):,}"),
    ]
    table(f"{found.graph.name} on {after.target}", ("", "before", "after"), rows)
    tiled = [stage for stage in found.stages if stage.bands]
    if tiled:
        stages = [
            (stage.source, stage.target, str(len(stage.bands)), str(sum(map(len, stage.bands)))) for stage in tiled
        ]
        table("Computed in tiles", ("from", "to", "bands", "tiles"), stages)
    for path in fitted.files:
        say(f"{path}  {format_size(path.stat().st_size)}")
    runtimes = ", ".join(fitted.compared)
    pictures = next(iter(fitted.compared.values()), 0)
    say(f"the same integers as before on {pictures} pictures in {runtimes}")
    if fitted.measured is None and after.target == "tflm":
        note("not measured: pip install 'firebox[micro]' brings tflite-micro, to run it in an arena of this size")
    if not any(path.suffix == ".html" for path in fitted.files):
        note("no report.html: pip install 'firebox[report]' brings what draws it")
    say(fitted.verdict.text())


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes:,} bytes"


def _advise(model: Path, sram_bytes: int, target: "Target", error: DoesNotFitError, as_json: bool) -> None:
    """What would need less, each with its number."""
    from ..runtime.reader import read_graph
    from .alternatives import alternatives
    from .fitting import least_bytes

    found: list[dict[str, Any]] = []
    with progress("looking for what would help", quiet=as_json) as advance:
        for change, graph in alternatives(read_graph(model)):
            found.append({"change": change, "about_bytes": least_bytes(graph, target, advance)})
    if as_json:
        least = {"sram_bytes": sram_bytes, "smallest_bytes": error.smallest_bytes, "binding": error.binding}
        print_json({"fits": False, "target": target, **least, "alternatives": found})
        return
    rows = [(str(item["change"]), f"{item['about_bytes']:,} bytes", _fits(item, sram_bytes)) for item in found]
    table("What would need less (planned, without weights of its own)", ("change", "about", ""), rows)


def _fits(alternative: dict[str, Any], sram_bytes: int) -> str:
    return "fits" if alternative["about_bytes"] <= sram_bytes else "does not fit"
