"""``firebox check``: whether int8 files can saturate on some processors."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import note, print_json, progress_unless, say, table
from .options import json_option, model_argument

if TYPE_CHECKING:
    from ..exactness.check import Damage, SaturationCheck

_SHOWN = 12


@click.command("check")
@model_argument
@click.option(
    "--images", "source", help="Measure what saturation does on these: a folder or archive of images, or digits."
)
@click.option("--count", type=click.IntRange(min=1), default=20, show_default=True, help="How many images to draw.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides which images.")
@click.option(
    "--like", type=click.Path(path_type=Path), help="Exported file whose preprocessing a file of another maker takes."
)
@json_option
@click.pass_context
def check_command(
    context: click.Context, model: Path, source: str | None, count: int, seed: int, like: Path | None, as_json: bool
) -> None:
    """Check whether MODEL (int8 .onnx of any maker) can saturate on x86 processors without VNNI.

    On those onnxruntime adds two products of uint8 activations and int8 weights in 16 bits. Two weights w1 and w2 that
    it pairs are safe while |w1 + w2| <= 128. With --images the network is computed both ways, on any processor.

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
        why_not = "kernels for TFLite files add in 32 bits"
    elif source is not None:
        try:
            damage = _measured(model, source, count, seed, like, as_json)
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


def _measured(model: Path, source: str, count: int, seed: int, like: Path | None, quiet: bool) -> "Damage":
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
    return measure_saturation(read_file(model), inputs, progress_unless(quiet))


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
    columns = ("layer", "kind", "pairs of weights", "can saturate", "largest sum")
    table(f"{model}: uint8 times int8, sums up to 128 are safe", columns, rows)
    if len(worst) > _SHOWN:
        note(f"and {len(worst) - _SHOWN} more layers; --json lists all")
    for layer in worst:
        if layer.why:
            note(f"{layer.layer}: {layer.why}")


def _show_damage(damage: "Damage") -> None:
    worst = sorted(damage.layers, key=lambda layer: -layer.changed)[:_SHOWN]
    rows = [(layer.layer, f"{layer.changed:.2%}", f"{layer.largest_steps}") for layer in worst]
    table(f"With saturation, on {damage.images} images", ("layer", "outputs changed", "largest, steps"), rows)
    say(f"same class on {damage.same_class:.1%} of the images; outputs up to {damage.largest_steps} steps off")


def _advice(found: "SaturationCheck") -> str:
    advice: dict[Any, str] = {
        "can saturate": (
            "; firebox's sessions load it in a form that does not; export again for applications without firebox"
        ),
        "undecided": "; compare its outputs on the processor that it is for",
    }
    return advice.get(found.verdict, "")
