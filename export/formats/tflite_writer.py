"""Writer of ``.tflite`` files, with the tables of ``runtime.formats.tflite_schema``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...runtime.errors import MissingExtraError, UnsupportedError
from ...runtime.formats.tflite_legalize import legalize, tflite_padding
from ...runtime.formats.tflite_schema import (
    ACTIVATIONS,
    BUILTINS,
    IDENTIFIER,
    OFFLINE_PLAN,
    PADDINGS,
    SCALARS,
    TABLES,
    TENSOR_TYPES,
    pack_offline_plan,
)
from ...runtime.graph import Graph, Op, Quantization, Tensor, ops

# Kernels read constants with aligned loads, so that the data of a buffer starts at a multiple of this.
_BUFFER_ALIGNMENT = 16
_OPTION_CODES = {builtin.options: builtin.options_code for builtin in BUILTINS.values()}


def write_tflite(
    graph: Graph, metadata: Mapping[str, bytes] | None = None, offsets: Mapping[str, int] | None = None
) -> bytes:
    """The bytes of a TFLite file of ``graph``, with ``metadata`` entries by name.

    ``offsets`` are the arena offsets of activations for tflite-micro; other runtimes ignore them. Padding that is
    neither SAME nor VALID becomes a PAD operator. Raises ``UnsupportedError`` if TFLite cannot represent the graph.
    """
    file = _File()
    graph = legalize(graph)
    for op in graph.ops:
        file.operator(graph, op)
    subgraph = {
        "name": graph.name,
        "inputs": [file.tensor(graph.tensors[name]) for name in graph.inputs],
        "outputs": [file.tensor(graph.tensors[name]) for name in graph.outputs],
        "operators": file.operators,
        "tensors": file.tensors,
    }
    metadata = dict(metadata or {})
    if offsets is not None:
        metadata[OFFLINE_PLAN] = pack_offline_plan([offsets.get(name) for name in file.indices])
    entries = [{"name": name, "buffer": file.buffer(np.frombuffer(data, np.uint8))} for name, data in metadata.items()]
    model = {
        "version": 3,
        "operator_codes": file.operator_codes,
        "subgraphs": [subgraph],
        "description": "firebox",
        "buffers": file.buffers,
        "metadata": entries,
    }
    return _pack(model)


@dataclass
class _File:
    """The lists of a TFLite file under construction, as dicts for ``_pack``. Buffer 0 is empty by convention."""

    operator_codes: list[dict[str, Any]] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    buffers: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    indices: dict[str, int] = field(default_factory=dict)

    def buffer(self, data: np.ndarray) -> int:
        """Index of a new buffer for ``data``."""
        self.buffers.append({"data": np.frombuffer(data.tobytes(), np.uint8)})
        return len(self.buffers) - 1

    def tensor(self, tensor: Tensor) -> int:
        """Index of a tensor, which is added on first use."""
        if tensor.name not in self.indices:
            self.indices[tensor.name] = len(self.tensors)
            self.tensors.append(
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "type": TENSOR_TYPES[tensor.dtype],
                    "buffer": self.buffer(tensor.data) if tensor.data is not None else 0,
                    "quantization": _quantization(tensor.quantization),
                }
            )
        return self.indices[tensor.name]

    def constant(self, name: str, values: Any, dtype: Any = "int32", quantization: Quantization | None = None) -> int:
        """Index of a constant operand that is an attribute in the graph."""
        data = np.asarray(values, dtype)
        return self.tensor(Tensor(name, data.shape, dtype, quantization, data))

    def operand(self, tensor: Tensor) -> int:
        """Index of an operand; for a float16 constant that of its float32 values, which a DEQUANTIZE computes."""
        if tensor.dtype != "float16":
            return self.tensor(tensor)
        real = Tensor(f"{tensor.name}/float32", tensor.shape)
        if real.name not in self.indices:
            self.append(_Operator("DEQUANTIZE", inputs=[self.tensor(tensor)]), 3, self.tensor(real))
        return self.tensor(real)

    def operator(self, graph: Graph, op: Op) -> None:
        """Add the operator of one operation."""
        if type(op) not in _WRITERS:
            raise UnsupportedError(f"{op.kind} {op.name!r} cannot be written as TFLite")
        _check_kernel(graph, op)
        operator = _WRITERS[type(op)](self, graph, op)
        if not operator.inputs:
            operator = replace(operator, inputs=[self.operand(graph.tensors[name]) for name in op.inputs])
        self.append(operator, _version(operator, graph, op), self.tensor(graph.tensors[op.output]))

    def append(self, operator: "_Operator", version: int, output: int) -> None:
        """Add an operator that needs at least this ``version`` of its kernel."""
        builtin = BUILTINS[operator.name]
        code = {"builtin_code": builtin.code, "deprecated_builtin_code": min(builtin.code, 127), "version": version}
        if code not in self.operator_codes:
            self.operator_codes.append(code)
        self.operators.append(
            {
                "opcode_index": self.operator_codes.index(code),
                "inputs": operator.inputs,
                "outputs": [output],
                "options_type": builtin.options,
                "options": operator.options,
            }
        )


@dataclass(frozen=True)
class _Operator:
    """One operator: the builtin's name, its options, and its operands' indices if they differ from the graph's."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)


def _check_kernel(graph: Graph, op: Op) -> None:
    """Raise ``UnsupportedError`` for an operation that TFLite's kernels would compute incorrectly, without an error."""
    wide = [graph.tensors[name] for name in (*op.inputs, op.output) if graph.tensors[name].dtype == "int16"]
    if any(tensor.quantization is None or tensor.quantization.zero_point for tensor in wide):
        raise UnsupportedError(f"{op.kind} {op.name!r} has 16-bit integers with a zero point; TFLite supports none")
    if not isinstance(op, ops.Layer):
        return
    x, weight = (graph.tensors[name] for name in op.inputs[:2])
    if weight.dtype == "int8" and weight.quantization is not None and weight.quantization.zero_point:
        raise UnsupportedError(f"weight {weight.name!r} has a zero point; TFLite supports none for int8 weights")
    per_channel = weight.quantization is not None and weight.quantization.axis is not None
    if isinstance(op, ops.FullyConnected) and x.dtype == "float32" and per_channel:
        # tflite-runtime 2.14 uses the first scale for all outputs.
        raise UnsupportedError(
            f"fully connected {op.name!r} between float32 activations has a scale per output; TFLite supports one scale"
        )


# The first kernel version that supports each type, from TFLite's ``op_version.cc``.
_INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1, "QUANTIZE": 1}
_INT16_VERSIONS = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "RESHAPE": 1, "QUANTIZE": 2, "SLICE": 4}
_HYBRID_VERSIONS = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 9}


def _version(operator: _Operator, graph: Graph, op: Op) -> int:
    types = {graph.tensors[name].dtype for name in (op.inputs[0], op.output)}
    if "int16" in types:
        return _INT16_VERSIONS.get(operator.name, 3)
    if types == {"float32"}:
        hybrid = isinstance(op, ops.Layer) and graph.tensors[op.inputs[1]].dtype == "int8"
        return _HYBRID_VERSIONS[operator.name] if hybrid else 1
    return _INT8_VERSIONS.get(operator.name, 2)


def _quantization(quantization: Quantization | None) -> dict[str, Any] | None:
    if quantization is None:
        return None
    return {
        "scale": list(quantization.scale),
        "zero_point": [quantization.zero_point] * len(quantization.scale),
        "quantized_dimension": quantization.axis or 0,
    }


def _padding(graph: Graph, op: ops.Windowed) -> str:
    padding = tflite_padding(graph, op)
    if padding is None:
        raise UnsupportedError(f"average pool {op.name!r} with padding {op.padding} cannot be written as TFLite")
    return padding


def _conv(file: _File, graph: Graph, op: ops.Conv) -> _Operator:
    options = {
        "padding": PADDINGS[_padding(graph, op)],
        "stride_h": op.stride[0],
        "stride_w": op.stride[1],
        "dilation_h": op.dilation[0],
        "dilation_w": op.dilation[1],
        "activation": ACTIVATIONS[op.activation],
    }
    x, weight, bias = (graph.tensors[name] for name in op.inputs)
    if op.groups == 1 or op.groups != x.shape[3]:
        return _Operator("CONV_2D", options)
    assert weight.data is not None
    # TFLite stores depthwise weights as (1, height, width, channels * multiplier).
    quantization = weight.quantization
    if quantization and quantization.axis is not None:
        quantization = replace(quantization, axis=3)
    data = np.ascontiguousarray(weight.data.transpose(3, 1, 2, 0))
    weight = replace(weight, shape=data.shape, quantization=quantization, data=data)
    options["depth_multiplier"] = weight.shape[3] // x.shape[3]
    return _Operator("DEPTHWISE_CONV_2D", options, [file.operand(t) for t in (x, weight, bias)])


def _fully_connected(file: _File, graph: Graph, op: ops.FullyConnected) -> _Operator:
    x, weight = (graph.tensors[name] for name in op.inputs[:2])
    # For integer weights between float activations the kernel quantizes the inputs. Without a zero point, half of the
    # integers would be unused for inputs of one sign.
    hybrid = x.dtype == "float32" and weight.dtype == "int8"
    options = {"activation": ACTIVATIONS[op.activation], "asymmetric_quantize_inputs": int(hybrid)}
    return _Operator("FULLY_CONNECTED", options)


def _pool(file: _File, graph: Graph, op: ops.Pool) -> _Operator:
    options = {
        "padding": PADDINGS[_padding(graph, op)],
        "stride_h": op.stride[0],
        "stride_w": op.stride[1],
        "filter_height": op.window[0],
        "filter_width": op.window[1],
    }
    return _Operator("MAX_POOL_2D" if isinstance(op, ops.MaxPool) else "AVERAGE_POOL_2D", options)


def _global_average(file: _File, graph: Graph, op: ops.GlobalAveragePool) -> _Operator:
    operands = [file.tensor(graph.tensors[op.inputs[0]]), file.constant("rows_and_columns", [1, 2])]
    return _Operator("MEAN", {"keep_dims": 1}, operands)


def _add(file: _File, graph: Graph, op: ops.Add) -> _Operator:
    # Scales of 16-bit integers need not be powers of two.
    any_scale = {"pot_scale_int16": 0} if graph.tensors[op.output].dtype == "int16" else {}
    return _Operator("ADD", {"activation": ACTIVATIONS[op.activation], **any_scale})


def _concat(file: _File, graph: Graph, op: ops.Concat) -> _Operator:
    return _Operator("CONCATENATION", {"axis": op.axis})


def _reshape(file: _File, graph: Graph, op: ops.Reshape) -> _Operator:
    operands = [file.tensor(graph.tensors[op.inputs[0]]), file.constant(f"{op.name}/shape", op.shape)]
    return _Operator("RESHAPE", {"new_shape": list(op.shape)}, operands)


def _pad(file: _File, graph: Graph, op: ops.Pad) -> _Operator:
    x = graph.tensors[op.inputs[0]]
    top, bottom, left, right = op.padding
    operands = [file.tensor(x), file.constant(f"{op.name}/pads", [[0, 0], [top, bottom], [left, right], [0, 0]])]
    if op.value == 0:
        return _Operator("PAD", inputs=operands)
    value: Any = op.value if x.quantization is None else x.quantization.quantize(np.array(op.value), x.dtype)
    operands.append(file.constant(f"{op.name}/value", value, x.dtype, x.quantization))
    return _Operator("PADV2", inputs=operands)


def _slice(file: _File, graph: Graph, op: ops.Slice) -> _Operator:
    # Constants are named after their values, since many slices share them.
    begin, size = (file.constant(f"slice/{'_'.join(map(str, v))}", v) for v in (op.begin, op.size))
    return _Operator("SLICE", inputs=[file.tensor(graph.tensors[op.inputs[0]]), begin, size])


def _transpose(file: _File, graph: Graph, op: ops.Transpose) -> _Operator:
    order = file.constant(f"transpose/{'_'.join(map(str, op.order))}", op.order)
    return _Operator("TRANSPOSE", inputs=[file.tensor(graph.tensors[op.inputs[0]]), order])


def _softmax(file: _File, graph: Graph, op: ops.Softmax) -> _Operator:
    return _Operator("SOFTMAX", {"beta": 1.0})


def _relu(file: _File, graph: Graph, op: ops.Relu) -> _Operator:
    return _Operator(op.activation.upper())


def _plain(name: str) -> Callable[[_File, Graph, Op], _Operator]:
    return lambda file, graph, op: _Operator(name)


_WRITERS: Mapping[type[Op], Callable[[_File, Graph, Any], _Operator]] = {
    ops.Add: _add,
    ops.AveragePool: _pool,
    ops.Concat: _concat,
    ops.Conv: _conv,
    ops.Dequantize: _plain("DEQUANTIZE"),
    ops.FullyConnected: _fully_connected,
    ops.GlobalAveragePool: _global_average,
    ops.MaxPool: _pool,
    ops.Pad: _pad,
    ops.Quantize: _plain("QUANTIZE"),
    ops.Relu: _relu,
    ops.Reshape: _reshape,
    ops.Slice: _slice,
    ops.Softmax: _softmax,
    ops.Transpose: _transpose,
}


def _pack(model: Mapping[str, Any]) -> bytes:
    try:
        import flatbuffers
    except ImportError as error:
        raise MissingExtraError("flatbuffers", "fit") from error
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(_table(builder, "Model", model), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, name: str, values: Mapping[str, Any]) -> int:
    """Write a table after everything it refers to; fields with their default value are omitted."""
    slots: list[tuple[int, str, Any, Any]] = []
    for entry in TABLES[name]:
        value = values.get(entry.name)
        if entry.type == "union":
            kind = values.get(f"{entry.name}_type")
            if kind:
                slots.append((entry.slot, "u8", _OPTION_CODES[kind], 0))
                slots.append((entry.slot + 1, "table", _table(builder, kind, value or {}), 0))
        elif value is None or (entry.type not in SCALARS and len(value) == 0):
            continue
        elif entry.type in SCALARS:
            slots.append((entry.slot, entry.type, value, entry.default))
        else:
            slots.append((entry.slot, "table", _reference(builder, entry.type, value), 0))
    builder.StartObject(max((slot for slot, *_ in slots), default=-1) + 1)
    for slot, type_, value, default in slots:
        if type_ == "table":
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        else:
            _PREPEND[type_](builder)(slot, value, default)
    return builder.EndObject()


def _reference(builder: Any, type_: str, value: Any) -> int:
    """Write a string, a vector or a table, and return its offset."""
    if type_ == "str":
        return builder.CreateString(value)
    if type_ in TABLES:
        return _table(builder, type_, value)
    item = type_[1:-1]
    if item == "u8":
        builder.StartVector(1, len(value), _BUFFER_ALIGNMENT)
        builder.head -= len(value)
        builder.Bytes[builder.head : builder.head + len(value)] = value.tobytes()
        return builder.EndVector()
    if item in SCALARS:
        return builder.CreateNumpyVector(np.array(value, _NUMPY[item]))
    offsets = [_table(builder, item, entry) for entry in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


_NUMPY = {"i32": np.int32, "i64": np.int64, "f32": np.float32}
_PREPEND: Mapping[str, Callable[[Any], Callable[[int, Any, Any], None]]] = {
    "u8": lambda builder: builder.PrependUint8Slot,
    "i8": lambda builder: builder.PrependInt8Slot,
    "u32": lambda builder: builder.PrependUint32Slot,
    "i32": lambda builder: builder.PrependInt32Slot,
    "u64": lambda builder: builder.PrependUint64Slot,
    "f32": lambda builder: builder.PrependFloat32Slot,
}
