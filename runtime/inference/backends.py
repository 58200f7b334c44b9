"""The runtimes behind a session, one small class each; a runtime is imported when a session needs it."""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..contract import KEY, TensorSpec
from ..errors import FireboxError, FormatError, MissingExtraError, UsageError, first_line
from ..onnx_session import AS_IN_THE_FILE, OpenedSession, open_onnx, session_options
from .installed import BACKENDS, NATIVE, Runtime, choose_backend

if TYPE_CHECKING:
    from ..formats.read import Format
    from ..graph import Tensor


class Backend(Protocol):
    """A loaded file with one input and one output of fixed shapes."""

    input_shape: tuple[int, ...]
    input_dtype: str
    # How the runtime stores the weights, in words, and why its output may be wrong on this processor (or "").
    weights: str
    doubt: str

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run one inference in the file's own layout and type."""
        ...

    def contract(self) -> bytes | None:
        """The metadata entry that firebox writes, or ``None``."""
        ...

    def io_specs(self) -> tuple[TensorSpec, TensorSpec]:
        """Type, shape and quantization of input and output; dynamic dimensions of the output are -1."""
        ...

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """Mean time of each operation, or ``None`` if the runtime does not report it."""
        ...


class OnnxRuntime:
    """onnxruntime on the CPU; many threads may run one session at once."""

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
        """Run one inference."""
        return self._session.run(None, {self._name: x})[0]

    def contract(self) -> bytes | None:
        """The entry in the model's metadata."""
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        return text.encode() if text is not None else None

    def io_specs(self) -> tuple[TensorSpec, TensorSpec]:
        """Types and shapes from the session; quantization, which the session does not report, from the graph."""
        values = (self._session.get_inputs()[0], self._session.get_outputs()[0])
        if all(_dtype(value).startswith("float") for value in values):
            return _onnx_spec(values[0], None), _onnx_spec(values[1], None)
        from ..formats.onnx_reader import read_onnx

        graph = read_onnx(self._data)
        tensors = (graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]])
        return _onnx_spec(values[0], tensors[0]), _onnx_spec(values[1], tensors[1])

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """Times from the runtime's profiler, in a session opened for this purpose."""
        import json
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
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
        with _load_errors("onnxruntime"):
            return open_onnx(self._data, options, self._exact)


class TFLite:
    """LiteRT or tflite-runtime; an interpreter runs one inference at a time, so threads wait for each other."""

    def __init__(self, data: bytes, threads: int, runtime: Runtime):
        from ..formats.tflite_reader import read_tflite_metadata

        self._contract = read_tflite_metadata(data, KEY)
        interpreter = _import(runtime)
        # The interpreter reads the model from these bytes for as long as it lives.
        self._data = data
        with _load_errors(runtime.package):
            self._interpreter = interpreter.Interpreter(model_content=data, num_threads=threads)
            self._interpreter.allocate_tensors()
        source, target = _one_of_each(self._interpreter.get_input_details(), self._interpreter.get_output_details())
        self._source, self._target = source["index"], target["index"]
        self.input_shape = tuple(int(size) for size in source["shape"])
        self.input_dtype = np.dtype(source["dtype"]).name
        self.weights, self.doubt = AS_IN_THE_FILE, ""
        self._lock = threading.Lock()

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run one inference."""
        with self._lock:
            self._interpreter.set_tensor(self._source, x)
            self._interpreter.invoke()
            return self._interpreter.get_tensor(self._target)

    def contract(self) -> bytes | None:
        """The entry in the model's metadata."""
        return self._contract

    def io_specs(self) -> tuple[TensorSpec, TensorSpec]:
        """Types, shapes and quantization from the interpreter."""
        (source,), (target,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        return _tflite_spec(source), _tflite_spec(target)

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """``None``: the interpreters' Python API has no per-operation timing."""
        return None


def load_backend(name: str, data: bytes, format_: "Format", threads: int, exact: bool = True) -> tuple[str, Backend]:
    """Load a file into the backend of that name; ``auto`` is the preferred one that is installed.

    ``auto`` is ``native`` if the file is compiled already and was measured to be faster.

    Returns the backend's name and the backend. ``exact`` is passed to ``open_onnx``. Raises ``UsageError`` if the
    backend does not run the format, ``MissingExtraError`` if it is not installed, ``FormatError`` if it rejects the
    file.
    """
    if name == NATIVE:
        from .native import load_native

        return NATIVE, load_native(data, threads)
    chosen = choose_backend(name, format_)
    if name == "auto" and _has_libraries():
        from .native import preferred_native

        native = preferred_native(data, threads, chosen)
        if native is not None:
            return NATIVE, native
    return chosen, _LOADERS[chosen](data, threads, exact)


def _has_libraries() -> bool:
    """True if anything was compiled here; otherwise ``auto`` loads nothing of the compiler."""
    from ..compile.store import has_libraries

    return has_libraries()


def load_library(name: str, path: str, data: bytes, threads: int) -> tuple[str, Backend]:
    """Load a shared library that was compiled on this machine; ``name`` is ``auto`` or ``native``.

    Returns the backend's name and the backend. Raises as ``load_backend`` does, and ``FormatError`` for a library that
    was not built here.
    """
    if name not in ("auto", NATIVE):
        raise UsageError(f"backend {name!r} does not run compiled libraries; use {NATIVE}")
    from .native import load_file

    return NATIVE, load_file(path, data, threads)


def _tflite_loader(name: str) -> Callable[[bytes, int, bool], Backend]:
    # Their kernels are exact, so that ``exact`` has no meaning for them.
    return lambda data, threads, exact: TFLite(data, threads, BACKENDS[name])


_LOADERS: Mapping[str, Callable[[bytes, int, bool], Backend]] = {
    "onnxruntime": OnnxRuntime,
    "litert": _tflite_loader("litert"),
    "tflite-runtime": _tflite_loader("tflite-runtime"),
}


def _dtype(value: Any) -> str:
    """numpy's name for the type of an onnxruntime input or output."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return "float32" if kind == "float" else kind


def _onnx_spec(value: Any, tensor: "Tensor | None") -> TensorSpec:
    """The spec of an onnxruntime input or output, with the quantization of ``tensor``, whose integers are signed."""
    kind, shape = _dtype(value), tuple(size if isinstance(size, int) else -1 for size in value.shape)
    if kind.startswith("float"):
        return TensorSpec(kind, shape)
    if tensor is None or tensor.quantization is None:
        raise FormatError(f"{value.name!r} is {kind} but has no quantization parameters")
    shift = np.iinfo(kind).min - np.iinfo(tensor.dtype).min
    return TensorSpec(kind, shape, tensor.quantization.scale[0], tensor.quantization.zero_point + shift)


def _tflite_spec(details: Any) -> TensorSpec:
    """The spec of an interpreter's input or output."""
    dtype, shape = np.dtype(details["dtype"]).name, tuple(int(size) for size in details["shape"])
    scale, zero_point = details["quantization"]
    if dtype.startswith("float"):
        return TensorSpec(dtype, shape)
    if not scale:
        raise FormatError(f"{details['name']!r} is {dtype} but has no quantization parameters")
    return TensorSpec(dtype, shape, float(scale), int(zero_point))


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
def _load_errors(package: str) -> Iterator[None]:
    """Turn a runtime's own error while it loads a file into a ``FormatError`` of one line."""
    try:
        yield
    except FireboxError:
        raise
    except Exception as error:
        raise FormatError(f"{package} cannot load the file: {first_line(error)}") from error
