"""Sizes in bytes as text. 1 KiB = 1024 bytes (IEC 80000-13)."""

import re

from .errors import UsageError

_UNITS = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_ADDRESS_SPACE = 2**63 - 1


def parse_size(text: str | int, least: int = 1) -> int:
    """Parse a size such as ``512KiB``, ``1MiB``, ``1.5MiB`` or ``300000`` into bytes, at ``least`` so many.

    Raises ``UsageError`` for an unknown unit and for a size that is not a whole number of bytes from ``least`` on.
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
    if not least <= size <= _ADDRESS_SPACE:
        lowest = "1 byte" if least == 1 else f"{least} bytes"
        raise UsageError(f"size {text!r} is not between {lowest} and 8 EiB; write for example 512KiB")
    return int(size)


def format_size(size: int) -> str:
    """A rounded size with its unit: ``959.1 KiB``. JSON holds exact bytes."""
    if size < 1024:
        return f"{size} B"
    if size < 10 * 1024**2:
        return f"{size / 1024:,.1f} KiB"
    return f"{size / 1024**2:,.1f} MiB"
