"""Integer layers of an ONNX file that can saturate on x86 without VNNI, and an equivalent file without saturation.

On x86 with AVX2 or AVX-512 but without VNNI, onnxruntime multiplies uint8 activations by int8 weights with
``vpmaddubsw``, which adds the products of two neighbours in 16 bits with saturation. 255 * (w1 + w2) fits if
``|w1 + w2| <= 128``. Kernels for uint8 weights, for int8 activations and for depthwise layers multiply in 16 bits and
add in 32.

Neighbouring weights of a convolution are adjacent in the order kernel row, kernel column, input channel, in which
kernels read NHWC data. Kernels that treat each position separately pair the channels of one position. Both are checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..formats.onnx_wire import STANDARD_DOMAINS, Constant, Node, OnnxMessage
from ..graph import Graph, ops

# The largest sum of two weights whose products with 255 fit in 16 bits.
LIMIT = 128

MICROSOFT_DOMAIN = "com.microsoft"
# Integer operators: input positions of the activations' zero point, the weight, its scale and its zero point.
INTEGER_OPS = {
    "QLinearConv": (2, 3, 4, 5),
    "ConvInteger": (2, 1, None, 3),
    "QLinearMatMul": (2, 3, 4, 5),
    "MatMulInteger": (2, 1, None, 3),
    "MatMulIntegerToFloat": (4, 1, 3, 5),
    "DynamicQuantizeMatMul": (None, 1, 2, 3),
    "QGemm": (2, 3, 4, 5),
    "QAttention": (6, 1, 4, 7),
}
# Float operators that onnxruntime converts to integer ones between DequantizeLinear and QuantizeLinear.
_FLOAT_OPS = ("Conv", "Gemm", "MatMul")
# Operators after a DequantizeLinear that onnxruntime moves before it, for weights and for activations.
_MOVING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_PASSING = (*_MOVING, "Dropout", "MaxPool", "Pad", "Slice")
_SIGN = np.uint8(0x80)
_OTHER = np.dtype(object)


def neighbours(positions: int, channels: int) -> list[np.ndarray]:
    """Pairs of weight columns, (pairs, 2), that kernels may add in 16 bits, for each reading order.

    The columns are ``positions`` of a window times ``channels``. The first order, onnxruntime's, is over all columns.
    """
    flat = np.arange(positions * channels // 2 * 2).reshape(-1, 2)
    if channels % 2 == 0 or positions == 1:
        return [flat]
    within = np.arange(positions)[:, None, None] * channels + np.arange(channels // 2 * 2).reshape(1, -1, 2)
    return [flat, within.reshape(-1, 2)]


def weight_pairs(graph: Graph, op: ops.Layer) -> list[np.ndarray]:
    """``neighbours`` of a layer's columns, in the order of its weight in the graph; none for a depthwise layer."""
    shape = graph.tensors[op.inputs[1]].shape
    if isinstance(op, ops.Conv):
        depthwise = _is_depthwise(shape[0], shape[-1], op.groups)
        return [] if depthwise else neighbours(shape[1] * shape[2], shape[3])
    (pairs,), image = neighbours(1, shape[1]), graph.flattened_image(op.inputs[0])
    if image is None:
        return [pairs]
    # In ONNX the columns for a flattened image are in NCHW order.
    _, rows, columns, depth = image
    return [np.arange(shape[1]).reshape(rows, columns, depth).transpose(2, 0, 1).ravel()[pairs]]


@dataclass(frozen=True)
class IntegerLayer:
    """A layer with uint8 activations and int8 weights.

    ``owner`` is the position of the operator that reads the integer weight: the layer itself or a
    ``DequantizeLinear``. ``weight_at``, ``scale_at`` and ``zero_at`` are input positions of that operator. ``weight``
    is ``None`` if it is computed. ``reordered``: another operator permutes or reshapes the weight. Not ``certain``:
    there are other operators before the layer, so that onnxruntime may compute it in float32.
    """

    name: str
    kind: str
    owner: int
    weight_at: int
    scale_at: int | None
    zero_at: int
    weight: Constant | None
    layer: Node
    reordered: bool = False
    certain: bool = True

    @cached_property
    def over(self) -> int:
        """Number of pairs over the limit; if the order is unknown, nonzero if any two weights are over it."""
        sums = self.sums
        return int(np.count_nonzero((sums > LIMIT) | (sums < -LIMIT)))

    @property
    def may_saturate(self) -> bool:
        """True if any pair is over the limit; faster than counting them."""
        return int(self.sums.max(initial=0)) > LIMIT or int(self.sums.min(initial=0)) < -LIMIT

    @property
    def saturating(self) -> int | None:
        """Number of pairs that can saturate; ``None`` if unknown."""
        if self.weight is None or self.weight.external or ((self.reordered or not self.certain) and self.over):
            return None
        return self.over

    @cached_property
    def largest(self) -> int:
        """The largest absolute sum of two neighbours, or 0 if there are none."""
        return int(np.abs(self.sums).max(initial=0))

    @cached_property
    def sums(self) -> np.ndarray:
        """Sums of all pairs of neighbours, int16."""
        assert self.weight is not None
        data = self.weight.data
        if self.reordered or data.ndim < 2:
            return _any_order(data)
        if "Conv" in self.kind:
            return self._of_windows(data)
        transposed = self.kind in ("Gemm", "QGemm") and self.layer.attributes.get("transB", 0)
        rows = data if transposed else np.swapaxes(data, -1, -2)
        return _adjacent(rows)

    def _of_windows(self, data: np.ndarray) -> np.ndarray:
        outputs, channels = data.shape[:2]
        if data.ndim == 4 and _is_depthwise(outputs, channels, self.layer.attributes.get("group", 1)):
            return np.zeros(0, np.int16)
        if self.kind == "ConvInteger":
            # Its kernel reads NCHW data.
            return np.concatenate([_adjacent(data.reshape(outputs, -1)), self._nhwc_sums(data)])
        return self._nhwc_sums(data)

    def _nhwc_sums(self, data: np.ndarray) -> np.ndarray:
        outputs, channels = data.shape[:2]
        if channels % 2 == 0:
            # Neighbours are two channels of one position.
            return np.add(data[:, 0::2], data[:, 1::2], dtype=np.int16).ravel()
        nhwc = np.moveaxis(data, 1, -1)
        sums = _adjacent(nhwc.reshape(outputs, -1))
        if channels > 1 and nhwc.size > outputs * channels:
            sums = np.concatenate([sums, _adjacent(nhwc)])
        return sums


def integer_layers(message: OnnxMessage) -> Iterator[IntegerLayer]:
    """The layers of a file that multiply uint8 activations, or integers of unknown type, by int8 weights."""
    sources = _Sources(message)
    for position, node in enumerate(message.nodes):
        if node.kind in INTEGER_OPS and node.domain in (*STANDARD_DOMAINS, MICROSOFT_DOMAIN):
            x_zero, weight_at, scale_at, zero_at = INTEGER_OPS[node.kind]
            x = None if x_zero is None else sources.dtype(node.input(x_zero), node.input(0))
            name = node.input(weight_at)
            if x in (None, np.uint8) and sources.dtype(node.input(zero_at), name) in (None, np.int8):
                weight = message.constants.get(name)
                yield IntegerLayer(node.name, node.kind, position, weight_at, scale_at, zero_at, weight, node)
        elif node.kind in _FLOAT_OPS and node.domain in STANDARD_DOMAINS and len(node.inputs) > 1:
            found = _quantized_layer(sources, node)
            if found is not None:
                yield found


def _quantized_layer(sources: "_Sources", node: Node) -> IntegerLayer | None:
    """The integer layer that onnxruntime makes of a float operator, if both of its operands are dequantized."""
    # The weight of a matrix product may be either operand; if both are computed, the second counts as the weight.
    second = sources.behind(node.inputs[1], _MOVING)
    for at in (1, 0) if node.kind == "MatMul" and not sources.is_constant(second) else (1,):
        weight = second if at else sources.behind(node.inputs[0], _MOVING)
        if weight.node is None or weight.node.kind != "DequantizeLinear" or not (at or sources.is_constant(weight)):
            continue
        if sources.dtype(weight.node.input(2), weight.node.input(0)) not in (None, np.int8):
            continue
        x = sources.behind(node.inputs[1 - at], _PASSING).node
        direct = x is not None and x.kind == "DequantizeLinear"
        if x is not None and x.kind == "DequantizeLinear":
            # onnxruntime converts activations to uint8, unless they are inputs of the network.
            given = sources.behind(x.input(0), ()).node is None
            if given and sources.dtype(x.input(2), x.input(0)) not in (None, np.uint8):
                continue
        elif not sources.comes_from_integers(node.inputs[1 - at]):
            continue
        constant = sources.message.constants.get(weight.node.input(0))
        moved = weight.moved or at == 0
        return IntegerLayer(node.name, node.kind, weight.position, 0, 1, 2, constant, node, moved, certain=direct)
    return None


@dataclass(frozen=True)
class _Source:
    """The operator that computes a tensor, its position, and whether operators in between move values."""

    position: int
    node: Node | None
    moved: bool


class _Sources:
    """Origins of the tensors of a file."""

    def __init__(self, message: OnnxMessage):
        self.message = message
        self.positions = {name: place for place, node in enumerate(message.nodes) for name in node.outputs if name}

    def behind(self, name: str, passing: tuple[str, ...]) -> _Source:
        """The operator that computes a tensor, before any operators of the kinds in ``passing``."""
        seen = set[str]()
        while (place := self.positions.get(name)) is not None and name not in seen:
            node = self.message.nodes[place]
            if node.kind not in passing or not node.inputs:
                return _Source(place, node, bool(seen))
            seen.add(name)
            name = node.inputs[0]
        return _Source(-1, None, bool(seen))

    def is_constant(self, source: _Source) -> bool:
        """True if the source is an operator on a constant."""
        return source.node is not None and source.node.input(0) in self.message.constants

    def comes_from_integers(self, name: str) -> bool:
        """True if a tensor depends on a DequantizeLinear."""
        pending, seen = [name], set[str]()
        while pending:
            place = self.positions.get(pending.pop())
            if place is None:
                continue
            node = self.message.nodes[place]
            if node.kind == "DequantizeLinear":
                return True
            pending += [one for one in node.inputs if one not in seen]
            seen.update(node.inputs)
        return False

    def dtype(self, zero_point: str, integers: str) -> "np.dtype | None":
        """Type of integers from their zero point or their own declaration; ``None`` if both are unknown."""
        for name in (zero_point, integers):
            if name in self.message.constants:
                return self.message.constants[name].dtype or _OTHER
            if name in self.message.inputs:
                return {2: np.dtype(np.uint8), 3: np.dtype(np.int8)}.get(self.message.inputs[name], _OTHER)
        return None


@dataclass(frozen=True)
class ExactForm:
    """A file without saturation in the layers that could be rewritten.

    ``rewritten`` layers have uint8 weights. ``left`` counts layers that may still saturate, and the file's subgraphs
    and functions, which are not checked.
    """

    data: bytes
    rewritten: int
    left: int


def exact_form(data: bytes) -> ExactForm:
    """The same network with uint8 weights, zero points shifted by 128, in each layer that can saturate.

    Layers with a computed weight or zero point stay as they were. Raises ``FormatError`` if the bytes are not an ONNX
    file.
    """
    message = OnnxMessage(data)
    taken = {*message.constants, *message.inputs, *(name for node in message.nodes for name in node.outputs)}
    nodes: dict[int, Node] = {}
    constants: dict[str, np.ndarray] = {}

    def added(name: str, values: np.ndarray) -> str:
        while name in taken:
            name += "'"
        taken.add(name)
        constants[name] = values.view(np.uint8) ^ _SIGN
        return name

    rewritten, left = 0, sum(node.has_subgraph for node in message.nodes) + message.has_functions
    for layer in integer_layers(message):
        if layer.weight is not None and not layer.weight.external and not layer.may_saturate:
            continue
        owner = message.nodes[layer.owner]
        zeros = _zero_points(message, layer, owner)
        if layer.weight is None or layer.weight.external or zeros is None:
            left += 1
            continue
        rewritten += 1
        # Two layers may share a DequantizeLinear.
        if layer.owner not in nodes:
            inputs = [*owner.inputs, *[""] * (layer.zero_at + 1 - len(owner.inputs))]
            inputs[layer.weight_at] = added(f"{layer.weight.name}/uint8", layer.weight.data)
            inputs[layer.zero_at] = added(f"{inputs[layer.weight_at]}/zero_point", zeros)
            nodes[layer.owner] = owner.with_inputs(inputs)
    return ExactForm(message.with_changes(nodes, constants.items()) if nodes else data, rewritten, left)


def _zero_points(message: OnnxMessage, layer: IntegerLayer, owner: Node) -> np.ndarray | None:
    """The int8 zero points of a weight, zeros by default; ``None`` if they are computed."""
    name = owner.input(layer.zero_at)
    if name:
        constant = message.constants.get(name)
        return constant.data if constant is not None and constant.dtype == np.int8 else None
    scale = None if layer.scale_at is None else message.constants.get(owner.input(layer.scale_at))
    return np.zeros(scale.shape if scale is not None else (), np.int8)


def _is_depthwise(outputs: int, channels: int, groups: int) -> bool:
    """True if a weight of ``channels`` per group is that of a depthwise convolution without a multiplier."""
    return channels == 1 and outputs == groups


def _adjacent(rows: np.ndarray) -> np.ndarray:
    """Sums of the 1st and 2nd, the 3rd and 4th, ... value of each row, flattened."""
    even = rows[..., : rows.shape[-1] // 2 * 2]
    return np.add(even[..., 0::2], even[..., 1::2], dtype=np.int16).ravel()


def _any_order(data: np.ndarray) -> np.ndarray:
    """The largest and the smallest sum of any two values, for layers whose order is unknown."""
    flat = np.sort(data.ravel())
    ends = [flat[-2:], flat[:2]] if flat.size > 1 else []
    return np.array([int(pair.sum(dtype=np.int16)) for pair in ends], np.int16)
