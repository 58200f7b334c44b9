"""Options and checks that several commands of the zoo share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from ...runtime.errors import MissingExtraError
from ..extras import EXTRAS
from ..networks.registry import list_models


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the zoo for shell completion."""
    return [CompletionItem(name) for name in list_models(f"{incomplete}*")]


def weights_option(models: str) -> Callable[[Any], Any]:
    """The option ``--weights``; ``models`` names the models it applies to."""
    return click.option(
        "--weights",
        help=f"Weights for {models}: a file (.safetensors, .pth, .net) or a name that firebox models lists; imagenet "
        "is downloaded to $FIREBOX_CACHE or ~/.cache/firebox.  [default: the weights in the package]",
    )


def needs_torch(command: Callable[..., Any]) -> Callable[..., Any]:
    """Raise ``MissingExtraError`` if a package of the extra ``train`` is missing when ``command`` imports it."""

    @wraps(command)
    def checked(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except ModuleNotFoundError as error:
            missing = MissingExtraError.from_import(error, EXTRAS)
            if missing is None:
                raise
            raise missing from error

    return checked
