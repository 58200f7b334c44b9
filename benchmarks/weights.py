"""Packages trained runs as the weights included in firebox; writes their model cards to docs/weights.md."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import common
import numpy as np

from firebox.export import ExportConfig
from firebox.model_zoo import TrainingConfig, export_network, load_network
from firebox.model_zoo.training.log import LOG, read_log
from firebox.model_zoo.training.run import CONFIG, CURVES
from firebox.model_zoo.weights import Checkpoint, pack_compact, read_checkpoint
from firebox.model_zoo.weights.checkpoint import FILE_NAME
from firebox.runtime import LabelledImages, Session, format_size, open_images, split_images
from firebox.runtime.files import sha256, write_file, write_files

_PACKAGE = Path(__file__).resolve().parent.parent / "model_zoo" / "weights" / "shipped"
# The size limit of all files together, in bytes.
_LIMIT = 1_000_000
# Target test accuracies.
_AIMS = {"squeezenet_cifar": 0.94, "squeezenet_cifar_small": 0.90}


@dataclass(frozen=True)
class Origin:
    """A run that a network started from or was distilled from; its accuracy is on the test images."""

    role: str
    command: str
    parameters: int
    epochs: int
    seconds: float
    trained: float


@dataclass(frozen=True)
class Card:
    """The contents of one model card; accuracies are on the test images."""

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
@common.data_option
@common.out_option("weights.md")
@click.option("--package", type=click.Path(path_type=Path), default=_PACKAGE, help="Folder of the weights.")
def main(runs: tuple[Path, ...], data_folder: Path, out: Path, package: Path) -> None:
    """Store the weights of RUNS in the package and measure them.

    \b
    Example:
      python benchmarks/weights.py runs/squeezenet_cifar_again runs/squeezenet_cifar_small
    """
    sources = [Source.of(run, package) for run in runs]
    others = {file.stem for file in package.glob("*.safetensors")} - {each.checkpoint.model for each in sources}
    if others:
        raise click.ClickException(f"add the runs of {', '.join(sorted(others))}: the page describes all files")
    total = sum(len(each.data) for each in sources)
    if total > _LIMIT:
        raise click.ClickException(f"the files take {total:,} bytes in total, more than {_LIMIT:,}")
    for each in sources:
        log = (each.run / LOG).read_bytes()
        write_files(package, {each.file.name: each.data, f"{each.checkpoint.model}.{LOG}": log})
        write_file(out.with_name(f"weights-{each.checkpoint.model}.png"), (each.run / CURVES).read_bytes())
    images, test = open_images(data_folder / common.CIFAR), common.test_images(data_folder)
    common.write_page(out, page([card(source, images, test) for source in sources], runs, test))


@dataclass(frozen=True)
class Source:
    """A finished run, and its content in the package: ``data`` in ``file``."""

    run: Path
    checkpoint: Checkpoint
    file: Path
    data: bytes

    @classmethod
    def of(cls, run: Path, package: Path) -> "Source":
        """Raises ``ClickException`` for a run that has epochs left."""
        checkpoint = read_checkpoint(run / FILE_NAME)
        if checkpoint.epoch < checkpoint.training.epochs:
            raise click.ClickException(f"{run} has completed {checkpoint.epoch} of its epochs; resume it first")
        shipped = replace(checkpoint, training=_without_folders(checkpoint.training))
        return cls(run, shipped, package / f"{checkpoint.model}.safetensors", pack_compact(shipped))


def card(source: Source, images: LabelledImages, test: LabelledImages) -> Card:
    """Measure a network as trained, as stored, and as an int8 file."""
    run, checkpoint = source.run, source.checkpoint
    stored = load_network(source.file)
    logits = [common.test_logits(network, test) for network in (load_network(run), stored)]
    trained, _ = split_images(images, checkpoint.training.val_fraction, checkpoint.training.seed)
    folder = run / "exported"
    export_network(stored, folder, trained, ExportConfig(precisions=("int8",)), progress=common.terminal)
    with Session(folder / "model.int8.tflite") as session, common.terminal.task("int8", len(test)) as advance:
        int8 = []
        for name in test.names:
            int8.append(session.predict(test.read(name)))
            advance()
    right = logits[1].argmax(1) == test.labels
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
        trained=common.accuracy(logits[0], test.labels),
        stored=common.accuracy(logits[1], test.labels),
        int8=common.accuracy(np.array(int8), test.labels),
        per_class={name: float(right[test.labels == label].mean()) for label, name in enumerate(test.classes)},
    )


def _origins(run: Path, test: LabelledImages) -> Iterator[Origin]:
    training = _summary(run)["training"]
    starts = [training["start"]] if training["start"] else []
    for role, paths in (("starting network", starts), ("teacher", training["teachers"])):
        for path in map(Path, paths):
            if path.is_absolute() and not path.exists():
                raise click.ClickException(
                    f"the {role} {path} is missing; restore it, because the card describes its training"
                )
            # Public weights have no run; the options name them.
            if origin := _run_of(path):
                network, checkpoint = load_network(path), read_checkpoint(path if path.is_file() else path / FILE_NAME)
                found = common.accuracy(common.test_logits(network, test), test.labels)
                seconds = _seconds(origin, checkpoint)
                yield Origin(role, _command(origin), network.config.parameters, checkpoint.epoch, seconds, found)


def _seconds(run: Path, checkpoint: Checkpoint) -> float:
    """The training time up to the checkpoint."""
    return sum(row.seconds for row in read_log(run, checkpoint.epoch))


def page(cards: Sequence[Card], runs: Sequence[Path], test: LabelledImages) -> Iterator[str]:
    """The model cards."""
    yield "# Pretrained weights"
    yield "This page and the files in `model_zoo/weights/shipped/` are generated by"
    yield f"```sh\npython benchmarks/weights.py {' '.join(map(_in_runs, runs))}\n```"
    yield common.surroundings()
    yield (
        '`create_model("squeezenet_cifar", weights="default")`, `load_network("squeezenet_cifar")` and every command '
        "that takes a model name use them. *Trained* is the network as trained, *stored* the packaged file, whose "
        "kernels are int8 with one scale per output channel, and *int8* the TFLite file that `firebox export` makes "
        f"from it, in LiteRT. Accuracies are on the {len(test):,} test images of "
        f"`{common.FOLDER}/{common.CIFAR}` ([data](data.md)), "
        "which were used for no training and no choice."
    )
    yield common.table(
        ("network", "parameters", "MACs", "file size", "trained", "stored", "int8", "target"),
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
        "For images like those of CIFAR-10: one centred object of one of its ten classes, 32x32 pixels, in colour. The "
        "network has no class for anything else and assigns one of the ten to every image. The images were collected "
        "from the web without regard to who took them or where; accuracies by class are below."
    )
    processes = "1 process" if card.processes == 1 else f"{card.processes} processes"
    yield f"Trained in {card.epochs} epochs, {card.seconds / 3600:.1f} hours of {processes} on the CPU, with"
    yield f"```sh\n{card.command}\n```"
    for origin in card.origins:
        yield (
            f"Its {origin.role} has {origin.parameters:,} parameters and an accuracy of {origin.trained:.2%}, trained "
            f"in {origin.epochs} epochs and {origin.seconds / 3600:.1f} hours, with"
        )
        yield f"```sh\n{origin.command}\n```"
    yield "All options:"
    yield "```json\n" + json.dumps(card.training.to_json(), indent=1) + "\n```"
    yield f"The log is `model_zoo/weights/shipped/{card.model}.log.csv`."
    yield f"![Loss and accuracy over the epochs](weights-{card.model}.png)"
    yield f"SHA-256 of the file: `{sha256(card.file.read_bytes())}`."
    yield common.table(("class", "accuracy"), [(name, f"{value:.1%}") for name, value in card.per_class.items()])


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / CONFIG).read_text())


def _command(run: Path) -> str:
    """The command that started the run, without this machine's folders."""
    words = []
    for word in shlex.split(_summary(run)["command"]):
        path = Path(word)
        if path.is_absolute():
            words.append(f"{common.FOLDER}/{path.name}" if path.name == common.CIFAR else _in_runs(path))
        else:
            words.append(shlex.quote(word))
    return " ".join(words)


def _without_folders(training: TrainingConfig) -> TrainingConfig:
    """The options, without this machine's folders."""
    teachers = tuple(_in_runs(teacher) for teacher in training.teachers)
    start = training.start and _in_runs(training.start)
    return replace(training, data=Path(training.data).name, teachers=teachers, start=start)


def _in_runs(path: str | Path) -> str:
    """The path of a run, or of a file in one, below ``runs``; the name of any other file."""
    path = Path(path)
    run = _run_of(path)
    return f"runs/{path.relative_to(run.parent)}" if run else path.name


def _run_of(path: Path) -> Path | None:
    """The run that the path is, or is a file of."""
    return next(
        (folder for folder in (path, *path.parents) if (folder / CONFIG).is_file() and (folder / LOG).is_file()), None
    )


if __name__ == "__main__":
    main()
