"""What a command line names, opened: classifiers by file, folder or zoo name, and a split of the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import UsageError
from ...runtime.formats.read import format_of
from ...runtime.images import LabelledImages, split_images
from ...runtime.inference import Classifier, Session, installed_backends
from ...runtime.inference.session import check_threads
from ..networks.registry import list_models

if TYPE_CHECKING:
    from ..network import TorchClassifier

_ENDINGS = (".onnx", ".tflite")


def open_classifiers(
    names: Sequence[str], weights: str | Path | None, backend: str = "auto", threads: int = 1, like: str | None = None
) -> dict[str, Classifier]:
    """Sessions of exported files (in every installed backend for ``all``) and networks in torch, by a name to print.

    ``like`` names the file or network whose preprocessing and classes files of other makers take.
    """
    found: dict[str, Classifier] = {}
    check_threads(threads)
    if weights is not None and not {*names, like} & set(list_models()):
        raise UsageError(f"--weights {weights} goes with a name of the zoo among MODELS, and there is none")
    lender = _lender(like, weights) if like is not None else None
    for name in names:
        files = _exported(Path(name))
        if not files:
            classifier = _torch(name, weights)
            # A network that was trained for int8 is measured as it was trained.
            found[f"{name} (torch, int8)" if classifier.network.ranges else f"{name} (torch)"] = classifier
        for file in files:
            backends = (installed_backends(format_of(file)) or ["auto"]) if backend == "all" else [backend]
            for runtime in backends:
                session = Session(file, runtime, threads, lender)
                found[f"{file} ({session.backend})"] = session
    return found


def choose_split(images: LabelledImages, split: str, val_fraction: float, seed: int) -> LabelledImages:
    """The images of a split; ``val`` of data without splits is what training keeps by ``seed``."""
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


def _lender(name: str, weights: str | Path | None) -> Classifier:
    files = _exported(Path(name))
    return Session(files[0]) if files else _torch(name, weights)


def _exported(path: Path) -> list[Path]:
    if path.suffix.lower() in _ENDINGS:
        return [path]
    return sorted(file for file in path.glob("*") if file.suffix.lower() in _ENDINGS) if path.is_dir() else []


def _torch(name: str, weights: str | Path | None) -> "TorchClassifier":
    from ..network import TorchClassifier, load_network

    return TorchClassifier(load_network(name, weights if name in list_models() else None))
