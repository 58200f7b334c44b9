"""Cross-layer equalization: channels that share a scale brought to like ranges, the network the same.

What makes a channel is divided by a factor and what takes it multiplied by it, which rectifiers, pools, additions and
joins let through (Nagel et al., arXiv 1906.04721, section 4.1). With one scale per tensor of activations and one per
output channel of weights there are two sides to please: activations gain when every channel fills its tensor's range,
the weights behind them when no input channel asks for much more than the others. The factor of a channel is
``peak**a / demand**(1 - a)``, as SmoothQuant migrates it (Xiao et al., arXiv 2211.10438, section 4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...runtime.graph import Graph, Op, Tensor, ops
from ..activations import run_activations

# Which of both sides counts how much: 1 is all for the activations.
_ACTIVATIONS = 0.5
# Channels that hardly ever speak are not blown up further than this share of the loudest.
_QUIETEST = 1e-3


def channel_peaks(
    graph: Graph, samples: Sequence[np.ndarray], tick: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """The largest magnitude in each channel of every activation over ``samples`` (NHWC with the batch), shape (C,).

    ``tick`` is called once a sample.
    """
    peaks: dict[str, np.ndarray] = {}
    for values in run_activations(graph, samples):
        for name, value in values.items():
            # Channels come second here: ONNX's layout.
            found = np.abs(value).max(axis=tuple(axis for axis in range(value.ndim) if axis != 1))
            peaks[name] = np.maximum(found, peaks.get(name, 0.0))
        tick()
    return peaks


def equalize(graph: Graph, peaks: Mapping[str, np.ndarray], activations: float = _ACTIVATIONS) -> Graph:
    """The same float network with its channels scaled; ``peaks`` as ``channel_peaks`` finds them.

    Inputs and outputs of the network stay as they are, and so does whatever a ReLU6 or a softmax bounds. In exact
    arithmetic the answers are the same; in float32 they differ by rounding.
    """
    channels = _Channels(graph)
    factors = channels.factors(peaks, activations)
    tensors = dict(graph.tensors)
    operations: list[Op] = []
    for op in graph.ops:
        if isinstance(op, ops.Layer):
            weight, bias = (graph.constant(name).real() for name in op.inputs[1:])
            x, y = (factors[channels.ids[name]] for name in (op.inputs[0], op.output))
            weight = weight * _of_inputs(op, weight, x) / y.reshape(-1, *[1] * (weight.ndim - 1))
            # Both belong to one use: a layer used twice is scaled for each.
            constants = [
                Tensor(f"{op.name}/{name}", data.shape, data=np.ascontiguousarray(data, np.float32))
                for name, data in (("weight", weight), ("bias", bias / y))
            ]
            tensors.update((tensor.name, tensor) for tensor in constants)
            op = replace(op, inputs=(op.inputs[0], *(tensor.name for tensor in constants)))
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


class _Channels:
    """The channels of all activations, those that must be scaled alike under one number (disjoint sets)."""

    def __init__(self, graph: Graph):
        self.graph = graph
        starts = np.cumsum([0, *(tensor.shape[-1] for tensor in graph.activations)])
        self.ids = {
            tensor.name: np.arange(start, start + tensor.shape[-1])
            for tensor, start in zip(graph.activations, starts, strict=False)
        }
        self._parent = np.arange(starts[-1] + 1)
        # The last number is of all channels that must stay as they are.
        self._fixed = np.array([starts[-1]])
        for name in (*graph.inputs, *graph.outputs):
            self._tie(self.ids[name], self._fixed)
        for op in graph.ops:
            self._through(op)
        self.ids = {name: np.array([self._root(i) for i in ids]) for name, ids in self.ids.items()}

    def factors(self, peaks: Mapping[str, np.ndarray], activations: float) -> np.ndarray:
        """What each channel is divided by, by its number."""
        peak, demand = np.zeros(len(self._parent)), np.zeros(len(self._parent))
        for name, ids in self.ids.items():
            np.maximum.at(peak, ids, peaks[name])
        for op in self.graph.ops:
            if isinstance(op, ops.Layer):
                np.maximum.at(demand, self.ids[op.inputs[0]], _demand(op, self.graph.constant(op.inputs[1]).real()))
        factors = np.ones(len(self._parent))
        for ids in self._together():
            loudest = peak[ids].max()
            if loudest == 0 or self._root(self._fixed[0]) in ids:
                continue
            bounded = np.maximum(peak[ids], loudest * _QUIETEST)
            wanted = np.maximum(demand[ids], demand[ids].max() * _QUIETEST)
            found = bounded**activations / np.where(wanted > 0, wanted, 1.0) ** (1 - activations)
            # The range of the whole stays what it was.
            factors[ids] = found * (bounded / found).max() / loudest
        return factors

    def _together(self) -> list[np.ndarray]:
        """The channels of tensors that are joined, added or pooled into one another: they are normalized together."""
        found: list[set[int]] = []
        for ids in self.ids.values():
            own = set(ids.tolist())
            touching = [other for other in found if own & other]
            found = [other for other in found if other not in touching] + [own.union(*touching)]
        return [np.array(sorted(ids)) for ids in found]

    def _through(self, op: Op) -> None:
        sources, target = [self.ids[name] for name in op.inputs if name in self.ids], self.ids[op.output]
        shapes = self.graph.shapes(op)
        # What is cut at, or filled with, a number of its own does not scale.
        bounded = (
            getattr(op, "activation", "none") == "relu6"
            or isinstance(op, ops.Softmax)
            or (isinstance(op, ops.Pad) and op.value != 0)
        )
        if bounded:
            self._tie(target, self._fixed)
        if isinstance(op, ops.Layer):
            return
        if isinstance(op, ops.Concat) and op.axis == len(shapes[0]) - 1:
            self._tie(np.concatenate(sources), target)
        elif isinstance(op, ops.Slice):
            begin, size = op.begin[-1], op.size[-1]
            self._tie(sources[0][begin : begin + size], target)
        elif isinstance(op, ops.Transpose) or (isinstance(op, ops.Reshape) and op.shape[-1] != shapes[0][-1]):
            self._tie(np.concatenate([*sources, target]), self._fixed)
        elif bounded:
            self._tie(np.concatenate(sources), self._fixed)
        else:
            for source in sources:
                self._tie(source, target)

    def _tie(self, left: np.ndarray, right: np.ndarray) -> None:
        for a, b in np.broadcast(left, right):
            self._parent[self._root(a)] = self._root(b)

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return int(index)


def _demand(op: ops.Layer, weight: np.ndarray) -> np.ndarray:
    """The largest share that each input channel's weights have of the largest weight of an output, shape (in,)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    share = np.abs(weight) / np.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
    groups = op.groups if isinstance(op, ops.Conv) else 1
    return share.reshape(groups, -1, weight.shape[-1]).max(axis=1).reshape(-1)


def _of_inputs(op: ops.Layer, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The factors of the input channels along the last axis of a weight, output channel by output channel."""
    groups = op.groups if isinstance(op, ops.Conv) else 1
    rows = np.repeat(factors.reshape(groups, -1), len(weight) // groups, axis=0)
    return rows.reshape(len(weight), *[1] * (weight.ndim - 2), weight.shape[-1])
