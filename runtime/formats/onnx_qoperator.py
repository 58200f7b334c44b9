"""Conversion of ONNX models from QOperator to QDQ format: float operators between DequantizeLinear and QuantizeLinear.

onnxruntime's quantizer writes three formats. QDQ has pairs of QuantizeLinear and DequantizeLinear, which the reader
supports. QOperator has operators with scales as inputs, such as QLinearConv, most of them in the domain
``com.microsoft``. Dynamic quantization has DynamicQuantizeLinear, then ConvInteger or MatMulInteger, then Cast and Mul,
which convert the sums to float32; these become float operators with integer weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from onnx import NodeProto

_DOMAINS = ("", "ai.onnx", "com.microsoft")


def to_qdq(
    nodes: "Iterable[NodeProto]", constants: Mapping[str, np.ndarray]
) -> "tuple[list[NodeProto], dict[str, np.ndarray]]":
    """The nodes of a model without integer operators, and the constants to add to ``constants``.

    Raises ``UnsupportedError`` for integer operators in a form that onnxruntime's quantizer does not write.
    """
    lowering = _Lowering(constants)
    for node in nodes:
        handler = _HANDLERS.get(node.op_type) if node.domain in _DOMAINS else None
        if handler is None or not handler(lowering, node):
            lowering.nodes.append(node)
    return lowering.nodes, lowering.added


@dataclass
class _Lowering:
    """The nodes and added constants of the converted model."""

    constants: Mapping[str, np.ndarray]
    nodes: "list[NodeProto]" = field(default_factory=list)
    added: dict[str, np.ndarray] = field(default_factory=dict)
    # Inputs of DynamicQuantizeLinear by the name of their integers; names of their scales; weight scales by the name of
    # their product with such a scale; integer operators by the name of their sums, before and after the Cast.
    dynamic: dict[str, str] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)
    factors: dict[str, str] = field(default_factory=dict)
    sums: "dict[str, NodeProto]" = field(default_factory=dict)

    def node(self, origin: "NodeProto", kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Add a node in place of ``origin``, with its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=origin.name, **attributes))
        return output

    def real(self, origin: "NodeProto", operand: Sequence[str], **attributes: Any) -> str:
        """Real values of integers; ``operand`` has the names of the integers, their scale and their zero point."""
        # An operator may have the same operand twice.
        output = f"{origin.output[0]}/{operand[0]}/real{len(self.nodes)}"
        return self.node(origin, "DequantizeLinear", operand, output, **attributes)

    def bias(self, origin: "NodeProto", position: int, x_scale: str, weight_scale: str) -> list[str]:
        """Real values of the 32-bit bias at an input's position; its scale is input scale times weight scale."""
        if len(origin.input) <= position or not origin.input[position]:
            return []
        name = origin.input[position]
        scale = f"{origin.output[0]}/{name}/scale"
        self.added[scale] = self.constant(x_scale).reshape(-1) * self.constant(weight_scale).reshape(-1)
        self.added[f"{scale}/zero"] = np.zeros(self.added[scale].shape, np.int32)
        if self.added[scale].size == 1:
            self.added |= {scale: self.added[scale].reshape(()), f"{scale}/zero": np.zeros((), np.int32)}
        return [self.real(origin, [name, scale, f"{scale}/zero"], axis=0)]

    def constant(self, name: str) -> np.ndarray:
        """Values of a constant."""
        if name not in self.constants:
            raise UnsupportedError(f"{name!r} must be constant, but it is computed")
        return self.constants[name]

    def put(
        self, origin: "NodeProto", kind: str, operands: Iterable[str], y: Sequence[str], attributes: Mapping[str, Any]
    ) -> bool:
        """Add the float operator for a node, and a QuantizeLinear for its output."""
        real = self.node(origin, kind, operands, f"{origin.output[0]}/real", **attributes)
        self.node(origin, "QuantizeLinear", [real, *y], origin.output[0])
        return True


def _attributes(node: "NodeProto") -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _conv(lowering: _Lowering, node: "NodeProto") -> bool:
    x, weight, y = node.input[0:3], node.input[3:6], node.input[6:8]
    bias = lowering.bias(node, 8, x[1], weight[1])
    operands = [lowering.real(node, x), lowering.real(node, weight, axis=0), *bias]
    return lowering.put(node, "Conv", operands, y, _attributes(node))


def _matmul(lowering: _Lowering, node: "NodeProto") -> bool:
    operands = [lowering.real(node, node.input[0:3]), lowering.real(node, node.input[3:6], axis=1)]
    return lowering.put(node, "MatMul", operands, node.input[6:8], {})


def _gemm(lowering: _Lowering, node: "NodeProto") -> bool:
    attributes = _attributes(node)
    x, weight, y = node.input[0:3], node.input[3:6], node.input[7:9]
    bias = lowering.bias(node, 6, x[1], weight[1])
    outputs = 0 if attributes.get("transB") else 1
    operands = [lowering.real(node, x), lowering.real(node, weight, axis=outputs), *bias]
    if any(y):
        return lowering.put(node, "Gemm", operands, y, attributes)
    return bool(lowering.node(node, "Gemm", operands, node.output[0], **attributes))


def _add(lowering: _Lowering, node: "NodeProto") -> bool:
    operands = [lowering.real(node, node.input[0:3]), lowering.real(node, node.input[3:6])]
    return lowering.put(node, "Add", operands, node.input[6:8], {})


def _concat(lowering: _Lowering, node: "NodeProto") -> bool:
    operands = [lowering.real(node, node.input[i : i + 3]) for i in range(2, len(node.input), 3)]
    return lowering.put(node, "Concat", operands, node.input[0:2], _attributes(node))


def _unary(kind: str) -> "Callable[[_Lowering, NodeProto], bool]":
    def handle(lowering: _Lowering, node: "NodeProto") -> bool:
        attributes = _attributes(node)
        attributes.pop("opset", None)
        if attributes.pop("channels_last", 0):
            raise UnsupportedError(f"{node.op_type} ({node.output[0]!r}) with channels_last is not supported")
        return lowering.put(node, kind, [lowering.real(node, node.input[0:3])], node.input[3:5], attributes)

    return handle


def _dynamic_quantize(lowering: _Lowering, node: "NodeProto") -> bool:
    integers, scale, *_ = node.output
    lowering.dynamic[integers] = node.input[0]
    lowering.scales.add(scale)
    return True


def _integer_sums(lowering: _Lowering, node: "NodeProto") -> bool:
    if node.input[0] not in lowering.dynamic:
        raise UnsupportedError(
            f"{node.op_type} ({node.output[0]!r}) is not supported, since no DynamicQuantizeLinear computes its input "
            f"{node.input[0]!r}"
        )
    lowering.sums[node.output[0]] = node
    return True


def _cast(lowering: _Lowering, node: "NodeProto") -> bool:
    if node.input[0] not in lowering.sums:
        return False
    lowering.sums[node.output[0]] = lowering.sums[node.input[0]]
    return True


def _mul(lowering: _Lowering, node: "NodeProto") -> bool:
    """The product of input scale and weight scale, or of integer sums and both."""
    for name, other in (node.input, reversed(node.input)):
        if name in lowering.scales:
            lowering.factors[node.output[0]] = other
            return True
        if name in lowering.sums and other in lowering.factors:
            return _scaled(lowering, lowering.sums[name], lowering.factors[other], node.output[0])
    return False


def _scaled(lowering: _Lowering, sums: "NodeProto", scale: str, output: str) -> bool:
    """The float operator for integer sums and their scale."""
    kind, axis = ("Conv", 0) if sums.op_type == "ConvInteger" else ("MatMul", 1)
    flat = f"{sums.output[0]}/{scale}"
    values = lowering.constant(scale)
    lowering.added[flat] = values.reshape(-1) if values.size > 1 else values.reshape(())
    weight = lowering.real(sums, [sums.input[1], flat, *sums.input[3:4]], axis=axis)
    lowering.node(sums, kind, [lowering.dynamic[sums.input[0]], weight], output, **_attributes(sums))
    return True


# Each returns whether it has converted the node.
_HANDLERS: "Mapping[str, Callable[[_Lowering, NodeProto], bool]]" = {
    "Cast": _cast,
    "ConvInteger": _integer_sums,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _integer_sums,
    "Mul": _mul,
    "QGemm": _gemm,
    "QLinearAdd": _add,
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearMatMul": _matmul,
    "QLinearSoftmax": _unary("Softmax"),
}
