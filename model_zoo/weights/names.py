"""Weights that a name stands for: those that come with firebox, and public ones, downloaded when asked for."""

from pathlib import Path

from ...runtime.errors import UsageError
from ...runtime.progress import SILENT, Progress
from ..networks.registry import find_model, list_models

# Name of the weights that come with firebox, and their folder: checkpoints without the state of an optimizer.
DEFAULT = "default"
_FOLDER = Path(__file__).parent / "shipped"


def weight_names(model: str) -> list[str]:
    """Names of the weights that there are for a network of the zoo, those that need no download first."""
    public = sorted(find_model(model).public)
    return [DEFAULT, *public] if _shipped(model).is_file() else public


def find_weights(model: str, weights: str | Path | None = None, *, progress: Progress = SILENT) -> Path:
    """The file of weights for a network of the zoo, from a name (nothing: ``default``) or from a path.

    Public weights (``imagenet``) are downloaded into the cache unless they are there. A ``Path`` is never taken for a
    name. Raises ``UsageError`` for a name that the network has no weights of, and ``DownloadError``.
    """
    names = weight_names(model)
    name = DEFAULT if weights is None else weights
    if isinstance(name, Path) or not (name in _known() or _looks_like_name(name)):
        return Path(name)
    if name not in names:
        others = "".join(f"--weights {other}, " for other in names if other != DEFAULT)
        missing = "no weights come with it" if name == DEFAULT else f"it has no weights {name!r}"
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
    """No folder, no ending, and nothing of that name here."""
    path = Path(weights)
    return path.name == weights and not path.suffix and not path.exists()
