"""One inference of a file in each runtime, with int8 integers in NHWC."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from firebox.export import write_onnx, write_tflite
from firebox.runtime import Session
from firebox.runtime.graph import Graph, Op

ARENA = 8 * 1024**2


def some_input(graph: Graph, seed: int = 0) -> np.ndarray:
    """Random integers of the input's whole range."""
    source = graph.tensors[graph.inputs[0]]
    limits = np.iinfo(source.dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, source.shape).astype(source.dtype)


def run_litert(data: bytes, x: np.ndarray) -> np.ndarray:
    with Session(data, "litert") as session:
        return session.run(x)


def run_reference(data: bytes, x: np.ndarray) -> np.ndarray:
    """LiteRT's reference kernels, without XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_micro(data: bytes, x: np.ndarray, arena_size: int = ARENA) -> np.ndarray:
    """tflite-micro in an arena of this size."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena_size)
    interpreter.set_input(x, 0)
    interpreter.invoke()
    return interpreter.get_output(0)


def run_onnx(data: bytes, x: np.ndarray) -> np.ndarray:
    """onnxruntime; the ONNX file of an int8 graph has the same integers plus 128."""
    image = x if x.dtype == np.uint8 else (x.astype(np.int16) + 128).astype(np.uint8)
    with Session(data) as session:
        y = session.run(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    y = y.transpose(0, 2, 3, 1) if y.ndim == 4 else y
    return (y.astype(np.int16) - 128).astype(np.int8)


_ON_TFLITE: Mapping[str, Callable[[bytes, np.ndarray], np.ndarray]] = {
    "litert": run_litert,
    "litert-reference": run_reference,
    "tflite-micro": run_micro,
}


def answers(graph: Graph, x: np.ndarray, leave_out: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Outputs of a graph's files in each runtime, except ``leave_out``."""
    data = write_tflite(graph)
    found = {name: run(data, x) for name, run in _ON_TFLITE.items() if name not in leave_out}
    return found if "onnxruntime" in leave_out else {**found, "onnxruntime": run_onnx(write_onnx(graph), x)}


def alone(graph: Graph, op: Op) -> Graph:
    """One operation of an int8 graph as a network with the operation's first input.

    A second computed input is replaced by the first, since the network has one input.
    """
    first = op.inputs[0]
    names = [first if graph.tensors[name].data is None else name for name in op.inputs]
    tensors = [graph.tensors[name] for name in (*names, op.output)]
    return Graph.of("alone", tensors, [replace(op, inputs=tuple(names))], [first], [op.output])


def assert_same_answers(graph: Graph, expected: Mapping[str, np.ndarray], x: np.ndarray) -> None:
    """Compare outputs bit by bit in each runtime of ``expected``."""
    left_out = {*_ON_TFLITE, "onnxruntime"} - set(expected)
    for name, answer in answers(graph, x, tuple(left_out)).items():
        np.testing.assert_array_equal(answer, expected[name], err_msg=name)
