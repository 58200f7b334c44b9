"""How much work goes into an int8 network: from the usual scales to weights that are learned for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ...runtime.commands.console import note, progress
from ...runtime.errors import QuantizationError, UsageError
from ...runtime.graph import Graph, ops
from ...runtime.images import Preprocessing
from ..activations import run_outputs
from .calibration import choose_ranges, collect_histograms
from .equalization import channel_peaks, equalize
from .gptq import input_moments
from .quantize import check_float, quantize
from .ranges import CALIBRATORS, Calibrator, Histogram, Range, check_calibrator
from .weight_grid import DEFAULT_RANGE, WeightRange
from .weight_tuning import EPOCHS, tune_weights

Effort = Literal["fast", "good", "best"]

# The calibrator of ``fast``, which has no time to compare.
_USUAL: Calibrator = "mse"
# Fewer calibration images than this are remarked on.
_FEW = 10


@dataclass(frozen=True)
class PTQResult:
    """An int8 graph and how it was made; ``reference`` is the float network on its scales, channel by channel, and
    ``divergence`` what was found for each choice that was compared."""

    graph: Graph
    reference: Graph
    effort: Effort
    calibrator: Calibrator
    equalized: bool
    divergence: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """What was chosen, for programs."""
        names = ("effort", "calibrator", "equalized")
        return {**{name: getattr(self, name) for name in names}, "divergence_nats": dict(self.divergence)}


def check_effort(effort: str, calibrator: str | None) -> None:
    """Refuse an effort or a calibrator that there is not. Raises ``UsageError``."""
    if effort not in get_args(Effort):
        raise UsageError(f"effort {effort!r} is not one of {', '.join(get_args(Effort))}")
    if calibrator is not None:
        check_calibrator(calibrator)


def calibration_samples(
    pixels: Sequence[np.ndarray], preprocessing: Preprocessing, quiet: bool = False
) -> list[np.ndarray]:
    """What the network gets of images that are cropped already, NHWC with the batch.

    Raises ``QuantizationError`` for images from which no range can be learned.
    """
    if not pixels:
        raise QuantizationError("there are no calibration images; give at least one, better a hundred")
    if all(image.min() == image.max() for image in pixels):
        raise QuantizationError(
            f"each of the {len(pixels)} calibration images is of one value (all black?), from which no range can "
            "be learned; give images like those that the network will see"
        )
    if len(pixels) < _FEW and not quiet:
        note(f"few calibration images ({len(pixels)}): what others exceed will be cut; a hundred are better")
    return [preprocessing.normalize(image)[None] for image in pixels]


def quantize_network(
    graph: Graph,
    samples: Sequence[np.ndarray],
    effort: Effort = "good",
    calibrator: Calibrator | None = None,
    seed: int = 0,
    *,
    weight_range: WeightRange = DEFAULT_RANGE,
    quiet: bool = False,
) -> PTQResult:
    """A float graph in int8, calibrated on ``samples`` (network inputs, NHWC with the batch).

    ``fast`` takes ranges of the least squared error and rounds weights for the least error of each layer's output, mean
    error into the bias. ``good`` compares the calibrators, with and without cross-layer equalization, by the network's
    answers. ``best`` goes on from there and learns the weights (needs torch). ``calibrator`` leaves no choice of the
    calibrator; ``weight_range`` says which integers weights may be. Deterministic for a ``seed``. Raises ``UsageError``
    and ``QuantizationError``.
    """
    check_effort(effort, calibrator)
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give 0 or more")
    check_float(graph)
    if effort == "fast":
        chosen = _Choice(graph, calibrator or _USUAL, False)
        with progress("calibrating", len(samples), quiet=quiet) as advance:
            observed = collect_histograms(graph, samples, advance)
        _remark(observed, quiet)
        ranges = choose_ranges(graph, observed, chosen.calibrator)
        divergence: dict[str, float] = {}
    else:
        chosen, ranges, divergence = _compare(
            graph, samples, (calibrator,) if calibrator else tuple(CALIBRATORS), quiet
        )
    if effort == "best":
        with progress("learning weights", (EPOCHS + 1) * len(samples), quiet=quiet) as advance:
            learned = tune_weights(chosen.graph, ranges, samples, seed, advance, weight_range)
            result = quantize(learned, ranges, None, weight_range)
    else:
        with progress("rounding weights", len(samples), quiet=quiet) as advance:
            moments = input_moments(chosen.graph, samples, seed, advance)
            result = quantize(chosen.graph, ranges, moments, weight_range)
    return PTQResult(result, chosen.graph, effort, chosen.calibrator, chosen.equalized, divergence)


@dataclass(frozen=True, eq=False)
class _Choice:
    """A float network and a calibrator."""

    graph: Graph
    calibrator: Calibrator
    equalized: bool

    @property
    def name(self) -> str:
        return f"{self.calibrator}, equalized" if self.equalized else self.calibrator


def _compare(
    graph: Graph,
    samples: Sequence[np.ndarray],
    calibrators: Sequence[Calibrator],
    quiet: bool,
) -> tuple[_Choice, dict[str, Range], dict[str, float]]:
    """The choice whose answers, with weights rounded to the nearest, diverge least from the float network's."""
    looks = 4 + 2 * len(calibrators)
    with progress("choosing scales", looks * len(samples), quiet=quiet) as advance:
        observed = {False: collect_histograms(graph, samples, advance)}
        networks = {False: graph, True: equalize(graph, channel_peaks(graph, samples, advance))}
        observed[True] = collect_histograms(networks[True], samples, advance)
        expected = run_outputs(graph, samples, advance)
        tried: dict[_Choice, tuple[float, dict[str, Range]]] = {}
        for equalized, network in networks.items():
            for calibrator in calibrators:
                ranges = choose_ranges(network, observed[equalized], calibrator)
                # The ranges of activations are chosen; what the weights lose is the same for all.
                found = run_outputs(quantize(network, ranges, None, "full"), samples, advance)
                tried[_Choice(network, calibrator, equalized)] = _divergence(graph, expected, found), ranges
    _remark(observed[False], quiet)
    best = min(tried, key=lambda choice: tried[choice][0])
    return best, tried[best][1], {choice.name: value for choice, (value, _) in tried.items()}


def _remark(observed: Mapping[str, Histogram], quiet: bool) -> None:
    """Name the activations of which the calibration images tell nothing."""
    silent = [name for name, histogram in observed.items() if histogram.seen.low == histogram.seen.high]
    if silent and not quiet:
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        note(f"activation {silent[0]!r}{more} is 0 on all calibration images: nothing is known of its range")


def _divergence(graph: Graph, expected: np.ndarray, found: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence, in nats, of the classes' shares from the float network's.

    A large error of a large answer changes no class, so that the squared error would weigh the wrong images most.
    """
    p, q = (_log_shares(graph, values) for values in (expected, found))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_shares(graph: Graph, values: np.ndarray) -> np.ndarray:
    if isinstance(graph.producers.get(graph.outputs[0]), ops.Softmax):
        return np.log(np.maximum(values, 1e-6))
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
