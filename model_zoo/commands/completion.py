"""What the shell's tab key offers."""

import click
from click.shell_completion import CompletionItem

from ..networks.registry import list_models


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the zoo."""
    return [CompletionItem(name) for name in list_models(f"{incomplete}*")]
