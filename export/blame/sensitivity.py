"""Per-layer sensitivity of an int8 network: the accuracy that returns when one layer alone is float.

Each layer in turn gets its float weight and an unquantized output. AIMET's ``QuantAnalyzer`` does the same with
simulated quantization (``export_per_layer_sensitivity``); here the integers of the file are run.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.formats.read import read_graph
from ...runtime.graph import Graph, ops
from ...runtime.progress import SILENT, Progress
from ..activations import run_outputs
from ..quantization.calibration import calibrate
from .float_layers import quantizers, with_float_layer
from .matching import Match, match
from .recommendations import Recommendation, recommend
from .tensor_errors import KL_BINS, TensorError, decibels, measure_errors, sum_squares

# With fewer images the agreement of two networks is unreliable.
_FEW = 20


@dataclass(frozen=True)
class LayerBlame:
    """One layer: the error of its tensor, and the network's improvement when this layer alone is float.

    ``recovered`` is the share of the output's noise that disappears (negative: noise is added), ``sqnr_gain_db`` the
    same as a gain (``None``: no noise remains), ``agreement_gain`` the gain in agreement, as a share of the images.
    ``weight_db`` is the signal-to-noise ratio of the stored weight, ``worst_channel_db`` the one of its worst output
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
    advice: Recommendation


@dataclass(frozen=True)
class Blame:
    """The layers, worst first, and all integer tensors in execution order.

    ``agreement`` is the share of images with the float network's top-1 class; ``sqnr_db`` is the signal-to-noise ratio
    of the network's output, ``None`` when nothing differs.
    """

    images: int
    agreement: float
    sqnr_db: float | None
    layers: tuple[LayerBlame, ...]
    tensors: tuple[TensorError, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {**asdict(self), "kl_bins": KL_BINS}


def blame(
    reference: Graph | str | Path,
    quantized: Graph | str | Path,
    samples: Sequence[np.ndarray],
    progress: Progress = SILENT,
) -> Blame:
    """Compare a float32 and an int8 network layer by layer; both are graphs, or files of either format.

    ``samples`` are network inputs, NHWC with the batch axis. Raises ``UsageError`` when the two are not the same
    network in float and in int8, and ``QuantizationError`` without samples or for a layer with weights or activations
    that are not finite, with its name.
    """
    return blame_match(match(as_graph(reference), as_graph(quantized)), samples, progress)


def blame_match(found: Match, samples: Sequence[np.ndarray], progress: Progress = SILENT) -> Blame:
    """Compare two matched networks; otherwise as ``blame``."""
    ranges = calibrate(found.reference, samples, "minmax", progress)
    sums = measure_errors(found, ranges, samples, progress)
    expected, given = run_outputs(found.reference, samples, progress), run_outputs(found.quantized, samples, progress)
    noise, agreement = sum_squares(given - expected), class_agreement(expected, given)
    layers = []
    tensors = quantizers(found.quantized)
    with progress.task("restoring layers", len(tensors)) as advance:
        for layer, tensor in tensors.items():
            restored = run_outputs(with_float_layer(found, layer), samples, progress)
            left = sum_squares(restored - expected)
            recovered = (noise - left) / noise if noise else 0.0
            op = found.quantized.producers.get(layer)
            layers.append(
                LayerBlame(
                    layer,
                    op.kind if op else "Input",
                    recovered,
                    decibels(noise, left) if noise else 0.0,
                    class_agreement(expected, restored) - agreement,
                    sums[tensor].error(),
                    *_weight_ratios(found, layer),
                    recommend(found, layer, sums[tensor], recovered),
                )
            )
            advance(text=layer)
    ranked = sorted(layers, key=lambda layer: -layer.recovered)
    errors = tuple(total.error() for total in sums.values())
    total = decibels(sum_squares(expected), noise)
    return Blame(len(samples), agreement, total, tuple(ranked), errors, _notes(samples, expected))


def as_graph(model: Graph | str | Path) -> Graph:
    """A graph, or the one read from a file and named after it."""
    return model if isinstance(model, Graph) else replace(read_graph(model), name=str(model))


def class_agreement(expected: np.ndarray, given: np.ndarray) -> float:
    """The share of images on which two outputs (images, classes) have the same top-1 class."""
    return float((expected.argmax(1) == given.argmax(1)).mean())


def sqnr(expected: np.ndarray, given: np.ndarray) -> float | None:
    """Signal-to-noise ratio of an output in dB; ``None`` when nothing differs."""
    return decibels(sum_squares(expected), sum_squares(given - expected))


def _weight_ratios(found: Match, layer: str) -> tuple[float | None, float | None]:
    """``weight_db`` and ``worst_channel_db`` of a layer."""
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
    """Reasons for which the figures are less reliable than they look."""
    notes = []
    if len(samples) < _FEW:
        notes.append(f"agreement on only {len(samples)} images is unreliable; use about 100")
    if all(np.array_equal(sample, samples[0]) for sample in samples[1:]) and len(samples) > 1:
        notes.append("all images are the same; use different ones")
    if not any(np.ptp(sample) for sample in samples):
        notes.append("each image is of one colour, so the errors on real images may be very different")
    if expected.shape[1] > 1 and not np.ptp(expected, axis=1).any():
        notes.append("the float network gives all classes the same score, so agreement is meaningless")
    return tuple(notes)
