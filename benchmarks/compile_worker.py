"""One runtime in a process of its own, for compile.py: prints facts, then the milliseconds of an inference per request.

Arguments: c LIBRARY | litert FILE | onnxruntime FILE | openvino FILE FOLDER: processor time on one thread;
session FILE BACKEND THREADS: elapsed time of a session.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# arch_prctl's question for the states that this process may use, and the bit of the matrix registers.
_PRCTL, _PERMITTED, _TILES = 158, 0x1022, 18
# Inferences of one measurement, after one that warms the caches.
_REPEATS = 3

Run = Callable[[], Any]


def main() -> None:
    """Answer requests until stdin ends."""
    kind, file, *rest = sys.argv[1:]
    kinds = {"c": _c, "litert": _litert, "onnxruntime": _onnxruntime, "openvino": _openvino, "session": _session}
    run, facts = kinds[kind](file, *rest)
    # Threads of a runtime count as well, unless the question is how long they take together.
    clock = time.perf_counter if kind == "session" else time.process_time
    for _ in range(3):
        run()
    print(json.dumps({**facts, "amx": _may_use_tiles()}), flush=True)
    for _ in sys.stdin:
        run()
        start = clock()
        for _ in range(_REPEATS):
            run()
        print(1000 * (clock() - start) / _REPEATS, flush=True)


def _c(file: str) -> tuple[Run, dict[str, Any]]:
    facts, library = json.loads(Path(file).with_suffix(".json").read_text()), ctypes.CDLL(file)
    arena = np.zeros(facts["arena_bytes"] + 64, np.uint8)
    x, y = _noise(facts["input_bytes"]), np.zeros(1 << 16, np.int8)
    addresses = (ctypes.c_void_p(-(-arena.ctypes.data // 64) * 64), *(ctypes.c_void_p(a.ctypes.data) for a in (x, y)))
    library.net_isa.restype = ctypes.c_char_p
    kept = (arena, x, y)
    return lambda: (library.net_run_in(*addresses), kept), {"uses": library.net_isa().decode()}


def _litert(file: str) -> tuple[Run, dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(file, num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    x, index = _noise(int(np.prod(source["shape"]))).reshape(source["shape"]), source["index"]
    return lambda: (interpreter.set_tensor(index, x), interpreter.invoke()), {}


def _onnxruntime(file: str) -> tuple[Run, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    x = _noise(int(np.prod(source.shape))).view(np.uint8).reshape(source.shape)
    return lambda: session.run(None, {source.name: x}), {}


def _openvino(file: str, folder: str) -> tuple[Run, dict[str, Any]]:
    # At the end, so that other packages in the folder replace none of this environment's.
    sys.path += [folder] if folder else []
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(file), "CPU", options)
    shape = tuple(compiled.inputs[0].shape)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(_noise(int(np.prod(shape))).view(np.uint8).reshape(shape)))
    kinds = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    names = sorted({kind["primitiveType"].value for kind in kinds if kind["layerType"].value == "Convolution"})
    return request.infer, {"uses": ", ".join(names), "version": openvino.__version__.split("-")[0]}


def _session(file: str, backend: str, threads: str) -> tuple[Run, dict[str, Any]]:
    from firebox.runtime import Session

    session = Session(file, backend, int(threads))
    x = _noise(int(np.prod(session.input_shape))).view(session.input_dtype).reshape(session.input_shape)
    return lambda: session.run(x), {}


def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, size, np.int8)


def _may_use_tiles() -> bool:
    """True if this process has asked for the matrix registers (AMX), without which their instructions fault."""
    mask = ctypes.c_uint64()
    if sys.platform != "linux" or ctypes.CDLL(None).syscall(_PRCTL, _PERMITTED, ctypes.byref(mask)):
        return False
    return bool(mask.value >> _TILES & 1)


if __name__ == "__main__":
    main()
