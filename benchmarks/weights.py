"""Puts trained runs into the package: weights small enough to ship, and model cards in docs/weights.md."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import (
    CIFAR,
    FOLDER,
    accuracy,
    data_option,
    out_option,
    surroundings,
    table,
    test_images,
    test_logits,
    write_page,
)

from firebox.export import ExportConfig
from firebox.model_zoo import TrainingConfig, export_network, load_network
from firebox.model_zoo.training.log import LOG, read_log
from firebox.model_zoo.training.run import CONFIG, CURVES
from firebox.model_zoo.weights.checkpoint import FILE_NAME, Checkpoint, pack_compact, read_checkpoint
from firebox.runtime import LabelledImages, Session, open_images, split_images
from firebox.runtime.commands.console import progress
from firebox.runtime.files import sha256, write_file, write_files
from firebox.runtime.units import format_size

_PACKAGE = Path(__file__).resolve().parent.parent / "model_zoo" / "weights" / "shipped"
# What all files together may take.
_LIMIT = 1_000_000
# What the networks are to reach on the test images.
_AIMS = {"squeezenet_cifar": 0.94, "squeezenet_cifar_small": 0.90}


@dataclass(frozen=True)
class Origin:
    """A run that a network began with or learned from; its accuracy is on the test images."""

    role: str
    command: str
    parameters: int
    epochs: int
    seconds: float
    trained: float


@dataclass(frozen=True)
class Card:
    """What is known of one network's weights; accuracies are on the test images."""

    model: str
    parameters: int
    macs: int
    file: Path
    command: str
    training: TrainingConfig
    origins: Sequence[Origin]
    processes: int
    epochs: int
    seconds: float
    trained: float
    stored: float
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
      python benchmarks/weights.py runs/squeezenet_cifar_again runs/squeezenet_cifar_small
    """
    sources = [Source.of(run, package) for run in runs]
    others = {file.stem for file in package.glob("*.safetensors")} - {each.checkpoint.model for each in sources}
    if others:
        raise click.ClickException(f"name the runs of {', '.join(sorted(others))}, too: the page describes all files")
    total = sum(len(each.data) for each in sources)
    if total > _LIMIT:
        raise click.ClickException(f"the files take {total:,} bytes together, more than {_LIMIT:,}")
    for each in sources:
        log = (each.run / LOG).read_bytes()
        write_files(package, {each.file.name: each.data, f"{each.checkpoint.model}.{LOG}": log})
        write_file(out.with_name(f"weights-{each.checkpoint.model}.png"), (each.run / CURVES).read_bytes())
    images, test = open_images(data_folder / CIFAR), test_images(data_folder)
    write_page(out, page([card(source, images, test) for source in sources], runs, test))


@dataclass(frozen=True)
class Source:
    """A finished run, and what of it goes into the package: ``data`` as ``file``."""

    run: Path
    checkpoint: Checkpoint
    file: Path
    data: bytes

    @classmethod
    def of(cls, run: Path, package: Path) -> "Source":
        """Raises ``ClickException`` for a run that has epochs left."""
        checkpoint = read_checkpoint(run / FILE_NAME)
        if checkpoint.epoch < checkpoint.training.epochs:
            raise click.ClickException(f"{run} has trained {checkpoint.epoch} of its epochs; go on with it first")
        shipped = replace(checkpoint, training=_without_folders(checkpoint.training))
        return cls(run, shipped, package / f"{checkpoint.model}.safetensors", pack_compact(shipped))


def card(source: Source, images: LabelledImages, test: LabelledImages) -> Card:
    """Measure a network as it was trained, as it is stored, and as an int8 file."""
    run, checkpoint = source.run, source.checkpoint
    stored = load_network(source.file)
    answers = [test_logits(network, test) for network in (load_network(run), stored)]
    trained, _ = split_images(images, checkpoint.training.val_fraction, checkpoint.training.seed)
    folder = run / "exported"
    export_network(stored, folder, trained, ExportConfig(precisions=("int8",)))
    with Session(folder / "model.int8.tflite") as session, progress("int8", len(test)) as advance:
        int8 = []
        for name in test.names:
            int8.append(session.predict(test.read(name)))
            advance()
    right = answers[1].argmax(1) == test.labels
    return Card(
        model=checkpoint.model,
        parameters=checkpoint.config.parameters,
        macs=checkpoint.config.macs,
        file=source.file,
        command=_command(run),
        training=checkpoint.training,
        origins=list(_origins(run, test)),
        processes=_summary(run)["processes"],
        epochs=checkpoint.epoch,
        seconds=_seconds(run, checkpoint),
        trained=accuracy(answers[0], test.labels),
        stored=accuracy(answers[1], test.labels),
        int8=accuracy(np.array(int8), test.labels),
        per_class={name: float(right[test.labels == label].mean()) for label, name in enumerate(test.classes)},
    )


def _origins(run: Path, test: LabelledImages) -> Iterator[Origin]:
    training = _summary(run)["training"]
    starts = [training["start"]] if training["start"] else []
    for role, paths in (("start", starts), ("teacher", training["teachers"])):
        for path in map(Path, paths):
            if path.is_absolute() and not path.exists():
                raise click.ClickException(
                    f"the {role} {path} is gone; put it back, for the card tells where it came from"
                )
            # Public weights have no run, and stand among the options.
            if origin := _run_of(path):
                network, checkpoint = load_network(path), read_checkpoint(path if path.is_file() else path / FILE_NAME)
                found = accuracy(test_logits(network, test), test.labels)
                seconds = _seconds(origin, checkpoint)
                yield Origin(role, _command(origin), network.config.parameters, checkpoint.epoch, seconds, found)


def _seconds(run: Path, checkpoint: Checkpoint) -> float:
    """How long the training took, to the checkpoint."""
    return sum(row.seconds for row in read_log(run, checkpoint.epoch))


def page(cards: Sequence[Card], runs: Sequence[Path], test: LabelledImages) -> Iterator[str]:
    """The model cards."""
    yield "# Weights that come with firebox"
    yield "This page and the files in `model_zoo/weights/shipped/` are written by"
    yield f"```sh\npython benchmarks/weights.py {' '.join(map(_in_runs, runs))}\n```"
    yield surroundings()
    yield (
        '`create_model("squeezenet_cifar", weights="default")`, `load_network("squeezenet_cifar")` and every command '
        "that takes a model by name use them. Kernels are stored in int8 with a scale for each output channel, which "
        "is what *stored* measures; *int8* is the TFLite file that `firebox export` makes of them, in LiteRT. "
        f"Accuracies are on the {len(test):,} test images of `{FOLDER}/{CIFAR}` ([where from](data.md)), which "
        "nothing was trained or chosen on."
    )
    yield table(
        ("network", "parameters", "MACs", "file", "trained", "stored", "int8", "aim"),
        [
            (
                each.model,
                f"{each.parameters:,}",
                f"{each.macs / 1e6:.1f} M",
                format_size(each.file.stat().st_size),
                *(f"{value:.2%}" for value in (each.trained, each.stored, each.int8)),
                _aim(each),
            )
            for each in cards
        ],
    )
    for each in cards:
        yield from _describe(each)


def _aim(card: Card) -> str:
    aim = _AIMS.get(card.model)
    return "" if aim is None else f"{aim:.1%}: {'reached' if card.stored >= aim else 'missed'}"


def _describe(card: Card) -> Iterator[str]:
    yield f"## {card.model}"
    yield (
        "For images like CIFAR-10's: one centred object of one of its ten classes, 32x32 pixels, in colour. It knows "
        "nothing else: what belongs to no class is given one of them all the same. The images were collected from "
        "the web without regard to who took them or where; accuracies by class are below."
    )
    processes = "1 process" if card.processes == 1 else f"{card.processes} processes"
    yield f"Trained in {card.epochs} epochs, {card.seconds / 3600:.1f} hours of {processes} on the CPU, by"
    yield f"```sh\n{card.command}\n```"
    for origin in card.origins:
        yield (
            f"Its {origin.role}, with {origin.parameters:,} parameters and an accuracy of {origin.trained:.2%}, in "
            f"{origin.epochs} epochs, {origin.seconds / 3600:.1f} hours, by"
        )
        yield f"```sh\n{origin.command}\n```"
    yield "All options:"
    yield "```json\n" + json.dumps(card.training.to_json(), indent=1) + "\n```"
    yield f"Its log is `model_zoo/weights/shipped/{card.model}.log.csv`."
    yield f"![Loss and accuracy over the epochs](weights-{card.model}.png)"
    yield f"SHA-256 of the file: `{sha256(card.file.read_bytes())}`."
    yield table(("class", "accuracy"), [(name, f"{value:.1%}") for name, value in card.per_class.items()])


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / CONFIG).read_text())


def _command(run: Path) -> str:
    """What began the run, without this machine's folders."""
    words = []
    for word in shlex.split(_summary(run)["command"]):
        path = Path(word)
        if path.is_absolute():
            words.append(f"{FOLDER}/{path.name}" if path.name == CIFAR else _in_runs(path))
        else:
            words.append(shlex.quote(word))
    return " ".join(words)


def _without_folders(training: TrainingConfig) -> TrainingConfig:
    """Where images and other runs lay is nobody else's."""
    teachers = tuple(_in_runs(teacher) for teacher in training.teachers)
    start = training.start and _in_runs(training.start)
    return replace(training, data=Path(training.data).name, teachers=teachers, start=start)


def _in_runs(path: str | Path) -> str:
    """A run, or a file of one, below ``runs``; other files by their names."""
    path = Path(path)
    run = _run_of(path)
    return f"runs/{path.relative_to(run.parent)}" if run else path.name


def _run_of(path: Path) -> Path | None:
    """The run that a file is of, or that the path is."""
    return next(
        (folder for folder in (path, *path.parents) if (folder / CONFIG).is_file() and (folder / LOG).is_file()), None
    )


if __name__ == "__main__":
    main()
