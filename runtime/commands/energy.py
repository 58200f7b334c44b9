"""The command ``energy``."""

from pathlib import Path

import click

from ..units import format_size
from .console import print_json, say, table
from .options import json_option, model_argument, required_sram_options


@click.command("energy")
@model_argument
@required_sram_options
@click.option("--tiled", type=click.Path(path_type=Path), help="The same network fitted by firebox fit, to compare.")
@json_option
def energy_command(model: Path, sram_bytes: int, tiled: Path | None, as_json: bool) -> None:
    """Estimate DRAM/SRAM traffic and energy for one inference of MODEL (.onnx or .tflite).

    Activations that exceed the budget are spilled to DRAM, layer by layer. Weights are resident on the chip or
    streamed from DRAM. Energy figures are those of 45 nm CMOS (Horowitz, ISSCC 2014), from full register reuse to
    none. They are planned, not measured: use them to compare schedules and precisions.

    \b
    Example:
      firebox energy model.int8.tflite --sram 256KiB
      firebox energy model.int8.tflite --device stm32h743 --tiled fitted.tflite --json
    """
    from ..memory import scenarios

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
    say("energy in 45 nm CMOS: low = each operand fetched from SRAM once; high = two fetches per multiply-accumulate")
