"""Reader of ONNX models: NCHW becomes NHWC, and QuantizeLinear/DequantizeLinear pairs become integer tensors.

Unsigned integers become signed ones with the zero point shifted by half their range; the real values stay the same.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, MissingExtraError, UnknownOperationError, UnsupportedError
from ..graph import Graph, Op, Quantization, Shape, Tensor, ops
from ..graph.rewrite import fuse_activations
from .onnx_qoperator import to_qdq

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_OIHW_TO_OHWI = (0, 2, 3, 1)
# Errors that malformed messages cause: names that are not text, attributes of another type, a stride of 0.
_DAMAGE = (ArithmeticError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


def read_onnx(model: "bytes | ModelProto") -> Graph:
    """The graph of an ONNX model.

    Raises ``FormatError`` if the bytes are not a complete ONNX model, and ``UnsupportedError`` for an unsupported
    operation, with its name and the module that it was traced from.
    """
    proto = parse_onnx(model) if isinstance(model, bytes) else model
    try:
        reader = _Reader(proto)
        for node in reader.nodes:
            reader.translate(node)
        return _absorb_quantization(fuse_activations(reader.graph(proto)))
    except _DAMAGE as error:
        raise FormatError(f"not an ONNX file, or a damaged one: {error!r}") from error


def parse_onnx(data: bytes) -> "ModelProto":
    """The protobuf message. Raises ``FormatError`` if the bytes are not a complete ONNX model."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise FormatError("not an ONNX file, or a damaged or truncated one") from error
    if not model.graph.node:
        raise FormatError("not an ONNX file: it has no operators")
    return model


@dataclass(frozen=True)
class _Constant:
    """A constant in ONNX's layout; the operation that reads it determines its layout in the graph."""

    data: np.ndarray
    quantization: Quantization | None = None
    # Name of the stored tensor, if a DequantizeLinear or Cast computes this one from it.
    stored: str = ""


class _Reader:
    def __init__(self, model: "ModelProto"):
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, _Constant] = {}
        self.outputs = {value.name for value in model.graph.output}
        # New names of tensors: those of modules, and the inputs of operators that pass them on, such as dropout.
        self.aliases: dict[str, str] = {}
        # Shapes (channels, rows, columns) of flattened images, whose values are in NCHW order, not in the graph's.
        self.flattened: dict[str, Shape] = {}
        for proto in model.graph.initializer:
            if proto.data_location == proto.EXTERNAL:
                raise UnsupportedError(
                    f"weights of {proto.name!r} are in another file; save the model with its weights included"
                )
            self.constants[proto.name] = _Constant(_to_array(proto))
        for value in model.graph.input:
            if value.name not in self.constants:
                self.tensors[value.name] = _input(value)
        self.nodes, added = to_qdq(model.graph.node, {name: c.data for name, c in self.constants.items()})
        self.constants |= {name: _Constant(data) for name, data in added.items()}
        self.uses = Counter(name for node in self.nodes for name in node.input) + Counter(self.outputs)

    def translate(self, node: "NodeProto") -> None:
        """Add the operations of one node to the graph."""
        handler = _HANDLERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if handler is None:
            raise UnknownOperationError(f"unsupported operation {_describe(node)}; README.md lists the supported ones")
        for position, name in enumerate(node.input):
            node.input[position] = self.aliases.get(name, name)
        scope = _scope(node)
        if scope and scope not in self.tensors and node.output[0] not in self.outputs:
            self.aliases[node.output[0]] = scope
            node.output[0] = scope
        try:
            handler(self, node)
        except _DAMAGE as error:
            raise FormatError(f"{_describe(node)} cannot be read: {error!r}") from error

    def graph(self, model: "ModelProto") -> Graph:
        """The graph of all nodes translated so far."""
        inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        outputs = [self.aliases.get(value.name, value.name) for value in model.graph.output]
        for name in outputs:
            if name in self.flattened:
                raise UnsupportedError(
                    f"output {name!r} is a flattened image; end the network in a pool or a fully connected layer"
                )
        name = model.graph.name if model.graph.name != "main_graph" else "main"
        return Graph.of(name, self.tensors.values(), self.ops, inputs, outputs)

    def value(self, name: str) -> np.ndarray:
        """Values of a constant in ONNX's layout."""
        if name not in self.constants:
            raise UnsupportedError(f"{name!r} must be constant, but it is computed")
        return self.constants[name].data

    def emit(self, node: "NodeProto", kind: type[Op], *inputs: str, **attributes: Any) -> None:
        """Add an operation with the node's output; its shape follows from the inputs."""
        op = kind(inputs, node.output[0], **attributes)
        for name in inputs:
            if name not in self.tensors:
                raise UnsupportedError(f"{name!r}, an input of {_describe(node)}, is constant or undefined")
        shape = op.output_shape(*(self.tensors[name].shape for name in inputs))
        x = self.tensors[inputs[0]]
        if x.quantization is None:
            self.add(op, Tensor(op.output, shape))
        elif op.selects_values and len(inputs) == 1:
            self.add(op, replace(x, name=op.output, shape=shape))
        else:
            raise UnsupportedError(
                f"{_describe(node)} of the integers {x.name!r} is not supported; dequantize them first"
            )

    def add(self, op: Op, output: Tensor) -> None:
        """Add an operation with its output."""
        if output.name in self.tensors:
            raise FormatError(f"two operations compute {output.name!r}")
        self.ops.append(op)
        self.tensors[output.name] = output
        if op.inputs[0] in self.flattened and not isinstance(op, ops.FullyConnected):
            self.flattened[output.name] = self.flattened[op.inputs[0]]

    def weight(
        self, name: str, order: tuple[int, ...], arrange: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> str:
        """Add a constant with its axes permuted to ``order``; ``arrange`` then permutes values of the last axis."""
        constant = self.constants.get(name)
        if constant is None:
            raise UnsupportedError(f"{name!r} must be constant, but it is computed")
        name = constant.stored or name
        data = constant.data.transpose(order)
        data = np.ascontiguousarray(arrange(data) if arrange else data)
        half = constant.stored and data.dtype == np.float16
        dtype: Any = "float32" if data.dtype.kind == "f" and not half else str(data.dtype)
        quantization = constant.quantization
        if quantization and quantization.axis is not None:
            quantization = replace(quantization, axis=order.index(quantization.axis))
        tensor = Tensor(name, data.shape, dtype, quantization, data.astype(dtype))
        while name in self.tensors and not _same(self.tensors[name], tensor):
            name += "'"
        self.tensors[name] = replace(tensor, name=name)
        return name

    def bias(self, node: "NodeProto", position: int, channels: int) -> str:
        """Add the bias at an input's position, or zeros if there is none."""
        if len(node.input) > position and node.input[position]:
            return self.weight(node.input[position], (0,))
        name = f"{node.input[1]}/zero_bias"
        self.constants.setdefault(name, _Constant(np.zeros(channels, np.float32)))
        return self.weight(name, (0,))

    def columns(self, x: str) -> Callable[[np.ndarray], np.ndarray] | None:
        """A function that permutes a weight's columns from NCHW to NHWC order, if its input is a flattened image."""
        if x not in self.flattened:
            return None
        c, h, w = self.flattened[x]
        return lambda weight: weight.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(len(weight), -1)

    def add_to_bias(self, name: str, values: np.ndarray, output: str) -> bool:
        """Add a constant to the float bias of the layer that computes a tensor, and rename the tensor to ``output``.

        Returns ``False`` if no layer computes the tensor, if another operation reads it too, or if the constant is not
        one value per channel.
        """
        index = next((i for i, op in enumerate(self.ops) if op.output == name), None)
        op = self.ops[index] if index is not None else None
        if index is None or not isinstance(op, ops.Layer) or self.uses[name] != 1:
            return False
        bias, made = self.tensors[op.inputs[2]], self.tensors[name]
        # Channels are ONNX's second axis.
        channels = np.zeros((1, made.shape[-1], *[1] * (len(made.shape) - 2)), np.float32)
        fits = values.ndim <= channels.ndim and np.broadcast_shapes(values.shape, channels.shape) == channels.shape
        if bias.data is None or bias.dtype != "float32" or not fits:
            return False
        total = (bias.data + (channels + values).reshape(-1)).astype(np.float32)
        self.ops[index] = replace(op, inputs=(*op.inputs[:2], f"{output}/bias"), output=output)
        self.tensors[f"{output}/bias"] = Tensor(f"{output}/bias", bias.shape, data=total)
        self.tensors[output] = replace(self.tensors.pop(name), name=output)
        return True


def _to_array(proto: Any) -> np.ndarray:
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(proto)
    except _DAMAGE as error:
        raise FormatError(f"constant {proto.name!r} of the ONNX file is damaged: {error}") from error


def _input(value: Any) -> Tensor:
    from onnx import TensorProto

    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]
    if 0 in dims:
        raise UnsupportedError(f"input {value.name!r} has a dynamic shape; export it with a fixed batch of 1")
    shape = (dims[0], *dims[2:], dims[1]) if len(dims) == 4 else tuple(dims)
    dtypes: dict[int, Any] = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8", TensorProto.INT8: "int8"}
    kind = value.type.tensor_type.elem_type
    if kind not in dtypes:
        raise UnsupportedError(f"input {value.name!r} has ONNX type {kind}; supported: float32, uint8 and int8")
    return Tensor(value.name, shape, dtypes[kind])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.quantization == b.quantization and a.data is not None and np.array_equal(a.data, b.data)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _describe(node: "NodeProto") -> str:
    """An operation and the module that it was traced from, if the exporter recorded it."""
    scopes, classes = _note(node, "name_scopes"), _note(node, "class_hierarchy")
    kind = node.op_type if node.op_type.isidentifier() else repr(node.op_type)
    if len(scopes) < 2 or len(classes) < 2:
        return f"{kind} ({(node.name or node.output[0])!r})"
    return f"{kind} ({classes[-2].rsplit('.', 1)[-1]} at {scopes[-2] or 'the top'!r})"


def _scope(node: "NodeProto") -> str:
    """The module that an operation was traced from, followed by its name there unless it is the only operation."""
    scopes, classes = _note(node, "name_scopes"), _note(node, "class_hierarchy")
    if len(scopes) < 2 or not scopes[-2]:
        return ""
    leaf = len(classes) > 1 and classes[-2].startswith("torch.nn.modules.")
    # The exporter numbers equal names (cat, cat_1, …) over the whole network, not within a module.
    return scopes[-2] if leaf else f"{scopes[-2]}/{re.sub(r'_[0-9]+$', '', scopes[-1])}"


def _note(node: "NodeProto", key: str) -> list[str]:
    """One of the lists that torch's exporter records for each node."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    try:
        values = ast.literal_eval(notes[f"pkg.torch.onnx.{key}"])
    except (KeyError, ValueError, SyntaxError):
        return []
    return [str(value) for value in values] if isinstance(values, list) else []


def _attributes(node: "NodeProto") -> dict[str, Any]:
    from onnx import helper

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnsupportedError(
            f"{_describe(node)} with auto_pad {values['auto_pad'].decode()} is not supported; use explicit pads"
        )
    return values


def _pads(values: list[int] | None) -> ops.Pads:
    """ONNX (top, left, bottom, right) as (top, bottom, left, right)."""
    top, left, bottom, right = values or ops.NO_PADS
    return top, bottom, left, right


def _conv(reader: _Reader, node: "NodeProto") -> None:
    attributes = _attributes(node)
    weight = reader.weight(node.input[1], _OIHW_TO_OHWI)
    bias = reader.bias(node, 2, reader.tensors[weight].shape[0])
    reader.emit(
        node,
        ops.Conv,
        node.input[0],
        weight,
        bias,
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=_pads(attributes.get("pads")),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=attributes.get("group", 1),
    )


def _gemm(reader: _Reader, node: "NodeProto") -> None:
    attributes = _attributes(node)
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        raise UnsupportedError(f"{_describe(node)} with transA, alpha or beta is not supported")
    order = (0, 1) if node.op_type == "Gemm" and attributes.get("transB") else (1, 0)
    weight = reader.weight(node.input[1], order, reader.columns(node.input[0]))
    reader.emit(node, ops.FullyConnected, node.input[0], weight, reader.bias(node, 2, reader.tensors[weight].shape[0]))


def _batch_norm(reader: _Reader, node: "NodeProto") -> None:
    """At inference, batch norm is a scale and an offset per channel: a depthwise 1x1 convolution."""
    scale, offset, mean, variance = (reader.value(name).astype(np.float64) for name in node.input[1:5])
    factor = scale / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    names = (f"{node.output[0]}/scale", f"{node.output[0]}/offset")
    reader.constants[names[0]] = _Constant(factor.astype(np.float32).reshape(-1, 1, 1, 1))
    reader.constants[names[1]] = _Constant((offset - mean * factor).astype(np.float32))
    weight, bias = reader.weight(names[0], _OIHW_TO_OHWI), reader.weight(names[1], (0,))
    reader.emit(node, ops.Conv, node.input[0], weight, bias, groups=len(factor))


def _pool(reader: _Reader, node: "NodeProto") -> None:
    attributes = _attributes(node)
    if any(d != 1 for d in attributes.get("dilations", ())):
        raise UnsupportedError(f"{_describe(node)} with dilation is not supported")
    x, kind = node.input[0], ops.MaxPool if node.op_type == "MaxPool" else ops.AveragePool
    window, stride = tuple(attributes["kernel_shape"]), tuple(attributes.get("strides", (1, 1)))
    padding = _pads(attributes.get("pads"))
    if kind is ops.AveragePool and attributes.get("count_include_pad") and any(padding):
        if attributes.get("ceil_mode"):
            raise UnsupportedError(
                f"{_describe(node)} with both count_include_pad and ceil_mode is not supported; remove one of them"
            )
        padded = f"{node.output[0]}/pad"
        pad = ops.Pad((x,), padded, padding)
        reader.add(pad, Tensor(padded, pad.output_shape(reader.tensors[x].shape)))
        x, padding = padded, ops.NO_PADS
    if attributes.get("ceil_mode"):
        padding = _ceil(reader.tensors[x].shape, window, stride, padding)
    reader.emit(node, kind, x, window=window, stride=stride, padding=padding)


def _ceil(x: Shape, window: tuple[int, ...], stride: tuple[int, ...], padding: ops.Pads) -> ops.Pads:
    """Ceil mode as extra padding at the end, unless the last window would start in that padding."""
    pads = list(padding)
    for axis in (0, 1):
        before, after = pads[2 * axis : 2 * axis + 2]
        room = x[1 + axis] + before + after - window[axis]
        steps = -(-room // stride[axis])
        if steps * stride[axis] >= x[1 + axis] + before:
            steps -= 1
        pads[2 * axis + 1] += max(steps * stride[axis] - room, 0)
    return pads[0], pads[1], pads[2], pads[3]


def _global_average(reader: _Reader, node: "NodeProto") -> None:
    x = node.input[0]
    if node.op_type == "ReduceMean":
        attributes = _attributes(node)
        axes = attributes["axes"] if "axes" in attributes else reader.value(node.input[1]).tolist()
        if sorted(axis % 4 for axis in axes) != [2, 3] or len(reader.tensors[x].shape) != 4:
            raise UnsupportedError(f"{_describe(node)} over axes {axes} is not supported, only over rows and columns")
        if not attributes.get("keepdims", 1):
            kept = f"{node.output[0]}/mean"
            n, _, _, c = reader.tensors[x].shape
            reader.add(ops.GlobalAveragePool((x,), kept), Tensor(kept, (n, 1, 1, c)))
            reader.emit(node, ops.Reshape, kept, shape=(n, c))
            return
    reader.emit(node, ops.GlobalAveragePool, x)


def _reshape(reader: _Reader, node: "NodeProto") -> None:
    """Flatten, Reshape or Squeeze from an image to (N, values), or between shapes without rows and columns."""
    if node.input[0] in reader.constants:
        shape = [int(n) for n in reader.value(node.input[1])]
        reader.constants[node.output[0]] = _Constant(reader.value(node.input[0]).reshape(shape))
        return
    x = reader.tensors[node.input[0]]
    attributes = _attributes(node)
    if node.op_type == "Flatten":
        if attributes.get("axis", 1) not in (1, 1 - len(x.shape)):
            raise UnsupportedError(f"{_describe(node)} at axis {attributes['axis']} is not supported, only at 1")
        target: list[int] = [x.shape[0], -1]
    elif node.op_type == "Squeeze":
        target = [x.shape[0], x.shape[-1]]
    else:
        target = [int(n) if n else x.shape[i] for i, n in enumerate(reader.value(node.input[1]))]
    if len(target) == 4 and len(x.shape) == 4:
        target = [target[0], *target[2:], target[1]]
    rest = int(np.prod([n for n in target if n != -1]))
    shape = tuple(int(np.prod(x.shape)) // rest if n == -1 else n for n in target)
    if shape == x.shape:
        _skip(reader, node)
        return
    spatial = len(x.shape) == 4 and x.shape[1:3] != (1, 1)
    if (
        len(shape) not in (2, 4)
        or shape[0] != x.shape[0]
        or (spatial and len(shape) != 2)
        or (len(shape) == 4 and shape[1:3] != (1, 1))
    ):
        raise UnsupportedError(f"{_describe(node)} from {x.shape} to {shape} is not supported, only flattening")
    reader.emit(node, ops.Reshape, x.name, shape=shape)
    if spatial:
        _, h, w, c = x.shape
        reader.flattened[node.output[0]] = (c, h, w)


def _concat(reader: _Reader, node: "NodeProto") -> None:
    rank = len(reader.tensors[node.input[0]].shape)
    axis = _attributes(node)["axis"] % rank
    if any(name in reader.flattened for name in node.input):
        raise UnsupportedError(f"{_describe(node)} of flattened images is not supported")
    reader.emit(node, ops.Concat, *node.input, axis={1: 3, 2: 1, 3: 2}.get(axis, axis) if rank == 4 else axis)


def _add(reader: _Reader, node: "NodeProto") -> None:
    if {name in reader.flattened for name in node.input} == {True, False}:
        raise UnsupportedError(f"{_describe(node)} of a flattened image and something else is not supported")
    for x, constant in (node.input, reversed(node.input)):
        is_bias = constant in reader.constants and x not in reader.flattened
        if is_bias and reader.add_to_bias(x, reader.value(constant), node.output[0]):
            return
    reader.emit(node, ops.Add, *node.input)


def _pad(reader: _Reader, node: "NodeProto") -> None:
    if _attributes(node).get("mode", b"constant") != b"constant" or (len(node.input) > 3 and node.input[3]):
        raise UnsupportedError(f"{_describe(node)} is not supported, only constant padding of rows and columns")
    pads = reader.value(node.input[1]).tolist()
    if len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)):
        raise UnsupportedError(f"{_describe(node)} with pads {pads} is not supported, only padding of rows and columns")
    filled = reader.value(node.input[2]).reshape(-1)[:1] if len(node.input) > 2 and node.input[2] else np.zeros(1)
    x = reader.tensors[node.input[0]]
    if x.quantization is not None:
        filled = x.quantization.dequantize(_signed(filled, 0)[0])
    value = float(filled[0])
    reader.emit(node, ops.Pad, node.input[0], padding=_pads([pads[2], pads[3], pads[6], pads[7]]), value=value)


def _relu(reader: _Reader, node: "NodeProto") -> None:
    activation: ops.Activation = "relu"
    if node.op_type == "Clip":
        low, high = (reader.value(name).item() if name else None for name in [*node.input[1:3], "", ""][:2])
        if low != 0 or high not in (None, 6.0):
            raise UnsupportedError(f"{_describe(node)} between {low} and {high} is not supported, only ReLU and ReLU6")
        activation = "relu" if high is None else "relu6"
    reader.emit(node, ops.Relu, node.input[0], activation=activation)


def _leaky(reader: _Reader, node: "NodeProto") -> None:
    slope = _attributes(node).get("alpha", 0.01)
    if slope not in (0, 1):
        raise UnsupportedError(f"{_describe(node)} with a slope of {slope:g} is not supported, only 0 and 1")
    if slope:
        _skip(reader, node)
    else:
        reader.emit(node, ops.Relu, node.input[0])


def _slice(reader: _Reader, node: "NodeProto") -> None:
    x = reader.tensors[node.input[0]]
    rank = len(x.shape)
    values = [reader.value(name).astype(int).tolist() if name else [] for name in node.input[1:]]
    starts, ends, axes, steps, *_ = [*values, [], []]
    if x.name in reader.flattened or set(steps) - {1}:
        raise UnsupportedError(f"{_describe(node)} of a flattened image, or with steps, is not supported")
    begin, end = [0] * rank, list(x.shape)
    order = (0, 3, 1, 2) if rank == 4 else range(rank)
    for axis, start, stop in zip(axes or range(len(starts)), starts, ends, strict=True):
        axis = order[axis]
        begin[axis], end[axis], _ = slice(start, stop).indices(x.shape[axis])
    size = tuple(stop - start for start, stop in zip(begin, end, strict=True))
    reader.emit(node, ops.Slice, x.name, begin=tuple(begin), size=size)


def _transpose(reader: _Reader, node: "NodeProto") -> None:
    x = reader.tensors[node.input[0]]
    order = [int(axis) for axis in _attributes(node).get("perm", range(len(x.shape))[::-1])]
    if x.name in reader.flattened or len(x.shape) != 4:
        raise UnsupportedError(f"{_describe(node)} of {x.shape} is not supported, only of images")
    # ``perm`` maps NCHW to NCHW.
    nchw = (0, 3, 1, 2)
    reader.emit(node, ops.Transpose, x.name, order=tuple(nchw[order[axis]] for axis in _OIHW_TO_OHWI))


def _softmax(reader: _Reader, node: "NodeProto") -> None:
    rank = len(reader.tensors[node.input[0]].shape)
    axis = _attributes(node).get("axis", -1) % rank
    if axis != 1:
        raise UnsupportedError(f"{_describe(node)} along axis {axis} is not supported, only over the channels")
    if node.input[0] in reader.flattened:
        raise UnsupportedError(f"{_describe(node)} of a flattened image is not supported")
    reader.emit(node, ops.Softmax, node.input[0])


def _skip(reader: _Reader, node: "NodeProto") -> None:
    """Identity, or dropout at inference: the output is the input."""
    reader.aliases[node.output[0]] = node.input[0]


def _constant(reader: _Reader, node: "NodeProto") -> None:
    reader.constants[node.output[0]] = _Constant(_to_array(_attributes(node)["value"]))


def _parameters(reader: _Reader, node: "NodeProto") -> tuple[Quantization, str]:
    """Scale, zero point and axis of a QuantizeLinear or DequantizeLinear, and the type of its integers."""
    scale = reader.value(node.input[1]).astype(np.float32)
    has_zero = len(node.input) > 2 and node.input[2]
    zero = reader.value(node.input[2]) if has_zero else np.zeros(scale.shape, np.uint8)
    if not np.isfinite(scale).all() or scale.min() <= 0:
        raise FormatError(f"{_describe(node)} has a scale that is not positive and finite")
    if str(zero.dtype) not in ("int8", "uint8", "int16", "uint16", "int32"):
        raise UnsupportedError(f"{_describe(node)} with {zero.dtype} integers is not supported")
    if scale.size == 1:
        return Quantization((float(scale.ravel()[0]),), int(zero.ravel()[0])), str(zero.dtype)
    if zero.min() != zero.max():
        raise UnsupportedError(f"{_describe(node)} with a zero point per channel is not supported")
    attributes = _attributes(node)
    axis = attributes.get("axis", 1)
    if not isinstance(axis, int):
        raise FormatError(f"{_describe(node)} has an axis that is not an integer")
    if scale.ndim != 1 or attributes.get("block_size"):
        raise UnsupportedError(f"{_describe(node)} with a scale per block is not supported")
    return Quantization(tuple(map(float, scale)), int(zero[0]), axis), str(zero.dtype)


def _quantize(reader: _Reader, node: "NodeProto") -> None:
    quantization, dtype = _parameters(reader, node)
    if node.input[0] in reader.constants:
        reader.constants[node.output[0]] = _Constant(quantization.quantize(reader.value(node.input[0]), dtype))
        return
    x = reader.tensors[node.input[0]]
    output = _as_signed(Tensor(node.output[0], x.shape, dtype, quantization))  # pyright: ignore[reportArgumentType]
    reader.add(ops.Quantize((x.name,), output.name), output)


def _dequantize(reader: _Reader, node: "NodeProto") -> None:
    quantization, _ = _parameters(reader, node)
    if node.input[0] in reader.constants:
        data, zero_point = _signed(reader.value(node.input[0]), quantization.zero_point)
        axis = None if quantization.axis is None else quantization.axis % data.ndim
        quantization = replace(quantization, zero_point=zero_point, axis=axis)
        reader.constants[node.output[0]] = _Constant(data, quantization, node.input[0])
        return
    x = reader.tensors[node.input[0]]
    if x.quantization is None:
        # A network input of integers.
        x = reader.tensors[x.name] = _as_signed(replace(x, quantization=quantization))
    reader.add(ops.Dequantize((x.name,), node.output[0]), Tensor(node.output[0], x.shape))


def _as_signed(tensor: Tensor) -> Tensor:
    assert tensor.quantization is not None
    like, zero_point = _signed(np.empty(0, tensor.dtype), tensor.quantization.zero_point)
    dtype: Any = str(like.dtype)
    return replace(tensor, dtype=dtype, quantization=replace(tensor.quantization, zero_point=zero_point))


def _signed(integers: np.ndarray, zero_point: int) -> tuple[np.ndarray, int]:
    """Signed integers for the same real values, and their zero point: unsigned ones shift by half their range."""
    if integers.dtype.kind != "u":
        return integers, zero_point
    half = 1 << (8 * integers.dtype.itemsize - 1)
    return (integers.astype(np.int64) - half).astype(f"int{8 * integers.dtype.itemsize}"), zero_point - half


def _cast(reader: _Reader, node: "NodeProto") -> None:
    """A cast of float16 weights to float32; the graph keeps the float16 weights."""
    name = node.input[0]
    if _attributes(node).get("to") != 1 or name not in reader.constants or reader.value(name).dtype != np.float16:
        raise UnsupportedError(f"{_describe(node)} is not supported, only from float16 constants to float32")
    reader.constants[node.output[0]] = replace(reader.constants[name], stored=name)


_HANDLERS: Mapping[str, Callable[[_Reader, "NodeProto"], None]] = {
    "Add": _add,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _relu,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Dropout": _skip,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Identity": _skip,
    "LeakyRelu": _leaky,
    "MatMul": _gemm,
    "MaxPool": _pool,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "ReduceMean": _global_average,
    "Relu": _relu,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Transpose": _transpose,
}


def _absorb_quantization(graph: Graph) -> Graph:
    """Replace float operations between DequantizeLinear and QuantizeLinear by integer operations."""
    source = {op.output: op.inputs[0] for op in graph.ops if isinstance(op, ops.Dequantize)}
    if not source:
        return graph
    absorbed: dict[str, Op] = {}
    for op in graph.ops:
        after = graph.only_consumer(op.output)
        computed = [name for name in op.inputs if graph.tensors[name].data is None]
        # A layer with float weights remains a float operation.
        real = isinstance(op, ops.Layer) and graph.tensors[op.inputs[1]].quantization is None
        if (
            not isinstance(op, ops.Quantize | ops.Dequantize)
            and isinstance(after, ops.Quantize)
            and all(name in source for name in computed)
            and not real
        ):
            absorbed[op.name] = ops.rename(op, {**source, op.output: after.output})
            absorbed[after.name] = absorbed[op.name]
    operations = [absorbed.get(op.name, op) for op in graph.ops]
    return Graph.of(graph.name, graph.tensors.values(), dict.fromkeys(operations), graph.inputs, graph.outputs)
