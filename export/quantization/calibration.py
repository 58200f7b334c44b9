"""Calibration: the range of each activation, from its values on real images."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...runtime.errors import QuantizationError
from ...runtime.graph import Graph
from ...runtime.progress import SILENT, Progress
from ..activations import run_activations
from .ranges import CALIBRATORS, Calibrator, Histogram, Range, bin_counts, check_calibrator
from .scales import scale_groups, shares_scale

_BINS = 2048
# Values of each tensor that enter its histogram, over all samples.
_KEPT = 2**20
# At least this many come from each sample.
_LEAST_KEPT = 256


def calibrate(
    graph: Graph,
    samples: Sequence[np.ndarray],
    calibrator: Calibrator = "mse",
    progress: Progress = SILENT,
) -> dict[str, Range]:
    """The range of every activation of a float graph over ``samples`` (NHWC with the batch axis).

    Raises ``UsageError`` for a calibrator not in ``CALIBRATORS``, and ``QuantizationError`` without samples or for an
    activation that is not finite, with its name.
    """
    check_calibrator(calibrator)
    return choose_ranges(graph, collect_histograms(graph, samples, progress), calibrator)


def collect_histograms(
    graph: Graph, samples: Sequence[np.ndarray], progress: Progress = SILENT
) -> dict[str, Histogram]:
    """One histogram for each group of activations that share a scale, by the group's first activation.

    The extremes are exact; the counts come from evenly spaced values. A pool or concatenation only forwards values,
    which are not counted twice. Raises ``QuantizationError`` as ``calibrate`` does.
    """
    if not len(samples):
        raise QuantizationError("there are no calibration images; pass at least one, better 100")
    groups = scale_groups(graph)
    seen = dict.fromkeys(groups.values(), Range(0.0, 0.0))
    kept: dict[str, list[np.ndarray]] = {group: [] for group in seen}
    count = max(_LEAST_KEPT, _KEPT // len(samples))
    with progress.task("calibrating", len(samples)) as advance:
        for index, values in enumerate(run_activations(graph, samples)):
            for name, group in groups.items():
                seen[group] = seen[group].union(_extremes(name, values[name]))
                if not shares_scale(graph.producers.get(name)):
                    kept[group].append(_spaced(values[name].ravel(), count, index))
            advance()
    return {
        group: Histogram(seen[group], bin_counts(np.concatenate(kept[group]), seen[group], _BINS)) for group in seen
    }


def choose_ranges(graph: Graph, observed: Mapping[str, Histogram], calibrator: Calibrator) -> dict[str, Range]:
    """One range for all activations that share a scale; the network's input and output are never clipped."""
    groups = scale_groups(graph)
    whole = {groups[name] for name in (*graph.inputs, *graph.outputs)}
    chosen = {
        group: histogram.range if group in whole or histogram.empty else CALIBRATORS[calibrator](histogram)
        for group, histogram in observed.items()
    }
    return {name: chosen[group] for name, group in groups.items()}


def _extremes(name: str, values: np.ndarray) -> Range:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise QuantizationError(f"activation {name!r} is not finite on the calibration images; check the weights")
    return Range(low, high)


def _spaced(values: np.ndarray, count: int, index: int) -> np.ndarray:
    """About ``count`` evenly spaced values, different ones for each sample.

    The odd step alternates between rows and channels.
    """
    step = len(values) // count | 1
    return values[index % step :: step].copy()
