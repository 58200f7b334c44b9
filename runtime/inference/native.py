"""The backend ``native``: the C that firebox generates, compiled on this machine."""

import ctypes
import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np

from ..compile.build import build_library, library_key
from ..compile.store import (
    CLOCK,
    CLOSE,
    ENTRY,
    OPEN,
    PARALLEL,
    SUPPORTED,
    TICKS,
    Library,
    library_of_file,
    library_of_key,
    noted,
)
from ..contract import TensorSpec
from ..errors import FireboxError, FormatError, UnsupportedError, UsageError
from ..processor import this_processor
from .installed import backend_version

# The beginning of an arena lies on a cache line.
_ALIGNMENT = 64


class Native:
    """A compiled library; many threads may run it at once, each in an arena of its own."""

    def __init__(self, library: Library, data: bytes | None = None, threads: int = 1):
        record = library.record
        self._library, self._data = library, data
        self._functions = _open(library)
        if not getattr(self._functions, record.name + SUPPORTED)():
            raise UnsupportedError(
                f"this processor lacks {record.isa}, for which {library.path} was built; build it here"
            )
        self._pool = _Pool(self._functions, record.name) if threads > 1 else None
        if self._pool is not None:
            # Runs when nothing uses this object any more, so that no inference is going on.
            weakref.finalize(self, self._pool.close)
        self._entry = getattr(self._functions, record.name + ENTRY)
        self._entry.argtypes, self._entry.restype = [ctypes.c_void_p] * 3, None
        # Arenas that no thread uses; taking and giving back are single operations on a list.
        self._arenas: list[tuple[int, np.ndarray]] = []
        # One thread at a time measures operations.
        self._timing, self._timed = threading.Lock(), None
        self.input_shape: tuple[int, ...] = record.input.shape
        self.input_dtype: str = record.input.dtype
        # The library writes pixels with channels last.
        shape = record.output.shape
        self._is_turned = record.layout == "NCHW" and len(shape) == 4 and shape[2] * shape[3] > 1
        self._output_shape = (shape[0], *shape[2:], shape[1]) if self._is_turned else shape
        self._output_dtype = np.dtype(record.output.dtype)
        by = f" for {threads} threads" if threads > 1 else ""
        self.weights = f"compiled for {record.isa} by {record.compiler}{by}"
        self.doubt = ""

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run one inference."""
        out = np.empty(self._output_shape, self._output_dtype)
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = self._new_arena()
        where = arena[0], _address(x), _address(out)
        if self._pool is None or not self._pool.run(*where):
            self._entry(*where)
        self._arenas.append(arena)
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2)) if self._is_turned else out

    def contract(self) -> bytes | None:
        """The contract of the model that the library was built from."""
        return self._library.contract()

    def io_specs(self) -> tuple[TensorSpec, TensorSpec]:
        """Types, shapes and quantization of the model that the library was built from."""
        return self._library.record.input, self._library.record.output

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """Times from a second library that reads the processor's clock around each operation.

        ``None`` for a library without its model, from which the second one would be built.
        """
        if self._data is None:
            return None
        with self._timing:
            if self._timed is None:
                self._timed = Native(build_library(self._data, timed=True))
            return self._timed._measured(x, runs)

    def _measured(self, x: np.ndarray, runs: int) -> dict[str, float]:
        name, names = self._library.record.name, self._library.record.operations
        ticks = np.ctypeslib.as_array((ctypes.c_uint64 * len(names)).in_dll(self._functions, name + TICKS))
        clock = getattr(self._functions, name + CLOCK)
        clock.restype = ctypes.c_uint64
        self.run(x)
        seen, start = [ticks.copy()], (time.perf_counter(), clock())
        for _ in range(runs):
            self.run(x)
            seen.append(ticks.copy())
        ms = (time.perf_counter() - start[0]) * 1000 / max(clock() - start[1], 1)
        # The clock goes on while other processes run: the median leaves out what they took.
        found = np.median(np.diff(np.stack(seen), axis=0), axis=0) * ms
        return dict(zip(names, found.tolist(), strict=True))

    def _new_arena(self) -> tuple[int, np.ndarray]:
        memory = np.empty(self._library.record.arena_bytes + _ALIGNMENT, np.uint8)
        return -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT, memory


class _Pool:
    """The threads of a library, which run one inference at a time; they start with the first one."""

    def __init__(self, functions: ctypes.CDLL, name: str):
        self._open, self._run, self._close = (getattr(functions, name + end) for end in (OPEN, PARALLEL, CLOSE))
        self._open.restype = ctypes.c_void_p
        self._run.argtypes, self._run.restype = [ctypes.c_void_p] * 4, None
        self._close.argtypes, self._close.restype = [ctypes.c_void_p], None
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._process = 0

    def run(self, arena: int, x: int, out: int) -> bool:
        """Run one inference; false if the threads are busy with another one or cannot be started."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._process != os.getpid():
                # A forked process has the pool of its parent, without the threads.
                self._handle, self._process = self._open(), os.getpid()
            if self._handle is None:
                return False
            self._run(self._handle, arena, x, out)
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the threads."""
        if self._process == os.getpid() and self._handle is not None and self._lock.acquire(blocking=False):
            # The lock stays taken: nothing runs afterwards.
            self._close(self._handle)


def preferred_native(data: bytes, threads: int, other: str) -> Native | None:
    """The library of a model file, if the store has it and it was measured to be faster than the backend ``other``.

    Nothing is compiled or measured. A measurement counts for one version of ``other`` on one kind of processor.
    """
    try:
        key = library_key(data, threads)
        found = noted(key)
        if found.get("faster") is not True or found.get("circumstances") != circumstances(other):
            return None
        library = library_of_key(key)
        return Native(library, data, threads) if library is not None else None
    except FireboxError:
        # A machine without a compiler, or a cache folder that is not the user's: the other backend works.
        return None


def circumstances(other: str) -> list[str]:
    """What a measurement beside the backend ``other`` depends on."""
    return [str(this_processor()), f"{other} {backend_version(other)}" if other else ""]


def load_native(data: bytes, threads: int) -> Native:
    """A model file's library, compiled if the store has none. Raises as ``build_library`` does."""
    return Native(build_library(data, threads=threads), data, threads)


def load_file(path: str | Path, data: bytes, threads: int) -> Native:
    """A library that was built here, by the bytes of any copy of it.

    Raises ``FormatError`` if it was not built here and ``UsageError`` if it was built for another number
    of threads. A library for several threads runs on one, too.
    """
    library = library_of_file(path, data)
    if threads not in (1, library.record.threads):
        raise UsageError(f"{path} was built for {library.record.threads} threads, not for {threads}; build it again")
    return Native(library, threads=threads)


def _open(library: Library) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library.path))
    except OSError as error:
        raise FormatError(f"{library.path} cannot be loaded: {error}") from error


def _address(values: np.ndarray) -> int:
    """The first byte of an array; a quarter of the time of ``values.ctypes.data``."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(values))  # pyright: ignore[reportArgumentType]
    except TypeError:
        # The array is read-only.
        return values.__array_interface__["data"][0]
