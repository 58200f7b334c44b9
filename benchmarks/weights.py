"""Puts trained runs into the package: their weights, small enough to ship, and a model card for each in "
"docs/weights.md."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import FOLDER, data_option, out_option, surroundings, table, write_page
from firebox.export import ExportConfig
from firebox.model_zoo import export_network, load_network, load_pictures, predict
from firebox.model_zoo.checkpoint import FILE_NAME, pack_compact, read_checkpoint
from firebox.model_zoo.run_folder import read_log
from firebox.runtime import LabelledImages, Session, open_images, split_images
from firebox.runtime.console import progress
from firebox.runtime.files import sha256, write_file
from firebox.runtime.units import format_size

_PACKAGE = Path(__file__).resolve().parent.parent / "model_zoo" / "weights"
_PICTURES = "cifar10-images.tar"
# What all files together may take.
_LIMIT = 1_000_000


@dataclass(frozen=True)
class Teacher:
    """A run that a network learned from; its accuracy is on the test pictures."""

    command: str
    parameters: int
    trained: float


@dataclass(frozen=True)
class Card:
    """What is known of one network's weights; accuracies are on the test pictures."""

    model: str
    parameters: int
    macs: int
    file: Path
    command: str
    training: dict[str, Any]
    teachers: Sequence[Teacher]
    processes: int
    epochs: int
    seconds: float
    trained: float
    shipped: float
    int8: float
    per_class: dict[str, float]


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@data_option
@out_option("weights.md")
@click.option("--package", type=click.Path(path_type=Path), default=_PACKAGE, help="Folder of the weights.")
def main(runs: tuple[Path, ...], data_folder: Path, out: Path, package: Path) -> None:
    """Store the weights of RUNS in the package and measure what is stored.

    \b
    Example:
      python benchmarks/weights.py runs/squeezenet_cifar runs/squeezenet_micro
    """
    images = open_images(data_folder / _PICTURES)
    cards = [card(run, images, package) for run in runs]
    total = sum(each.file.stat().st_size for each in cards)
    if total > _LIMIT:
        raise click.ClickException(f"the files take {total:,} bytes together, more than {_LIMIT:,}")
    write_page(out, page(cards, runs))


def card(run: Path, images: LabelledImages, package: Path) -> Card:
    """Store one run's weights, and measure them in torch and as int8 files."""
    checkpoint = read_checkpoint(run / FILE_NAME)
    training = _without_folders(checkpoint.training)
    file = write_file(package / f"{checkpoint.model}.safetensors", pack_compact(replace(checkpoint, training=training)))
    test = images.split("test")
    assert test is not None
    answers = [_logits(path, test) for path in (run, file)]
    teachers = [
        Teacher(_command(path), load_network(path).config.parameters, _accuracy(_logits(path, test), test))
        for path in map(Path, checkpoint.training["teachers"])
    ]
    network = load_network(file)
    trained, _ = split_images(images, training["val_fraction"], training["seed"])
    folder = run / "exported"
    export_network(network, folder, trained, ExportConfig(precisions=("int8",)))
    with Session(folder / "model.int8.tflite") as session, progress("int8", len(test)) as advance:
        int8 = []
        for name in test.names:
            int8.append(session.predict(test.read(name)))
            advance()
    rows = read_log(run, checkpoint.epoch)
    right = answers[1].argmax(1) == test.labels
    return Card(
        model=checkpoint.model,
        parameters=checkpoint.config.parameters,
        macs=checkpoint.config.macs,
        file=file,
        command=_command(run),
        training=training,
        teachers=teachers,
        processes=_summary(run)["processes"],
        epochs=checkpoint.epoch,
        seconds=sum(row.seconds for row in rows),
        trained=_accuracy(answers[0], test),
        shipped=_accuracy(answers[1], test),
        int8=_accuracy(np.array(int8), test),
        per_class={name: float(right[test.labels == label].mean()) for label, name in enumerate(test.classes)},
    )


def page(cards: Sequence[Card], runs: Sequence[Path]) -> Iterator[str]:
    """The model cards."""
    yield "# Weights that come with firebox"
    yield "This page and the files in `model_zoo/weights/` are written by"
    yield f"```sh\npython benchmarks/weights.py {' '.join(f'runs/{run.name}' for run in runs)}\n```"
    yield surroundings()
    yield (
        '`create_model("squeezenet_cifar", weights="default")`, `load_network("squeezenet_cifar")` and every command '
        "that takes a model by name use them. Kernels are stored in int8 with a scale for each output channel, which "
        "is what *stored* measures; *int8* is the TFLite file that `firebox export` makes of them, in LiteRT. "
        f"Accuracies are on the 5,000 test pictures of `{FOLDER}/{_PICTURES}` ([where from](data.md)), which nothing "
        "was trained or chosen on."
    )
    yield table(
        ("network", "parameters", "MACs", "file", "trained", "stored", "int8"),
        [
            (
                each.model,
                f"{each.parameters:,}",
                f"{each.macs / 1e6:.1f} M",
                format_size(each.file.stat().st_size),
                *(f"{value:.2%}" for value in (each.trained, each.shipped, each.int8)),
            )
            for each in cards
        ],
    )
    for each in cards:
        yield from _describe(each)


def _describe(card: Card) -> Iterator[str]:
    yield f"## {card.model}"
    yield (
        "For pictures like CIFAR-10's: one centred object of one of its ten classes, 32x32 pixels, in colour. It knows "
        "nothing else: what belongs to no class is given one of them all the same. The pictures were collected from "
        "the web without regard to who took them or where; accuracies by class are below."
    )
    processes = "1 process" if card.processes == 1 else f"{card.processes} processes"
    yield f"Trained in {card.epochs} epochs, {card.seconds / 3600:.1f} hours of {processes} on the CPU, by"
    yield f"```sh\n{card.command}\n```"
    for teacher in card.teachers:
        yield f"Its teacher, with {teacher.parameters:,} parameters and an accuracy of {teacher.trained:.2%}, by"
        yield f"```sh\n{teacher.command}\n```"
    yield "All options:"
    yield "```json\n" + json.dumps(card.training, indent=1) + "\n```"
    yield f"SHA-256 of the file: `{sha256(card.file.read_bytes())}`."
    yield table(("class", "accuracy"), [(name, f"{value:.1%}") for name, value in card.per_class.items()])


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def _command(run: Path) -> str:
    """What began the run, without this machine's folders."""
    words = []
    for word in shlex.split(_summary(run)["command"]):
        path = Path(word)
        if path.is_absolute():
            words.append(f"{FOLDER}/{path.name}" if path.name == _PICTURES else f"runs/{path.name}")
        else:
            words.append(shlex.quote(word))
    return " ".join(words)


def _without_folders(training: dict[str, Any]) -> dict[str, Any]:
    """Where pictures and teachers lay is nobody else's."""
    teachers = [f"runs/{Path(teacher).name}" for teacher in training["teachers"]]
    return {**training, "data": Path(training["data"]).name, "teachers": teachers}


def _logits(path: Path, test: LabelledImages) -> np.ndarray:
    network = load_network(path)
    pictures = load_pictures(test, network.preprocessing, quiet=True)
    return predict(network.module, pictures, network.preprocessing).numpy()


def _accuracy(logits: np.ndarray, test: LabelledImages) -> float:
    return float((logits.argmax(1) == test.labels).mean())


if __name__ == "__main__":
    main()
