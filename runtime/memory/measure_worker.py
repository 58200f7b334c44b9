"""Runs a file in the runtime of a target and reads how much memory it took, in a process of its own.

``measure`` starts the process: a runtime that aborts ends only this process. The last line of its stdout is the result
as JSON.
"""

import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FireboxError, UnsupportedError, first_line
from ..formats.tflite_reader import read_tflite, unpacked_weights
from ..graph import Graph
from ..onnx_session import kernels_saturate, open_onnx, session_options
from .allocation import ALIGNMENT
from .heap import Heap, captured
from .hybrid import hybrid_weight

Measured = dict[str, int | None]

# arena_size is a signed 32-bit integer.
_ARENA_SIZES = (1 << 24, 1 << 28, (1 << 31) - 16)


def main() -> None:
    """Measure one file for one target: arguments are a target, its function ``module:name``, a path and the mode."""
    target, function, path, mode = sys.argv[1:]
    module, _, name = function.partition(":")
    result: dict[str, Any]
    try:
        result = getattr(import_module(module), name)(Path(path).read_bytes(), mode == "exact")
    except FireboxError as error:
        result = {"error": str(error)}
    except Exception as error:
        result = {"error": f"{target} cannot run {path}: {first_line(error)}"}
    sys.stdout.write("\n" + json.dumps(result))


def measure_tflm(data: bytes, exact: bool) -> Measured:
    """Head and tail as tflite-micro reports them; the total is the smallest arena found by bisection if ``exact``."""
    from tflite_micro.python.tflite_micro import runtime

    size = next((size for size in _ARENA_SIZES if _fits(data, size)), None)
    if size is None:
        raise RuntimeError(f"it does not start in an arena of {_ARENA_SIZES[-1]:,} bytes, the largest possible")
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
    """True if tflite-micro can prepare a file in an arena; tried in a child process, since it may abort."""
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


def measure_litert_reference(data: bytes, exact: bool) -> Measured:
    """The arena and the heap of LiteRT with its reference kernels."""
    return _measure_litert(data, "BUILTIN_REF")


def measure_litert(data: bytes, exact: bool) -> Measured:
    """The arena and the heap of LiteRT with XNNPACK."""
    return _measure_litert(data, "AUTO")


def _measure_litert(data: bytes, resolver: str) -> Measured:
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


def _check_hybrid(graph: Graph) -> None:
    """Raise ``UnsupportedError`` for integer weights between floats: kernels keep buffers that look like the arena."""
    weight = hybrid_weight(graph)
    if weight is not None and weight.dtype != "float16":
        raise UnsupportedError(
            f"LiteRT's arena cannot be separated from its buffers for {weight.dtype} weights between floats "
            f"({weight.name!r}); measure float32, float16 or int8 files instead"
        )


def _span(interpreter: Any, data: bytes) -> int:
    """Bytes from the first to the last tensor that lies neither in the file nor within a delegate.

    Float32 copies of float16 weights are not part of the arena.
    """
    unpacked = unpacked_weights(data)
    file = np.frombuffer(data, np.uint8)
    start, stop = file.ctypes.data, file.ctypes.data + file.nbytes
    spans = []
    for details in interpreter.get_tensor_details():
        try:
            view = interpreter.tensor(details["index"])()
        except ValueError:
            # The tensor belongs to a delegate.
            continue
        # LiteRT returns a scalar as a copy.
        if view.shape and details["name"] not in unpacked and not start <= view.ctypes.data < stop:
            spans.append((view.ctypes.data, view.ctypes.data + view.nbytes))
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def measure_onnxruntime(data: bytes, exact: bool) -> Measured:
    """The most that a run takes from the heap, and the heap of the loaded file in addition."""
    # Load the package and probe its kernels first: their memory does not belong to the file.
    options = session_options(1)
    kernels_saturate()
    heap = Heap()
    before = heap.used_bytes()
    # onnxruntime's arena grows in powers of two and never shrinks; without it, requests show the real demand.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = open_onnx(data, options).session
    inputs = {}
    for source in session.get_inputs():
        kind = source.type.removeprefix("tensor(").removesuffix(")")
        inputs[source.name] = np.zeros(source.shape, "float32" if kind == "float" else kind)
    # The first run leaves allocations behind that later runs do not need.
    session.run(None, inputs)
    loaded = heap.used_bytes() - before
    peak = heap.peak_bytes(lambda: session.run(None, inputs))
    return {"arena_bytes": peak, "tail_bytes": None, "total_bytes": loaded + peak}
