"""Which fix would help a layer of an int8 network, by what was measured of it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...runtime.graph import Graph, Op, ops
from .float_layers import adjacent_ops
from .matching import Match
from .tensor_errors import ErrorSums, spread

Fix = Literal["calibrate", "equalize", "correct bias", "round weights", "keep float", "none"]

# Share of the noise in the output below which a layer is not to blame.
_BLAMELESS = 0.02
# Share of a quantizer's noise past its ends from which the range is too narrow: less than half is what the least mean
# squared error leaves there.
_CLIPPED = 0.75
# Fewer values past the ends than this share are not worth a wider range.
_CUT = 1e-4
# A range this many times that of a weak channel, or of the bulk of the values, leaves them too few levels. Published
# SqueezeNets stay below 5 and 2.5.
_WIDE = 8.0
_TAIL = 4.0
# Share of the weights' noise that a bias could take up.
_SHIFTED = 0.5


@dataclass(frozen=True)
class Advice:
    """The fix that would help, and the evidence for it in words."""

    fix: Fix
    reason: str


def advise(found: Match, layer: str, sums: ErrorSums, recovered: float) -> Advice:
    """What would help a layer that costs the share ``recovered`` of the noise in the network's output."""
    graph = found.quantized
    op = graph.producers.get(layer)
    columns = _column_spread(found, op)
    if recovered < _BLAMELESS:
        return Advice("none", "it costs next to nothing")
    if sums.spread > _WIDE and equalizable(graph, sums.name):
        return Advice("equalize", f"the ranges of its channels differ by {sums.spread:.0f} times")
    if columns > _WIDE and op is not None and equalizable(graph, op.inputs[0]):
        return Advice("equalize", f"the weights of its input channels differ by {columns:.0f} times")
    cut = sums.clipped / max(sums.values, 1)
    if cut > _CUT and sums.clip_noise > max(_CLIPPED * sums.quantizer_noise, sums.weights_noise):
        return Advice("calibrate", f"{cut:.2%} of the values are cut off; minmax, or more images, widen the range")
    if sums.quantizer_noise > sums.weights_noise and sums.tail > _TAIL:
        return Advice("calibrate", f"the range is {sums.tail:.0f} times that of nearly all values; mse or percentile")
    if sums.weights_noise > sums.quantizer_noise:
        if sums.shifted > _SHIFTED:
            return Advice("correct bias", f"{sums.shifted:.0%} of what its rounded weights cost is a mean error")
        return Advice("round weights", "its rounded weights cost more than the scale of what it gives")
    return Advice("keep float", "no channel or tail of what it gives stands out")


def equalizable(graph: Graph, tensor: str) -> bool:
    """Whether factors may move, channel by channel, from the weights that make a tensor to those that take it."""
    around = [graph.producers.get(name) for name in adjacent_ops(graph, tensor)]
    scaled = all(isinstance(op, ops.Layer) and op.activation != "relu6" for op in around)
    return scaled and len(around) > 1 and tensor not in graph.outputs


def _column_spread(found: Match, op: Op | None) -> float:
    """How many times the weights of one input channel are those of a weak one, in the float network."""
    if not isinstance(op, ops.Layer) or getattr(op, "groups", 1) != 1:
        return 1.0
    weight = np.abs(found.reference.constant(found.layer(op).inputs[1]).real())
    return spread(weight.reshape(-1, weight.shape[-1]).max(0))
