"""The zoo's commands; torch is imported when one of them needs it."""

from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ..runtime.console import json_option, note, print_json, table
from ..runtime.errors import UsageError
from ..runtime.units import format_size, parse_size
from .registry import find_model, list_models
from .schedules import Schedule
from .training_config import Augment, Precision, TrainingConfig

_FLOAT32_BYTES = 4
_DEFAULTS = TrainingConfig()


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of the zoo for the shell's tab key."""
    return [CompletionItem(name) for name in list_models(f"{incomplete}*")]


@click.command("models")
@click.argument("pattern", default="*", shell_complete=complete_model)
@json_option
def models_command(pattern: str, as_json: bool) -> None:
    """List the networks of the zoo, all or those whose name matches PATTERN.

    Size is that of the float32 parameters; accuracies are the published ones on ImageNet.

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
            model["source"],
        )
        for model in models
    ]
    table(
        "Models", ("name", "parameters", "size", "MACs", "input", "top-1", "top-5", "source"), rows
    )


@click.command("train")
@click.argument("model", default=_DEFAULTS.model, shell_complete=complete_model)
@click.option(
    "--data",
    default=_DEFAULTS.data,
    show_default=True,
    help="'digits', a folder of class folders, or a .tar or .zip of one.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder to create.  [default: runs/MODEL]"
)
@click.option(
    "--resume",
    "run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with this run; its own options hold.",
)
@click.option(
    "--epochs",
    type=int,
    default=_DEFAULTS.epochs,
    show_default=True,
    help="Passes over the training pictures.",
)
@click.option(
    "--batch-size",
    type=int,
    default=_DEFAULTS.batch_size,
    show_default=True,
    help="Pictures per step.",
)
@click.option(
    "--lr", type=float, help="Highest learning rate.  [default: 0.1 with batch norm, 0.02 without]"
)
@click.option(
    "--momentum", type=float, default=_DEFAULTS.momentum, show_default=True, help="Momentum of SGD."
)
@click.option(
    "--weight-decay",
    type=float,
    default=_DEFAULTS.weight_decay,
    show_default=True,
    help="L2 decay of the kernels.",
)
@click.option(
    "--schedule",
    type=click.Choice(get_args(Schedule)),
    default=_DEFAULTS.schedule,
    show_default=True,
    help="How the rate falls to 0.",
)
@click.option(
    "--power",
    type=float,
    default=_DEFAULTS.power,
    show_default=True,
    help="Exponent of the polynomial schedule.",
)
@click.option(
    "--warmup",
    type=int,
    default=_DEFAULTS.warmup_epochs,
    show_default=True,
    help="Epochs in which the rate rises first.",
)
@click.option(
    "--label-smoothing",
    type=float,
    default=_DEFAULTS.label_smoothing,
    show_default=True,
    help="Share of the target spread over all classes.",
)
@click.option("--dropout", type=float, help="Dropout before the head.  [default: as in the zoo]")
@click.option(
    "--input-size", type=int, help="Height and width of the input.  [default: as in the zoo]"
)
@click.option(
    "--augment",
    type=click.Choice(get_args(Augment)),
    help="light: turn, shift, scale; standard: mirror, shift.  "
    "[default: light for digits, else standard]",
)
@click.option(
    "--val-fraction",
    type=float,
    default=_DEFAULTS.val_fraction,
    show_default=True,
    help="Share of the pictures kept to validate, unless the data names them.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Arithmetic of training.  [default: bf16 where the processor has it]",
)
@click.option(
    "--threads",
    type=int,
    help="Threads that compute.  [default: 1 for small networks, else all cores]",
)
@click.option(
    "--seed",
    type=int,
    default=_DEFAULTS.seed,
    show_default=True,
    help="Decides weights, order, augmentation and split.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
@click.option(
    "--memory",
    default="2GiB",
    show_default=True,
    help="Keep decoded pictures in memory up to this size.",
)
@click.option(
    "--workers",
    type=int,
    help="Processes or threads that decode pictures.  [default: one per core]",
)
@json_option
@click.pass_context
def train_command(
    context: click.Context,
    model: str,
    out: Path | None,
    run: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network of the zoo, squeezenet_micro unless MODEL is given, into a run folder.

    A run that was stopped goes on with --resume to exactly the weights it would have reached.

    \b
    Example:
      firebox train squeezenet_micro --data digits --out runs/digits
      firebox train squeezenet_cifar --data cifar10-images.tar --epochs 60 --batch-size 128
      firebox train --resume runs/digits
    """
    find_model(model)
    from . import Resources, resume, train

    resources = Resources(
        options.pop("device"), parse_size(options.pop("memory")), options.pop("workers")
    )
    if run is not None:
        _only_with_resume(context)
        moved = context.get_parameter_source("data") is ParameterSource.COMMANDLINE
        result = resume(run, resources, data=options["data"] if moved else None, quiet=as_json)
    else:
        size, rate = options.pop("input_size"), options.pop("lr")
        config = TrainingConfig(
            model=model,
            learning_rate=rate,
            input_size=(size, size) if size is not None else None,
            warmup_epochs=options.pop("warmup"),
            **options,
        )
        result = train(config, out or Path("runs") / model, resources, quiet=as_json)
    if as_json:
        print_json(result.to_json())
        return
    note(f"trained {result.model} ({result.parameters:,} parameters) in {result.seconds:,.0f} s")
    click.echo(
        f"validation accuracy {result.val_accuracy:.2%} on {result.val_pictures:,} pictures; "
        f"checkpoint {result.checkpoint}"
    )


def _only_with_resume(context: click.Context) -> None:
    """Refuse options beside --resume that would make it another run."""
    allowed = {"run", "data", "device", "memory", "workers", "as_json"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in allowed:
            raise UsageError(
                f"{parameter.opts[0]} cannot be changed with --resume; the run's own options hold"
            )


def _describe(name: str) -> dict[str, Any]:
    entry = find_model(name)
    config = entry.config
    return {
        "name": name,
        "parameters": config.parameters,
        "float32_bytes": config.parameters * _FLOAT32_BYTES,
        "macs": config.macs,
        "input": [config.in_channels, *config.input_size],
        "classes": config.num_classes,
        "top1_percent": entry.top1,
        "top5_percent": entry.top5,
        "source": entry.source,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"
