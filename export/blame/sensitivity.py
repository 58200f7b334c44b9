"""Which layers of an int8 network lose what, and what would help.

Every layer is left in float alone, its weight and what it gives, to see how much of the network's answer comes back:
the per-layer analysis of AIMET's ``QuantAnalyzer`` (``export_per_layer_sensitivity``), on the integers as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.formats.read import read_graph
from ...runtime.graph import Graph, ops
from ..activations import run_outputs
from ..quantization.calibration import calibrate
from .advice import Advice, advise
from .float_layers import quantizers, with_float_layer
from .matching import Match, match
from .tensor_errors import KL_BINS, TensorError, decibels, measure, sum_squares

# Fewer images than this say little of how often two networks agree.
_FEW = 20


@dataclass(frozen=True)
class LayerBlame:
    """One layer: what its tensor loses, and what comes back when it alone stays float.

    ``recovered`` is the share of the noise in the network's output that goes away (below 0: more comes),
    ``sqnr_gain_db`` the same as a gain (``None``: no noise is left), ``agreement_gain`` in shares of the images.
    ``weight_db`` is the signal to noise of the weight as it is stored, ``worst_channel_db`` that of its worst output
    channel; ``None`` without weights, or without noise.
    """

    layer: str
    kind: str
    recovered: float
    sqnr_gain_db: float | None
    agreement_gain: float
    error: TensorError
    weight_db: float | None
    worst_channel_db: float | None
    advice: Advice


@dataclass(frozen=True)
class Blame:
    """The layers, worst first, and all integer tensors in the order of the network.

    ``agreement`` is the share of images whose best class is that of the float network; ``sqnr_db`` that of the
    network's output, ``None`` when nothing differs.
    """

    images: int
    agreement: float
    sqnr_db: float | None
    layers: tuple[LayerBlame, ...]
    tensors: tuple[TensorError, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Figures for programs."""
        return {**asdict(self), "kl_bins": KL_BINS}


def blame(
    reference: Graph | str | Path,
    quantized: Graph | str | Path,
    samples: Sequence[np.ndarray],
    tick: Callable[[], None] = lambda: None,
) -> Blame:
    """Compare a float32 and an int8 network, graphs or files of either format, layer by layer.

    ``samples`` are network inputs, NHWC with the batch. ``tick`` is called ``passes(quantized)`` times for each.
    Raises ``UsageError`` when the two are not one network in float and in int8, and ``QuantizationError`` without
    samples or naming the layer whose weights or activations are not finite.
    """
    return blame_match(match(as_graph(reference), as_graph(quantized)), samples, tick)


def blame_match(found: Match, samples: Sequence[np.ndarray], tick: Callable[[], None] = lambda: None) -> Blame:
    """As ``blame``, of two networks that are matched already."""
    ranges = calibrate(found.reference, samples, "minmax", tick)
    sums = measure(found, ranges, samples, tick)
    expected, given = run_outputs(found.reference, samples, tick), run_outputs(found.quantized, samples, tick)
    noise, agreement = sum_squares(given - expected), class_agreement(expected, given)
    layers = []
    for layer, tensor in quantizers(found.quantized).items():
        alone = run_outputs(with_float_layer(found, layer), samples, tick)
        left = sum_squares(alone - expected)
        recovered = (noise - left) / noise if noise else 0.0
        op = found.quantized.producers.get(layer)
        layers.append(
            LayerBlame(
                layer,
                op.kind if op else "Input",
                recovered,
                decibels(noise, left) if noise else 0.0,
                class_agreement(expected, alone) - agreement,
                sums[tensor].error(),
                *_weight_ratios(found, layer),
                advise(found, layer, sums[tensor], recovered),
            )
        )
    ranked = sorted(layers, key=lambda layer: -layer.recovered)
    errors = tuple(total.error() for total in sums.values())
    total = decibels(sum_squares(expected), noise)
    return Blame(len(samples), agreement, total, tuple(ranked), errors, _notes(samples, expected))


def as_graph(model: Graph | str | Path) -> Graph:
    """A graph, read from a file if it is not one yet and then called after it."""
    return model if isinstance(model, Graph) else replace(read_graph(model), name=str(model))


def passes(quantized: Graph) -> int:
    """How often ``blame`` looks at every image: for each layer, and four times before."""
    return len(quantizers(quantized)) + 4


def class_agreement(expected: np.ndarray, given: np.ndarray) -> float:
    """The share of images for which both answers (images, classes) have the same best class."""
    return float((expected.argmax(1) == given.argmax(1)).mean())


def sqnr(expected: np.ndarray, given: np.ndarray) -> float | None:
    """Signal to noise of an answer in dB; ``None`` when nothing differs."""
    return decibels(sum_squares(expected), sum_squares(given - expected))


def _weight_ratios(found: Match, layer: str) -> tuple[float | None, float | None]:
    op = found.quantized.producers.get(layer)
    if not isinstance(op, ops.Layer):
        return None, None
    expected = found.reference.constant(found.layer(op).inputs[1]).real()
    expected = expected.reshape(len(expected), -1).astype(np.float64)
    error = found.quantized.constant(op.inputs[1]).real().reshape(expected.shape) - expected
    channels = [decibels(sum_squares(w), sum_squares(e)) for w, e in zip(expected, error, strict=True) if w.any()]
    noisy = [ratio for ratio in channels if ratio is not None]
    return decibels(sum_squares(expected), sum_squares(error)), min(noisy, default=None)


def _notes(samples: Sequence[np.ndarray], expected: np.ndarray) -> tuple[str, ...]:
    """What makes the figures say less than they seem to."""
    notes = []
    if len(samples) < _FEW:
        notes.append(f"so few images ({len(samples)}) say little of how often the networks agree; give a hundred")
    if all(np.array_equal(sample, samples[0]) for sample in samples[1:]) and len(samples) > 1:
        notes.append("all images are the same; give others")
    if not any(np.ptp(sample) for sample in samples):
        notes.append("all images are of one colour; what such images do not show is not seen")
    if expected.shape[1] > 1 and not np.ptp(expected, axis=1).any():
        notes.append("the float network gives all classes the same; agreement means nothing")
    return tuple(notes)
