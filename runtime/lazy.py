"""Packages whose public names are imported on first use (PEP 562), so that importing the package costs next to nothing.

A face lists its names for type checkers and for Python:

    if TYPE_CHECKING:
        from .session import Prediction, Session
    else:
        __getattr__, __dir__ = attach(__name__, {"session": ("Prediction", "Session")})
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import ModuleType


def attach(
    package: str, modules: Mapping[str, Iterable[str]], extras: Mapping[str, str] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``, for the names that each of its ``modules`` provides.

    A public name may equal the name of a submodule (``blame`` of ``blame/``); the package then gives the public name.
    ``extras`` maps third-party packages that the modules import to the extra that installs them; if one is missing,
    ``MissingExtraError`` is raised.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    class Face(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            # Python binds an imported submodule to its package, which would hide the public name.
            if name not in homes or not isinstance(value, ModuleType):
                super().__setattr__(name, value)

    sys.modules[package].__class__ = Face

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{homes[name]}", package), name)
        except ModuleNotFoundError as error:
            from .errors import MissingExtraError

            missing = MissingExtraError.from_import(error, extras or {})
            if missing is None:
                raise
            raise missing from error
        # Later uses find the name in the package and do not come here again.
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return load, names
