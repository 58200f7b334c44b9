"""Packages whose public names are imported on first use (PEP 562), so that importing the package costs next to nothing.

A face lists its names for type checkers and for Python:

    if TYPE_CHECKING:
        from .session import Prediction, Session
    else:
        __getattr__, __dir__ = attach(__name__, {"session": ("Prediction", "Session")})

A name must differ from the names of the package's submodules: Python binds those to the package when it imports them.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module


def attach(
    package: str, modules: Mapping[str, Iterable[str]], extras: Mapping[str, str] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``, for the names that each of its ``modules`` provides.

    ``extras`` maps third-party packages that the modules import to the extra that installs them; if one is missing,
    ``MissingExtraError`` is raised.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{homes[name]}", package), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in (extras or {}):
                raise
            from .errors import MissingExtraError

            raise MissingExtraError(missing, (extras or {})[missing]) from error
        # Later uses find the name in the package and do not come here again.
        setattr(import_module(package), name, value)
        return value

    def names() -> list[str]:
        return sorted(import_module(package).__all__)

    return load, names
