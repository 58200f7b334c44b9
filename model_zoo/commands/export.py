"""The zoo's commands; torch is imported when one of them needs it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ...export.commands.fit import advise, show_fit
from ...runtime.commands.console import note, print_json, progress_unless, say, table
from ...runtime.commands.options import budget_options, fit_target_option, json_option
from ...runtime.errors import MissingExtraError, UsageError
from ...runtime.inference import Combine, Ensemble
from ...runtime.units import format_size, parse_size
from ..networks.registry import find_model, list_models
from ..training_config import TrainingConfig
from ..weights.names import weight_names
from .completion import complete_model

if TYPE_CHECKING:
    from ..demo import Demo

_FLOAT32_BYTES = 4
_DEFAULTS = TrainingConfig()
_WEIGHTS = (
    "a file (.safetensors, .pth, .net) or a name that firebox models shows: imagenet is downloaded into "
    "$FIREBOX_CACHE or ~/.cache/firebox.  [default: those that come with firebox]"
)


@click.command("models")
@click.argument("pattern", default="*", shell_complete=complete_model)
@json_option
def models_command(pattern: str, as_json: bool) -> None:
    """List the networks of the zoo, all or those whose name matches PATTERN.

    Size is that of the float32 parameters; accuracies are the published ones, on ImageNet where SOURCE names
    no other images. Weights are names for --weights: default come with firebox, imagenet are downloaded when they
    are asked for.

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


@click.command("export")
@click.argument("model", shell_complete=complete_model)
@click.option("--weights", help=f"For a MODEL of the zoo: {_WEIGHTS}")
@click.option("--num-classes", type=int, help="Classes of the weights' head.  [default: as in the weights]")
@click.option("--input-size", type=int, help="Height and width of the input.  [default: as in the weights or the zoo]")
@click.option(
    "--calibrate",
    "source",
    help="Images to calibrate with: 'digits', a folder of class folders, a .tar or .zip.  "
    "[default: what MODEL was trained on]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the files.  [default: build/MODEL]")
@click.option("--images", type=int, default=100, show_default=True, help="How many images to calibrate with.")
@click.option(
    "--effort",
    type=click.Choice(["fast", "good", "best"]),
    default="good",
    show_default=True,
    help="Work for int8: fast calibrates and rounds; good also compares calibrators and equalization; best learns the "
    "weights too, in minutes.",
)
@click.option(
    "--calibrator",
    type=click.Choice(["minmax", "percentile", "mse", "kl"]),
    help="What chooses the ranges of activations.  [default: mse if fast, else what answers best]",
)
@click.option(
    "--weight-range",
    type=click.Choice(["saturation-free", "full", "7-bit"]),
    default="saturation-free",
    show_default=True,
    help="Integers that int8 weights may be: saturation-free keeps pairs of weights small enough for the kernels of "
    "every processor, in applications without firebox too; full uses all of 8 bits.",
)
@click.option(
    "--input-type",
    type=click.Choice(["int8", "uint8"]),
    default="int8",
    show_default=True,
    help="Input of the int8 TFLite file.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["float32", "float16", "dynamic", "int8"]),
    default=("float32", "int8"),
    show_default=True,
    help="Files to write, again for each: float16 weights; dynamic, int8 weights between float32 activations.",
)
@click.option(
    "--int16",
    "int16_layers",
    multiple=True,
    metavar="LAYER",
    help="Give this layer of the int8 files 16-bit activations: a name that firebox plan shows, or a pattern; again "
    "for each. Slow in LiteRT, and tflite-runtime cannot run it.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the images.")
@click.option(
    "--min-agreement",
    type=float,
    help="Least share of images on which int8 must name the network's class.  [default: 0.8]",
)
@click.option("--min-sqnr", type=float, help="Least signal to quantization noise of int8, in dB.  [default: 12]")
@budget_options
@fit_target_option
@json_option
@click.pass_context
def export_command(
    context: click.Context,
    model: str,
    weights: str | None,
    num_classes: int | None,
    input_size: int | None,
    source: str | None,
    out: Path | None,
    images: int,
    effort: Any,
    calibrator: Any,
    weight_range: Any,
    input_type: Any,
    precisions: tuple[Any, ...],
    int16_layers: tuple[str, ...],
    seed: int,
    min_agreement: float | None,
    min_sqnr: float | None,
    sram_bytes: int | None,
    target: Any,
    as_json: bool,
) -> None:
    """Export MODEL (a name of the zoo, or a run folder) as ONNX and TFLite, float32 and int8.

    All files are compared with the network on real images first; past the tolerance nothing is written. With a
    budget the int8 files are rewritten to fit it, as firebox fit does; exit code 3 when they cannot.

    \b
    Example:
      firebox export runs/squeezenet_micro --out build/micro
      firebox export runs/squeezenet_micro --out build/micro --sram 64KiB
      firebox export squeezenet1_1 --weights squeezenet1_1.pth --calibrate images.tar --effort best --out build/v11
      firebox export runs/squeezenet_micro --out build/half --precision float16 --precision dynamic
    """
    from ...export import ExportConfig, Tolerance
    from ...export.fit import DoesNotFitError
    from ...export.quantization.weight_grid import DEFAULT_RANGE
    from ...runtime.exactness.check import check_saturation
    from ...runtime.images import open_images
    from .. import export_network, load_network, open_training_images

    given = {"agreement": min_agreement, "sqnr_db": min_sqnr}
    tolerance = Tolerance(**{name: value for name, value in given.items() if value is not None})
    config = ExportConfig(
        images,
        effort,
        calibrator,
        seed,
        input_type,
        weight_range,
        precisions=tuple(dict.fromkeys(precisions)),
        int16_layers=int16_layers,
        sram_bytes=sram_bytes,
        target=target,
        tolerance=tolerance,
    )
    size = (input_size, input_size) if input_size is not None else None
    network = load_network(model, weights, num_classes=num_classes, input_size=size)
    if source is not None:
        calibration = open_images(source)
    elif network.training is not None:
        calibration = open_training_images(network.training)[0]
    else:
        raise UsageError("int8 needs images to calibrate with; pass --calibrate FOLDER (or a .tar, a .zip, 'digits')")
    if network.ranges and not as_json:
        kept = "ranges and rounding are" if weight_range == DEFAULT_RANGE else "ranges are"
        note(f"{model} was trained in int8: its own {kept} kept, images only compare")
    try:
        found = export_network(network, out or Path("build") / Path(model).name, calibration, config, quiet=as_json)
    except DoesNotFitError as error:
        advise(error, as_json)
        raise
    verdict = found.report.get("fit", {}).get("verdict", {})
    if as_json:
        print_json(found.report | {"out": str(found.out)})
        context.exit(verdict.get("exit_code", 0))
    rows = []
    for path, parity in zip(found.files[: len(found.parity)], found.parity, strict=True):
        facts = found.report["files"][path.name]
        sqnr = f"{parity.sqnr_db:.1f} dB" if parity.sqnr_db is not None else "exact"
        sizes = (format_size(facts["bytes"]), format_size(facts["arena_bytes"]))
        identical = "-" if parity.identical is None else f"{parity.identical:.2%}"
        rows.append((path.name, *sizes, f"{parity.max_abs:.2g}", sqnr, f"{parity.agreement:.1%}", identical))
    columns = ("file", "size", "arena", "largest difference", "SQNR", "same class", "as the reference")
    gate = found.report["parity"]["images"]
    table(f"{network.name}: files in {found.out} against the network on {gate} images", columns, rows)
    if found.report["parity"]["identical_outputs"] is not None:
        note(f"{found.report['parity']['identical_outputs']:.2%} of the outputs are identical in both int8 files")
    for path in found.files:
        if path.name == "model.int8.onnx":
            note(f"{path.name}: {check_saturation(path).verdict}, whatever the processor")
    tried = found.report["calibration"].get("divergence_nats")
    if tried:
        nearest = found.report["calibration"]
        equalized = "equalized" if nearest["equalized"] else "not equalized"
        note(f"int8 is calibrated by {nearest['calibrator']}, {equalized}: nearest to the network of {len(tried)} ways")
    if "fit" in found.report:
        show_fit(found.report["fit"], network.name)
    context.exit(verdict.get("exit_code", 0))


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True)
@click.option("--data", required=True, help="'digits', a folder of class folders, or a .tar or .zip of one.")
@click.option("--weights", help=f"For models of the zoo among MODELS: {_WEIGHTS}")
@click.option(
    "--split",
    type=click.Choice(["auto", "all", "train", "val", "test"]),
    default="auto",
    show_default=True,
    help="Which images: auto takes the data's own test or val, else all; val of data without splits is what "
    "firebox train keeps by --seed and --val-fraction.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=_DEFAULTS.seed, show_default=True, help="Draws val, and --images."
)
@click.option("--val-fraction", type=float, default=_DEFAULTS.val_fraction, show_default=True, help="Size of val.")
@click.option("--images", type=int, help="Only so many images, drawn by --seed.  [default: all]")
@click.option(
    "--backend",
    type=click.Choice(["auto", "all", "onnxruntime", "litert", "tflite-runtime"]),
    default="auto",
    show_default=True,
    help="Runtime for exported files; all runs each installed one.",
)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads that compute.")
@click.option("--like", help="Model whose preprocessing and classes files of other makers among MODELS take.")
@click.option(
    "--combine",
    type=click.Choice(get_args(Combine)),
    help="Also measure all MODELS as one ensemble: the mean of their softmax or of their logits, or a vote, in which "
    "the mean of the softmax decides between classes of equally many votes.",
)
@json_option
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
    """Measure how often MODELS are right, and how often each names the class of the first.

    MODELS are .onnx and .tflite files, folders of them, run folders, or names of the zoo. Files that firebox did not
    write do not say what images they take: --like names a model that they are versions of. A run of firebox train
    --qat answers in int8, as its files do.

    \b
    Example:
      firebox evaluate build/micro --data digits --split val
      firebox evaluate squeezenet1_1 build/v11 --weights squeezenet1_1.pth --data images.tar --backend all
      firebox evaluate build/v11 theirs.tflite --like build/v11/model.float32.onnx --data images.tar
      firebox evaluate squeezenet1_0 squeezenet1_1 --weights imagenet --combine softmax --data images.tar
      firebox evaluate runs/one runs/two build/three/model.int8.tflite --combine softmax --data images.tar
    """
    from ...runtime.images import open_images, sample
    from ...runtime.inference import evaluate
    from .selection import choose_split, open_classifiers

    labelled = choose_split(open_images(data), split, val_fraction, seed)
    labelled = sample(labelled, images, seed) if images is not None else labelled
    classifiers = open_classifiers(models, weights, backend, threads, like)
    if combine is not None:
        if len(classifiers) < 2:
            raise UsageError(f"--combine {combine} takes two models or more, and {', '.join(classifiers)} is one")
        classifiers = {**classifiers, f"ensemble ({combine})": Ensemble(classifiers, combine)}
    found = evaluate(classifiers, labelled, progress=progress_unless(as_json))
    if as_json:
        first = found[0]
        rows: Any = [result.to_json() | {"agreement_with_first": result.agreement(first)} for result in found]
        print_json({"data": data, "split": split, "combine": combine, "images": len(labelled), "models": rows})
        return
    cells = [
        (result.name, f"{result.top1:.2%}", f"{result.top5:.2%}", f"{result.agreement(found[0]):.2%}")
        for result in found
    ]
    title = f"{len(labelled):,} images of {data}, beside {found[0].name}"
    table(title, ("model", "top-1", "top-5", "same class"), cells)


@click.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default="build/demo", show_default=True, help="Folder for everything."
)
@click.option("--sram", default="256KiB", show_default=True, help="Budget to judge the files by.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decides weights, order, augmentation, split.",
)
@json_option
@click.pass_context
def demo_command(context: click.Context, out: Path, sram: str, seed: int, as_json: bool) -> None:
    """Go the whole way on real scans of digits: train, export, compare, plan and profile, in a few minutes.

    Exit code 3 when an int8 file does not fit the budget.

    \b
    Example:
      firebox demo --sram 128KiB
    """
    budget = parse_size(sram)
    try:
        from ..demo import run_demo
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "all") from error

    demo = run_demo(out, budget, seed, quiet=as_json)
    if as_json:
        say(demo.report.read_text().rstrip())
    else:
        _show_demo(demo, budget)
        say(f"Everything is in {out}/; {demo.report} has the figures.")
        say(f"Next: firebox plan {out}/model.int8.tflite --sram {sram}")
    verdicts = [found.verdict for found in demo.profiles if "int8" in found.model]
    context.exit(max(verdict.exit_code for verdict in verdicts if verdict is not None))


def _show_demo(demo: "Demo", budget: int) -> None:
    torch, *files = demo.evaluations
    rows = [("in torch", f"{torch.top1:.2%}", "", "", "", "", "")]
    for found, measured in zip(files, demo.profiles, strict=True):
        assert measured.verdict is not None
        sizes = {line.name: line.nbytes or 0 for line in measured.memory}
        figures = (format_size(sizes["file"]), format_size(sizes["arena"]), f"{measured.p50_ms:.3f} ms")
        verdict = "fits" if measured.verdict.fits else "does not fit"
        rows.append((found.name, f"{found.top1:.2%}", f"{found.agreement(torch):.2%}", *figures, verdict))
    title = f"{demo.training.model}, {demo.training.parameters:,} parameters, on {len(torch.labels)} unseen scans"
    table(title, ("", "accuracy", "agrees", "size", "arena", "p50", format_size(budget)), rows)
    say("accuracy and agreement with torch on scans that were used neither to train nor to calibrate;")
    say("arena: planned memory for input and activations; p50: median of one inference on this machine")
