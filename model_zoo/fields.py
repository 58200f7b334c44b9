"""Values from files and callers, as the kinds that a config's fields are declared with."""

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..runtime.errors import UsageError

# What ``A | B`` is depends on what A and B are.
_UNIONS = (UnionType, Union)
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_kinds(config: Any) -> None:
    """Raise ``UsageError`` for the first field of a data class whose value is of another kind."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not _is_a(field.type, value):
            raise UsageError(f"{field.name} {value!r} is not usable; give {_wanted(field.type)}")


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON or TOML table with its lists, and those of tables in it, as the tuples that configs hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        return tuple(map(plain, value)) if isinstance(value, list) else value

    return plain(values)


def _is_a(kind: Any, value: object) -> bool:
    if get_origin(kind) in _UNIONS:
        return any(_is_a(each, value) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind in (str, NoneType):
        return isinstance(value, kind)
    return isinstance(value, int) or (kind is float and isinstance(value, float) and not math.isnan(value))


def _wanted(kind: Any) -> str:
    if get_origin(kind) in _UNIONS:
        return " or ".join(dict.fromkeys(_wanted(each) for each in get_args(kind) if each is not NoneType))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is Mapping:
        return "a table of names and values"
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        return "texts"
    return _WANTED.get(kind, "whole numbers")
