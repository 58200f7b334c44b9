"""Recipes: options of reproducible trainings, as TOML files with the keys of ``TrainingConfig``."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...runtime.errors import FormatError, UsageError, suggestion
from ...runtime.files import read_file
from ..fields import with_tuples
from ..training_config import TrainingConfig

_FOLDER = Path(__file__).parent
_SUFFIX = ".toml"


def list_recipes() -> list[str]:
    """The names of the recipes that ship with firebox, sorted."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}"))


def recipe_text(name: str | Path) -> str:
    """The text of a recipe, given its name or a file. Raises ``UsageError`` with similar names if there is none."""
    path = Path(name)
    if path.suffix != _SUFFIX:
        if str(name) not in list_recipes():
            hint = suggestion(str(name), list_recipes())
            raise UsageError(f"no recipe {str(name)!r}; {hint} (the name of a file ends in .toml)")
        path = _FOLDER / f"{name}{_SUFFIX}"
    try:
        # Some editors write a byte order mark.
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a text file: {error}") from error


def load_recipe(name: str | Path) -> dict[str, Any]:
    """The fields of ``TrainingConfig`` that a recipe sets, given its name or a file.

    Raises ``UsageError`` for unknown names and keys, ``FormatError`` for a file that is not TOML.
    """
    try:
        values = tomllib.loads(recipe_text(name))
    # An integer with too many digits raises ValueError, not TOMLDecodeError.
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the recipe {name} is not TOML: {error}") from error
    known = {field.name for field in fields(TrainingConfig)}
    for key in values.keys() - known:
        raise UsageError(f"the recipe {name} has an unknown key {key!r}; {suggestion(key, known)}")
    return with_tuples(values)
