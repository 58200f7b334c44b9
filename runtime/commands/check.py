"""The command ``check``."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..progress import Progress
from .console import note, print_json, progress_unless, say, table
from .options import json_option, model_argument

if TYPE_CHECKING:
    from ..exactness.check import Damage, SaturationCheck

_SHOWN = 12


@click.command("check")
@model_argument
@click.option(
    "--images", "source", help="Measure the effect of saturation on images: a folder, .tar, .zip or 'digits'."
)
@click.option("--count", type=click.IntRange(min=1), default=20, show_default=True, help="Number of images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Selects the images.")
@click.option(
    "--like", type=click.Path(path_type=Path), help="firebox file with the preprocessing for a MODEL that has none."
)
@json_option
@click.pass_context
def check_command(
    context: click.Context, model: Path, source: str | None, count: int, seed: int, like: Path | None, as_json: bool
) -> None:
    """Check whether MODEL (an int8 .onnx from any tool) can saturate on x86 processors without VNNI.

    On these processors, onnxruntime adds two products of uint8 activations and int8 weights in 16 bits. A pair of
    weights w1 and w2 is safe if |w1 + w2| <= 128. With --images, MODEL is computed with and without saturation, on any
    processor.

    \b
    Exit codes: 0 cannot saturate, 1 can saturate, 4 undecided.

    \b
    Example:
      firebox check model.int8.onnx
      firebox check theirs.onnx --images images/ --like model.float32.onnx
    """
    from ..errors import UnsupportedError
    from ..exactness.check import check_saturation
    from ..formats.read import format_of

    found = check_saturation(model)
    damage, why_not = None, ""
    if source is not None and format_of(model) == "tflite":
        why_not = "kernels for TFLite files accumulate in 32 bits"
    elif source is not None:
        try:
            damage = _measure(model, source, count, seed, like, progress_unless(as_json))
        except UnsupportedError as error:
            why_not = str(error)
    if as_json:
        print_json(found.to_json() | {"images": damage.to_json() if damage else None, "not_measured": why_not or None})
    else:
        _show(model, found)
        if damage:
            _show_damage(damage)
        if why_not:
            note(f"not measured on images: {why_not}")
        for question in found.open_questions:
            note(f"open: {question}")
        say(f"{model}: {found.verdict}{_advice(found)}")
    context.exit(found.exit_code)


def _measure(model: Path, source: str, count: int, seed: int, like: Path | None, progress: Progress) -> "Damage":
    import numpy as np

    from ..exactness.check import measure_saturation
    from ..files import read_file
    from ..formats.read import read_graph
    from ..images import open_images, sample
    from ..inference import Session

    with ExitStack() as opened:
        lender = opened.enter_context(Session(like, check="off")) if like is not None else None
        contract = opened.enter_context(Session(model, like=lender, check="off")).contract
    graph, drawn, inputs = read_graph(model), sample(open_images(source), count, seed), []
    for name in drawn.names:
        pixels = contract.preprocessing.crop(drawn.read(name), drawn.where(name))
        inputs.append(graph.input_values(contract.preprocessing.normalize(pixels)[None].astype(np.float32)))
    return measure_saturation(read_file(model), inputs, progress)


def _show(model: Path, found: "SaturationCheck") -> None:
    if not found.layers:
        return
    worst = sorted(found.layers, key=lambda layer: (-(layer.saturating or 0), -layer.largest))
    rows: list[tuple[str, ...]] = [
        (
            layer.layer,
            layer.kind,
            f"{layer.pairs:,}",
            "unknown" if layer.saturating is None else f"{layer.saturating:,}",
            f"{layer.largest}",
        )
        for layer in worst[:_SHOWN]
    ]
    columns = ("layer", "kind", "weight pairs", "can saturate", "largest sum")
    table(f"{model}: uint8 x int8 layers; sums up to 128 are safe", columns, rows)
    if len(worst) > _SHOWN:
        note(f"and {len(worst) - _SHOWN} more layers; --json lists all of them")
    for layer in worst:
        if layer.why:
            note(f"{layer.layer}: {layer.why}")


def _show_damage(damage: "Damage") -> None:
    worst = sorted(damage.layers, key=lambda layer: -layer.changed)[:_SHOWN]
    rows = [(layer.layer, f"{layer.changed:.2%}", f"{layer.largest_steps}") for layer in worst]
    table(f"With saturation, on {damage.images} images", ("layer", "outputs changed", "largest change, steps"), rows)
    say(f"same class on {damage.same_class:.1%} of the images; outputs differ by up to {damage.largest_steps} steps")


def _advice(found: "SaturationCheck") -> str:
    advice: dict[Any, str] = {
        "can saturate": (
            "; firebox sessions load it in an exact form; export it again for applications without firebox"
        ),
        "undecided": "; compare its outputs on the target processor",
    }
    return advice.get(found.verdict, "")
