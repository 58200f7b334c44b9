"""The speed of a compiled model beside that of the installed runtimes."""

import time

import numpy as np

from ..compile.build import library_key
from ..compile.store import note
from ..formats.read import format_of
from .backends import Backend, load_backend
from .installed import NATIVE, installed_backends
from .native import circumstances, load_native


def measure_native(data: bytes, threads: int = 1, runs: int = 30) -> dict[str, float]:
    """Compile a model file, measure it beside the backend that ``auto`` would choose, and remember which is faster.

    Returns the shortest inference of each backend in milliseconds by name. Raises as ``build_library`` does.
    """
    format_ = format_of(data)
    backends: dict[str, Backend] = {NATIVE: load_native(data, threads)}
    if names := installed_backends(format_):
        backends[names[0]] = load_backend(names[0], data, format_, threads)[1]
    limits = np.iinfo(backends[NATIVE].input_dtype)
    shape = backends[NATIVE].input_shape
    x = np.random.default_rng(0).integers(limits.min, limits.max, shape, limits.dtype, endpoint=True)
    best = dict.fromkeys(backends, float("inf"))
    for _ in range(runs):
        # In turns, so that other work on the machine slows down all of them.
        for name, backend in backends.items():
            start = time.perf_counter()
            backend.run(x)
            best[name] = min(best[name], (time.perf_counter() - start) * 1000)
    other = next((name for name in best if name != NATIVE), "")
    facts = {"circumstances": circumstances(other), "faster": best[NATIVE] <= min(best.values()), "best_ms": best}
    note(library_key(data, threads), facts)
    return best
