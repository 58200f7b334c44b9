"""The command ``export``; torch is imported when the command runs."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ...export.commands.fit import advise, show_fit
from ...export.exporter import Export, ExportConfig, InputType
from ...export.fit import DoesNotFitError
from ...export.parity import Precision, Tolerance
from ...export.quantization import DEFAULT_RANGE, Calibrator, Effort, WeightRange
from ...runtime.commands.console import note, print_json, progress_unless, table
from ...runtime.commands.options import budget_options, fit_target_option, json_option
from ...runtime.errors import UsageError
from ...runtime.exactness.check import check_saturation
from ...runtime.images import LabelledImages, open_images
from ...runtime.units import format_size
from .options import complete_model, needs_torch, weights_option

if TYPE_CHECKING:
    from ...runtime.memory import Budget
    from ..network import Network

_CONFIG_OPTIONS = (
    click.option("--images", type=int, default=100, show_default=True, help="Number of calibration images."),
    click.option(
        "--effort",
        type=click.Choice(get_args(Effort)),
        default="good",
        show_default=True,
        help="Quantization effort: fast = calibration + GPTQ; good = also searches calibrators and equalization; best "
        "= also fine-tunes weights (minutes).",
    ),
    click.option(
        "--calibrator",
        type=click.Choice(get_args(Calibrator)),
        help="Calibration method for activation ranges.  [default: mse with --effort fast, else the most accurate]",
    ),
    click.option(
        "--weight-range",
        type=click.Choice(get_args(WeightRange)),
        default=DEFAULT_RANGE,
        show_default=True,
        help="Integer range of int8 weights: saturation-free = pairs of weights that no kernel on any processor "
        "saturates on; full = all of 8 bits.",
    ),
    click.option(
        "--input-type",
        type=click.Choice(get_args(InputType)),
        default="int8",
        show_default=True,
        help="Input type of the int8 TFLite file.",
    ),
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=click.Choice(get_args(Precision)),
        default=("float32", "int8"),
        show_default=True,
        help="Precision of a file pair; repeat for several. float16 = float16 weights; dynamic = int8 weights, "
        "float32 activations.",
    ),
    click.option(
        "--int16",
        "int16_layers",
        multiple=True,
        metavar="LAYER",
        help="Layer of the int8 files with 16-bit activations: a name or pattern of names as in firebox plan; repeat "
        "for several. Slow in LiteRT; not supported by tflite-runtime.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the image selection."
    ),
    click.option(
        "--min-agreement",
        type=float,
        help="Least fraction of images on which int8 must predict the network's class.  [default: 0.8]",
    ),
    click.option(
        "--min-sqnr", type=float, help="Least signal-to-quantization-noise ratio of int8, in dB.  [default: 12]"
    ),
    budget_options,
    fit_target_option,
)


def _config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``ExportConfig``; ``command`` gets it as ``config``."""

    @wraps(command)
    def with_config(
        *args: Any,
        images: int,
        effort: Effort,
        calibrator: Calibrator | None,
        weight_range: WeightRange,
        input_type: InputType,
        precisions: tuple[Precision, ...],
        int16_layers: tuple[str, ...],
        seed: int,
        min_agreement: float | None,
        min_sqnr: float | None,
        budget: "Budget | None",
        target: Any,
        **options: Any,
    ) -> Any:
        tolerances = {"agreement": min_agreement, "sqnr_db": min_sqnr}
        config = ExportConfig(
            calibration_images=images,
            effort=effort,
            calibrator=calibrator,
            seed=seed,
            input_type=input_type,
            weight_range=weight_range,
            precisions=tuple(dict.fromkeys(precisions)),
            int16_layers=int16_layers,
            **(vars(budget) if budget else {}),
            target=target,
            tolerance=Tolerance(**{name: value for name, value in tolerances.items() if value is not None}),
        )
        return command(*args, config=config, **options)

    found: Callable[..., Any] = with_config
    for option in reversed(_CONFIG_OPTIONS):
        found = option(found)
    return found


@click.command("export")
@click.argument("model", shell_complete=complete_model)
@weights_option("a MODEL of the zoo")
@click.option("--num-classes", type=int, help="Number of classes.  [default: as in the weights]")
@click.option("--input-size", type=int, help="Height and width of the input.  [default: as in the weights or the zoo]")
@click.option(
    "--calibrate",
    "source",
    help="Calibration images: 'digits', a folder of class folders, or a .tar or .zip of one.  "
    "[default: MODEL's training images]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: build/MODEL]")
@_config_options
@json_option
@click.pass_context
@needs_torch
def export_command(
    context: click.Context,
    model: str,
    weights: str | None,
    num_classes: int | None,
    input_size: int | None,
    source: str | None,
    out: Path | None,
    config: ExportConfig,
    as_json: bool,
) -> None:
    """Export MODEL (a zoo name or a run folder) to ONNX and TFLite, in float32 and int8.

    All files are compared with the network on real images; if one exceeds the tolerance, nothing is written. With a
    budget the int8 files are rewritten to fit it, as firebox fit does; exit code 3 if they cannot.

    \b
    Example:
      firebox export runs/squeezenet_micro --out build/micro
      firebox export runs/squeezenet_micro --out build/micro --sram 64KiB
      firebox export squeezenet1_1 --weights squeezenet1_1.pth --calibrate images.tar --effort best --out build/v11
      firebox export runs/squeezenet_micro --out build/half --precision float16 --precision dynamic
    """
    from ..network import export_network, load_network

    progress = progress_unless(as_json)
    size = (input_size, input_size) if input_size is not None else None
    network = load_network(model, weights, num_classes=num_classes, input_size=size, progress=progress)
    images = _calibration_images(source, network)
    if network.ranges:
        kept = "ranges and rounding" if config.weight_range == DEFAULT_RANGE else "ranges"
        progress.note(f"{model} was trained in int8: its own {kept} are kept; images are only used to compare")
    try:
        found = export_network(network, out or Path("build") / Path(model).name, images, config, progress=progress)
    except DoesNotFitError as error:
        advise(error, as_json)
        raise
    if as_json:
        print_json(found.report | {"out": str(found.out)})
    else:
        _show(found, network.name)
    context.exit(found.report.get("fit", {}).get("verdict", {}).get("exit_code", 0))


def _calibration_images(source: str | None, network: "Network") -> LabelledImages:
    from ..training.data import open_training_images

    if source is not None:
        return open_images(source)
    if network.training is None:
        raise UsageError("int8 needs calibration images; pass --calibrate FOLDER (or a .tar, a .zip, 'digits')")
    return open_training_images(network.training).training


def _show(found: Export, name: str) -> None:
    _show_files(found, name)
    identical = found.report["parity"]["identical_outputs"]
    if identical is not None:
        note(f"{identical:.2%} of the outputs are identical in both int8 files")
    for path in found.files:
        if path.name == "model.int8.onnx":
            note(f"{path.name}: {check_saturation(path).verdict}, on any processor")
    calibration = found.report["calibration"]
    if tried := calibration.get("divergence_nats"):
        equalized = "with" if calibration["equalized"] else "without"
        note(
            f"int8 calibration: {calibration['calibrator']} {equalized} equalization, the closest to the network of "
            f"{len(tried)} candidates"
        )
    if "fit" in found.report:
        show_fit(found.report["fit"], name)


def _show_files(found: Export, name: str) -> None:
    rows = []
    for path, parity in zip(found.files[: len(found.parity)], found.parity, strict=True):
        facts = found.report["files"][path.name]
        sqnr = f"{parity.sqnr_db:.1f} dB" if parity.sqnr_db is not None else "exact"
        sizes = (format_size(facts["bytes"]), format_size(facts["arena_bytes"]))
        identical = "-" if parity.identical is None else f"{parity.identical:.2%}"
        rows.append((path.name, *sizes, f"{parity.max_abs:.2g}", sqnr, f"{parity.agreement:.1%}", identical))
    columns = ("file", "size", "arena", "max error", "SQNR", "agreement", "as the reference")
    title = f"{name}: files in {found.out}, compared with the network on {found.report['parity']['images']} images"
    table(title, columns, rows)
