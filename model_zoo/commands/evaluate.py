"""The command ``evaluate``; torch is imported if one of the models needs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ...runtime.commands.console import print_json, progress_unless, table
from ...runtime.commands.options import json_option, threads_option
from ...runtime.errors import UsageError
from ...runtime.formats.read import format_of
from ...runtime.images import LabelledImages, open_images, sample, split_images
from ...runtime.inference import Classifier, Combine, Ensemble, Session, evaluate, installed_backends
from ...runtime.inference.installed import BACKENDS, NATIVE
from ...runtime.inference.session import check_threads
from ...runtime.progress import SILENT, Progress
from ..networks.registry import list_models
from ..training_config import TrainingConfig
from .options import needs_torch, weights_option

if TYPE_CHECKING:
    from ..network import TorchClassifier

_DEFAULTS = TrainingConfig()
_ENDINGS = (".onnx", ".tflite")


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True)
@click.option("--data", required=True, help="'digits', a folder of class folders, or a .tar or .zip of one.")
@weights_option("zoo models among MODELS")
@click.option(
    "--split",
    type=click.Choice(["auto", "all", "train", "val", "test"]),
    default="auto",
    show_default=True,
    help="Images to use: auto = the data's own test or val split, else all. For data without splits, val is the part "
    "that firebox train holds out with the same --seed and --val-fraction.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=_DEFAULTS.seed,
    show_default=True,
    help="Seed of the split and of --images.",
)
@click.option(
    "--val-fraction", type=float, default=_DEFAULTS.val_fraction, show_default=True, help="Fraction of images in val."
)
@click.option("--images", type=int, help="Number of images, drawn by --seed.  [default: all]")
@click.option(
    "--backend",
    type=click.Choice(["auto", "all", *BACKENDS, NATIVE]),
    default="auto",
    show_default=True,
    help="Runtime for exported files; all = every installed one.",
)
@threads_option
@click.option("--like", help="Model whose preprocessing and classes apply to files without firebox metadata.")
@click.option(
    "--combine",
    type=click.Choice(get_args(Combine)),
    help="Also evaluate MODELS as an ensemble: mean of the softmax, mean of the logits, or majority vote (ties are "
    "decided by the mean of the softmax).",
)
@json_option
@needs_torch
def evaluate_command(
    models: tuple[str, ...],
    data: str,
    weights: str | None,
    split: str,
    seed: int,
    val_fraction: float,
    images: int | None,
    backend: str,
    threads: int,
    like: str | None,
    combine: Combine | None,
    as_json: bool,
) -> None:
    """Measure the accuracy of MODELS on labelled images, and their agreement with the first model.

    MODELS are .onnx and .tflite files, folders of them, run folders, or names of the zoo. Files that firebox did not
    write lack preprocessing and classes: --like names a model with the same ones. Runs of firebox train --qat are
    evaluated in int8, like their files.

    \b
    Example:
      firebox evaluate build/micro --data digits --split val
      firebox evaluate squeezenet1_1 build/v11 --weights squeezenet1_1.pth --data images.tar --backend all
      firebox evaluate build/v11 theirs.tflite --like build/v11/model.float32.onnx --data images.tar
      firebox evaluate squeezenet1_0 squeezenet1_1 --weights imagenet --combine softmax --data images.tar
      firebox evaluate runs/one runs/two build/three/model.int8.tflite --combine softmax --data images.tar
    """
    progress = progress_unless(as_json)
    labelled = choose_split(open_images(data), split, val_fraction, seed)
    labelled = sample(labelled, images, seed) if images is not None else labelled
    classifiers = open_classifiers(models, weights, backend, threads, like, progress)
    if combine is not None:
        if len(classifiers) < 2:
            raise UsageError(f"--combine {combine} needs at least two models, not only {', '.join(classifiers)}")
        classifiers = {**classifiers, f"ensemble ({combine})": Ensemble(classifiers, combine)}
    found = evaluate(classifiers, labelled, progress=progress)
    first = found[0]
    if as_json:
        rows: Any = [result.to_json() | {"agreement_with_first": result.agreement(first)} for result in found]
        print_json({"data": data, "split": split, "combine": combine, "images": len(labelled), "models": rows})
        return
    cells = [
        (result.name, f"{result.top1:.2%}", f"{result.top5:.2%}", f"{result.agreement(first):.2%}") for result in found
    ]
    title = f"{len(labelled):,} images of {data}; agreement with {first.name}"
    table(title, ("model", "top-1", "top-5", "agreement"), cells)


def open_classifiers(
    names: Sequence[str],
    weights: str | Path | None,
    backend: str = "auto",
    threads: int = 1,
    like: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Classifier]:
    """Open the models of a command line: sessions of exported files and networks in torch, by display name.

    With ``backend`` "all", a file is opened in every installed backend. ``like`` names a file or network whose
    preprocessing and classes apply to files without a contract.
    """
    found: dict[str, Classifier] = {}
    check_threads(threads)
    if weights is not None and not {*names, like} & set(list_models()):
        raise UsageError(f"--weights {weights} needs a zoo name among MODELS; firebox models lists names")
    lender = _lender(like, weights, progress) if like is not None else None
    for name in names:
        files = _exported(Path(name))
        if not files:
            classifier = _torch(name, weights, progress)
            # After quantization-aware training the network is evaluated in int8.
            found[f"{name} (torch, int8)" if classifier.network.ranges else f"{name} (torch)"] = classifier
        for file in files:
            backends = (installed_backends(format_of(file)) or ["auto"]) if backend == "all" else [backend]
            for runtime in backends:
                session = Session(file, runtime, threads, lender)
                found[f"{file} ({session.backend})"] = session
    return found


def choose_split(images: LabelledImages, split: str, val_fraction: float, seed: int) -> LabelledImages:
    """The images of a split; for data without splits, ``val`` is the part that training holds out by ``seed``."""
    if split == "all":
        return images
    if split == "auto":
        return images.split("test") or images.split("val") or images
    own = {"val": images.split("val"), "test": images.split("test")}.get(split)
    if own is not None:
        return own
    if split == "test":
        raise UsageError(f"{images.source} has no folder 'test'; use --split val or all")
    trained, validated = split_images(images, val_fraction, seed)
    return trained if split == "train" else validated


def _lender(name: str, weights: str | Path | None, progress: Progress) -> Classifier:
    files = _exported(Path(name))
    return Session(files[0]) if files else _torch(name, weights, progress)


def _exported(path: Path) -> list[Path]:
    if path.suffix.lower() in _ENDINGS:
        return [path]
    return sorted(file for file in path.glob("*") if file.suffix.lower() in _ENDINGS) if path.is_dir() else []


def _torch(name: str, weights: str | Path | None, progress: Progress) -> "TorchClassifier":
    from ..network import TorchClassifier, load_network

    return TorchClassifier(load_network(name, weights if name in list_models() else None, progress=progress))
