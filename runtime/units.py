"""Sizes in bytes, as people write and read them. KiB = 1024 bytes (IEC 80000-13)."""

import re

from .errors import UsageError

_UNITS = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_ADDRESS_SPACE = 2**63 - 1


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``512KiB``, ``1MiB``, ``1.5MiB`` or ``300000``.

    Raises ``UsageError`` for an unknown unit, a size that is not positive or not a whole number of bytes.
    """
    text = str(text).strip()
    match = re.fullmatch(r"(\d{1,19}(?:\.\d{1,9})?) ?([A-Za-z]*)", text)
    if match is None:
        raise UsageError(f"size {text!r} is not a positive number of bytes; write for example 512KiB, 1MiB or 300000")
    number, unit = match.groups()
    if unit not in _UNITS:
        near = next((u for u in _UNITS if u and u[0].lower() == unit[0].lower()), "KiB")
        raise UsageError(f"size {text!r} has an unknown unit {unit!r}; did you mean {number}{near}?")
    size = float(number) * _UNITS[unit] if "." in number else int(number) * _UNITS[unit]
    if size != int(size):
        raise UsageError(f"size {text!r} is not a whole number of bytes")
    if not 0 < size <= _ADDRESS_SPACE:
        raise UsageError(f"size {text!r} is not between 1 byte and the address space; write for example 512KiB")
    return int(size)


def format_size(size: int) -> str:
    """A size for people: ``959.1 KiB``. Exact bytes belong in JSON."""
    if size < 1024:
        return f"{size} B"
    if size < 10 * 1024**2:
        return f"{size / 1024:,.1f} KiB"
    return f"{size / 1024**2:,.1f} MiB"
