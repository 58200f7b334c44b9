"""``firebox train``; torch is imported when training begins."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from ...runtime.commands.console import note, print_json, say
from ...runtime.commands.options import json_option
from ...runtime.errors import UsageError
from ...runtime.units import parse_size
from ..fields import with_tuples
from ..networks.registry import find_model
from ..recipes import load_recipe
from ..training_config import Augment, FreezeSchedule, Optimizer, Precision, Schedule, TrainingConfig
from .options import complete_model

if TYPE_CHECKING:
    from .. import TrainingResult

_DEFAULTS = TrainingConfig()
# Options whose names are shorter than those of what they set.
_FIELDS = {"lr": "learning_rate", "warmup": "warmup_epochs", "teacher": "teachers"}
# Options that say nothing without another, and when that one is given.
_WITH: Mapping[str, tuple[str, Callable[[TrainingConfig], bool]]] = {
    "power": ("--schedule polynomial", lambda config: config.schedule == "polynomial"),
    "muon_rate": ("--optimizer muon", lambda config: config.optimizer == "muon"),
    "freeze_first": ("--freezeout", lambda config: config.freezeout is not None),
    "freeze_scaled": ("--freezeout", lambda config: config.freezeout is not None),
    "temperature": ("--teacher", lambda config: bool(config.teachers)),
    "teacher_share": ("--teacher", lambda config: bool(config.teachers)),
}
# What sets the rates, in whose place a recipe's schedule does not stand.
_CYCLES = ("snapshots", "freezeout")
_SCHEDULE = ("schedule", "power", "warmup_epochs")


def _option(flag: str, kind: Any, text: str, **more: Any) -> Callable[[Any], Any]:
    """An option for a field of ``TrainingConfig``; its default is shown where the field has one that says something."""
    name = _FIELDS.get(name := flag.removeprefix("--").partition("/")[0].replace("-", "_"), name)
    default = getattr(_DEFAULTS, name)
    if default not in (None, (), "") and "[default" not in text and not isinstance(default, bool):
        text = f"{text}  [default: {default}]"
    # Left out, an option stays None: the recipe or the run before decides.
    return click.option(flag, name, type=kind, default=None, help=text, **more)


_OPTIONS = (
    _option("--data", str, "'digits', a folder of class folders, or a .tar or .zip of one."),
    _option("--images-per-class", int, "Train on so many images of each class, drawn by seed.  [default: all]"),
    _option("--epochs", int, f"Passes over the training images.  [default: {_DEFAULTS.epochs}; 3 with --qat]"),
    _option("--iterations", int, "Steps to train, instead of whole epochs."),
    _option("--batch-size", int, "Images per step, over all processes."),
    _option("--accumulation", int, "Parts that a batch is computed in, one after the other."),
    _option(
        "--lr",
        float,
        "Highest learning rate.  [default: 0.1 with batch norm, 0.02 without, a tenth with --start; 0.0005 with --qat]",
    ),
    _option("--optimizer", click.Choice(get_args(Optimizer)), "muon: orthogonal steps for kernels with batch norm."),
    _option("--muon-rate", float, "With --optimizer muon: highest rate of those kernels; --lr is that of all others."),
    _option("--momentum", float, "Momentum of SGD, and of Muon."),
    _option("--nesterov/--no-nesterov", None, "Nesterov's momentum."),
    _option("--weight-decay", float, "L2 decay of the kernels that are not Muon's."),
    _option("--schedule", click.Choice(get_args(Schedule)), "How the rate falls to 0."),
    _option("--power", float, "Exponent of the polynomial schedule."),
    _option("--warmup", int, "Epochs in which the rate rises first.  [default: 1 where --schedule sets five or more]"),
    _option("--label-smoothing", float, "Share of the target spread over all classes."),
    _option("--dropout", float, "Dropout before the head.  [default: as in the zoo]"),
    _option("--input-size", int, "Height and width of the input.  [default: as in the zoo, or in --start]"),
    _option(
        "--augment",
        click.Choice(get_args(Augment)),
        "light: turn, shift, scale; standard: mirror, shift; cutout: that, and a square is blank.  [default: light in "
        "grey, else standard; none for a head]",
    ),
    _option("--mixup", float, "Alpha of mixup; 0 for none."),
    _option("--cutmix", float, "Alpha of CutMix; 0 for none."),
    _option("--ema", float, "Keep an average of the weights with this decay, such as 0.999; 0 for none."),
    _option("--snapshots", int, "Snapshot ensemble: so many cosine cycles, the weights kept at the end of each."),
    _option("--freezeout", click.Choice(get_args(FreezeSchedule)), "Freeze layer after layer, by this schedule."),
    _option(
        "--freeze-first",
        float,
        "With --freezeout: share of the steps after which the first layer is frozen, before it is squared or cubed.",
    ),
    _option(
        "--freeze-scaled/--freeze-unscaled",
        None,
        "With --freezeout: rates in proportion to the layer's time, or the same for all.  [default: scaled]",
    ),
    _option("--start", str, "Begin with the weights of this run, checkpoint or file; a head for other classes is new."),
    _option("--learn", str, "What learns: all, head (on codes computed once), or so many last blocks and the head."),
    _option("--layer-decay", float, "Each block learns at so many times the rate of the block above."),
    _option("--teacher", str, "Distil from this run or checkpoint; again for the mean of several.", multiple=True),
    _option("--temperature", float, "With --teacher: softens answers."),
    _option("--teacher-share", float, "With --teacher: share of the loss that follows the teacher."),
    _option("--validate-every", int, "Epochs from one validation to the next."),
    _option("--val-fraction", float, "Share of the images kept to validate, unless the data names them."),
    _option("--precision", click.Choice(get_args(Precision)), "Arithmetic.  [default: bf16 where the CPU has it]"),
    _option("--compile/--no-compile", None, "Compile the network first (torch.compile)."),
    _option("--threads", int, "Threads that compute.  [default: 1 for small networks, else all cores]"),
    _option("--seed", int, "Decides weights, order, augmentation and split."),
)


def _all(command: Callable[..., None]) -> Callable[..., None]:
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
    help="Go on with this run; its own options hold. --data and --teacher say where they are now.",
)
@click.option(
    "--qat",
    type=click.Path(path_type=Path),
    metavar="FLOAT",
    help="Fine-tune this run, checkpoint, or weights of MODEL, in the integers of its int8 files.",
)
@click.option(
    "--recipe", metavar="NAME", help="Options of a recipe (see firebox recipes) or a .toml file; others override."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the network's config, such as bypass=none or squeeze_ratio=0.5; again for each.",
)
@_all
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
    help="Keep decoded images, and codes, in memory up to this size.",
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
    """Train a network of the zoo, squeezenet_micro unless MODEL is given, into a run folder.

    A run that was stopped goes on with --resume to exactly the weights it would have reached. With --qat a trained
    network learns to answer in int8, with the options of its own run where others are not given; firebox export then
    writes the integers that it was trained with. Several processes or machines train together under torchrun.

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
    given = _given(options) if recipe is None else _over(load_recipe(recipe), _given(options))
    if changes:
        given["network"] = {**TrainingConfig(network=given.get("network", {})).network, **_changes(changes)}
    if model is not None:
        find_model(model)
        given["model"] = model
    from .. import Resources, load_network, quantized_config, resume, train, train_quantized
    from ..training.distributed import is_leader

    resources, command = Resources(device, parse_size(memory), workers), shlex.join(["firebox", *sys.argv[1:]])
    if run is not None:
        _only_with_resume(context)
        result = resume(run, resources, data=options["data"], teachers=options["teachers"], quiet=as_json)
    elif qat is None:
        config = replace(_DEFAULTS, **given)
        _check_partners(config, options)
        result = train(config, out or Path("runs") / config.model, resources, command=command, quiet=as_json)
    else:
        network = load_network(given.pop("model"), qat) if "model" in given else load_network(qat)
        config = replace(quantized_config(network), **given)
        _check_partners(config, options)
        folder = out or Path("runs") / f"{network.name}-int8"
        result = train_quantized(network, config, folder, resources, command=command, quiet=as_json)
    if not is_leader():
        return
    if as_json:
        print_json(result.to_json())
        return
    _show(result)


def _show(result: "TrainingResult") -> None:
    note(f"trained {result.model} ({result.parameters:,} parameters) in {result.seconds:,.0f} s")
    if result.predicted_saving is not None:
        measured = "not to be told: the first epoch froze a layer"
        if result.measured_saving is not None:
            measured = f"{result.measured_saving:.1%} of the time"
        note(f"freezing: {result.predicted_saving:.1%} of the arithmetic saved, as predicted; measured: {measured}")
    if result.snapshots:
        names = " ".join(map(str, result.snapshots))
        note(f"snapshots, to be asked together: firebox evaluate {names} --combine softmax")
    accuracy = f"{result.val_accuracy:.2%}{' in int8' if result.quantized else ''}"
    say(f"validation accuracy {accuracy} on {result.val_images:,} images; checkpoint {result.checkpoint}")


def _over(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the options that were given in place of its own, and of those that they make void."""
    void = set[str]()
    if any(name in given for name in _CYCLES):
        void |= {*_SCHEDULE, *_CYCLES}
    if "epochs" in given:
        void.add("iterations")
    return {**{name: value for name, value in recipe.items() if name not in void}, **given}


def _check_partners(config: TrainingConfig, options: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for options that would do nothing."""
    for name, (partner, there) in _WITH.items():
        if options[name] is not None and not there(config):
            raise UsageError(f"--{name.replace('_', '-')} says nothing without {partner}; give that, or leave it out")
    if options["nesterov"] is False and config.optimizer == "muon":
        raise UsageError("--no-nesterov says nothing to muon, whose momentum is always Nesterov's; leave it out")
    if options["epochs"] is not None and options["iterations"] is not None:
        raise UsageError("--epochs and --iterations both say how long to train; choose one")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``TrainingConfig`` that options set."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "input_size" in given:
        given["input_size"] = (given["input_size"],) * 2
    if (learn := given.get("learn", "")).isdecimal() and len(learn) < 9:
        given["learn"] = int(learn)
    return given


def _changes(changes: tuple[str, ...]) -> dict[str, Any]:
    """``KEY=VALUE`` as values of a config; what is not JSON is text."""
    found: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change!r} is not KEY=VALUE; write it as squeeze_ratio=0.5")
        try:
            found[key] = json.loads(text)
        except (ValueError, RecursionError):
            found[key] = text
    return with_tuples(found)


def _only_with_resume(context: click.Context) -> None:
    """Refuse options beside --resume that would make it another run; data and teachers may have moved."""
    allowed = {"run", "data", "teachers", "device", "memory", "workers", "as_json"}
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in allowed:
            raise UsageError(f"{parameter.opts[0]} cannot be changed with --resume; the run's own options hold")
