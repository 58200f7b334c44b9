"""The runtimes behind a session: one small class each, imported when a session asks for it."""

import contextlib
import importlib
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..contract import KEY, TensorSpec
from ..errors import FireboxError, FormatError, MissingExtraError, UsageError, first_line
from ..formats.read import Format
from ..formats.tflite_reader import read_tflite_metadata
from ..graph import Tensor
from ..onnx_session import AS_IN_THE_FILE, OpenedSession, open_onnx, session_options


class Backend(Protocol):
    """A loaded file: one input, one output, both with a fixed shape."""

    input_shape: tuple[int, ...]
    input_dtype: str
    # The form in which the runtime has the weights, in words, and why its answers may be wrong here (or nothing).
    weights: str
    doubt: str

    def run(self, x: np.ndarray) -> np.ndarray:
        """One inference, in the file's own layout and type."""
        ...

    def contract(self) -> bytes | None:
        """The metadata entry firebox writes."""
        ...

    def ends(self) -> tuple[TensorSpec, TensorSpec]:
        """Type, shape and quantization of input and output; what is dynamic in the output's shape is -1."""
        ...

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """Mean time of each operation, where the runtime tells."""
        ...


class OnnxRuntime:
    """onnxruntime on the CPU; its sessions may be run from many threads at once."""

    def __init__(self, data: bytes, threads: int, exact: bool = True):
        self._data, self._threads, self._exact = data, threads, exact
        opened = self._open(session_options(threads))
        self._session, self.weights, self.doubt = opened.session, opened.weights, opened.doubt
        source, _ = _one_of_each(self._session.get_inputs(), self._session.get_outputs())
        if not all(isinstance(size, int) for size in source.shape):
            raise FormatError(
                f"input {source.name!r} has a dynamic shape {source.shape}; export it with a fixed batch of 1"
            )
        self._name = source.name
        self.input_shape: tuple[int, ...] = tuple(source.shape)
        self.input_dtype: str = _dtype(source)

    def run(self, x: np.ndarray) -> np.ndarray:
        """One inference."""
        return self._session.run(None, {self._name: x})[0]

    def contract(self) -> bytes | None:
        """From the model's metadata."""
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        return text.encode() if text is not None else None

    def ends(self) -> tuple[TensorSpec, TensorSpec]:
        """From the session; what integers stand for, which it does not tell, from the graph."""
        values = (self._session.get_inputs()[0], self._session.get_outputs()[0])
        if all(_dtype(value).startswith("float") for value in values):
            return _spec(values[0], None), _spec(values[1], None)
        from ..formats.onnx_reader import read_onnx

        graph = read_onnx(self._data)
        return _spec(values[0], graph.tensors[graph.inputs[0]]), _spec(values[1], graph.tensors[graph.outputs[0]])

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """From the runtime's own profiler, in a session of its own."""
        with tempfile.TemporaryDirectory() as folder:
            options = session_options(self._threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._open(options).session
            for _ in range(runs):
                session.run(None, {self._name: x})
            events = json.loads(Path(session.end_profiling()).read_text())
        times: dict[str, float] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times[name] = times.get(name, 0.0) + event["dur"] / 1000 / runs
        return times

    def _open(self, options: Any) -> OpenedSession:
        with _foreign("onnxruntime"):
            return open_onnx(self._data, options, self._exact)


class TFLite:
    """LiteRT or tflite-runtime. An interpreter runs one inference at a time, so calls wait for each other."""

    def __init__(self, data: bytes, threads: int, runtime: "Runtime"):
        self._contract = read_tflite_metadata(data, KEY)
        interpreter = _import(runtime)
        # The interpreter reads the model from these bytes for as long as it lives.
        self._data = data
        with _foreign(runtime.package):
            self._interpreter = interpreter.Interpreter(model_content=data, num_threads=threads)
            self._interpreter.allocate_tensors()
        source, target = _one_of_each(self._interpreter.get_input_details(), self._interpreter.get_output_details())
        self._source, self._target = source["index"], target["index"]
        self.input_shape = tuple(int(size) for size in source["shape"])
        self.input_dtype = np.dtype(source["dtype"]).name
        self.weights, self.doubt = AS_IN_THE_FILE, ""
        self._lock = threading.Lock()

    def run(self, x: np.ndarray) -> np.ndarray:
        """One inference."""
        with self._lock:
            self._interpreter.set_tensor(self._source, x)
            self._interpreter.invoke()
            return self._interpreter.get_tensor(self._target)

    def contract(self) -> bytes | None:
        """From the model's metadata."""
        return self._contract

    def ends(self) -> tuple[TensorSpec, TensorSpec]:
        """From the interpreter."""
        (source,), (target,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        return _end(source), _end(target)

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """The interpreters' Python interface does not tell."""
        return None


@dataclass(frozen=True)
class Runtime:
    """What a backend reads and where it is: the module, its package and the extra that brings it."""

    format: Format
    module: str
    package: str
    extra: str


# In the order of preference.
BACKENDS = {
    "onnxruntime": Runtime("onnx", "onnxruntime", "onnxruntime", "onnx"),
    "litert": Runtime("tflite", "ai_edge_litert.interpreter", "ai-edge-litert", "litert"),
    "tflite-runtime": Runtime("tflite", "tflite_runtime.interpreter", "tflite-runtime", "tflite"),
}


def installed_backends(format_: Format) -> list[str]:
    """Backends for a format that can be used here, the preferred one first."""
    return [
        name
        for name in _reading(format_)
        if find_spec(BACKENDS[name].module.split(".")[0]) and not _needs_other_numpy(name)
    ]


def load_backend(name: str, data: bytes, format_: Format, threads: int, exact: bool = True) -> tuple[str, Backend]:
    """Load a file into a backend by its name, which is returned with it, or into the first installed one for ``auto``.

    ``exact`` is that of ``open_onnx``. Raises ``UsageError`` for a backend that does not read the format,
    ``MissingExtraError`` for one that is not installed and ``FormatError`` for a file that it refuses.
    """
    if name == "auto":
        name = (installed_backends(format_) or _reading(format_))[0]
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is not one of auto, {', '.join(BACKENDS)}")
    if name not in _reading(format_):
        raise UsageError(f"backend {name!r} does not run .{format_} files; use {', '.join(_reading(format_))}")
    if _needs_other_numpy(name):
        raise MissingExtraError(f"numpy below 2, without which {name} cannot run,", BACKENDS[name].extra)
    if format_ == "onnx":
        return name, OnnxRuntime(data, threads, exact)
    return name, TFLite(data, threads, BACKENDS[name])


@cache
def backend_version(name: str) -> str:
    """The installed version of a backend's package."""
    return version(BACKENDS[name].package)


def _reading(format_: Format) -> list[str]:
    return [name for name, runtime in BACKENDS.items() if runtime.format == format_]


def _dtype(value: Any) -> str:
    """numpy's name of the type of one of onnxruntime's inputs and outputs."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return "float32" if kind == "float" else kind


def _spec(value: Any, tensor: Tensor | None) -> TensorSpec:
    """One of onnxruntime's inputs and outputs; integers are those of ``tensor``, which graphs hold signed."""
    kind, shape = _dtype(value), tuple(size if isinstance(size, int) else -1 for size in value.shape)
    if kind.startswith("float"):
        return TensorSpec(kind, shape)
    if tensor is None or tensor.quantization is None:
        raise FormatError(f"{value.name!r} is {kind}, and nothing tells what its integers stand for")
    shift = np.iinfo(kind).min - np.iinfo(tensor.dtype).min
    return TensorSpec(kind, shape, tensor.quantization.scale[0], tensor.quantization.zero_point + shift)


def _end(details: Any) -> TensorSpec:
    """What an interpreter tells of its input or output."""
    dtype, shape = np.dtype(details["dtype"]).name, tuple(int(size) for size in details["shape"])
    scale, zero_point = details["quantization"]
    if dtype.startswith("float"):
        return TensorSpec(dtype, shape)
    if not scale:
        raise FormatError(f"{details['name']!r} is {dtype}, and nothing tells what its integers stand for")
    return TensorSpec(dtype, shape, float(scale), int(zero_point))


def _needs_other_numpy(name: str) -> bool:
    """tflite-runtime was built against numpy 1 and breaks under 2, only once an interpreter is made."""
    return name == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2


def _one_of_each(inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, Any]:
    if len(inputs) != 1 or len(outputs) != 1:
        raise FormatError(f"{len(inputs)} inputs and {len(outputs)} outputs; a session runs networks with one of each")
    return inputs[0], outputs[0]


def _import(runtime: Runtime) -> Any:
    try:
        return importlib.import_module(runtime.module)
    except ImportError as error:
        raise MissingExtraError(runtime.package, runtime.extra) from error


@contextlib.contextmanager
def _foreign(package: str) -> Iterator[None]:
    """A runtime's own complaint about a file as one line of ours."""
    try:
        yield
    except FireboxError:
        raise
    except Exception as error:
        raise FormatError(f"{package} cannot load the file: {first_line(error)}") from error
