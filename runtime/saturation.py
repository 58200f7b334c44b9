"""Which integer layers of an ONNX file kernels of 16-bit sums may compute wrongly, and the form that they cannot.

On x86 with AVX2 or AVX-512 but without VNNI, onnxruntime multiplies uint8 activations with int8 weights by
``vpmaddubsw``, which adds the products of two neighbours in 16 bits and saturates: 255 * (w1 + w2) fits while
``|w1 + w2| <= 128``. Kernels for uint8 weights, for int8 activations and for depthwise layers do not do that.

A convolution's neighbours are those in the order kernel row, kernel column, input channel, in which kernels walk over
NHWC data; a kernel that treats each position on its own pairs the channels of each. Both are looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .graph import Conv, FullyConnected, Graph, flattened_image
from .onnx_wire import Constant, Node, OnnxMessage

# The largest sum of two weights whose products with 255 fit into 16 bits.
LIMIT = 128

MICROSOFT_DOMAIN = "com.microsoft"
STANDARD_DOMAINS = ("", "ai.onnx")
# Operators on integers: where their activations' zero point, the weight, its scale and its zero point stand.
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
# Operators on reals that onnxruntime makes integer ones of, between DequantizeLinear and QuantizeLinear.
_FLOAT_OPS = ("Conv", "Gemm", "MatMul")
# What lies between a DequantizeLinear and its use without changing values.
_PASSING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_SIGN = np.uint8(0x80)


def neighbours(positions: int, channels: int) -> list[np.ndarray]:
    """Pairs of columns, (pairs, 2), that kernels may add, walk by walk: of ``positions`` in a window, each of
    ``channels``. The first walk, which is onnxruntime's, takes all columns at once."""
    flat = np.arange(positions * channels // 2 * 2).reshape(-1, 2)
    if channels % 2 == 0 or positions == 1:
        return [flat]
    within = np.arange(positions)[:, None, None] * channels + np.arange(channels // 2 * 2).reshape(1, -1, 2)
    return [flat, within.reshape(-1, 2)]


def weight_pairs(graph: Graph, op: Conv | FullyConnected) -> list[np.ndarray]:
    """The same for a layer of a graph, in the order of its weight there; none for a depthwise layer."""
    shape = graph.tensors[op.inputs[1]].shape
    if isinstance(op, Conv):
        depthwise = shape[-1] == 1 and shape[0] == op.groups
        return [] if depthwise else neighbours(shape[1] * shape[2], shape[3])
    (pairs,), image = neighbours(1, shape[1]), flattened_image(graph, op.inputs[0])
    if image is None:
        return [pairs]
    # ONNX has the columns of a flattened image in the order of NCHW.
    _, rows, columns, depth = image
    return [np.arange(shape[1]).reshape(rows, columns, depth).transpose(2, 0, 1).ravel()[pairs]]


@dataclass(frozen=True)
class IntegerLayer:
    """A layer of uint8 activations and int8 weights.

    ``owner`` is the position of the operator that takes the integers of the weight (the layer itself or a
    ``DequantizeLinear``), ``weight_at``, ``scale_at`` and ``zero_at`` where that stand among its inputs; ``weight`` is
    ``None`` where it is computed; ``moved`` says that something moves the weight before the layer takes it.
    """

    name: str
    kind: str
    owner: int
    weight_at: int
    scale_at: int | None
    zero_at: int
    weight: Constant | None
    layer: Node
    moved: bool

    @cached_property
    def weights(self) -> int:
        """How many weights there are."""
        return 0 if self.weight is None else int(np.prod(self.weight.shape, dtype=np.int64))

    @cached_property
    def over(self) -> int:
        """How many pairs of neighbours are over the limit; where the order is not known, whether any two can be."""
        sums = self.sums
        return int(np.count_nonzero((sums > LIMIT) | (sums < -LIMIT)))

    @property
    def saturating(self) -> int | None:
        """How many pairs of neighbours can saturate; ``None`` where that is not known."""
        if self.weight is None or self.weight.external or (self.moved and self.over):
            return None
        return self.over

    @cached_property
    def largest(self) -> int:
        """The largest sum of two neighbours, or 0 without any."""
        return int(np.abs(self.sums).max(initial=0))

    @cached_property
    def sums(self) -> np.ndarray:
        """The sum of every pair of neighbours, int16."""
        assert self.weight is not None
        data = self.weight.data
        if self.moved or (data.ndim < 2):
            return _any_order(data)
        if "Conv" in self.kind:
            return self._of_windows(data)
        transposed = self.kind in ("Gemm", "QGemm") and self.layer.attributes.get("transB", 0)
        rows = data if transposed else np.swapaxes(data, -1, -2)
        return _adjacent(rows)

    def _of_windows(self, data: np.ndarray) -> np.ndarray:
        outputs, channels = data.shape[:2]
        if data.ndim == 4 and channels == 1 and outputs == self.layer.attributes.get("group", 1):
            return np.zeros(0, np.int16)
        if self.kind == "ConvInteger":
            # It walks over NCHW data.
            return np.concatenate([_adjacent(data.reshape(outputs, -1)), self._walked(data)])
        return self._walked(data)

    def _walked(self, data: np.ndarray) -> np.ndarray:
        outputs, channels = data.shape[:2]
        walk = np.moveaxis(data, 1, -1)
        sums = _adjacent(walk.reshape(outputs, -1))
        if channels % 2 and channels > 1 and walk.size > outputs * channels:
            sums = np.concatenate([sums, _adjacent(walk)])
        return sums


def integer_layers(message: OnnxMessage) -> Iterator[IntegerLayer]:
    """The layers of a file that multiply uint8 activations (or integers of unknown type) with int8 weights."""
    made = {name: (position, node) for position, node in enumerate(message.nodes) for name in node.outputs if name}

    def behind(name: str) -> tuple[int, Node | None, bool]:
        """What makes a tensor, past what only moves values, and whether there was such."""
        moved = False
        while name in made and made[name][1].kind in _PASSING and made[name][1].inputs:
            name, moved = made[name][1].inputs[0], True
        position, node = made.get(name, (-1, None))
        return position, node, moved

    def dtype(zero_point: str, integers: str) -> "np.dtype | None":
        for name in (zero_point, integers):
            if name in message.constants:
                return message.constants[name].dtype or np.dtype(object)
            if name in message.inputs:
                return {2: np.dtype(np.uint8), 3: np.dtype(np.int8)}.get(message.inputs[name], np.dtype(object))
        return None

    for position, node in enumerate(message.nodes):
        if node.kind in INTEGER_OPS and node.domain in (*STANDARD_DOMAINS, MICROSOFT_DOMAIN):
            x_zero, weight_at, scale_at, zero_at = INTEGER_OPS[node.kind]
            x = None if x_zero is None else dtype(node.input(x_zero), node.input(0))
            name = node.input(weight_at)
            y = dtype(node.input(zero_at), name)
            if x in (None, np.uint8) and y in (None, np.int8):
                yield IntegerLayer(
                    node.name,
                    node.kind,
                    position,
                    weight_at,
                    scale_at,
                    zero_at,
                    message.constants.get(name),
                    node,
                    False,
                )
        elif node.kind in _FLOAT_OPS and node.domain in STANDARD_DOMAINS:
            sides = [behind(name) for name in node.inputs[:2]]
            if len(sides) < 2 or any(one is None or one.kind != "DequantizeLinear" for _, one, _ in sides):
                continue
            for (owner, weight, moved), (_, other, _) in (sides, sides[::-1]):
                assert weight is not None and other is not None
                constant = message.constants.get(weight.input(0))
                first = weight is sides[0][1]
                x, y = (dtype(one.input(2), one.input(0)) for one in (other, weight))
                if x == np.int8 and behind(other.input(0))[1] is not None:
                    # onnxruntime makes uint8 of what a QuantizeLinear within the network gives.
                    x = None
                if constant is None and (first or message.constants.get(other.input(0)) is not None):
                    continue
                if x in (None, np.uint8) and y in (None, np.int8):
                    yield IntegerLayer(node.name, node.kind, owner, 0, 1, 2, constant, node, moved or first)
                    break


@dataclass(frozen=True)
class ExactForm:
    """A file whose layers cannot saturate: ``rewritten`` of them have uint8 weights now, ``left`` could not be."""

    data: bytes
    rewritten: int
    left: int


def exact_form(data: bytes) -> ExactForm:
    """The same network with uint8 weights, zero points moved by 128, in each layer that can saturate.

    Layers whose weight or its zero point is computed are left. Raises ``FormatError`` for bytes that are no ONNX file.
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

    rewritten = left = 0
    for layer in integer_layers(message):
        if layer.weight is not None and not layer.weight.external and not layer.over:
            continue
        owner = message.nodes[layer.owner]
        zeros = _zero_points(message, layer, owner)
        if layer.weight is None or layer.weight.external or zeros is None:
            left += 1
            continue
        rewritten += 1
        # Two layers may read one DequantizeLinear.
        if layer.owner not in nodes:
            inputs = [*owner.inputs, *[""] * (layer.zero_at + 1 - len(owner.inputs))]
            inputs[layer.weight_at] = added(f"{layer.weight.name}/uint8", layer.weight.data)
            inputs[layer.zero_at] = added(f"{inputs[layer.weight_at]}/zero_point", zeros)
            nodes[layer.owner] = owner.with_inputs(inputs)
    return ExactForm(message.with_changes(nodes, constants.items()) if nodes else data, rewritten, left)


def _zero_points(message: OnnxMessage, layer: IntegerLayer, owner: Node) -> np.ndarray | None:
    """A weight's int8 zero points, zeros where none are given; ``None`` where they are computed."""
    name = owner.input(layer.zero_at)
    if name:
        constant = message.constants.get(name)
        return constant.data if constant is not None and constant.dtype == np.int8 else None
    scale = None if layer.scale_at is None else message.constants.get(owner.input(layer.scale_at))
    return np.zeros(scale.shape if scale is not None else (), np.int8)


def _adjacent(rows: np.ndarray) -> np.ndarray:
    """Sums of the 1st and 2nd, 3rd and 4th, ... value of each row, flat."""
    even = rows[..., : rows.shape[-1] // 2 * 2]
    return np.add(even[..., 0::2], even[..., 1::2], dtype=np.int16).ravel()


def _any_order(data: np.ndarray) -> np.ndarray:
    """The largest and the smallest sum of any two values, for layers whose order is not known."""
    flat = np.sort(data.ravel())
    ends = [flat[-2:], flat[:2]] if flat.size > 1 else []
    return np.array([int(pair.sum(dtype=np.int16)) for pair in ends], np.int16)
