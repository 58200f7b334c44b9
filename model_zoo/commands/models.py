"""The command ``models``."""

from typing import Any

import click

from ...runtime.commands.console import print_json, table
from ...runtime.commands.options import json_option
from ...runtime.errors import UsageError
from ...runtime.units import format_size
from ..networks.registry import find_model, list_models
from ..weights.names import weight_names
from .options import complete_model

_FLOAT32_BYTES = 4


@click.command("models")
@click.argument("pattern", default="*", shell_complete=complete_model)
@json_option
def models_command(pattern: str, as_json: bool) -> None:
    """List the networks of the zoo whose names match PATTERN, by default all.

    The size is that of the float32 parameters. Accuracies are published figures, on ImageNet unless the source names
    other images. The column weights lists names for --weights: default is in the package, imagenet is downloaded.

    \b
    Example:
      firebox models
      firebox models 'squeezenet1_*' --json
    """
    names = list_models(pattern)
    if not names:
        raise UsageError(f"no model matches {pattern!r}; the zoo has {', '.join(list_models())}")
    models = [_describe(name) for name in names]
    if as_json:
        print_json({"models": models})
        return
    rows = [
        (
            model["name"],
            f"{model['parameters']:,}",
            format_size(model["float32_bytes"]),
            f"{model['macs'] / 1e6:,.0f} M",
            "x".join(map(str, model["input"])),
            _percent(model["top1_percent"]),
            _percent(model["top5_percent"]),
            ", ".join(model["weights"]),
            model["source"],
        )
        for model in models
    ]
    table("Models", ("name", "parameters", "size", "MACs", "input", "top-1", "top-5", "weights", "source"), rows)


def _describe(name: str) -> dict[str, Any]:
    entry = find_model(name)
    config = entry.config
    return {
        "name": name,
        "family": config.family,
        "parameters": config.parameters,
        "float32_bytes": config.parameters * _FLOAT32_BYTES,
        "macs": config.macs,
        "input": [config.in_channels, *config.input_size],
        "classes": config.num_classes,
        "top1_percent": entry.top1,
        "top5_percent": entry.top5,
        "weights": weight_names(name),
        "source": entry.source,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"
