"""The command ``train``; torch is imported when training begins."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from ...runtime.commands.console import note, print_json, progress_unless, say
from ...runtime.commands.options import json_option
from ...runtime.errors import UsageError
from ...runtime.units import parse_size
from ..fields import with_tuples
from ..networks.registry import find_model
from ..recipes import load_recipe
from ..training_config import Augment, FreezeSchedule, Optimizer, Precision, Schedule, TrainingConfig
from .options import complete_model

if TYPE_CHECKING:
    from ..training import TrainingResult

_DEFAULTS = TrainingConfig()
# Options that are shorter than the names of their fields.
_FIELDS = {"lr": "learning_rate", "warmup": "warmup_epochs", "teacher": "teachers"}
# Options that have no effect without another option, and whether a config has it.
_REQUIRES: Mapping[str, tuple[str, Callable[[TrainingConfig], bool]]] = {
    "power": ("--schedule polynomial", lambda config: config.schedule == "polynomial"),
    "muon_rate": ("--optimizer muon", lambda config: config.optimizer == "muon"),
    "freeze_first": ("--freezeout", lambda config: config.freezeout is not None),
    "freeze_scaled": ("--freezeout", lambda config: config.freezeout is not None),
    "temperature": ("--teacher", lambda config: bool(config.teachers)),
    "teacher_share": ("--teacher", lambda config: bool(config.teachers)),
}
# Options that set the learning rates, and the options of a recipe that they replace.
_CYCLES = ("snapshots", "freezeout")
_SCHEDULE = ("schedule", "power", "warmup_epochs")


def _option(flag: str, kind: Any, text: str, **more: Any) -> Callable[[Any], Any]:
    """An option for a field of ``TrainingConfig``; its help shows the default unless that is empty or boolean."""
    name = _FIELDS.get(name := flag.removeprefix("--").partition("/")[0].replace("-", "_"), name)
    default = getattr(_DEFAULTS, name)
    if default not in (None, (), "") and "[default" not in text and not isinstance(default, bool):
        text = f"{text}  [default: {default}]"
    # None marks an option that was not given: the recipe or the run to fine-tune decides.
    return click.option(flag, name, type=kind, default=None, help=text, **more)


_OPTIONS = (
    _option("--data", str, "'digits', a folder with one folder per class, or a .tar or .zip of one."),
    _option("--images-per-class", int, "Number of training images per class, drawn by seed.  [default: all]"),
    _option("--epochs", int, f"Passes over the training images.  [default: {_DEFAULTS.epochs}; 3 with --qat]"),
    _option("--iterations", int, "Number of steps, instead of --epochs."),
    _option("--batch-size", int, "Images per step, over all processes."),
    _option("--accumulation", int, "Parts of a batch that are computed in sequence, to save memory."),
    _option(
        "--lr",
        float,
        "Peak learning rate.  [default: 0.1 with batch norm, 0.02 without, a tenth with --start; 0.0005 with --qat]",
    ),
    _option(
        "--optimizer",
        click.Choice(get_args(Optimizer)),
        "muon: orthogonalized steps for kernels followed by batch norm, SGD for the rest.",
    ),
    _option("--muon-rate", float, "With --optimizer muon: peak learning rate of its kernels; --lr is for the rest."),
    _option("--momentum", float, "Momentum of SGD and Muon."),
    _option("--nesterov/--no-nesterov", None, "Use Nesterov momentum."),
    _option("--weight-decay", float, "Weight decay of kernels, except Muon's."),
    _option("--schedule", click.Choice(get_args(Schedule)), "Decay of the learning rate to 0."),
    _option("--power", float, "Exponent of the polynomial schedule."),
    _option(
        "--warmup", int, "Warm-up epochs.  [default: 1 for five epochs or more, 0 with --snapshots or --freezeout]"
    ),
    _option("--label-smoothing", float, "Share of the target that is spread over all classes."),
    _option("--dropout", float, "Dropout before the head.  [default: as in the zoo]"),
    _option("--input-size", int, "Height and width of the input.  [default: as in the zoo or --start]"),
    _option(
        "--augment",
        click.Choice(get_args(Augment)),
        "light: rotate, shift, scale; standard: flip, shift; cutout: standard with a blank square.  "
        "[default: light for grayscale, else standard; none with --learn head]",
    ),
    _option("--mixup", float, "Alpha of mixup; 0 disables it."),
    _option("--cutmix", float, "Alpha of CutMix; 0 disables it."),
    _option("--ema", float, "Decay of an exponential moving average of the weights, such as 0.999; 0 disables it."),
    _option("--snapshots", int, "Snapshot ensemble: number of cosine cycles; a checkpoint is kept after each."),
    _option("--freezeout", click.Choice(get_args(FreezeSchedule)), "Freeze layers progressively by this schedule."),
    _option(
        "--freeze-first",
        float,
        "With --freezeout: share of the steps until the first layer is frozen, before it is squared or cubed.",
    ),
    _option(
        "--freeze-scaled/--freeze-unscaled",
        None,
        "With --freezeout: raise the learning rate of layers that freeze early, or use one rate.  [default: scaled]",
    ),
    _option("--start", str, "Run, checkpoint or file with initial weights; other classes get a new head."),
    _option(
        "--learn", str, "Layers to train: all, head (on features computed once), or N: the head and the last N blocks."
    ),
    _option("--layer-decay", float, "Factor of the learning rate from each block to the block below it."),
    _option("--teacher", str, "Teacher run or checkpoint to distil from; repeat to average several.", multiple=True),
    _option("--temperature", float, "With --teacher: temperature that softens logits."),
    _option("--teacher-share", float, "With --teacher: share of the distillation term in the loss."),
    _option("--validate-every", int, "Epochs between validations."),
    _option("--val-fraction", float, "Share of the images kept for validation, unless the data has a val folder."),
    _option("--precision", click.Choice(get_args(Precision)), "Arithmetic.  [default: bf16 if the CPU supports it]"),
    _option("--compile/--no-compile", None, "Compile the network with torch.compile."),
    _option("--threads", int, "Threads for computation.  [default: 1 for small networks, else one per core]"),
    _option("--seed", int, "Seed of weights, order, augmentation and split."),
)


def _config_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("train")
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to create.  [default: runs/MODEL]")
@click.option(
    "--resume",
    "run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Continue this run with its own options; --data and --teacher give new paths if files have moved.",
)
@click.option(
    "--qat",
    type=click.Path(path_type=Path),
    metavar="FLOAT",
    help="Fine-tune this run, checkpoint, or weights of MODEL with the int8 arithmetic of its exported files.",
)
@click.option(
    "--recipe",
    metavar="NAME",
    help="Recipe (see firebox recipes) or .toml file with options; options on the command line override it.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the network's config, such as bypass=none or squeeze_ratio=0.5; repeatable.",
)
@_config_options
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device to train on.",
)
@click.option(
    "--memory",
    default="2GiB",
    show_default=True,
    help="Memory for decoded images and features.",
)
@click.option("--workers", type=int, help="Processes or threads that decode images.  [default: one per core]")
@json_option
@click.pass_context
def train_command(
    context: click.Context,
    model: str | None,
    out: Path | None,
    run: Path | None,
    qat: Path | None,
    recipe: str | None,
    changes: tuple[str, ...],
    device: str,
    memory: str,
    workers: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network of the zoo (default: squeezenet_micro) into a run folder.

    --resume continues an interrupted run and reaches the same weights as without the interruption. --qat fine-tunes a
    trained network with fake quantization, by default with the options of its own run; firebox export then writes
    exactly the integers that were trained. Several processes or machines train together under torchrun.

    \b
    Example:
      firebox train squeezenet_micro --data digits --out runs/digits
      firebox train --recipe cifar10 --data cifar10-images.tar --out runs/cifar
      firebox train --resume runs/digits
      firebox train --qat runs/digits --out runs/digits-int8
      firebox train squeezenet_cifar --data cifar10-images.tar --epochs 60 --snapshots 5
      firebox train squeezenet1_1 --start squeezenet1_1.pth --learn 2 --set head_relu=false --data photos
      firebox train --teacher runs/a --teacher runs/b --data digits --out runs/student
      torchrun --nproc-per-node 2 --no-python firebox train squeezenet_cifar --data cifar10-images.tar
    """
    given = _config_values(model, recipe, changes, options)
    from ..training import Resources, quantized_config, resume, train, train_quantized
    from ..training.distributed import is_leader

    resources, command = Resources(device, parse_size(memory), workers), shlex.join(["firebox", *sys.argv[1:]])
    progress = progress_unless(as_json)
    if run is not None:
        _check_resume(context)
        result = resume(run, resources, data=options["data"], teachers=options["teachers"], progress=progress)
    elif qat is not None:
        from ..network import load_network

        network = load_network(given.pop("model"), qat) if "model" in given else load_network(qat)
        config = _checked(replace(quantized_config(network), **given), options)
        folder = out or Path("runs") / f"{network.name}-int8"
        result = train_quantized(network, config, folder, resources, command=command, progress=progress)
    else:
        config = _checked(replace(_DEFAULTS, **given), options)
        folder = out or Path("runs") / config.model
        result = train(config, folder, resources, command=command, progress=progress)
    if not is_leader():
        return
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)


def _show(result: "TrainingResult") -> None:
    note(f"trained {result.model} ({result.parameters:,} parameters) in {result.seconds:,.0f} s")
    if result.predicted_saving is not None:
        measured = "not available: a layer was frozen in the first epoch"
        if result.measured_saving is not None:
            measured = f"{result.measured_saving:.1%} of the time"
        note(f"FreezeOut savings: predicted {result.predicted_saving:.1%} of the arithmetic; measured {measured}")
    if result.snapshots:
        names = " ".join(map(str, result.snapshots))
        note(f"evaluate the snapshot ensemble with: firebox evaluate {names} --combine softmax")
    accuracy = f"{result.val_accuracy:.2%}{' in int8' if result.quantized else ''}"
    say(f"validation accuracy {accuracy} on {result.val_images:,} images; checkpoint {result.checkpoint}")


def _config_values(
    model: str | None, recipe: str | None, changes: tuple[str, ...], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of ``TrainingConfig`` that the command line and its recipe set."""
    given = _given(options) if recipe is None else _overridden(load_recipe(recipe), _given(options))
    if changes:
        given["network"] = {**TrainingConfig(network=given.get("network", {})).network, **_parsed(changes)}
    if model is not None:
        find_model(model)
        given["model"] = model
    return given


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``TrainingConfig`` that options set."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "input_size" in given:
        given["input_size"] = (given["input_size"],) * 2
    if (learn := given.get("learn", "")).isdecimal() and len(learn) < 9:
        given["learn"] = int(learn)
    return given


def _overridden(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields, overridden by those given; fields that contradict the given ones are dropped."""
    dropped = set[str]()
    if any(name in given for name in _CYCLES):
        dropped |= {*_SCHEDULE, *_CYCLES}
    if "epochs" in given:
        dropped.add("iterations")
    return {**{name: value for name, value in recipe.items() if name not in dropped}, **given}


def _parsed(changes: tuple[str, ...]) -> dict[str, Any]:
    """Values of ``KEY=VALUE`` by key, parsed as JSON or else taken as strings."""
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change!r} is not KEY=VALUE; write it as squeeze_ratio=0.5")
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):
            values[key] = text
    return with_tuples(values)


def _checked(config: TrainingConfig, options: Mapping[str, Any]) -> TrainingConfig:
    """The config. Raises ``UsageError`` for options that would have no effect."""
    for name, (required, present) in _REQUIRES.items():
        if options[name] is not None and not present(config):
            raise UsageError(f"--{name.replace('_', '-')} has no effect without {required}; add it or leave both out")
    if options["nesterov"] is False and config.optimizer == "muon":
        raise UsageError("--no-nesterov has no effect with --optimizer muon, which always uses Nesterov; leave it out")
    if options["epochs"] is not None and options["iterations"] is not None:
        raise UsageError("--epochs and --iterations both set the length of the training; use one of them")
    return config


def _check_resume(context: click.Context) -> None:
    """Raise ``UsageError`` for options that --resume cannot change; paths of data and teachers may change."""
    allowed = {"run", "data", "teachers", "device", "memory", "workers", "as_json"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in allowed:
            raise UsageError(f"--resume uses the run's own options; leave out {parameter.opts[0]}")
