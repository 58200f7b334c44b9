"""Activations and outputs of a graph, float or integer, computed by onnxruntime."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..runtime.errors import QuantizationError, UsageError
from ..runtime.graph import Graph
from ..runtime.onnx_session import open_onnx, session_options
from ..runtime.progress import SILENT, Progress
from .formats.onnx_writer import onnx_side, write_onnx


def run_activations(
    graph: Graph, samples: Iterable[np.ndarray], names: Iterable[str] | None = None
) -> Iterable[Mapping[str, np.ndarray]]:
    """Run a graph and yield its activations, one mapping per sample.

    ``names`` limits them (default: all); the input is always included. ``samples`` are network inputs, NHWC with the
    batch axis. Values come in ONNX's NCHW layout, integers dequantized. Raises ``UsageError`` for a sample of the wrong
    shape.
    """
    wanted = [tensor.name for tensor in graph.activations] if names is None else names
    names = [name for name in wanted if name not in graph.inputs]
    session = open_onnx(write_onnx(graph, expose=names), session_options()).session
    source = graph.tensors[graph.inputs[0]]
    for sample in samples:
        if np.shape(sample) != source.shape:
            raise UsageError(
                f"a sample has shape {np.shape(sample)}, but the network's input is {source.shape}; pass that shape"
            )
        moved = sample.transpose(0, 3, 1, 2) if sample.ndim == 4 else sample
        feed = np.ascontiguousarray(moved, np.float32)
        if source.quantization is not None:
            dtype, zero_point = onnx_side(source)
            feed = replace(source.quantization, zero_point=zero_point).quantize(feed, dtype)
        results: Any = session.run(names, {source.name: feed})
        values = dict(zip(names, results, strict=True))
        yield {name: _dequantized(graph, name, value) for name, value in values.items()} | {
            source.name: np.asarray(moved, np.float32)
        }


def run_outputs(graph: Graph, samples: Sequence[np.ndarray], progress: Progress = SILENT) -> np.ndarray:
    """Real-valued outputs of a network, shape (samples, values), float64.

    Raises ``QuantizationError`` without samples.
    """
    if not len(samples):
        raise QuantizationError("there are no images; pass at least one, better 100")
    (name,) = graph.outputs
    outputs = []
    with progress.task("running the network", len(samples)) as advance:
        for values in run_activations(graph, samples, [name]):
            outputs.append(values[name].ravel().astype(np.float64))
            advance()
    return np.stack(outputs)


def _dequantized(graph: Graph, name: str, value: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[name]
    if tensor.quantization is None or value.dtype == np.float32:
        return value
    return replace(tensor.quantization, zero_point=onnx_side(tensor)[1]).dequantize(value)
