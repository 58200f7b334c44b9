"""The backends by name, and which of them are installed; without importing any."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from ..formats.read import Format


@dataclass(frozen=True)
class Runtime:
    """A backend's file format, the module to import, the package that contains it and the extra that installs it."""

    format: "Format"
    module: str
    package: str
    extra: str


# The backend that compiles files of both formats with the C compiler of the machine; no package has to be installed.
NATIVE = "native"
# In order of preference.
BACKENDS = {
    "onnxruntime": Runtime("onnx", "onnxruntime", "onnxruntime", "onnx"),
    "litert": Runtime("tflite", "ai_edge_litert.interpreter", "ai-edge-litert", "litert"),
    "tflite-runtime": Runtime("tflite", "tflite_runtime.interpreter", "tflite-runtime", "tflite"),
}


def installed_backends(format_: "Format") -> list[str]:
    """Backends that run a format and are installed, in order of preference."""
    return [
        name
        for name in _backends_of(format_)
        if find_spec(BACKENDS[name].module.split(".")[0]) and not _needs_older_numpy(name)
    ]


def choose_backend(name: str, format_: "Format") -> str:
    """The backend of that name or, for ``auto``, the preferred one that is installed.

    Raises ``UsageError`` for an unknown backend or one that does not run the format, and ``MissingExtraError`` if it
    cannot run with the installed numpy.
    """
    names = _backends_of(format_)
    if name == "auto":
        name = (installed_backends(format_) or names)[0]
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is not one of auto, {', '.join(BACKENDS)}, {NATIVE}")
    if name not in names:
        raise UsageError(f"backend {name!r} does not run .{format_} files; use {' or '.join(names)}")
    if _needs_older_numpy(name):
        raise MissingExtraError(f"numpy below 2, which {name} requires,", BACKENDS[name].extra)
    return name


@cache
def backend_version(name: str) -> str:
    """The installed version of a backend's package, or the version of firebox's own generator."""
    if name == NATIVE:
        from ..compile.generator import GENERATOR

        return str(GENERATOR)
    # importlib.metadata imports the email package, which would slow down every start.
    from importlib.metadata import version

    return version(BACKENDS[name].package)


def _backends_of(format_: "Format") -> list[str]:
    return [name for name, runtime in BACKENDS.items() if runtime.format == format_]


def _needs_older_numpy(name: str) -> bool:
    """tflite-runtime was built against numpy 1; under numpy 2 it imports, and fails to create an interpreter."""
    if name != "tflite-runtime":
        return False
    import numpy as np

    return int(np.__version__.split(".")[0]) >= 2
