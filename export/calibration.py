"""Which range of values each activation takes, seen on real pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..runtime.errors import MissingExtraError, QuantizationError, UsageError
from ..runtime.graph import Graph
from .onnx_writer import onnx_shape, onnx_side, write_onnx

Method = Literal["minmax", "mse"]
# How often each method looks at every picture.
PASSES: dict[Method, int] = {"minmax": 1, "mse": 2}

_BINS = 2048
# Shares of the observed range that the search for the least error tries.
_SHARES = np.linspace(0.3, 1.0, 71)
_LEVELS = 255


@dataclass(frozen=True)
class Range:
    """The reals that an activation's integers are to cover; always with zero inside."""

    low: float
    high: float

    def union(self, other: "Range") -> "Range":
        """The range that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


def run_activations(
    graph: Graph, samples: Iterable[np.ndarray], names: Iterable[str] | None = None
) -> Iterable[Mapping[str, np.ndarray]]:
    """Every activation of a float or integer graph, or those of ``names`` with the input, sample by sample.

    They come from onnxruntime, in ONNX's NCHW layout; integer ones as real numbers. ``samples`` are what the input
    takes, NHWC, batch included.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    wanted = [tensor.name for tensor in graph.activations] if names is None else names
    names = [name for name in wanted if name not in graph.inputs]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = write_onnx(graph, expose=names)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    source = graph.tensors[graph.inputs[0]]
    for sample in samples:
        moved = sample.transpose(0, 3, 1, 2) if sample.ndim == 4 else sample
        feed = np.ascontiguousarray(moved, np.float32)
        if source.quantization is not None:
            dtype, zero_point = onnx_side(source)
            feed = replace(source.quantization, zero_point=zero_point).quantize(feed, dtype)
        assert feed.shape == onnx_shape(source.shape)
        results: Any = session.run(names, {source.name: feed})
        values = dict(zip(names, results, strict=True))
        yield {name: _real(graph, name, value) for name, value in values.items()} | {
            source.name: np.asarray(moved, np.float32)
        }


def calibrate(
    graph: Graph,
    samples: Sequence[np.ndarray],
    method: Method = "mse",
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Range]:
    """The range of every activation of a float graph over ``samples`` (NHWC, batch included).

    ``minmax`` covers every value seen. ``mse`` cuts the tails where that lowers the mean squared error of 8 bits
    (Choukroun et al., arXiv 1902.06822, section 3); the network's input and output are never cut. ``tick`` is called
    ``PASSES`` times a sample. Raises ``QuantizationError`` without samples, or naming the first tensor that is not
    finite.
    """
    if method not in PASSES:
        raise UsageError(f"calibration method {method!r} is not one of {', '.join(PASSES)}")
    if not len(samples):
        raise QuantizationError("there are no calibration pictures; give at least one, better a hundred")
    seen: dict[str, Range] = {}
    for values in run_activations(graph, samples):
        for tensor in graph.activations:
            low, high = float(values[tensor.name].min()), float(values[tensor.name].max())
            if not np.isfinite([low, high]).all():
                raise QuantizationError(
                    f"activation {tensor.name!r} is not finite on the calibration pictures; check the weights"
                )
            seen[tensor.name] = Range(min(low, 0.0), max(high, 0.0)).union(seen.get(tensor.name, Range(0.0, 0.0)))
        tick()
    if method == "minmax":
        return seen
    histograms = {name: np.zeros(_BINS) for name in seen}
    for values in run_activations(graph, samples):
        for name, histogram in histograms.items():
            histogram += _histogram(values[name], seen[name])
        tick()
    return {
        name: seen[name] if name in graph.inputs + graph.outputs else _least_error(histograms[name], seen[name])
        for name in seen
    }


def _histogram(values: np.ndarray, seen: Range) -> np.ndarray:
    """Counts in equal bins over the range; several times as fast as ``np.histogram``, which this is for."""
    width = ((seen.high or 1.0) - seen.low) / _BINS
    bins = ((values.ravel() - np.float32(seen.low)) * np.float32(1 / width)).astype(np.int32)
    return np.bincount(np.minimum(bins, _BINS - 1, out=bins), minlength=_BINS)


def _least_error(histogram: np.ndarray, seen: Range) -> Range:
    """The share of a range whose 8-bit grid has the least mean squared error, rounding and clipping together."""
    edges = np.linspace(seen.low, seen.high or 1.0, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    best, least = seen, np.inf
    for share in _SHARES:
        low, high = seen.low * share, seen.high * share
        step = (high - low) / _LEVELS
        inside = np.clip(centres, low, high)
        error = float(histogram @ ((centres - inside) ** 2)) + float(histogram[inside == centres].sum()) * step**2 / 12
        if error < least:
            best, least = Range(low, high), error
    return best


def _real(graph: Graph, name: str, value: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[name]
    if tensor.quantization is None or value.dtype == np.float32:
        return value
    return replace(tensor.quantization, zero_point=onnx_side(tensor)[1]).dequantize(value)
