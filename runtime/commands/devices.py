"""The command ``devices``."""

from pathlib import Path

import click

from ..units import format_size
from .console import print_json, say, table
from .options import devices_option, json_option


@click.command("devices")
@devices_option
@json_option
def devices_command(devices: Path | None, as_json: bool) -> None:
    """List the devices whose SRAM can be a budget, each with the source of its figures.

    Your own devices go into a file of the same form as firebox's devices.toml; name it with --devices or
    $FIREBOX_DEVICES. It may replace firebox's devices; --devices takes precedence.

    \b
    Example:
      firebox devices
      firebox devices --devices mine.toml --json
    """
    from ..memory import known_devices

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
    table("Devices", ("device", "name", "kind", "budget", "memory", "flash"), rows)
    say("--json includes the source of each figure. Use: firebox plan MODEL --device stm32h743")
