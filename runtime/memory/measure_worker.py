"""Runs a file in the runtime of a target and reads what memory it took; in a process of its own.

Started by ``arena.py`` with target, path and whether to search for the smallest arena; the last line of its stdout is
the answer as JSON. A runtime that gives up ends this process, not the user's.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FireboxError, UnsupportedError, first_line
from ..formats.tflite_reader import read_tflite, unpacked_weights
from ..graph import Graph
from ..onnx_session import kernels_saturate, open_onnx, session_options
from .allocation import ALIGNMENT
from .heap import Heap, captured
from .targets import mixed_weight

# It counts in 32 bits with a sign.
_ARENA_SIZES = (1 << 24, 1 << 28, (1 << 31) - 16)


def main() -> None:
    """One measurement, for one target and one file."""
    target, path, exact = sys.argv[1:]
    try:
        answer = _TARGETS[target](Path(path).read_bytes(), exact == "exact")
    except FireboxError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"error": f"{target} cannot run {path}: {first_line(error)}"}
    sys.stdout.write("\n" + json.dumps(answer))


def _tflm(data: bytes, exact: bool) -> dict[str, Any]:
    from tflite_micro.python.tflite_micro import runtime

    size = next((size for size in _ARENA_SIZES if _fits(data, size)), None)
    if size is None:
        raise RuntimeError(f"it does not start in an arena of {_ARENA_SIZES[-1]:,} bytes, and takes no larger one")
    text = captured(runtime.Interpreter.from_bytes(data, arena_size=size).print_allocations)
    head, tail = (int(re.findall(rf"Arena allocation {part} (\d+) bytes", text)[0]) for part in ("head", "tail"))
    total = _smallest(data, tail, head + tail) if exact else head + tail
    return {"arena_bytes": head, "tail_bytes": tail, "total_bytes": total}


def _smallest(data: bytes, low: int, high: int) -> int:
    """The smallest ``arena_size``, a multiple of 16, in which a file can be prepared and run."""
    while not _fits(data, high):
        low, high = high, 2 * high
    low, high = low // ALIGNMENT, -(-high // ALIGNMENT)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(data, ALIGNMENT * middle) else (middle, high)
    while not _fits(data, ALIGNMENT * high, run=True):
        high += 1
    return ALIGNMENT * high


def _fits(data: bytes, arena_size: int, run: bool = False) -> bool:
    """Whether tflite-micro can prepare a file in an arena; in a process of its own, which it may end."""
    from tflite_micro.python.tflite_micro import runtime

    child = os.fork()
    if child == 0:
        try:
            interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena_size)
            if run:
                source = interpreter.get_input_details(0)
                interpreter.set_input(np.zeros(source["shape"], source["dtype"]), 0)
                interpreter.invoke()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _litert(resolver: str) -> Callable[[bytes, bool], dict[str, Any]]:
    def measure(data: bytes, exact: bool) -> dict[str, Any]:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        heap = Heap()
        before = heap.used_bytes()
        kind = getattr(OpResolverType, resolver)
        interpreter = Interpreter(model_content=data, experimental_op_resolver_type=kind, num_threads=1)
        interpreter.allocate_tensors()
        _check_hybrid(read_tflite(data))
        loaded = heap.used_bytes() - before
        arena = _span(interpreter, data)
        source = interpreter.get_input_details()[0]
        interpreter.set_tensor(source["index"], np.zeros(source["shape"], source["dtype"]))
        return {"arena_bytes": arena, "tail_bytes": None, "total_bytes": loaded + heap.peak_bytes(interpreter.invoke)}

    return measure


def _check_hybrid(graph: Graph) -> None:
    """What kernels keep for good for integer weights between floats is another memory, but looks the same."""
    weight = mixed_weight(graph)
    if weight is not None and weight.dtype != "float16":
        raise UnsupportedError(
            f"what LiteRT keeps for {weight.dtype} weights between floats ({weight.name!r}) cannot be told from its "
            "arena"
        )


def _span(interpreter: Any, data: bytes) -> int:
    """From the first to the last byte of all tensors that lie neither in the file nor within a delegate.

    What is made of float16 weights once is kept apart from the arena.
    """
    apart = unpacked_weights(data)
    file = np.frombuffer(data, np.uint8)
    start, stop = file.ctypes.data, file.ctypes.data + file.nbytes
    spans = []
    for details in interpreter.get_tensor_details():
        try:
            view = interpreter.tensor(details["index"])()
        except ValueError:
            # A delegate has it.
            continue
        # A tensor of one number is given as a copy.
        if view.shape and details["name"] not in apart and not start <= view.ctypes.data < stop:
            spans.append((view.ctypes.data, view.ctypes.data + view.nbytes))
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def _onnxruntime(data: bytes, exact: bool) -> dict[str, Any]:
    # The memory of the package, and of asking its kernels, is not the file's.
    options = session_options(1)
    kernels_saturate()
    heap = Heap()
    before = heap.used_bytes()
    # Its arena grows in powers of two and keeps what it has: the need itself is what is asked for without one.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = open_onnx(data, options).session
    inputs = {}
    for source in session.get_inputs():
        kind = source.type.removeprefix("tensor(").removesuffix(")")
        inputs[source.name] = np.zeros(source.shape, "float32" if kind == "float" else kind)
    # What the first run leaves behind is not the need of a run.
    session.run(None, inputs)
    loaded = heap.used_bytes() - before
    peak = heap.peak_bytes(lambda: session.run(None, inputs))
    return {"arena_bytes": peak, "tail_bytes": None, "total_bytes": loaded + peak}


_TARGETS: dict[str, Callable[[bytes, bool], dict[str, Any]]] = {
    "tflm": _tflm,
    "litert-reference": _litert("BUILTIN_REF"),
    "litert": _litert("AUTO"),
    "onnxruntime": _onnxruntime,
}
