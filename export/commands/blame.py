"""The command ``blame``, for which no torch is needed. Everything heavy is imported when it runs."""

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
@click.option("--images", "count", type=int, default=100, show_default=True, help="How many images to look at.")
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Draws the images. With the seed and the source of firebox export they are those that it calibrated on, "
    "which flatter INT8.",
)
@click.option("--fix", is_flag=True, help="Quantize FLOAT again, fix after fix, until it agrees.")
@click.option(
    "--target-agreement",
    "target",
    type=float,
    default=0.97,
    show_default=True,
    help="Share of images for --fix to reach.",
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
    """Say which layers of INT8 lose what against FLOAT, why, and what would help (.onnx or .tflite, of one network).

    Every layer is left in float alone, to see what comes back: how much of the noise in the network's answer goes away,
    and how many images more get the float network's class. SQNR tells all that is lost up to the layer's output; own
    scale and own weights what is lost when only that output, or only the weights, are int8; clipped is the share of the
    output past the ends of its scale. Written into --out are blame.json and node data for Model Explorer.

    With --fix FLOAT is quantized again, calibrated on as many images more, with one fix after the other: calibration,
    equalization, bias correction, rounding, single layers in float. When --target-agreement is reached on the images
    looked at, NAME.fixed.onnx and NAME.fixed.tflite are written; else what came nearest is told, with exit code 1.

    \b
    Example:
      firebox blame model.float32.onnx model.int8.onnx --data images.tar
      firebox blame model.float32.onnx model.int8.tflite --data images.tar --fix --target-agreement 0.98 -o fixed
    """
    from ...runtime.images import open_images
    from ..blame.files import blame_files

    if not fix and context.get_parameter_source("target") is ParameterSource.COMMANDLINE:
        raise UsageError(f"--target-agreement {target:g} is what --fix is to reach; add --fix")
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
            say(f"{file} gives the float network's class on {agreement:.1%}")
        for path in blamed.files:
            say(f"{path}  {format_size(path.stat().st_size)}")
    if not blamed.reached:
        note(
            f"--target-agreement {target:g} was not reached: the nearest agrees on {blamed.agreement:.1%} "
            f"({_ratio(blamed.repair.sqnr_db if blamed.repair else None)}); lower it, or train with quantization"
        )
    elif blamed.repair and not blamed.repair.steps:
        note(f"{quantized} agrees on {blamed.agreement:.1%} as it is; nothing was fixed")
    context.exit(0 if blamed.reached else 1)


def show_blame(blamed: "Blame", title: str) -> None:
    """The layers, worst first, and what would help those that are to blame."""
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
    table(title, ("layer", "noise back", "class back", "SQNR", "own scale", "own weights", "clipped"), rows)
    advised = [layer for layer in blamed.layers if layer.advice.fix != "none"]
    if advised:
        rows = [(layer.layer, layer.advice.fix, layer.advice.reason) for layer in advised]
        table("What would help", ("layer", "fix", "why"), rows)
    say(
        f"{blamed.agreement:.1%} of {blamed.images} images get the float network's class, "
        f"SQNR of the answer {_ratio(blamed.sqnr_db)}"
    )
    for text in blamed.notes:
        note(text)


def show_repair(repaired: "Repair") -> None:
    """The fixes in the order in which they were tried."""
    rows = [
        (step.fix, step.detail, f"{step.agreement:.1%}", _ratio(step.sqnr_db), "kept" if step.kept else "")
        for step in repaired.steps
    ]
    table("Fixes, each with those kept before it", ("fix", "", "same class", "SQNR", ""), rows)


def _ratio(decibels: float | None) -> str:
    return "-" if decibels is None else f"{decibels:.1f} dB"
