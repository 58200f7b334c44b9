"""Recommended fix for a layer of an int8 network, from its measured errors."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...runtime.graph import Graph, Op, ops
from .float_layers import adjacent_ops
from .matching import Match
from .tensor_errors import ErrorSums, spread

Fix = Literal["calibrate", "equalize", "correct bias", "round weights", "keep float", "none"]

# A layer that causes less than this share of the output's noise needs no fix.
_NEGLIGIBLE = 0.02
# With this share of a quantizer's noise from clipping, the range is too narrow; the range of least squared error has
# less than half.
_CLIP_NOISE = 0.75
# A smaller share of clipped values does not justify a wider range.
_CLIPPED = 1e-4
# A range this many times as wide as a weak channel's, or as the bulk of the values, leaves those too few levels.
# Published SqueezeNets stay below 5 and 2.5.
_WIDE = 8.0
_TAIL = 4.0
# Share of the weights' noise that a bias can correct.
_SHIFTED = 0.5


@dataclass(frozen=True)
class Recommendation:
    """A fix and the evidence for it."""

    fix: Fix
    reason: str


def recommend(found: Match, layer: str, sums: ErrorSums, recovered: float) -> Recommendation:
    """The fix for a layer that causes the share ``recovered`` of the noise in the network's output."""
    graph = found.quantized
    op = graph.producers.get(layer)
    columns = _column_spread(found, op)
    if recovered < _NEGLIGIBLE:
        return Recommendation("none", "its error is negligible")
    if sums.spread > _WIDE and equalizable(graph, sums.name):
        return Recommendation("equalize", f"its channel ranges differ by a factor of {sums.spread:.0f}")
    if columns > _WIDE and op is not None and equalizable(graph, op.inputs[0]):
        return Recommendation("equalize", f"the weights of its input channels differ by a factor of {columns:.0f}")
    clipped = sums.clipped / max(sums.values, 1)
    if clipped > _CLIPPED and sums.clip_noise > max(_CLIP_NOISE * sums.quantizer_noise, sums.weights_noise):
        return Recommendation("calibrate", f"{clipped:.2%} of the values are clipped; use minmax or more images")
    if sums.quantizer_noise > sums.weights_noise and sums.tail > _TAIL:
        return Recommendation("calibrate", f"the range is {sums.tail:.0f} times the bulk's; use mse or percentile")
    if sums.weights_noise > sums.quantizer_noise:
        if sums.shifted > _SHIFTED:
            return Recommendation("correct bias", f"{sums.shifted:.0%} of its weights' error is a constant shift")
        return Recommendation("round weights", "its rounded weights cause more error than its output scale")
    return Recommendation("keep float", "its output has no outlying channels or long tail")


def equalizable(graph: Graph, tensor: str) -> bool:
    """True if the layers that produce and consume a tensor can be equalized across it."""
    around = [graph.producers.get(name) for name in adjacent_ops(graph, tensor)]
    scaled = all(isinstance(op, ops.Layer) and op.activation != "relu6" for op in around)
    return scaled and len(around) > 1 and tensor not in graph.outputs


def _column_spread(found: Match, op: Op | None) -> float:
    """Ratio of the largest input channel's weights to a weak channel's, in the float network."""
    if not isinstance(op, ops.Layer) or getattr(op, "groups", 1) != 1:
        return 1.0
    weight = np.abs(found.reference.constant(found.layer(op).inputs[1]).real())
    return spread(weight.reshape(-1, weight.shape[-1]).max(0))
