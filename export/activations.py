"""What a graph computes, float or integer, tensor by tensor: run by onnxruntime."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..runtime.errors import QuantizationError, UsageError
from ..runtime.graph import Graph
from ..runtime.onnx_session import open_onnx, session_options
from .formats.onnx_writer import onnx_side, write_onnx


def run_activations(
    graph: Graph, samples: Iterable[np.ndarray], names: Iterable[str] | None = None
) -> Iterable[Mapping[str, np.ndarray]]:
    """Every activation of a float or integer graph, or those of ``names`` with the input, sample by sample.

    They come from onnxruntime, in ONNX's NCHW layout; integer ones as real numbers. ``samples`` are what the input
    takes, NHWC, batch included. Raises ``UsageError`` for one of another shape.
    """
    wanted = [tensor.name for tensor in graph.activations] if names is None else names
    names = [name for name in wanted if name not in graph.inputs]
    session = open_onnx(write_onnx(graph, expose=names), session_options()).session
    source = graph.tensors[graph.inputs[0]]
    for sample in samples:
        if np.shape(sample) != source.shape:
            raise UsageError(f"a sample has shape {np.shape(sample)}, the network's input {source.shape}; give that")
        moved = sample.transpose(0, 3, 1, 2) if sample.ndim == 4 else sample
        feed = np.ascontiguousarray(moved, np.float32)
        if source.quantization is not None:
            dtype, zero_point = onnx_side(source)
            feed = replace(source.quantization, zero_point=zero_point).quantize(feed, dtype)
        results: Any = session.run(names, {source.name: feed})
        values = dict(zip(names, results, strict=True))
        yield {name: _real(graph, name, value) for name, value in values.items()} | {
            source.name: np.asarray(moved, np.float32)
        }


def run_outputs(graph: Graph, samples: Sequence[np.ndarray], tick: Callable[[], None] = lambda: None) -> np.ndarray:
    """Real-valued outputs (images, values) of a network; ``tick`` is called once a sample.

    Raises ``QuantizationError`` without samples.
    """
    if not len(samples):
        raise QuantizationError("there are no images; give at least one, better a hundred")
    (name,) = graph.outputs
    found = []
    for values in run_activations(graph, samples, [name]):
        found.append(values[name].ravel().astype(np.float64))
        tick()
    return np.stack(found)


def _real(graph: Graph, name: str, value: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[name]
    if tensor.quantization is None or value.dtype == np.float32:
        return value
    return replace(tensor.quantization, zero_point=onnx_side(tensor)[1]).dequantize(value)
