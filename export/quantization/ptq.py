"""Post-training quantization: from calibrated ranges and GPTQ rounding to weights that are tuned for int8."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ...runtime.errors import QuantizationError, UsageError
from ...runtime.graph import Graph, ops
from ...runtime.images import Preprocessing
from ...runtime.progress import SILENT, Progress
from ..activations import run_outputs
from .calibration import choose_ranges, collect_histograms
from .equalization import channel_peaks, equalize
from .gptq import input_moments
from .quantize import check_float, quantize
from .ranges import CALIBRATORS, Calibrator, Histogram, Range, check_calibrator
from .weight_grid import DEFAULT_RANGE, WeightRange
from .weight_tuning import tune_weights

Effort = Literal["fast", "good", "best"]

# The calibrator of ``fast``, which compares none.
_DEFAULT_CALIBRATOR: Calibrator = "mse"
# Fewer calibration images than these cause a note.
_FEW = 10


@dataclass(frozen=True)
class PTQResult:
    """An int8 graph and how it was made.

    ``reference`` is the float network on the same scales, channel by channel: equalized if the int8 network is.
    ``divergence`` has the KL divergence, in nats, of every candidate that was compared.
    """

    graph: Graph
    reference: Graph
    effort: Effort
    calibrator: Calibrator
    equalized: bool
    divergence: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The choices, for JSON."""
        names = ("effort", "calibrator", "equalized")
        return {**{name: getattr(self, name) for name in names}, "divergence_nats": dict(self.divergence)}


def check_effort(effort: str, calibrator: str | None) -> None:
    """Raise ``UsageError`` for an unknown effort or calibrator."""
    if effort not in get_args(Effort):
        raise UsageError(f"effort {effort!r} is not one of {', '.join(get_args(Effort))}")
    if calibrator is not None:
        check_calibrator(calibrator)


def calibration_samples(
    pixels: Sequence[np.ndarray], preprocessing: Preprocessing, progress: Progress = SILENT
) -> list[np.ndarray]:
    """Network inputs, NHWC with the batch axis, for images that are already cropped.

    Raises ``QuantizationError`` without images, or if every image is of one colour.
    """
    if not pixels:
        raise QuantizationError("there are no calibration images; pass at least one, better 100")
    if all(image.min() == image.max() for image in pixels):
        raise QuantizationError(
            f"each of the {len(pixels)} calibration images has a single pixel value (all black?), which gives no "
            "range; pass images like those that the network will see"
        )
    if len(pixels) < _FEW:
        progress.note(f"few calibration images ({len(pixels)}); values outside their range are clipped: use about 100")
    return [preprocessing.normalize(image)[None] for image in pixels]


def quantize_network(
    graph: Graph,
    samples: Sequence[np.ndarray],
    effort: Effort = "good",
    calibrator: Calibrator | None = None,
    seed: int = 0,
    *,
    weight_range: WeightRange = DEFAULT_RANGE,
    progress: Progress = SILENT,
) -> PTQResult:
    """Quantize a float graph to int8, calibrated on ``samples`` (network inputs, NHWC with the batch axis).

    ``fast`` takes the ranges of least squared error and rounds weights by GPTQ. ``good`` also compares all calibrators,
    with and without cross-layer equalization, by the divergence of the network's outputs. ``best`` fine-tunes the
    weights of that choice (needs torch). ``calibrator`` fixes the calibrator; ``weight_range`` limits the integers of
    weights. Deterministic for a ``seed``. Raises ``UsageError`` and ``QuantizationError``.
    """
    check_effort(effort, calibrator)
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; use 0 or more")
    check_float(graph)
    if effort == "fast":
        chosen = _Candidate(graph, calibrator or _DEFAULT_CALIBRATOR, False)
        histograms = collect_histograms(graph, samples, progress)
        _note_constants(histograms, progress)
        ranges = choose_ranges(graph, histograms, chosen.calibrator)
        divergence: dict[str, float] = {}
    else:
        calibrators = (calibrator,) if calibrator else tuple(CALIBRATORS)
        chosen, ranges, divergence = _compare(graph, samples, calibrators, progress)
    if effort == "best":
        tuned = tune_weights(chosen.graph, ranges, samples, seed, weight_range, progress)
        quantized = quantize(tuned, ranges, None, weight_range)
    else:
        moments = input_moments(chosen.graph, samples, seed, progress)
        quantized = quantize(chosen.graph, ranges, moments, weight_range)
    return PTQResult(quantized, chosen.graph, effort, chosen.calibrator, chosen.equalized, divergence)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A float network, equalized or not, and a calibrator."""

    graph: Graph
    calibrator: Calibrator
    equalized: bool

    @property
    def name(self) -> str:
        return f"{self.calibrator}, equalized" if self.equalized else self.calibrator


def _compare(
    graph: Graph, samples: Sequence[np.ndarray], calibrators: Sequence[Calibrator], progress: Progress
) -> tuple[_Candidate, dict[str, Range], dict[str, float]]:
    """The candidate of least divergence from the float network, its ranges, and the divergence of each.

    Weights are rounded to nearest, on the full grid: their error is the same for all candidates.
    """
    histograms = {False: collect_histograms(graph, samples, progress)}
    networks = {False: graph, True: equalize(graph, channel_peaks(graph, samples, progress))}
    histograms[True] = collect_histograms(networks[True], samples, progress)
    expected = run_outputs(graph, samples, progress)
    candidates = [_Candidate(networks[equalized], name, equalized) for equalized in networks for name in calibrators]
    tried: dict[_Candidate, tuple[float, dict[str, Range]]] = {}
    with progress.task("comparing calibrators", len(candidates)) as advance:
        for candidate in candidates:
            ranges = choose_ranges(candidate.graph, histograms[candidate.equalized], candidate.calibrator)
            outputs = run_outputs(quantize(candidate.graph, ranges, None, "full"), samples, progress)
            tried[candidate] = _divergence(graph, expected, outputs), ranges
            advance()
    _note_constants(histograms[False], progress)
    best = min(tried, key=lambda candidate: tried[candidate][0])
    return best, tried[best][1], {candidate.name: value for candidate, (value, _) in tried.items()}


def _note_constants(histograms: Mapping[str, Histogram], progress: Progress) -> None:
    """Note activations that are zero on all calibration images."""
    constant = [name for name, histogram in histograms.items() if histogram.range.low == histogram.range.high]
    if constant:
        more = f" and {len(constant) - 1} more" if len(constant) > 1 else ""
        progress.note(f"activation {constant[0]!r}{more} is 0 on all calibration images; its range is unknown")


def _divergence(graph: Graph, expected: np.ndarray, outputs: np.ndarray) -> float:
    """Mean KL divergence, in nats, of the class probabilities from the float network's.

    Squared error would favour images with large logits, whose errors change no class.
    """
    p, q = (_log_probabilities(graph, values) for values in (expected, outputs))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_probabilities(graph: Graph, values: np.ndarray) -> np.ndarray:
    if isinstance(graph.producers.get(graph.outputs[0]), ops.Softmax):
        return np.log(np.maximum(values, 1e-6))
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
