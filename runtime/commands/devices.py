"""The command ``devices``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from ..units import format_size
from .console import print_json, say, table
from .options import devices_option, json_option, judging_targets_option

if TYPE_CHECKING:
    from ..memory import Device, Judgement


@click.command("devices")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@judging_targets_option
@devices_option
@json_option
@click.pass_context
def devices_command(
    context: click.Context, model: Path | None, targets: tuple[str, ...], devices: Path | None, as_json: bool
) -> None:
    """List the devices that can be a budget, or judge MODEL (.onnx or .tflite) on each of them.

    A verdict compares all that the target needs in SRAM, and the device's reserve, with the SRAM; where the device
    names flash, it also compares the file (or the weights, if the target does not run MODEL itself) with the flash. The
    code of a runtime is unknown and not judged. Exit code 0 if MODEL fits at least one device, 3 if it fits none, 4 if
    it fits none and a verdict is undecided.

    Your own devices go into a file of the same form as firebox's devices.toml; name it with --devices or
    $FIREBOX_DEVICES. It may replace firebox's devices; --devices takes precedence.

    \b
    Example:
      firebox devices
      firebox devices model.int8.tflite
      firebox devices model.int8.tflite --target tflm --target static --devices mine.toml --json
    """
    from ..memory import judge, known_devices, overall_exit_code

    if targets and model is None:
        raise UsageError(f"--target {targets[0]} has no effect without MODEL; pass the file to judge")
    found = known_devices(devices)
    if model is None:
        _list(found, as_json)
        return
    judgements = judge(model, found.values(), tuple(dict.fromkeys(targets)) or None)
    code = overall_exit_code(judgements)
    if as_json:
        values = [judgement.to_json() for judgement in judgements]
        print_json({"model": str(model), "exit_code": code, "judgements": values})
    else:
        _show(model, judgements)
    context.exit(code)


def _list(found: "Mapping[str, Device]", as_json: bool) -> None:
    if as_json:
        print_json({name: vars(device) for name, device in found.items()})
        return
    rows = [
        (
            device.id,
            device.name,
            device.kind,
            format_size(device.sram_bytes),
            format_size(device.reserve_bytes) if device.reserve_bytes else "-",
            device.memory,
            _size(device.flash_bytes),
        )
        for device in found.values()
    ]
    table("Devices", ("device", "name", "kind", "budget", "reserve", "memory", "flash"), rows)
    say("--json includes the source of each figure. Use: firebox plan MODEL --device stm32h743")


def _show(model: Path, judgements: "Sequence[Judgement]") -> None:
    several = len({judgement.target for judgement in judgements}) > 1
    targets = ("target",) if several else ()
    rows = [
        (judgement.device.id, *((judgement.target,) if several else ()), *_figures(judgement))
        for judgement in judgements
    ]
    columns = ("device", *targets, "SRAM needed", "SRAM", "flash needed", "flash", "verdict")
    table(f"{model} on each device, in KiB (SRAM needed + reserve)", columns, rows)
    for judgement in {judgement.target: judgement for judgement in judgements}.values():
        _explain(judgement)


def _figures(judgement: "Judgement") -> tuple[str, ...]:
    device, verdict = judgement.device, judgement.verdict
    needed = _kib(verdict.needed_bytes if verdict else None)
    if verdict and device.reserve_bytes:
        needed += f" + {device.reserve_bytes / 1024:g}"
    flash = verdict.flash.nbytes if verdict and verdict.flash else None
    return needed, _kib(device.sram_bytes), _kib(flash), _kib(device.flash_bytes), _word(judgement)


def _word(judgement: "Judgement") -> str:
    """The verdict in a few words, with the memory that is too small."""
    if judgement.fits is None:
        return "undecided"
    if judgement.fits or judgement.verdict is None:
        return "fits"
    parts = {"SRAM": judgement.verdict.sram_fits, "flash": judgement.verdict.flash_fits}
    return f"does not fit {', '.join(name for name, fits in parts.items() if fits is False)}"


def _explain(judgement: "Judgement") -> None:
    """Say what was judged for a target; it is the same on every device."""
    verdict, target = judgement.verdict, judgement.target
    if verdict is None:
        say(f"{target}: undecided: {judgement.reason}")
        return
    sram = "all that it needs" if verdict.about == "total" else "the arena alone; the other demand is unknown"
    say(f"{target}: SRAM: {sram}; flash: {verdict.flash.text() if verdict.flash else 'unknown'}")


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_size(nbytes)


def _kib(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1024:,.1f}"
