"""Devices by name, for budgets: how much on-chip memory each has, as ``devices.toml`` and files of users say."""

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

PRESETS = Path(__file__).with_name("devices.toml")
KINDS = ("phone core", "DSP", "single-board computer", "microcontroller")

# The file of the user's own devices, beside what the command line names.
_VARIABLE = "FIREBOX_DEVICES"
_NEEDED = ("name", "kind", "memory", "sram", "source")
_ALLOWED = (*_NEEDED, "flash")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class Device:
    """A chip or core: ``memory`` says what its ``sram_bytes`` are, ``source`` where the numbers are from.

    ``flash_bytes`` is ``None`` where there is no flash or each board has its own.
    """

    id: str
    name: str
    kind: str
    memory: str
    sram_bytes: int
    flash_bytes: int | None
    source: str


def known_devices(devices: Path | None = None) -> dict[str, Device]:
    """Every device by its id: the presets, those of the file ``$FIREBOX_DEVICES``, those of ``devices``; later wins.

    Raises as ``read_devices`` does.
    """
    own = os.environ.get(_VARIABLE)
    return load_devices([PRESETS, *([Path(own)] if own else []), *([devices] if devices else [])])


def load_devices(files: Iterable[Path]) -> dict[str, Device]:
    """The devices of some files by their ids; of two with one id, the later. Raises as ``read_devices`` does."""
    return {device.id: device for path in files for device in read_devices(path)}


def read_devices(path: Path) -> list[Device]:
    """The devices of a TOML file in the form of ``devices.toml``.

    Raises ``UsageError`` when there is no such file and ``FormatError`` for anything in it that is not as it must be.
    """
    try:
        tables = tomllib.loads(read_file(path, _MAX_FILE_BYTES).decode())
    except (ValueError, RecursionError) as error:
        # Errors of tomllib and of decoding are both ValueErrors.
        raise FormatError(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    return [_device(f"{path}: device {name!r}", name, table) for name, table in tables.items()]


def find_device(name: str, devices: Mapping[str, Device]) -> Device:
    """The device of that id. Raises ``UsageError`` with near matches."""
    found = devices.get(name.lower())
    if found is None:
        hint = suggestion(name.lower(), devices, "`firebox devices` lists them")
        raise UsageError(f"no device {name!r}; {hint}")
    return found


def budget(sram: str | None, device: str | None, devices: Path | None = None) -> int | None:
    """Bytes of SRAM from a size or, instead, from a device's name; ``None`` when neither is given.

    Raises ``UsageError`` when both are, or for one that is not known, and as ``read_devices`` does for ``devices``.
    """
    if sram is not None and device is not None:
        raise UsageError(f"--sram {sram} and --device {device} are two budgets; give one of them")
    if devices is not None and device is None:
        raise UsageError(f"--devices {devices} names devices to choose from; give --device with the name of one")
    if device is not None:
        return find_device(device, known_devices(devices)).sram_bytes
    return parse_size(sram) if sram is not None else None


def _device(where: str, name: str, table: Any) -> Device:
    if not _ID.fullmatch(name):
        raise FormatError(f"{where} has a name that is not made of a-z, 0-9 and '-'")
    if not isinstance(table, dict):
        raise FormatError(f"{where} is not a table; write [{name}] and its values below")
    for key in table:
        if key not in _ALLOWED:
            raise FormatError(f"{where} has a {key!r}, which is none of {', '.join(_ALLOWED)}")
    for key in _NEEDED:
        if key not in table:
            raise FormatError(f"{where} has no {key}")
    kind = _text(where, "kind", table)
    if kind not in KINDS:
        raise FormatError(f"{where} has kind {kind!r}, which is none of {', '.join(KINDS)}")
    return Device(
        id=name,
        name=_text(where, "name", table),
        kind=kind,
        memory=_text(where, "memory", table),
        sram_bytes=_size(where, "sram", table),
        flash_bytes=_size(where, "flash", table) if "flash" in table else None,
        source=_text(where, "source", table),
    )


def _text(where: str, key: str, table: Mapping[str, Any]) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise FormatError(f"{where} has a {key} that is not one line of text: {value!r}")
    return value


def _size(where: str, key: str, table: Mapping[str, Any]) -> int:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FormatError(f'{where} has {key} {value!r}; write for example "512KiB" or 524288')
    try:
        return parse_size(value)
    except UsageError as error:
        raise FormatError(f"{where} has a {key} that is no size: {error}") from error
