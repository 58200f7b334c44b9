"""The commands that reckon without running: devices, energy. Everything heavy is imported when one of them runs."""

from pathlib import Path

import click

from ..errors import UsageError
from ..units import format_size
from .console import json_option, print_json, say, table
from .options import device_options, model_argument, sram_option


@click.command("devices")
@click.option("--devices", type=click.Path(path_type=Path), help="File of devices of your own (also $FIREBOX_DEVICES).")
@json_option
def devices_command(devices: Path | None, as_json: bool) -> None:
    """List the devices whose memory can be a budget, each with the source of its numbers.

    Devices of your own go into a file of the same form as firebox's devices.toml, which is named by --devices or by
    $FIREBOX_DEVICES; of two with one name, the later counts.

    \b
    Example:
      firebox devices
      firebox devices --devices mine.toml --json
    """
    from ..memory.devices import known_devices

    found = known_devices(devices)
    if as_json:
        print_json({name: vars(device) for name, device in found.items()})
        return
    rows = [
        (
            device.id,
            device.name,
            device.kind,
            format_size(device.sram_bytes),
            device.memory,
            "-" if device.flash_bytes is None else format_size(device.flash_bytes),
        )
        for device in found.values()
    ]
    table("Devices", ("device", "name", "kind", "budget", "which memory", "flash"), rows)
    say("--json tells the source of every number. Use: firebox plan MODEL --device stm32h743")


@click.command("energy")
@model_argument
@sram_option
@device_options
@click.option("--tiled", type=click.Path(path_type=Path), help="The same network cut to fit, to compare with.")
@json_option
def energy_command(
    model: Path, sram: str | None, device: str | None, devices: Path | None, tiled: Path | None, as_json: bool
) -> None:
    """Reckon what one inference of MODEL (.onnx or .tflite) moves between DRAM and SRAM, and what energy that takes.

    Activations for which the budget has no room are spilled to DRAM, layer by layer. Weights are resident on the chip
    or streamed from DRAM. Energy is that of 45 nm CMOS (Horowitz, ISSCC 2014), from all reuse in registers to none; it
    compares schedules and precisions, and is planned, not measured.

    \b
    Example:
      firebox energy model.int8.tflite --sram 256KiB
      firebox energy model.int8.tflite --device stm32h743 --tiled fitted.tflite --json
    """
    from ..memory.devices import budget
    from ..memory.energy import scenarios

    sram_bytes = budget(sram, device, devices)
    if sram_bytes is None:
        raise UsageError("energy needs a budget; give --sram 256KiB or --device stm32h743 (firebox devices lists them)")
    found = scenarios(model, sram_bytes, tiled)
    if as_json:
        print_json({"sram_bytes": sram_bytes, "scenarios": [scenario.to_json() for scenario in found]})
        return
    rows = [
        (
            scenario.schedule,
            scenario.precision,
            f"{scenario.weights} ({format_size(scenario.stored_weight_bytes)})",
            f"{len(scenario.traffic.spilled)}",
            format_size(scenario.traffic.dram_bytes),
            f"{scenario.energy.low_mj:,.2f} to {scenario.energy.high_mj:,.2f} mJ",
            "planned",
        )
        for scenario in found
    ]
    columns = ("schedule", "precision", "weights", "tensors spilled", "DRAM traffic", "energy", "source")
    table(f"{model} with {format_size(sram_bytes)} for activations", columns, rows)
    say("energy in 45 nm CMOS: from every operand fetched from SRAM once to two fetches a multiply-accumulate")
