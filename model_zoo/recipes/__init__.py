"""Recipes: trainings worth repeating, as small TOML files with the keys of ``TrainingConfig``."""

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
    """Names of the recipes that come with firebox, sorted."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}"))


def recipe_text(name: str | Path) -> str:
    """The recipe of that name, or in that file, as it is written. Raises ``UsageError`` with near matches."""
    path = Path(name)
    if path.suffix != _SUFFIX:
        if str(name) not in list_recipes():
            hint = suggestion(str(name), list_recipes())
            raise UsageError(f"no recipe {str(name)!r}; {hint} (the name of a file ends in .toml)")
        path = _FOLDER / f"{name}{_SUFFIX}"
    try:
        # Some editors begin a file with the mark of its byte order.
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a text file: {error}") from error


def load_recipe(name: str | Path) -> dict[str, Any]:
    """What a recipe, by name or file, sets of ``TrainingConfig``. Raises ``UsageError`` and ``FormatError``."""
    try:
        values = tomllib.loads(recipe_text(name))
    # A number of too many digits is a ValueError of its own.
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the recipe {name} is not TOML: {error}") from error
    known = {field.name for field in fields(TrainingConfig)}
    for key in values.keys() - known:
        raise UsageError(f"the recipe {name} has an unknown key {key!r}; {suggestion(key, known)}")
    return with_tuples(values)
