"""Scale and zero point of every activation, and the groups of activations that share them.

The scheme is TensorFlow Lite's (Jacob et al., arXiv 1712.05877): one scale and zero point per activation.
"""

from collections.abc import Mapping

import numpy as np

from ...runtime.errors import QuantizationError
from ...runtime.graph import Graph, Op, Quantization, ops
from .exact_scales import exact_scales
from .ranges import Range


def activation_scales(graph: Graph, ranges: Mapping[str, Range], exact: bool = True) -> dict[str, Quantization]:
    """int8 scale and zero point of every activation; without ``exact``, scales follow from the ranges alone.

    Raises ``QuantizationError`` when a range is missing.
    """
    groups = scale_groups(graph)
    covered: dict[str, Range] = {}
    for tensor in graph.activations:
        if tensor.name not in ranges:
            raise QuantizationError(f"activation {tensor.name!r} was not calibrated")
        group = groups[tensor.name]
        covered[group] = ranges[tensor.name].union(covered.get(group, Range(0.0, 0.0)))
    fixed = fixed_groups(graph, groups)
    free = {group: found for group, found in covered.items() if group not in fixed}
    own = {group: _scale(found) for group, found in free.items()}
    scales = exact_scales(graph, groups, own) if exact else own
    # Zero points follow from the ranges: adjusting a scale slightly moves both ends slightly.
    zeros = {group: int(np.clip(round(-128 - found.low / own[group]), -128, 127)) for group, found in free.items()}
    chosen = {group: Quantization((scales[group],), zeros[group]) for group in free}
    chosen |= fixed
    return {tensor.name: chosen[groups[tensor.name]] for tensor in graph.activations}


def fixed_groups(graph: Graph, groups: Mapping[str, str]) -> dict[str, Quantization]:
    """The groups whose int8 scale TFLite's kernels prescribe, with that scale."""
    fixed = {groups[op.output]: op.fixed_output_scale["int8"] for op in graph.ops if op.fixed_output_scale}
    return {group: Quantization((scale,), zero_point) for group, (scale, zero_point) in fixed.items()}


def scale_groups(graph: Graph) -> dict[str, str]:
    """Map each activation to its group, named after the first activation in it (disjoint sets)."""
    parent = {tensor.name: tensor.name for tensor in graph.activations}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for op in graph.ops:
        if shares_scale(op):
            for name in op.inputs:
                parent[root(op.output)] = root(name)
    return {name: root(name) for name in parent}


def shares_scale(op: Op | None) -> bool:
    """True if an operation does not rescale, so that its inputs and output share one scale."""
    return op is not None and (op.requires_same_scale or isinstance(op, ops.Relu))


def _scale(found: Range) -> float:
    """The float32 scale of 256 integers over a range."""
    scale = np.float32((found.high - found.low) / 255)
    return float(scale) if scale >= np.finfo(np.float32).tiny else 1.0
