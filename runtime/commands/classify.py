"""The command ``classify``."""

from pathlib import Path

import click

from .console import note, print_json, table
from .options import backend_option, json_option, model_argument, threads_option

# Images whose shorter side is below this hold too little to classify.
_TINY = 8


@click.command("classify")
@model_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=int, default=5, show_default=True, help="Number of classes to show.")
@backend_option
@threads_option
@json_option
def classify_command(
    model: Path, images: tuple[Path, ...], top: int, backend: str, threads: int, as_json: bool
) -> None:
    """Classify IMAGES with MODEL, preprocessed as in training.

    \b
    Example:
      firebox classify model.int8.tflite cat.jpg --top 3
    """
    from ..images import decode
    from ..inference import Session

    predictions = {}
    with Session(model, backend, threads) as session:
        for path in images:
            image = decode(path)
            if min(image.size) < _TINY:
                note(f"{path} has only {image.width}x{image.height} pixels; its classes mean little")
            predictions[str(path)] = session.classify(image, top)
    if as_json:
        print_json({name: [vars(prediction) for prediction in found] for name, found in predictions.items()})
        return
    for name, found in predictions.items():
        rows = [(prediction.label, f"{prediction.score:.1%}") for prediction in found]
        table(name, ("class", "probability"), rows)
