"""Which range an activation's integers are to cover: four answers to one histogram."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...runtime.errors import UsageError

Calibrator = Literal["minmax", "percentile", "mse", "kl"]

_LEVELS = 255
# Shares of the observed range that the searches try.
_SHARES = np.linspace(0.3, 1.0, 71)
# Share of the values that a percentile leaves out, at both ends together.
_LEFT_OUT = 1e-4


@dataclass(frozen=True)
class Range:
    """The reals that an activation's integers are to cover; always with zero inside."""

    low: float
    high: float

    def union(self, other: "Range") -> "Range":
        """The range that covers both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def scaled(self, share: float) -> "Range":
        """Both ends times ``share``."""
        return Range(self.low * share, self.high * share)


@dataclass(frozen=True)
class Histogram:
    """How often values were seen: ``counts`` in equal bins over the whole range ``seen``."""

    seen: Range
    counts: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether there is nothing to choose from: nothing counted, or nothing but zeros."""
        return not self.counts.any() or self.seen.low == self.seen.high

    @property
    def edges(self) -> np.ndarray:
        """Where bins begin and end, one more than there are bins."""
        return np.linspace(self.seen.low, self.seen.high, len(self.counts) + 1)

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def bin_counts(values: np.ndarray, seen: Range, bins: int) -> np.ndarray:
    """How many values are in each of equal bins over the range; several times as fast as ``np.histogram``."""
    width = ((seen.high - seen.low) or 1.0) / bins
    found = ((values.ravel() - np.float32(seen.low)) * np.float32(1 / width)).astype(np.int32)
    return np.bincount(np.clip(found, 0, bins - 1, out=found), minlength=bins)


def check_calibrator(calibrator: str) -> None:
    """Refuse a calibrator that there is not. Raises ``UsageError``."""
    if calibrator not in CALIBRATORS:
        raise UsageError(f"calibrator {calibrator!r} is not one of {', '.join(CALIBRATORS)}")


def minmax(histogram: Histogram) -> Range:
    """Every value seen (Jacob et al., arXiv 1712.05877, section 3)."""
    return histogram.seen


def percentile(histogram: Histogram) -> Range:
    """All but the outermost ten-thousandth of the values (Wu et al., arXiv 2004.09602, section 4)."""
    total = np.cumsum(histogram.counts) / histogram.counts.sum()
    outside = _LEFT_OUT / (2 if histogram.seen.low < 0 else 1)
    low = histogram.edges[np.searchsorted(total, outside)] if histogram.seen.low < 0 else 0.0
    high = histogram.edges[np.searchsorted(total, 1 - outside) + 1]
    return Range(min(float(low), 0.0), max(float(high), 0.0))


def mse(histogram: Histogram) -> Range:
    """The least mean squared error, rounding and clipping together (Choukroun et al., arXiv 1902.06822, section 3)."""
    counts, centres = histogram.counts, histogram.centres

    def error(share: float) -> float:
        part = histogram.seen.scaled(share)
        step = (part.high - part.low) / _LEVELS
        cut = np.clip(centres, part.low, part.high)
        return float(counts @ ((centres - cut) ** 2)) + float(counts[cut == centres].sum()) * step**2 / 12

    return histogram.seen.scaled(min(reversed(_SHARES), key=error))


def kl(histogram: Histogram) -> Range:
    """The least divergence of the quantized distribution from the one seen (Migacz, "8-bit Inference with TensorRT",
    GTC 2017), without zeros, which every range has exactly."""
    counts, centres = histogram.counts.astype(np.float64), histogram.centres
    if histogram.seen.low == 0:
        counts[0] = 0

    def divergence(share: float) -> float:
        part = histogram.seen.scaled(share)
        inside = (centres >= part.low) & (centres <= part.high)
        expected = np.where(inside, counts, 0.0)
        # What is cut off is seen at the ends.
        first, last = np.flatnonzero(inside)[[0, -1]]
        expected[first] += counts[:first].sum()
        expected[last] += counts[last + 1 :].sum()
        level = np.floor((centres - part.low) / (part.high - part.low) * _LEVELS).astype(int).clip(0, _LEVELS - 1)
        # Each level's share goes in equal parts to the bins of it in which anything was seen.
        spoken = inside & (counts > 0)
        shares = np.bincount(level[spoken], counts[spoken], _LEVELS)
        bins = np.bincount(level[spoken], minlength=_LEVELS)
        found = np.where(spoken, shares[level] / np.maximum(bins[level], 1), 0.0)
        both = (expected > 0) & (found > 0)
        p, q = expected[both] / expected.sum(), found[both] / found.sum()
        # Mass that no level holds (an end where nothing lay before) costs as if it were one count.
        lost = expected[(expected > 0) & ~both].sum() / expected.sum()
        return float(p @ np.log(p / q)) + lost * np.log(max(expected.sum(), 2))

    if not counts.any():
        return histogram.seen
    return histogram.seen.scaled(min(reversed(_SHARES), key=divergence))


CALIBRATORS: Mapping[Calibrator, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
}
