"""Calibrators: four ways to choose an activation's range from its histogram."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...runtime.errors import UsageError

Calibrator = Literal["minmax", "percentile", "mse", "kl"]

_LEVELS = 255
# Shares of the observed range that ``mse`` and ``kl`` try.
_SHARES = np.linspace(0.3, 1.0, 71)
# Share of the values that ``percentile`` clips, both ends together.
_CLIPPED = 1e-4


@dataclass(frozen=True)
class Range:
    """The real interval that an activation's integers cover; it always contains zero."""

    low: float
    high: float

    def union(self, other: "Range") -> "Range":
        """The smallest range that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def scaled(self, share: float) -> "Range":
        """Both ends times ``share``."""
        return Range(self.low * share, self.high * share)


@dataclass(frozen=True)
class Histogram:
    """Observed values of an activation: ``counts`` in equal bins over the whole ``range``."""

    range: Range
    counts: np.ndarray

    @property
    def empty(self) -> bool:
        """True if no value was counted, or only zeros were."""
        return not self.counts.any() or self.range.low == self.range.high

    @property
    def edges(self) -> np.ndarray:
        """Bin edges, one more than there are bins."""
        return np.linspace(self.range.low, self.range.high, len(self.counts) + 1)

    @property
    def centres(self) -> np.ndarray:
        """Bin centres."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def bin_counts(values: np.ndarray, covered: Range, bins: int) -> np.ndarray:
    """Counts of values in equal bins over a range; several times as fast as ``np.histogram``."""
    width = ((covered.high - covered.low) or 1.0) / bins
    found = ((values.ravel() - np.float32(covered.low)) * np.float32(1 / width)).astype(np.int32)
    return np.bincount(np.clip(found, 0, bins - 1, out=found), minlength=bins)


def check_calibrator(calibrator: str) -> None:
    """Raise ``UsageError`` for a calibrator not in ``CALIBRATORS``."""
    if calibrator not in CALIBRATORS:
        raise UsageError(f"calibrator {calibrator!r} is not one of {', '.join(CALIBRATORS)}")


def minmax(histogram: Histogram) -> Range:
    """The extremes of all values (Jacob et al., arXiv 1712.05877, section 3)."""
    return histogram.range


def percentile(histogram: Histogram) -> Range:
    """All but the outermost ten-thousandth of the values (Wu et al., arXiv 2004.09602, section 4)."""
    total = np.cumsum(histogram.counts) / histogram.counts.sum()
    outside = _CLIPPED / (2 if histogram.range.low < 0 else 1)
    low = histogram.edges[np.searchsorted(total, outside)] if histogram.range.low < 0 else 0.0
    high = histogram.edges[np.searchsorted(total, 1 - outside) + 1]
    return Range(min(float(low), 0.0), max(float(high), 0.0))


def mse(histogram: Histogram) -> Range:
    """The range of least squared error of rounding and clipping (Choukroun et al., arXiv 1902.06822, section 3)."""
    counts, centres = histogram.counts, histogram.centres

    def error(share: float) -> float:
        part = histogram.range.scaled(share)
        step = (part.high - part.low) / _LEVELS
        cut = np.clip(centres, part.low, part.high)
        return float(counts @ ((centres - cut) ** 2)) + float(counts[cut == centres].sum()) * step**2 / 12

    return histogram.range.scaled(min(reversed(_SHARES), key=error))


def kl(histogram: Histogram) -> Range:
    """The range of least KL divergence between observed and quantized distribution, zeros excluded.

    As in Migacz, "8-bit Inference with TensorRT", GTC 2017. Zero is exact in every range.
    """
    counts, centres = histogram.counts.astype(np.float64), histogram.centres
    if histogram.range.low == 0:
        counts[0] = 0

    def divergence(share: float) -> float:
        part = histogram.range.scaled(share)
        inside = (centres >= part.low) & (centres <= part.high)
        expected = np.where(inside, counts, 0.0)
        # Clipped values land in the outermost bins.
        first, last = np.flatnonzero(inside)[[0, -1]]
        expected[first] += counts[:first].sum()
        expected[last] += counts[last + 1 :].sum()
        level = np.floor((centres - part.low) / (part.high - part.low) * _LEVELS).astype(int).clip(0, _LEVELS - 1)
        # Each level's mass is spread evenly over its bins that are not empty.
        filled = inside & (counts > 0)
        shares = np.bincount(level[filled], counts[filled], _LEVELS)
        bins = np.bincount(level[filled], minlength=_LEVELS)
        found = np.where(filled, shares[level] / np.maximum(bins[level], 1), 0.0)
        both = (expected > 0) & (found > 0)
        p, q = expected[both] / expected.sum(), found[both] / found.sum()
        # Clipped mass in an outermost bin that was empty costs as much as one count.
        lost = expected[(expected > 0) & ~both].sum() / expected.sum()
        return float(p @ np.log(p / q)) + lost * np.log(max(expected.sum(), 2))

    if not counts.any():
        return histogram.range
    return histogram.range.scaled(min(reversed(_SHARES), key=divergence))


CALIBRATORS: Mapping[Calibrator, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
}
