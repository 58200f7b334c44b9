"""Validation of config fields against their annotations, for values from files and callers."""

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..runtime.errors import UsageError

# The type of ``A | B`` is UnionType for classes and Union for typing constructs such as Literal.
_UNIONS = (UnionType, Union)
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def check_fields(config: Any) -> None:
    """Raise ``UsageError`` for the first field of a data class whose value does not match its annotation."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not _matches(field.type, value):
            raise UsageError(f"{field.name} {value!r} is invalid; use {_name(field.type)}")


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a JSON or TOML table with all lists, also in nested tables, converted to tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        return tuple(map(plain, value)) if isinstance(value, list) else value

    return plain(values)


def _matches(annotation: Any, value: object) -> bool:
    if get_origin(annotation) in _UNIONS:
        return any(_matches(each, value) for each in get_args(annotation))
    if get_origin(annotation) is Literal:
        return isinstance(value, str) and value in get_args(annotation)
    if get_origin(annotation) is tuple:
        return isinstance(value, tuple) and all(_matches(get_args(annotation)[0], item) for item in value)
    if get_origin(annotation) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if isinstance(value, bool) or annotation is bool:
        return isinstance(value, bool) and annotation is bool
    if annotation in (str, NoneType):
        return isinstance(value, annotation)
    return isinstance(value, int) or (annotation is float and isinstance(value, float) and not math.isnan(value))


def _name(annotation: Any) -> str:
    if get_origin(annotation) in _UNIONS:
        return " or ".join(dict.fromkeys(_name(each) for each in get_args(annotation) if each is not NoneType))
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Mapping:
        return "a table"
    if get_origin(annotation) is tuple and get_args(annotation)[0] is str:
        return "strings"
    return _NAMES.get(annotation, "integers")
