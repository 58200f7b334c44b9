"""Modules imported anew, for tests of what happens when a package is missing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imported_anew(*prefixes: str) -> Iterator[None]:
    """Forget the modules whose names start with one of ``prefixes``; restore exactly these modules afterwards.

    Without the last step a module that was first imported in between would stay, bound to copies of the others.
    """
    before = _drop(prefixes)
    try:
        yield
    finally:
        _drop(prefixes)
        sys.modules.update(before)
        for name, module in before.items():
            package, _, child = name.rpartition(".")
            if package in sys.modules:
                setattr(sys.modules[package], child, module)


def _drop(prefixes: tuple[str, ...]) -> dict:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(prefixes)}
