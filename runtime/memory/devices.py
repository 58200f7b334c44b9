"""Devices and their on-chip memory, from ``devices.toml`` and files of users."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, UsageError, suggestion
from ..files import read_file
from ..units import parse_size
from .verdict import Budget

PRESETS = Path(__file__).with_name("devices.toml")
KINDS = ("phone core", "DSP", "single-board computer", "microcontroller")

# Names a file with the user's own devices.
_VARIABLE = "FIREBOX_DEVICES"
_NEEDED = ("name", "kind", "memory", "sram", "source")
_ALLOWED = (*_NEEDED, "flash", "reserve")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MAX_FILE_BYTES = 2**20
# Default reserve of a microcontroller: at most this, and at most this share of the SRAM. Other kinds have none: their
# memory is a cache or scratchpad, and the stack lies in DRAM.
_RESERVE_BYTES = 16 * 1024
_RESERVE_SHARE = 8


@dataclass(frozen=True)
class Device:
    """A chip or core: ``memory`` names the memory of ``sram_bytes``, ``source`` cites the figures.

    ``flash_bytes`` is ``None`` if there is no flash or it depends on the board. ``reserve_bytes`` of the SRAM are kept
    for the stack and the rest of the firmware.
    """

    id: str
    name: str
    kind: str
    memory: str
    sram_bytes: int
    flash_bytes: int | None
    source: str
    reserve_bytes: int = 0

    @property
    def budget(self) -> Budget:
        """The budget of a network on the device."""
        return Budget(self.sram_bytes, self.flash_bytes, self.reserve_bytes)


def known_devices(devices: Path | None = None) -> dict[str, Device]:
    """All devices by id: presets, the file in ``$FIREBOX_DEVICES``, then the file ``devices``; later files win.

    Raises as ``read_devices`` does.
    """
    own = os.environ.get(_VARIABLE)
    return load_devices([PRESETS, *([Path(own)] if own else []), *([devices] if devices else [])])


def load_devices(files: Iterable[Path]) -> dict[str, Device]:
    """The devices of several files by id; later files win. Raises as ``read_devices`` does."""
    return {device.id: device for path in files for device in read_devices(path)}


def read_devices(path: Path) -> list[Device]:
    """The devices of a TOML file in the form of ``devices.toml``.

    Raises ``UsageError`` if the file does not exist and ``FormatError`` if its content is invalid.
    """
    try:
        tables = tomllib.loads(read_file(path, _MAX_FILE_BYTES).decode())
    except (ValueError, RecursionError) as error:
        # tomllib and decode both raise subclasses of ValueError.
        raise FormatError(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    return [_device(f"{path}: device {name!r}", name, table) for name, table in tables.items()]


def find_device(name: str, devices: Mapping[str, Device]) -> Device:
    """The device with that id. Raises ``UsageError`` with near matches."""
    found = devices.get(name.lower())
    if found is None:
        hint = suggestion(name.lower(), devices, "`firebox devices` lists them")
        raise UsageError(f"no device {name!r}; {hint}")
    return found


def budget(
    sram: str | None,
    device: str | None,
    devices: Path | None = None,
    flash: str | None = None,
    reserve: str | None = None,
) -> Budget | None:
    """The budget from a size of SRAM or from a device's name; ``None`` if neither is given.

    ``flash`` and ``reserve`` add to a size of SRAM and replace the figures of a device. Raises ``UsageError`` if SRAM
    and device are both given, if neither is but another option is, or if one is invalid, and as ``read_devices`` does.
    """
    if sram is not None and device is not None:
        raise UsageError(f"--sram {sram} and --device {device} are two budgets; pass only one")
    if devices is not None and device is None:
        raise UsageError(f"--devices {devices} has no effect without --device; pass --device NAME")
    if device is not None:
        found = find_device(device, known_devices(devices)).budget
    elif sram is not None:
        found = Budget(parse_size(sram))
    else:
        for option, value in (("--flash", flash), ("--reserve", reserve)):
            if value is not None:
                raise UsageError(f"{option} {value} has no effect without SRAM; pass --sram SIZE or --device NAME")
        return None
    return Budget(
        found.sram_bytes,
        parse_size(flash) if flash is not None else found.flash_bytes,
        parse_size(reserve, 0) if reserve is not None else found.reserve_bytes,
    )


def _device(where: str, name: str, table: Any) -> Device:
    if not _ID.fullmatch(name):
        raise FormatError(f"{where} has an invalid name; use a-z, 0-9 and '-'")
    if not isinstance(table, dict):
        raise FormatError(f"{where} is not a table; write [{name}] and its values below")
    for key in table:
        if key not in _ALLOWED:
            raise FormatError(f"{where} has an unknown key {key!r}; use {', '.join(_ALLOWED)}")
    for key in _NEEDED:
        if key not in table:
            raise FormatError(f"{where} has no {key}")
    kind = _text(where, "kind", table)
    if kind not in KINDS:
        raise FormatError(f"{where} has kind {kind!r}; use {', '.join(KINDS)}")
    sram = _size(where, "sram", table)
    return Device(
        id=name,
        name=_text(where, "name", table),
        kind=kind,
        memory=_text(where, "memory", table),
        sram_bytes=sram,
        flash_bytes=_size(where, "flash", table) if "flash" in table else None,
        source=_text(where, "source", table),
        reserve_bytes=_reserve(where, kind, sram, table),
    )


def _reserve(where: str, kind: str, sram: int, table: Mapping[str, Any]) -> int:
    if "reserve" not in table:
        return min(_RESERVE_BYTES, sram // _RESERVE_SHARE) if kind == "microcontroller" else 0
    reserve = _size(where, "reserve", table, 0)
    if reserve >= sram:
        raise FormatError(f"{where} has a reserve of {reserve:,} bytes in {sram:,} bytes of SRAM; choose a smaller one")
    return reserve


def _text(where: str, key: str, table: Mapping[str, Any]) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise FormatError(f"{where} has {key} {value!r}; write one line of text")
    return value


def _size(where: str, key: str, table: Mapping[str, Any], least: int = 1) -> int:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FormatError(f'{where} has {key} {value!r}; write for example "512KiB" or 524288')
    try:
        return parse_size(value, least)
    except UsageError as error:
        raise FormatError(f"{where} has an invalid {key}: {error}") from error
