"""Matching of a float network with its int8 version: corresponding tensors, and the relative scale of each channel.

Networks are matched by structure, from the outputs back to the inputs, so that files of any converter and of either
format can be compared. An int8 network may have been equalized before quantization (Nagel et al., arXiv 1906.04721,
section 4.1), so that its channels are multiples of the float network's. The factors are recovered from the weights, and
the float network is equalized likewise, which leaves its function unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...runtime.errors import QuantizationError, UsageError
from ...runtime.graph import Graph, Op, Tensor, ops
from ...runtime.graph.rewrite import averages_as_convolutions

# Factors this close to 1 are attributed to rounding errors of the weights.
_SAME = 0.1
# Least cosine between the weights of corresponding layers, on the same scale.
_LEAST_COSINE = 0.5
# Operations that the other network may have fused, or does not need.
_OPTIONAL = (ops.Pad, ops.Reshape)


@dataclass(frozen=True)
class Match:
    """Two graphs of one network; ``reference`` has the scale of ``quantized``, channel by channel.

    ``names`` maps each activation of ``quantized`` to its counterpart in ``reference``, which has the same values, or
    those before a padding or ReLU that only one of the two networks has as a separate operation.
    """

    reference: Graph
    quantized: Graph
    names: Mapping[str, str]

    def layer(self, op: Op) -> Op:
        """The operation of ``reference`` that corresponds to one of ``quantized``."""
        return self.reference.producers[self.names[op.output]]


def match(reference: Graph, quantized: Graph) -> Match:
    """Match the tensors of a float graph with those of an int8 graph.

    Raises ``UsageError`` when a graph is not of its kind or they are different networks, and ``QuantizationError`` for
    a layer with weights that are not finite, with its name.
    """
    _check_kinds(reference, quantized)
    names = _pairs(reference, quantized)
    pools = {names[op.output] for op in quantized.ops if isinstance(op, ops.Conv)}
    reference = averages_as_convolutions(reference, pools)
    found = Match(reference, quantized, names)
    for op in quantized.ops:
        if isinstance(op, ops.Layer):
            _check_finite(reference, found.layer(op))
            _check_finite(quantized, op)
    gains = _gains(found)
    cosines = _cosines(found, gains)
    worst = min(cosines, key=lambda name: cosines[name], default=None)
    if worst is not None and cosines[worst] < _LEAST_COSINE:
        raise _different(quantized, reference, f"the weights of {worst!r} differ")
    return replace(found, reference=_rescaled(found, gains))


def _check_kinds(reference: Graph, quantized: Graph) -> None:
    if any(tensor.quantization for tensor in reference.tensors.values()):
        raise UsageError(f"{reference.name} is quantized; pass the float network first")
    if not any(tensor.quantization for tensor in quantized.tensors.values()):
        raise UsageError(f"{quantized.name} is a float network; pass the int8 network second")
    if not any(tensor.quantization for tensor in quantized.activations):
        raise UsageError(f"only the weights of {quantized.name} are integers; pass a network with int8 activations")
    for graph in (reference, quantized):
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise UsageError(
                f"{graph.name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; blame needs one of each"
            )


def _pairs(reference: Graph, quantized: Graph) -> dict[str, str]:
    """Map activations of ``quantized`` to those of ``reference``, from the outputs back."""
    found: dict[str, str] = {}
    pending = list(zip(quantized.outputs, reference.outputs, strict=True))
    while pending:
        ours, theirs = pending.pop()
        same = [ours]
        while isinstance(op := quantized.producers.get(ours), ops.Quantize | ops.Dequantize):
            ours = op.inputs[0]
            same.append(ours)
        while isinstance(other := reference.producers.get(theirs), _OPTIONAL) and (
            type(op) is not type(other) or _paddings(reference, theirs) > _paddings(quantized, ours)
        ):
            theirs = other.inputs[0]
        met = ours in found
        for name in same:
            if found.setdefault(name, theirs) != theirs:
                raise _different(quantized, reference, f"{name!r} corresponds to both {found[name]!r} and {theirs!r}")
        if met or (op is None and other is None):
            continue
        padded = _paddings(quantized, ours) > _paddings(reference, theirs)
        if isinstance(op, ops.Conv) and isinstance(other, ops.AveragePool) and not padded:
            # In int8 an average pool over an even number of values is a convolution.
            pending.append((op.inputs[0], other.inputs[0]))
        elif op is not None and other is not None and type(op) is type(other) and not padded:
            pending += _operands(reference, quantized, op, other)
        elif isinstance(op, (*_OPTIONAL, ops.Relu)):
            pending.append((op.inputs[0], theirs))
        else:
            kinds = [f"{o.kind} {o.name!r}" if o else "the input" for o in (op, other)]
            raise _different(quantized, reference, f"{kinds[0]} is in the place of {kinds[1]}")
    return found


def _paddings(graph: Graph, name: str) -> int:
    """Number of consecutive Pads before a tensor; the network with more has a layer's padding as an operation."""
    count = 0
    while isinstance(op := graph.producers.get(name), ops.Pad):
        name, count = op.inputs[0], count + 1
    return count


def _operands(reference: Graph, quantized: Graph, op: Op, other: Op) -> list[tuple[str, str]]:
    """Pairs of the activations that two operations of one kind take. Raises ``UsageError`` if the operations differ."""
    pairs = list(zip(op.inputs, other.inputs, strict=False))
    shapes = [(quantized.tensors[a], reference.tensors[b]) for a, b in [*pairs, (op.output, other.output)]]
    differ = [(a, b) for a, b in shapes if a.data is not None and a.shape != b.shape]
    if len(op.inputs) != len(other.inputs) or quantized.tensors[op.output].shape != shapes[-1][1].shape or differ:
        a, b = differ[0] if differ else shapes[-1]
        raise _different(
            quantized, reference, f"{op.kind} {op.name!r} has {a.shape} where {other.name!r} has {b.shape}"
        )
    return [pair for pair, (a, _) in zip(pairs, shapes, strict=False) if a.data is None]


def _different(quantized: Graph, reference: Graph, why: str) -> UsageError:
    sliced = any(isinstance(op, ops.Slice) for op in quantized.ops) and not any(
        isinstance(op, ops.Slice) for op in reference.ops
    )
    hint = "it seems to be fitted: pass the file before the fit" if sliced else "pass two files of one network"
    return UsageError(f"{quantized.name} is not {reference.name} in int8: {why}; {hint}")


def _check_finite(graph: Graph, op: Op) -> None:
    for name in op.inputs[1:]:
        if not np.isfinite(graph.constant(name).real()).all():
            raise QuantizationError(f"weights of {op.name!r} are not finite; the checkpoint is damaged")


def _gains(found: Match) -> dict[str, np.ndarray]:
    """The factor of each channel of the int8 network's activations over the float network's.

    Coarsely rounded weights can look like factors. True factors are undone by the next layers' weights, so they are
    accepted only if these weights match better with them.
    """
    graph = found.quantized
    gains: dict[str, np.ndarray] = {name: np.ones(graph.tensors[name].shape[-1]) for name in graph.inputs}
    for op in graph.ops:
        gains[op.output] = _gain(found, op, gains)
    plain = {name: np.ones_like(gain) for name, gain in gains.items()}
    left = any(np.abs(gains[name] - 1).max() > _SAME for name in graph.outputs)
    likelier = sum(_cosines(found, gains).values()) > sum(_cosines(found, plain).values())
    return gains if likelier and not left else plain


def _gain(found: Match, op: Op, gains: Mapping[str, np.ndarray]) -> np.ndarray:
    shape = found.quantized.tensors[op.output].shape
    if isinstance(op, ops.Layer):
        expected = _weight(found, op, gains).reshape(shape[-1], -1)
        weight = found.quantized.constant(op.inputs[1]).real().reshape(shape[-1], -1).astype(np.float64)
        power = (expected**2).sum(1)
        gain = np.where(power > 0, (weight * expected).sum(1) / np.where(power > 0, power, 1), 1)
        gain[gain <= 0] = 1
        return gain if np.abs(gain - 1).max() > _SAME else np.ones_like(gain)
    first = gains[op.inputs[0]]
    if isinstance(op, ops.Concat) and op.axis == len(shape) - 1:
        return np.concatenate([gains[name] for name in op.inputs])
    if isinstance(op, ops.Slice):
        return first[op.begin[-1] :][: shape[-1]]
    if isinstance(op, ops.Softmax):
        return np.ones(shape[-1])
    # In a flattened image the channels repeat, innermost.
    return np.resize(first, shape[-1])


def _weight(found: Match, op: ops.Layer, gains: Mapping[str, np.ndarray]) -> np.ndarray:
    """The float network's weight of a layer for inputs on the int8 network's scale."""
    weight = found.reference.constant(found.layer(op).inputs[1]).real().astype(np.float64)
    gain = gains[op.inputs[0]]
    if isinstance(op, ops.FullyConnected):
        return weight / gain
    per_group = gain.reshape(op.groups, -1)[np.arange(len(weight)) // (len(weight) // op.groups)]
    return weight / per_group[:, None, None, :]


def _cosines(found: Match, gains: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Cosine between each layer's int8 weight and the float network's, rescaled by the gains."""
    cosines = {}
    for op in found.quantized.ops:
        if isinstance(op, ops.Layer):
            expected = _expected(found, op, gains).ravel()
            weight = found.quantized.constant(op.inputs[1]).real().ravel().astype(np.float64)
            lengths = float(np.sqrt((expected @ expected) * (weight @ weight)))
            cosines[op.name] = expected @ weight / lengths if lengths else 1.0
    return cosines


def _expected(found: Match, op: ops.Layer, gains: Mapping[str, np.ndarray]) -> np.ndarray:
    """The float network's weight of a layer, with inputs and outputs on the int8 network's scale."""
    weight = _weight(found, op, gains)
    return weight * gains[op.output].reshape(-1, *[1] * (weight.ndim - 1))


def _rescaled(found: Match, gains: Mapping[str, np.ndarray]) -> Graph:
    """The float graph with every channel on its scale in the int8 graph."""
    if all((gain == 1).all() for gain in gains.values()):
        return found.reference
    graph, tensors, operations = (
        found.reference,
        dict(found.reference.tensors),
        {op.name: op for op in found.reference.ops},
    )
    for op in found.quantized.ops:
        if isinstance(op, ops.Layer):
            layer, gain = found.layer(op), gains[op.output]
            weight = _expected(found, op, gains)
            bias = graph.constant(layer.inputs[2]).real() * gain
            constants = [
                Tensor(f"{layer.name}/{name}", data.shape, data=data.astype(np.float32))
                for name, data in (("equalized_weight", weight), ("equalized_bias", bias))
            ]
            tensors.update((tensor.name, tensor) for tensor in constants)
            operations[layer.name] = replace(layer, inputs=(layer.inputs[0], *(tensor.name for tensor in constants)))
    return Graph.of(graph.name, tensors.values(), operations.values(), graph.inputs, graph.outputs)
