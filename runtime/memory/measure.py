"""The memory that a file takes in the runtime of a target, measured in a run."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, MissingExtraError, UnsupportedError, UsageError
from ..files import read_file
from ..formats.read import format_of
from .account import MemoryLine
from .targets import TARGETS, TFLM, Runtime, find_target
from .verdict import Budget, FlashDemand, Verdict, as_budget

_TIMEOUT = 600


@dataclass(frozen=True)
class MeasuredArena:
    """The memory that a target took for one inference, in bytes.

    ``arena_bytes`` is the memory of activations and scratch: for ``tflm`` the head of its arena, for ``litert`` the
    arena without XNNPACK's workspace, for ``onnxruntime`` the peak of a run on the heap. ``tail_bytes`` is the tail of
    tflite-micro's arena. ``total_bytes`` is everything: for ``tflm`` the required arena size, for the others the heap
    of the loaded file and its peak in a run, with copies of the weights.
    """

    target: str
    arena_bytes: int
    tail_bytes: int | None
    total_bytes: int

    def account(self) -> tuple[MemoryLine, ...]:
        """The figures line by line."""
        runtime = find_target(self.target).runtime
        is_heap = runtime is not None and runtime.measures_heap
        total = "heap (with copies of weights)" if is_heap else "total in SRAM"
        tail = () if self.tail_bytes is None else (MemoryLine("runtime overhead", self.tail_bytes, "measured"),)
        arena = MemoryLine("arena", self.arena_bytes, "measured")
        return arena, *tail, MemoryLine(total, self.total_bytes, "measured")

    def verdict(self, budget: Budget | int, flash: FlashDemand | None = None) -> Verdict:
        """The verdict on a budget, by the total; a number is bytes of SRAM. ``flash`` is the demand of the file."""
        return Verdict(as_budget(budget), self.arena_bytes, "measured", self.total_bytes, flash)

    def to_json(self) -> dict[str, Any]:
        """Figures by name; names carry the unit."""
        return vars(self)


def measure_arena(model: str | Path, target: str, *, exact: bool = False) -> MeasuredArena:
    """Run a file once in the runtime of a target, in a process of its own, and read how much memory it took.

    tflite-micro reports its allocations; with ``exact`` the smallest ``arena_size`` in which the file runs is searched
    instead, which is larger for networks of a few KiB. LiteRT's arena is the address range of its tensors; the heap is
    read from glibc. Raises ``UsageError`` for an unknown target or a format that it does not run,
    ``MissingExtraError`` if its runtime is not installed, ``UnsupportedError`` if it cannot be measured and
    ``FormatError`` for a file that the runtime rejects.
    """
    runtime = find_target(target).runtime
    if runtime is None:
        names = ", ".join(other.name for other in TARGETS.values() if other.runtime)
        raise UnsupportedError(f"target {target!r} is planned only and has no runtime; measure {names}")
    if format_of(model) != runtime.format:
        raise UsageError(f"{target} runs .{runtime.format} files, not {model}; pass the .{runtime.format} file")
    read_file(model)
    _check_installed(runtime)
    return MeasuredArena(target, **_run(Path(model), target, runtime, exact))


def run_in_arena(data: bytes, arena_size: int, inputs: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a TFLite file in tflite-micro for each input, in an arena of ``arena_size`` bytes.

    Raises ``MissingExtraError`` if tflite-micro is not installed and ``FormatError`` if it cannot run the file in that
    arena.
    """
    assert TFLM.runtime is not None
    _check_installed(TFLM.runtime)
    from tflite_micro.python.tflite_micro import runtime as micro

    try:
        interpreter = micro.Interpreter.from_bytes(data, arena_size=arena_size)
        outputs = []
        for x in inputs:
            interpreter.set_input(x, 0)
            interpreter.invoke()
            outputs.append(interpreter.get_output(0))
    except RuntimeError as error:
        raise FormatError(f"tflite-micro cannot run the file in {arena_size:,} bytes: {error}") from error
    return outputs


def _check_installed(runtime: Runtime) -> None:
    if find_spec(runtime.module) is None:
        raise MissingExtraError(runtime.package, runtime.extra)


def _run(model: Path, target: str, runtime: Runtime, exact: bool) -> dict[str, Any]:
    # -P: the current directory is not on the path, so that its files are not imported.
    code = "from firebox.runtime.memory.measure_worker import main; main()"
    function = f"{runtime.measure.__module__}:{runtime.measure.__name__}"
    command = [sys.executable, "-P", "-c", code, target, function, str(model), "exact" if exact else "reported"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"{target} did not finish {model} within {_TIMEOUT} seconds") from error
    if ran.returncode:
        raise FormatError(f"{target} cannot run {model}: its process ended with code {ran.returncode}")
    result = json.loads(ran.stdout.splitlines()[-1])
    if "error" in result:
        raise FormatError(result["error"])
    return result
