"""Cross-layer equalization: rescaling of channels to similar ranges that leaves the network's function unchanged.

The weights that produce a channel are divided by a factor and the weights that consume it are multiplied by the same
factor, which passes through ReLUs, pools, additions and concatenations (Nagel et al., arXiv 1906.04721, section 4.1).
With one scale per activation and one per output channel of a weight, two aims compete: activations gain when every
channel fills its tensor's range, and the next layer's weights when no input channel is much larger than the others. The
factor ``peak**a / demand**(1 - a)`` balances them, as in SmoothQuant (Xiao et al., arXiv 2211.10438, section 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...runtime.graph import Graph, Op, Tensor, ops
from ...runtime.progress import SILENT, Progress
from ..activations import run_activations

# The exponent ``a``: 1 considers the activations only.
_MIGRATION = 0.5
# Channels weaker than this share of the strongest are scaled as if they had it.
_WEAKEST = 1e-3


def channel_peaks(graph: Graph, samples: Sequence[np.ndarray], progress: Progress = SILENT) -> dict[str, np.ndarray]:
    """The largest magnitude in each channel of every activation, shape (C,).

    ``samples`` are network inputs, NHWC with the batch axis.
    """
    peaks: dict[str, np.ndarray] = {}
    with progress.task("measuring channels", len(samples)) as advance:
        for values in run_activations(graph, samples):
            for name, value in values.items():
                # ONNX's layout: channels are axis 1.
                largest = np.abs(value).max(axis=tuple(axis for axis in range(value.ndim) if axis != 1))
                peaks[name] = np.maximum(largest, peaks.get(name, 0.0))
            advance()
    return peaks


def equalize(graph: Graph, peaks: Mapping[str, np.ndarray], migration: float = _MIGRATION) -> Graph:
    """Equalize a float network; ``peaks`` are those of ``channel_peaks``, ``migration`` is the exponent ``a``.

    Inputs and outputs of the network keep their scale, and so do channels bounded by ReLU6 or softmax. The outputs are
    equal in exact arithmetic; in float32 they differ by rounding.
    """
    channels = _ChannelGroups(graph)
    factors = channels.factors(peaks, migration)
    tensors = dict(graph.tensors)
    equalized: list[Op] = []
    for op in graph.ops:
        if isinstance(op, ops.Layer):
            weight, bias = (graph.constant(name).real() for name in op.inputs[1:])
            x, y = (factors[channels.ids[name]] for name in (op.inputs[0], op.output))
            weight = weight * _of_inputs(op, weight, x) / y.reshape(-1, *[1] * (weight.ndim - 1))
            # Constants are named after the operation: a shared layer is scaled differently for each use.
            constants = [
                Tensor(f"{op.name}/{name}", data.shape, data=np.ascontiguousarray(data, np.float32))
                for name, data in (("weight", weight), ("bias", bias / y))
            ]
            tensors.update((tensor.name, tensor) for tensor in constants)
            op = replace(op, inputs=(op.inputs[0], *(tensor.name for tensor in constants)))
        equalized.append(op)
    return Graph.of(graph.name, tensors.values(), equalized, graph.inputs, graph.outputs)


class _ChannelGroups:
    """The channels of all activations; channels that must share a factor share an id (disjoint sets)."""

    def __init__(self, graph: Graph):
        self.graph = graph
        starts = np.cumsum([0, *(tensor.shape[-1] for tensor in graph.activations)])
        self.ids = {
            tensor.name: np.arange(start, start + tensor.shape[-1])
            for tensor, start in zip(graph.activations, starts, strict=False)
        }
        self._parent = np.arange(starts[-1] + 1)
        # The last id stands for all channels that keep their scale.
        self._fixed = np.array([starts[-1]])
        for name in (*graph.inputs, *graph.outputs):
            self._tie(self.ids[name], self._fixed)
        for op in graph.ops:
            for left, right in self._links(op):
                self._tie(left, right)
        self.ids = {name: np.array([self._root(i) for i in ids]) for name, ids in self.ids.items()}

    def factors(self, peaks: Mapping[str, np.ndarray], migration: float) -> np.ndarray:
        """The divisor of each channel, by its id."""
        peak, demand = np.zeros(len(self._parent)), np.zeros(len(self._parent))
        for name, ids in self.ids.items():
            np.maximum.at(peak, ids, peaks[name])
        for op in self.graph.ops:
            if isinstance(op, ops.Layer):
                np.maximum.at(demand, self.ids[op.inputs[0]], _demand(op, self.graph.constant(op.inputs[1]).real()))
        factors = np.ones(len(self._parent))
        for ids in self._normalized_together():
            strongest = peak[ids].max()
            if strongest == 0 or self._root(self._fixed[0]) in ids:
                continue
            bounded = np.maximum(peak[ids], strongest * _WEAKEST)
            wanted = np.maximum(demand[ids], demand[ids].max() * _WEAKEST)
            found = bounded**migration / np.where(wanted > 0, wanted, 1.0) ** (1 - migration)
            # Normalized so that the range of the whole tensor stays the same.
            factors[ids] = found * (bounded / found).max() / strongest
        return factors

    def _normalized_together(self) -> list[np.ndarray]:
        """The ids of tensors that are concatenated, added or pooled into one another."""
        found: list[set[int]] = []
        for ids in self.ids.values():
            own = set(ids.tolist())
            touching = [other for other in found if own & other]
            found = [other for other in found if other not in touching] + [own.union(*touching)]
        return [np.array(sorted(ids)) for ids in found]

    def _links(self, op: Op) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of ids that an operation forces to share a factor."""
        sources, target = [self.ids[name] for name in op.inputs if name in self.ids], self.ids[op.output]
        shapes = self.graph.shapes(op)
        bounded = _has_constant_bound(op)
        fixed = [(target, self._fixed)] if bounded else []
        if isinstance(op, ops.Layer):
            return fixed
        if isinstance(op, ops.Concat) and op.axis == len(shapes[0]) - 1:
            return [*fixed, (np.concatenate(sources), target)]
        if isinstance(op, ops.Slice):
            begin, size = op.begin[-1], op.size[-1]
            return [*fixed, (sources[0][begin : begin + size], target)]
        if isinstance(op, ops.Transpose) or (isinstance(op, ops.Reshape) and op.shape[-1] != shapes[0][-1]):
            return [*fixed, (np.concatenate([*sources, target]), self._fixed)]
        if bounded:
            return [*fixed, (np.concatenate(sources), self._fixed)]
        return [(source, target) for source in sources]

    def _tie(self, left: np.ndarray, right: np.ndarray) -> None:
        for a, b in np.broadcast(left, right):
            self._parent[self._root(a)] = self._root(b)

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return int(index)


def _has_constant_bound(op: Op) -> bool:
    """True if an operation clips at, or pads with, a constant that does not scale with its input."""
    return (
        getattr(op, "activation", "none") == "relu6"
        or isinstance(op, ops.Softmax)
        or (isinstance(op, ops.Pad) and op.value != 0)
    )


def _demand(op: ops.Layer, weight: np.ndarray) -> np.ndarray:
    """Each input channel's largest weight relative to the largest of the same output channel, shape (in,)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    share = np.abs(weight) / np.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
    groups = op.groups if isinstance(op, ops.Conv) else 1
    return share.reshape(groups, -1, weight.shape[-1]).max(axis=1).reshape(-1)


def _of_inputs(op: ops.Layer, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The factors of the input channels, broadcast along the last axis of a weight."""
    groups = op.groups if isinstance(op, ops.Conv) else 1
    rows = np.repeat(factors.reshape(groups, -1), len(weight) // groups, axis=0)
    return rows.reshape(len(weight), *[1] * (weight.ndim - 2), weight.shape[-1])
