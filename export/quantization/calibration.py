"""Which range of values each activation takes, seen on real images."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...runtime.errors import QuantizationError
from ...runtime.graph import Graph
from ..activations import run_activations
from .ranges import CALIBRATORS, Calibrator, Histogram, Range, bin_counts, check_calibrator
from .scales import passes_on, scale_groups

_BINS = 2048
# Values of each tensor that its histogram is made of, over all samples.
_KEPT = 2**20
# Of one sample at least.
_LEAST_KEPT = 256


def calibrate(
    graph: Graph,
    samples: Sequence[np.ndarray],
    calibrator: Calibrator = "mse",
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Range]:
    """The range of every activation of a float graph over ``samples`` (NHWC, batch included).

    ``calibrator`` is one of ``CALIBRATORS``. ``tick`` is called once a sample. Raises ``UsageError`` for another, and
    ``QuantizationError`` without samples, or naming the first tensor that is not finite.
    """
    check_calibrator(calibrator)
    return choose_ranges(graph, collect_histograms(graph, samples, tick), calibrator)


def collect_histograms(
    graph: Graph, samples: Sequence[np.ndarray], tick: Callable[[], None] = lambda: None
) -> dict[str, Histogram]:
    """The values of all activations that share a scale, under the name of the first of them.

    The ends are those of all values; how often each is taken comes from evenly spaced ones. Values that are only passed
    on, by a pool or a join, are not counted again. ``tick`` is called once a sample. Raises ``QuantizationError``.
    """
    if not len(samples):
        raise QuantizationError("there are no calibration images; give at least one, better a hundred")
    groups = scale_groups(graph)
    seen = dict.fromkeys(groups.values(), Range(0.0, 0.0))
    kept: dict[str, list[np.ndarray]] = {group: [] for group in seen}
    for index, values in enumerate(run_activations(graph, samples)):
        for name, group in groups.items():
            low, high = float(values[name].min()), float(values[name].max())
            if not np.isfinite([low, high]).all():
                raise QuantizationError(
                    f"activation {name!r} is not finite on the calibration images; check the weights"
                )
            seen[group] = seen[group].union(Range(low, high))
            if not passes_on(graph.producers.get(name)):
                kept[group].append(_spaced(values[name].ravel(), max(_LEAST_KEPT, _KEPT // len(samples)), index))
        tick()
    return {
        group: Histogram(seen[group], bin_counts(np.concatenate(kept[group]), seen[group], _BINS)) for group in seen
    }


def choose_ranges(graph: Graph, observed: Mapping[str, Histogram], calibrator: Calibrator) -> dict[str, Range]:
    """One range for all activations that share a scale; the network's input and output are never cut."""
    groups = scale_groups(graph)
    whole = {groups[name] for name in (*graph.inputs, *graph.outputs)}
    chosen = {
        group: histogram.seen if group in whole or histogram.empty else CALIBRATORS[calibrator](histogram)
        for group, histogram in observed.items()
    }
    return {name: chosen[group] for name, group in groups.items()}


def _spaced(values: np.ndarray, count: int, index: int) -> np.ndarray:
    """About ``count`` of the values, other ones for each sample; with an odd step rows and channels take turns."""
    step = len(values) // count | 1
    return values[index % step :: step].copy()
