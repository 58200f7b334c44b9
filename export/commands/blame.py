"""The command ``blame``; heavy modules are imported when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ...runtime.commands.console import note, print_json, progress_unless, say, table
from ...runtime.commands.options import json_option
from ...runtime.errors import UsageError
from ...runtime.units import format_size

if TYPE_CHECKING:
    from ..blame.repair import Repair
    from ..blame.sensitivity import Blame


@click.command("blame")
@click.argument("reference", metavar="FLOAT", type=click.Path(path_type=Path))
@click.argument("quantized", metavar="INT8", type=click.Path(path_type=Path))
@click.option("--data", "source", required=True, help="Images: a folder, .tar, .zip or 'digits'.")
@click.option("--images", "count", type=int, default=100, show_default=True, help="Number of images to compare on.")
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Seed that draws the images. The seed and data of firebox export select the calibration images, which "
    "overstate the accuracy of INT8.",
)
@click.option(
    "--fix", is_flag=True, help="Quantize FLOAT again with one fix after another until it reaches the target."
)
@click.option(
    "--target-agreement",
    "target",
    type=float,
    default=0.97,
    show_default=True,
    help="Share of images that --fix must get FLOAT's class on.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for the files.  [default: with --fix INT8.fixed]"
)
@json_option
@click.pass_context
def blame_command(
    context: click.Context,
    reference: Path,
    quantized: Path,
    source: str,
    count: int,
    seed: int,
    fix: bool,
    target: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Rank the layers of INT8 by quantization error against FLOAT and suggest a fix for each (.onnx or .tflite).

    Each layer in turn is restored to float. "noise recovered" is the share of the noise in the network's output that
    disappears, "agreement gained" the share of images that return to the float network's class. SQNR is the accumulated
    error at the layer's output; "own scale" and "own weights" are the errors if only that output, or only the weights,
    were int8; "clipped" is the share of the output's values outside its range. --out receives blame.json and node data
    for Model Explorer.

    With --fix, FLOAT is quantized again, calibrated on as many other images, with one fix after another: calibration,
    equalization, bias correction, rounding, single layers in float. If --target-agreement is reached, NAME.fixed.onnx
    and NAME.fixed.tflite are written; otherwise the closest result is reported and the exit code is 1.

    \b
    Example:
      firebox blame model.float32.onnx model.int8.onnx --data images.tar
      firebox blame model.float32.onnx model.int8.tflite --data images.tar --fix --target-agreement 0.98 -o fixed
    """
    from ...runtime.images import open_images
    from ..blame.files import blame_files

    if not fix and context.get_parameter_source("target") is ParameterSource.COMMANDLINE:
        raise UsageError(f"--target-agreement {target:g} has no effect without --fix; add --fix")
    if fix and out is None:
        out = Path(f"{quantized}.fixed")
    blamed = blame_files(
        reference,
        quantized,
        open_images(source),
        out,
        count=count,
        seed=seed,
        target=target if fix else None,
        progress=progress_unless(as_json),
    )
    if as_json:
        print_json({**blamed.report, "files": list(map(str, blamed.files))})
    else:
        show_blame(blamed.blame, f"{quantized} against {reference}")
        if blamed.repair and blamed.repair.steps:
            show_repair(blamed.repair)
        for file, agreement in blamed.fixed.items():
            say(f"{file} predicts the float network's class on {agreement:.1%}")
        for path in blamed.files:
            say(f"{path}  {format_size(path.stat().st_size)}")
    if not blamed.reached:
        note(
            f"--target-agreement {target:g} was not reached: the closest result agrees on {blamed.agreement:.1%} "
            f"({_ratio(blamed.repair.sqnr_db if blamed.repair else None)}); lower it, or train with firebox train --qat"
        )
    elif blamed.repair and not blamed.repair.steps:
        note(f"{quantized} already agrees on {blamed.agreement:.1%}; nothing was fixed")
    context.exit(0 if blamed.reached else 1)


def show_blame(blamed: "Blame", title: str) -> None:
    """Print the layers, worst first, and the fixes suggested for them."""
    rows = [
        (
            layer.layer,
            f"{layer.recovered:+.1%}",
            f"{layer.agreement_gain:+.1%}",
            _ratio(layer.error.sqnr_db),
            _ratio(layer.error.quantizer_db),
            _ratio(layer.error.weights_db),
            f"{layer.error.clipped:.2%}",
        )
        for layer in blamed.layers
    ]
    table(title, ("layer", "noise recovered", "agreement gained", "SQNR", "own scale", "own weights", "clipped"), rows)
    advised = [layer for layer in blamed.layers if layer.advice.fix != "none"]
    if advised:
        rows = [(layer.layer, layer.advice.fix, layer.advice.reason) for layer in advised]
        table("Suggested fixes", ("layer", "fix", "why"), rows)
    say(
        f"{blamed.agreement:.1%} of {blamed.images} images get the float network's class; "
        f"output SQNR {_ratio(blamed.sqnr_db)}"
    )
    for text in blamed.notes:
        note(text)


def show_repair(repaired: "Repair") -> None:
    """Print the fixes in the order in which they were tried."""
    rows = [
        (step.fix, step.detail, f"{step.agreement:.1%}", _ratio(step.sqnr_db), "kept" if step.kept else "")
        for step in repaired.steps
    ]
    table("Fixes, each on top of those kept before", ("fix", "", "agreement", "SQNR", ""), rows)


def _ratio(decibels: float | None) -> str:
    return "-" if decibels is None else f"{decibels:.1f} dB"
