"""The memory that a file really takes in the runtime of a target, beside what was planned."""

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
from ..formats.read import Format, format_of
from .plan import MemoryLine, Verdict
from .targets import Target

_TIMEOUT = 600


@dataclass(frozen=True)
class _Runtime:
    format: Format
    module: str
    package: str
    extra: str


_RUNTIMES: dict[Target, _Runtime] = {
    "tflm": _Runtime("tflite", "tflite_micro", "tflite-micro", "micro"),
    "litert-reference": _Runtime("tflite", "ai_edge_litert", "ai-edge-litert", "litert"),
    "litert": _Runtime("tflite", "ai_edge_litert", "ai-edge-litert", "litert"),
    "onnxruntime": _Runtime("onnx", "onnxruntime", "onnxruntime", "onnx"),
}


@dataclass(frozen=True)
class MeasuredArena:
    """What a target took for one inference, in bytes.

    ``arena_bytes`` is the memory of activations and scratch: for ``tflm`` the head of its arena, for ``litert`` what
    XNNPACK leaves outside of its workspace, for ``onnxruntime`` the most that a run takes from the heap.
    ``tail_bytes`` is what tflite-micro keeps. ``total_bytes`` is everything: for ``tflm`` the size that the arena must
    have, for the others the heap of the loaded file and its peak in a run, with their copies of the weights.
    """

    target: Target
    arena_bytes: int
    tail_bytes: int | None
    total_bytes: int

    def account(self) -> tuple[MemoryLine, ...]:
        """Line by line."""
        heap = "total in SRAM" if self.target == "tflm" else "heap (with copies of weights)"
        tail = () if self.tail_bytes is None else (MemoryLine("runtime overhead", self.tail_bytes, "measured"),)
        arena = MemoryLine("arena", self.arena_bytes, "measured")
        return arena, *tail, MemoryLine(heap, self.total_bytes, "measured")

    def verdict(self, sram_bytes: int) -> Verdict:
        """Whether everything fits a budget."""
        return Verdict(sram_bytes, self.arena_bytes, "measured", self.total_bytes)

    def to_json(self) -> dict[str, Any]:
        """Figures with their units, for programs."""
        return vars(self)


def measure_arena(model: str | Path, target: Target, *, exact: bool = False) -> MeasuredArena:
    """Run a file once in the runtime of a target, in a process of its own, and read what memory it took.

    tflite-micro tells its allocations; ``exact`` searches for the smallest ``arena_size`` in which it runs instead,
    which is more for networks of a few KiB. In LiteRT the arena is what the addresses of the tensors span; the heap is
    read from glibc. Raises ``UsageError`` for a format that the target does not run, ``MissingExtraError`` for a
    runtime that is not installed, ``UnsupportedError`` where nothing can be measured and ``FormatError`` for a file
    that the runtime refuses.
    """
    if target not in _RUNTIMES:
        raise UnsupportedError(f"target {target!r} is no runtime, only planned; measure {', '.join(_RUNTIMES)}")
    runtime = _RUNTIMES[target]
    if format_of(model) != runtime.format:
        raise UsageError(
            f"{target} runs .{runtime.format} files, not {model}; give the .{runtime.format} file to measure"
        )
    read_file(model)
    if find_spec(runtime.module) is None:
        raise MissingExtraError(runtime.package, runtime.extra)
    return MeasuredArena(target, **_run(Path(model), target, exact))


def run_in_arena(data: bytes, arena_size: int, inputs: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The answers of a TFLite file in tflite-micro, in an arena of so many bytes.

    Raises ``MissingExtraError`` when it is not installed and ``FormatError`` when it cannot run the file in these.
    """
    runtime = _RUNTIMES["tflm"]
    if find_spec(runtime.module) is None:
        raise MissingExtraError(runtime.package, runtime.extra)
    from tflite_micro.python.tflite_micro import runtime as micro

    try:
        interpreter = micro.Interpreter.from_bytes(data, arena_size=arena_size)
        answers = []
        for x in inputs:
            interpreter.set_input(x, 0)
            interpreter.invoke()
            answers.append(interpreter.get_output(0))
    except RuntimeError as error:
        raise FormatError(f"tflite-micro cannot run the file in {arena_size:,} bytes: {error}") from error
    return answers


def _run(model: Path, target: Target, exact: bool) -> dict[str, Any]:
    # -P: what lies in the user's folder is not imported.
    code = "from firebox.runtime.memory.measure_worker import main; main()"
    command = [sys.executable, "-P", "-c", code, target, str(model), "exact" if exact else "told"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"{target} did not finish {model} within {_TIMEOUT} seconds") from error
    if ran.returncode:
        raise FormatError(f"{target} cannot run {model}: its process ended with code {ran.returncode}")
    answer = json.loads(ran.stdout.splitlines()[-1])
    if "error" in answer:
        raise FormatError(answer["error"])
    return answer
