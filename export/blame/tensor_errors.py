"""Quantization error of every tensor of an int8 network against the float network, and its sources."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...runtime.graph import Graph, Quantization, Tensor, ops
from ...runtime.progress import SILENT, Progress
from ..activations import run_activations
from ..quantization.ranges import Range, bin_counts
from .matching import Match

# Bins over the float tensor's range for the KL divergence: each holds four of the 256 levels.
KL_BINS = 64
# Bins of the histogram from which the bulk of the values is found.
_FINE_BINS = 64 * KL_BINS
# Share of the values that counts as the bulk.
_BULK = 0.9999
# Quantile of the channel ranges that ``spread`` compares with the widest; fewer weak channels than this are ignored.
_WEAK_CHANNELS = 0.25


@dataclass(frozen=True)
class TensorError:
    """Error of an int8 tensor against the float network's, over all images.

    Ratios in dB are signal to noise, ``None`` without noise. ``sqnr_db``, ``cosine`` and ``kl`` (in nats, of histograms
    of ``KL_BINS`` bins) measure the error accumulated up to this tensor. ``quantizer_db`` isolates the tensor's own
    scale, applied to the float network's values, of which the share ``clipped`` lies outside its range. ``weights_db``
    isolates the layer's int8 weights, with float inputs (``None`` for a layer without weights).
    """

    name: str
    sqnr_db: float | None
    cosine: float
    kl: float
    clipped: float
    quantizer_db: float | None
    weights_db: float | None


@dataclass
class ErrorSums:
    """Sums over images from which a ``TensorError`` is computed; noise and signal are sums of squares."""

    name: str
    quantization: Quantization
    dtype: str
    range: Range
    signal: float = 0.0
    power: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    quantizer_noise: float = 0.0
    clip_noise: float = 0.0
    weights_noise: float = 0.0
    values: int = 0
    clipped: int = 0
    # By channel: largest magnitude, and the summed error of the rounded weights.
    largest: np.ndarray = field(default_factory=lambda: np.zeros(1))
    shift: np.ndarray = field(default_factory=lambda: np.zeros(1))
    expected_counts: np.ndarray = field(default_factory=lambda: np.zeros(_FINE_BINS))
    found_counts: np.ndarray = field(default_factory=lambda: np.zeros(_FINE_BINS))

    def add(self, expected: np.ndarray, found: np.ndarray | None, with_weights: np.ndarray | None) -> None:
        """Add one image; all values are (1, channels, ...).

        ``expected`` are float, ``found`` the int8 network's (``None``: the input), ``with_weights`` those of int8
        weights on float inputs (``None``: no weights).
        """
        flat = expected.reshape(expected.shape[1], -1)
        own = self.quantization.dequantize(self.quantization.quantize(flat, self.dtype))
        given = own if found is None else found.reshape(flat.shape)
        self.signal += sum_squares(flat)
        self.power += sum_squares(given)
        self.product += float(np.vdot(flat, given))
        self.noise += sum_squares(given - flat)
        rounding = own - flat
        self.quantizer_noise += sum_squares(rounding)
        # Clipped values are off by more than half a step.
        clipped = rounding[np.abs(rounding) > 0.501 * self.quantization.scale[0]]
        self.clip_noise += sum_squares(clipped)
        self.clipped += clipped.size
        self.values += flat.size
        self.largest = np.maximum(self.largest, np.abs(flat).max(1))
        self.expected_counts += bin_counts(flat, self.range, _FINE_BINS)
        self.found_counts += bin_counts(given, self.range, _FINE_BINS)
        if with_weights is not None:
            error = with_weights.reshape(flat.shape) - flat
            self.weights_noise += sum_squares(error)
            self.shift = self.shift + error.sum(1, dtype=np.float64)

    def error(self) -> TensorError:
        """The error over all images added so far."""
        lengths = (self.signal * self.power) ** 0.5
        return TensorError(
            self.name,
            decibels(self.signal, self.noise),
            self.product / lengths if lengths else float(self.signal == self.power),
            _divergence(self.expected_counts, self.found_counts),
            self.clipped / max(self.values, 1),
            decibels(self.signal, self.quantizer_noise),
            decibels(self.signal, self.weights_noise),
        )

    @property
    def shifted(self) -> float:
        """The share of the weights' noise that is a constant shift of each channel."""
        mean = float((self.shift**2).sum()) * len(self.shift) / max(self.values, 1)
        return mean / self.weights_noise if self.weights_noise else 0.0

    @property
    def spread(self) -> float:
        """Ratio of the widest channel's range to a weak channel's."""
        return spread(self.largest)

    @property
    def tail(self) -> float:
        """Ratio of the range of all values to the range of their bulk."""
        edges = np.abs(np.linspace(self.range.low, self.range.high, _FINE_BINS))
        order = np.argsort(edges)
        share = np.cumsum(self.expected_counts[order]) / max(self.values, 1)
        bulk = edges[order][np.searchsorted(share, _BULK)]
        return float(edges.max() / bulk) if bulk else 1.0


def measure_errors(
    found: Match, ranges: Mapping[str, Range], samples: Sequence[np.ndarray], progress: Progress = SILENT
) -> dict[str, ErrorSums]:
    """Compare every integer tensor of the int8 network with the float network, whose activations have ``ranges``."""
    graph = found.quantized
    sums = {}
    for tensor in graph.activations:
        theirs = found.reference.tensors[found.names[tensor.name]]
        # A tensor that only one of the networks pads has no counterpart.
        if tensor.quantization and math.prod(tensor.shape) == math.prod(theirs.shape):
            sums[tensor.name] = ErrorSums(tensor.name, tensor.quantization, tensor.dtype, ranges[theirs.name])
    probed = _with_int8_weights(found)
    with progress.task("comparing tensors", len(samples)) as advance:
        for floats, integers in zip(run_activations(probed, samples), run_activations(graph, samples), strict=True):
            for name, total in sums.items():
                given = None if name in graph.inputs else _rectified(found, name, integers[name])
                total.add(floats[found.names[name]], given, floats.get(_probe(name)))
            advance()
    return sums


def spread(magnitudes: np.ndarray) -> float:
    """Ratio of the largest magnitude to a weak one, zeros excluded."""
    alive = magnitudes[magnitudes > 0]
    return float(alive.max() / np.quantile(alive, _WEAK_CHANNELS)) if len(alive) else 1.0


def decibels(signal: float, noise: float) -> float | None:
    """Signal-to-noise ratio in dB, both as sums of squares; ``None`` without noise."""
    return None if noise == 0 else float(10 * np.log10(max(signal, np.finfo(float).tiny) / noise))


def _with_int8_weights(found: Match) -> Graph:
    """The float network with a copy of each layer on the same input that has the int8 weights, dequantized."""
    graph = found.reference
    tensors, probes = dict(graph.tensors), []
    for op in found.quantized.ops:
        if not isinstance(op, ops.Layer):
            continue
        layer = found.layer(op)
        constants = [
            Tensor(f"{_probe(op.name)}/{name}", constant.shape, data=constant.real())
            for name, constant in zip(("weight", "bias"), map(found.quantized.constant, op.inputs[1:]), strict=True)
        ]
        names = (layer.inputs[0], *(constant.name for constant in constants))
        probes.append(replace(layer, inputs=names, output=_probe(op.name)))
        output = replace(graph.tensors[layer.output], name=_probe(op.name))
        tensors.update((tensor.name, tensor) for tensor in (*constants, output))
    outputs = (*graph.outputs, *(probe.output for probe in probes))
    return Graph.of(graph.name, tensors.values(), [*graph.ops, *probes], graph.inputs, outputs)


def _rectified(found: Match, name: str, values: np.ndarray) -> np.ndarray:
    """The values after the ReLU, if the int8 network alone has that ReLU as an operation of its own."""
    for op in found.quantized.consumers[name]:
        if isinstance(op, ops.Relu) and found.names[op.output] == found.names[name]:
            return np.clip(values, 0, 6 if op.activation == "relu6" else None)
    return values


def _probe(name: str) -> str:
    return f"{name}/with_int8_weights"


def sum_squares(values: np.ndarray) -> float:
    """Sum of squares of all values."""
    return float(np.vdot(values, values))


def _divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """KL divergence of coarse histograms, in nats; each bin gets half a count more, so that none is empty."""
    coarse = [counts.reshape(KL_BINS, -1).sum(1) + 0.5 for counts in (expected, found)]
    p, q = (counts / counts.sum() for counts in coarse)
    return float((p * np.log(p / q)).sum())
