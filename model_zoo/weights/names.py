"""Weights by name: weights in the package, and published weights that are downloaded."""

from pathlib import Path

from ...runtime.errors import UsageError
from ...runtime.progress import SILENT, Progress
from ..networks.registry import find_model, list_models

# Name and folder of the weights in the package: checkpoints without training state.
DEFAULT = "default"
_FOLDER = Path(__file__).parent / "shipped"


def weight_names(model: str) -> list[str]:
    """Names of the weights available for a zoo network; weights that need no download come first."""
    public = sorted(find_model(model).public)
    return [DEFAULT, *public] if _shipped(model).is_file() else public


def find_weights(model: str, weights: str | Path | None = None, *, progress: Progress = SILENT) -> Path:
    """The file of a zoo network's weights, by name (by default ``default``) or path.

    Published weights (``imagenet``) are downloaded to the cache, unless they are in it. A ``Path`` is never read as a
    name. Raises ``UsageError`` for a name the network has no weights for, and ``DownloadError``.
    """
    names = weight_names(model)
    name = DEFAULT if weights is None else weights
    if isinstance(name, Path) or not (name in _known() or _looks_like_name(name)):
        return Path(name)
    if name not in names:
        others = "".join(f"--weights {other}, " for other in names if other != DEFAULT)
        missing = "the package has no weights for it" if name == DEFAULT else f"it has no weights {name!r}"
        raise UsageError(
            f"model {model!r}: {missing}; pass {others}--weights FILE, or a run folder that firebox train wrote"
        )
    if name == DEFAULT:
        return _shipped(model)
    from .download import fetch

    public = find_model(model).public[name]
    return fetch(public.url, public.sha256, progress=progress)


def _shipped(model: str) -> Path:
    return _FOLDER / f"{model}.safetensors"


def _known() -> set[str]:
    return {DEFAULT}.union(*(find_model(model).public for model in list_models()))


def _looks_like_name(weights: str) -> bool:
    """True for a name without folder and suffix, if no file has that name."""
    path = Path(weights)
    return path.name == weights and not path.suffix and not path.exists()
