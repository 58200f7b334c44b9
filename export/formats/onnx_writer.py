"""Writer of ``.onnx`` files: NHWC becomes NCHW, integer tensors become QuantizeLinear/DequantizeLinear pairs.

Activations are uint8, with the zero point shifted by 128, and weights int8 per channel: the combination for which
onnxruntime has fused kernels on all processors. A quantized tensor keeps its name; ``NAME/real`` has its real values.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import MissingExtraError, UnsupportedError
from ...runtime.graph import Graph, Op, Shape, Tensor, ops

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, ValueInfoProto

OPSET = 18
_IR_VERSION = 9
# QuantizeLinear supports 16-bit integers from these versions on.
_INT16_OPSET, _INT16_IR_VERSION = 21, 10
_OHWI_TO_OIHW = (0, 3, 1, 2)
_OIHW_TO_OHWI = (0, 2, 3, 1)


def write_onnx(graph: Graph, metadata: Mapping[str, bytes] | None = None, expose: Iterable[str] = ()) -> bytes:
    """The bytes of an ONNX file of ``graph``, with ``metadata`` entries by name.

    Activations named in ``expose`` become outputs too. Raises ``UnsupportedError`` if ONNX cannot represent the graph.
    """
    try:
        from onnx import helper
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error
    file = _File(graph)
    for op in graph.ops:
        file.operator(op)
    outputs = dict.fromkeys([*graph.outputs, *expose])
    inputs = [_value(graph.tensors[name]) for name in graph.inputs]
    body = helper.make_graph(
        file.nodes,
        graph.name,
        inputs,
        [_value(graph.tensors[name]) for name in outputs if name not in graph.inputs],
        list(file.initializers.values()),
    )
    wide = any(tensor.dtype == "int16" for tensor in graph.tensors.values())
    opset, ir_version = (_INT16_OPSET, _INT16_IR_VERSION) if wide else (OPSET, _IR_VERSION)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(body, producer_name="firebox", opset_imports=opsets, ir_version=ir_version)
    helper.set_model_props(model, {name: data.decode() for name, data in (metadata or {}).items()})
    return model.SerializeToString(deterministic=True)


@dataclass
class _File:
    """The lists of an ONNX graph under construction."""

    graph: Graph
    nodes: "list[NodeProto]" = field(default_factory=list)
    initializers: "dict[str, TensorProto]" = field(default_factory=dict)
    # Quantized and float16 tensors whose DequantizeLinear or Cast is already written.
    dequantized: set[str] = field(default_factory=set)

    def operator(self, op: Op) -> None:
        """Add one operation, between DequantizeLinear and QuantizeLinear if its tensors are integers."""
        if type(op) not in _WRITERS:
            raise UnsupportedError(f"{op.kind} {op.name!r} cannot be written as ONNX")
        output = self.graph.tensors[op.output]
        inputs = [self.real(name, op) for name in op.inputs]
        result = op.output if output.quantization is None else f"{op.output}/float"
        name = _WRITERS[type(op)](self, op, inputs, result)
        if output.quantization is not None:
            self.node("QuantizeLinear", [name, *self.parameters(output)], op.output)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node named after its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def rectified(self, activation: str, name: str, output: str) -> str:
        """Add a ReLU or ReLU6."""
        if activation == "relu6":
            return self.node(
                "Clip",
                [name, self.constant("relu6/min", np.float32(0)), self.constant("relu6/max", np.float32(6))],
                output,
            )
        return self.node("Relu", [name], output)

    def fused(self, op: ops.Fusing, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and, after it, the activation fused into its operation."""
        if op.activation == "none":
            return self.node(kind, inputs, output, **attributes)
        return self.rectified(op.activation, self.node(kind, inputs, f"{op.output}/linear", **attributes), output)

    def constant(self, name: str, data: Any) -> str:
        """Add a constant, unless its name exists."""
        from onnx import numpy_helper

        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(data, order="C"), name)
        return name

    def parameters(self, tensor: Tensor) -> list[str]:
        """Names of the constants for scale and zero point, which are added."""
        assert tensor.quantization is not None
        quantization = onnx_side(tensor)
        scale = np.array(tensor.quantization.scale, np.float32)
        zero = np.full(scale.shape, quantization[1], quantization[0])
        if tensor.quantization.axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        return [self.constant(f"{tensor.name}/scale", scale), self.constant(f"{tensor.name}/zero_point", zero)]

    def real(self, name: str, op: Op) -> str:
        """The name of a tensor's real values; a DequantizeLinear or Cast is added if necessary."""
        tensor = self.graph.tensors[name]
        if tensor.data is not None:
            self.constant(name, _arranged(tensor, op, self.graph))
        if tensor.dtype == "float32":
            return name
        if name not in self.dequantized:
            self.dequantized.add(name)
            self._dequantize(tensor)
        return f"{name}/real"

    def _dequantize(self, tensor: Tensor) -> None:
        """Add the conversion of a tensor to float32."""
        from onnx import TensorProto

        output = f"{tensor.name}/real"
        if tensor.quantization is None:
            self.node("Cast", [tensor.name], output, to=TensorProto.FLOAT)
            return
        axis = {} if tensor.quantization.axis is None else {"axis": tensor.quantization.axis}
        self.node("DequantizeLinear", [tensor.name, *self.parameters(tensor)], output, **axis)


def onnx_side(tensor: Tensor) -> tuple[str, int]:
    """Integer type and zero point of a quantized tensor in the ONNX file: 8-bit activations are uint8.

    The int64 biases of 16-bit layers become int32, since DequantizeLinear does not support int64.
    """
    assert tensor.quantization is not None
    if tensor.data is None and tensor.dtype == "int8":
        return "uint8", tensor.quantization.zero_point + 128
    if tensor.dtype == "int64":
        return "int32", tensor.quantization.zero_point
    return tensor.dtype, tensor.quantization.zero_point


def onnx_shape(shape: Shape) -> Shape:
    """A shape in ONNX's layout: NCHW for images."""
    return (shape[0], shape[3], shape[1], shape[2]) if len(shape) == 4 else shape


def _value(tensor: Tensor) -> "ValueInfoProto":
    from onnx import helper

    dtype = "float32" if tensor.quantization is None else onnx_side(tensor)[0]
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), onnx_shape(tensor.shape)
    )


def _arranged(tensor: Tensor, op: Op, graph: Graph) -> np.ndarray:
    """A constant in ONNX's layout: OIHW, and columns in NCHW order after a flattened image."""
    assert tensor.data is not None
    if tensor.data.ndim == 4:
        return tensor.data.transpose(_OHWI_TO_OIHW)
    if tensor.dtype == "int64":
        if np.abs(tensor.data).max() > np.iinfo(np.int32).max:
            raise UnsupportedError(f"bias {tensor.name!r} needs more than 32 bits, which ONNX does not support")
        return tensor.data.astype(np.int32)
    is_matrix = isinstance(op, ops.FullyConnected) and tensor.data.ndim == 2
    image = graph.flattened_image(op.inputs[0]) if is_matrix else None
    if image is None:
        return tensor.data
    _, h, w, c = image
    return tensor.data.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(tensor.shape)


def _pads(padding: ops.Pads) -> list[int]:
    top, bottom, left, right = padding
    return [top, left, bottom, right]


def _conv(file: _File, op: ops.Conv, inputs: list[str], output: str) -> str:
    return file.fused(
        op,
        "Conv",
        inputs,
        output,
        kernel_shape=file.graph.tensors[op.inputs[1]].shape[1:3],
        strides=op.stride,
        pads=_pads(op.padding),
        dilations=op.dilation,
        group=op.groups,
    )


def _fully_connected(file: _File, op: ops.FullyConnected, inputs: list[str], output: str) -> str:
    return file.fused(op, "Gemm", inputs, output, transB=1)


def _pool(file: _File, op: ops.Pool, inputs: list[str], output: str) -> str:
    kind = "MaxPool" if isinstance(op, ops.MaxPool) else "AveragePool"
    return file.node(kind, inputs, output, kernel_shape=op.window, strides=op.stride, pads=_pads(op.padding))


def _add(file: _File, op: ops.Add, inputs: list[str], output: str) -> str:
    return file.fused(op, "Add", inputs, output)


def _concat(file: _File, op: ops.Concat, inputs: list[str], output: str) -> str:
    rank = len(file.graph.tensors[op.output].shape)
    axis = {3: 1, 1: 2, 2: 3}.get(op.axis, op.axis) if rank == 4 else op.axis
    return file.node("Concat", inputs, output, axis=axis)


def _reshape(file: _File, op: ops.Reshape, inputs: list[str], output: str) -> str:
    source = file.graph.tensors[op.inputs[0]].shape
    if len(op.shape) not in (2, 4) or (len(op.shape) == 4 and (len(source) != 2 or op.shape[1:3] != (1, 1))):
        raise UnsupportedError(f"reshape {op.name!r} from {source} to {op.shape} cannot be written as ONNX")
    users = file.graph.consumers[op.output]
    spatial = len(source) == 4 and source[1:3] != (1, 1)
    unary = (user.elementwise and len(user.inputs) == 1 for user in users if not isinstance(user, ops.FullyConnected))
    if spatial and not all(unary):
        raise UnsupportedError(f"{op.name!r} flattens an image for an operation that is not a fully connected layer")
    shape = file.constant(f"{op.name}/shape", np.array(onnx_shape(op.shape), np.int64))
    return file.node("Reshape", [*inputs, shape], output)


def _pad(file: _File, op: ops.Pad, inputs: list[str], output: str) -> str:
    top, bottom, left, right = op.padding
    pads = file.constant(f"{op.name}/pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    return file.node("Pad", [*inputs, pads, file.constant(f"{op.name}/value", np.float32(op.value))], output)


def _relu(file: _File, op: ops.Relu, inputs: list[str], output: str) -> str:
    return file.rectified(op.activation, inputs[0], output)


def _slice(file: _File, op: ops.Slice, inputs: list[str], output: str) -> str:
    begin = np.array(onnx_shape(op.begin), np.int64)
    end = begin + np.array(onnx_shape(op.size), np.int64)
    ranges = [file.constant(f"slice/{'_'.join(map(str, values))}", values) for values in (begin, end)]
    return file.node("Slice", [*inputs, *ranges], output)


def _softmax(file: _File, op: ops.Softmax, inputs: list[str], output: str) -> str:
    return file.node("Softmax", inputs, output, axis=1)


def _transpose(file: _File, op: ops.Transpose, inputs: list[str], output: str) -> str:
    if len(op.order) != 4:
        raise UnsupportedError(f"transpose {op.name!r} of {len(op.order)} axes cannot be written as ONNX")
    # ``perm`` maps NCHW to NCHW.
    return file.node("Transpose", inputs, output, perm=[_OIHW_TO_OHWI[op.order[axis]] for axis in _OHWI_TO_OIHW])


def _global_average(file: _File, op: ops.GlobalAveragePool, inputs: list[str], output: str) -> str:
    return file.node("GlobalAveragePool", inputs, output)


def _quantize(file: _File, op: ops.Quantize, inputs: list[str], output: str) -> str:
    """No node of its own: the caller adds the QuantizeLinear.

    After a layer with float weights a LeakyRelu of slope 1, an identity, keeps onnxruntime from quantizing the layer
    with one scale for all weights (its ``WeightBiasQuantization``).
    """
    layer = file.graph.producers.get(op.inputs[0])
    if isinstance(layer, ops.Layer) and file.graph.tensors[layer.inputs[1]].quantization is None:
        return file.node("LeakyRelu", inputs, output, alpha=1.0)
    return inputs[0]


def _dequantize(file: _File, op: ops.Dequantize, inputs: list[str], output: str) -> str:
    """A DequantizeLinear with the name of the operation."""
    tensor = file.graph.tensors[op.inputs[0]]
    return file.node("DequantizeLinear", [tensor.name, *file.parameters(tensor)], output)


_WRITERS: Mapping[type[Op], Callable[[_File, Any, list[str], str], str]] = {
    ops.Add: _add,
    ops.AveragePool: _pool,
    ops.Concat: _concat,
    ops.Conv: _conv,
    ops.Dequantize: _dequantize,
    ops.FullyConnected: _fully_connected,
    ops.GlobalAveragePool: _global_average,
    ops.MaxPool: _pool,
    ops.Pad: _pad,
    ops.Quantize: _quantize,
    ops.Relu: _relu,
    ops.Reshape: _reshape,
    ops.Slice: _slice,
    ops.Softmax: _softmax,
    ops.Transpose: _transpose,
}
