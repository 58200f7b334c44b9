"""Reader of ``.tflite`` files."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FormatError, UnknownOperationError, UnsupportedError
from ..graph import Graph, Op, Quantization, Tensor, ops
from .tflite_schema import (
    ACTIVATIONS,
    BUILTINS,
    OFFLINE_PLAN,
    PADDINGS,
    TENSOR_TYPES,
    read_model,
    unpack_offline_plan,
)

_BUILTIN_NAMES = {builtin.code: name for name, builtin in BUILTINS.items()}
_DTYPES = {code: name for name, code in TENSOR_TYPES.items()}
_ACTIVATION_NAMES: dict[int, ops.Activation] = {code: name for name, code in ACTIVATIONS.items()}  # pyright: ignore[reportAssignmentType]
# Rows of TFLite's paddings constant, each (before, after), for the rows and columns of the image.
_SPATIAL = (1, 2)


def read_tflite(data: bytes) -> Graph:
    """The graph of a TFLite file's first subgraph.

    Raises ``FormatError`` for a damaged file and ``UnsupportedError`` for an unsupported operation, with its name.
    """
    model = read_model(data)
    if not model["subgraphs"]:
        raise FormatError("the TFLite file has no subgraph")
    return _Subgraph(model, model["subgraphs"][0]).graph()


def read_tflite_metadata(data: bytes, name: str) -> bytes | None:
    """The contents of the metadata entry ``name``, or ``None``."""
    model = read_model(data)
    for entry in model["metadata"]:
        if entry["name"] == name and entry["buffer"] < len(model["buffers"]):
            return bytes(model["buffers"][entry["buffer"]]["data"])
    return None


def read_offsets(data: bytes) -> dict[str, int]:
    """Arena offsets that the file prescribes for tflite-micro, by activation; empty if it prescribes none.

    Raises ``FormatError`` for a damaged file.
    """
    entry = read_tflite_metadata(data, OFFLINE_PLAN)
    if entry is None:
        return {}
    model = read_model(data)
    names = _Subgraph(model, model["subgraphs"][0]).names
    offsets = zip(names, unpack_offline_plan(entry, len(names)), strict=True)
    return {name: offset for name, offset in offsets if offset is not None}


def unpacked_weights(data: bytes) -> set[str]:
    """Names of the float32 tensors that DEQUANTIZE operators compute from constants."""
    model = read_model(data)
    subgraph = _Subgraph(model, model["subgraphs"][0])
    subgraph.graph()
    return set(subgraph.stored)


class _Subgraph:
    """The conversion of one subgraph, which refers to tensors by index, to a ``Graph``."""

    def __init__(self, model: dict[str, Any], subgraph: dict[str, Any]):
        self.codes = [max(code["deprecated_builtin_code"], code["builtin_code"]) for code in model["operator_codes"]]
        self.subgraph = subgraph
        self.tensors: dict[str, Tensor] = {}
        self.names: list[str] = []
        self.ops: list[Op] = []
        # Constants already converted to firebox's layout: two layers may share a weight.
        self.converted: set[str] = set()
        # Compressed constants by the name of the float32 tensor that a DEQUANTIZE computes from each.
        self.stored: dict[str, str] = {}
        for index, tensor in enumerate(subgraph["tensors"]):
            name = tensor["name"] or f"tensor_{index}"
            name = name if name not in self.tensors else f"{name}_{index}"
            self.tensors[name] = _tensor(name, tensor, model["buffers"])
            self.names.append(name)

    def graph(self) -> Graph:
        for index, operator in enumerate(self.subgraph["operators"]):
            op = self.op(index, operator)
            self.ops += [op] if op is not None else []
        inputs = [self.name(index) for index in self.subgraph["inputs"]]
        outputs = [self.name(index) for index in self.subgraph["outputs"]]
        return Graph.of(self.subgraph["name"] or "main", self.tensors.values(), self.ops, inputs, outputs)

    def op(self, index: int, operator: dict[str, Any]) -> Op | None:
        """The operation of an operator (the last, if it becomes several), or ``None`` if it only unpacks a constant."""
        if operator["opcode_index"] >= len(self.codes):
            raise FormatError(f"operator {index} of the TFLite file has no operator code")
        code = self.codes[operator["opcode_index"]]
        kind = _BUILTIN_NAMES.get(code)
        names = [self.name(i) for i in operator["inputs"] if i >= 0]
        inputs = [self.stored.get(name, name) for name in names]
        outputs = [self.name(i) for i in operator["outputs"]]
        if kind is None:
            where = outputs[0] if outputs else f"operator {index}"
            raise UnknownOperationError(
                f"TFLite operator {code} at {where!r} is not supported; README.md lists the supported operations"
            )
        if not inputs or len(outputs) != 1:
            raise FormatError(f"{kind} (operator {index}) has {len(inputs)} inputs and {len(outputs)} outputs")
        try:
            return _READERS[kind](self, outputs[0], inputs, operator["options"] or {})
        except (ArithmeticError, KeyError, IndexError, ValueError, TypeError) as error:
            raise FormatError(f"{kind} at {outputs[0]!r} is damaged: {error!r}") from error

    def name(self, index: int) -> str:
        if not 0 <= index < len(self.names):
            raise FormatError(f"the TFLite file refers to tensor {index} of {len(self.names)}")
        return self.names[index]

    def constant(self, name: str) -> np.ndarray:
        data = self.tensors[name].data
        if data is None:
            raise UnsupportedError(f"{name!r} must be constant, but it is computed")
        return data

    def convert(self, name: str, data: np.ndarray, quantization: Quantization | None) -> str:
        """Replace a constant by the same values in firebox's layout."""
        tensor = self.tensors[name]
        self.tensors[name] = Tensor(name, data.shape, tensor.dtype, quantization, data)
        self.converted.add(name)
        return name

    def reshaped_input(self, x: str, name: str, shape: tuple[int, ...]) -> str:
        """Add a reshape that a TFLite operator does implicitly."""
        self.tensors[name] = replace(self.tensors[x], name=name, shape=shape)
        self.ops.append(ops.Reshape((x,), name, shape))
        return name

    def with_shape(
        self, kind: type[Op], inputs: tuple[str, ...], output: str, shape: tuple[int, ...], *values: Any
    ) -> Op:
        """An operation whose output has ``shape`` and, in the file, possibly another shape."""
        if shape == self.tensors[output].shape:
            return kind(inputs, output, *values)
        inner = f"{output}/{'x'.join(map(str, shape))}"
        self.tensors[inner] = replace(self.tensors[output], name=inner, shape=shape)
        self.ops.append(kind(inputs, inner, *values))
        return ops.Reshape((inner,), output, self.tensors[output].shape)

    def bias(self, inputs: list[str], channels: int) -> tuple[str, ...]:
        """x, weight and bias; zeros if the file has no bias."""
        if len(inputs) > 2:
            return tuple(inputs[:3])
        dtype: Any = {"float32": "float32", "int16": "int64"}.get(self.tensors[inputs[0]].dtype, "int32")
        name = f"{inputs[1]}/zero_bias"
        self.tensors[name] = Tensor(name, (channels,), dtype, data=np.zeros(channels, dtype))
        return (*inputs, name)

    def padding(self, options: dict[str, Any], x: str, window: tuple[int, int], stride: tuple[int, int]) -> ops.Pads:
        if options["padding"] == PADDINGS["VALID"]:
            return ops.NO_PADS
        rows, columns = self.tensors[x].shape[1:3]
        return (*ops.same_pads(rows, window[0], stride[0]), *ops.same_pads(columns, window[1], stride[1]))


def _tensor(name: str, tensor: dict[str, Any], buffers: list[dict[str, Any]]) -> Tensor:
    shape = tuple(tensor["shape"])
    if -1 in tensor["shape_signature"]:
        raise UnsupportedError(
            f"{name!r} has a dynamic shape {tuple(tensor['shape_signature'])}; export it with a fixed batch of 1"
        )
    if tensor["type"] not in _DTYPES:
        raise UnsupportedError(f"{name!r} has TFLite type {tensor['type']}; supported: {', '.join(TENSOR_TYPES)}")
    dtype: Any = _DTYPES[tensor["type"]]
    if tensor["buffer"] >= len(buffers):
        raise FormatError(f"{name!r} refers to buffer {tensor['buffer']} of {len(buffers)}")
    raw = buffers[tensor["buffer"]]["data"]
    data = None
    if len(raw):
        expected = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        if len(raw) != expected:
            raise FormatError(f"{name!r} of shape {shape} needs {expected:,} bytes, but its buffer has {len(raw):,}")
        data = raw.view(dtype).reshape(shape)
    return Tensor(name, shape, dtype, _quantization(name, shape, tensor["quantization"]), data)


def _quantization(name: str, shape: tuple[int, ...], values: dict[str, Any] | None) -> Quantization | None:
    if not values or not len(values["scale"]):
        return None
    scale, zero_points = values["scale"], values["zero_point"] or [0] * len(values["scale"])
    if not np.isfinite(scale).all() or min(scale) <= 0:
        raise FormatError(f"{name!r} has a quantization scale that is not positive and finite")
    if len(scale) == 1:
        return Quantization((scale[0],), zero_points[0])
    axis = values["quantized_dimension"]
    if not 0 <= axis < len(shape) or shape[axis] != len(scale) or any(zero_points):
        raise FormatError(f"{name!r} of shape {shape} has {len(scale)} scales along dimension {axis}")
    return Quantization(tuple(scale), 0, axis)


def _conv(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    stride, dilation = (options["stride_h"], options["stride_w"]), (options["dilation_h"], options["dilation_w"])
    if "depth_multiplier" in options and inputs[1] not in graph.converted:
        # TFLite keeps depthwise weights as (1, height, width, channels * multiplier).
        weight = graph.tensors[inputs[1]]
        quantization = weight.quantization
        if quantization and quantization.axis is not None:
            quantization = Quantization(quantization.scale, quantization.zero_point, 0)
        graph.convert(inputs[1], graph.constant(inputs[1]).transpose(3, 1, 2, 0), quantization)
    out, rows, columns, depth = graph.tensors[inputs[1]].shape
    channels = graph.tensors[inputs[0]].shape[3]
    window = ((rows - 1) * dilation[0] + 1, (columns - 1) * dilation[1] + 1)
    padding = graph.padding(options, inputs[0], window, stride)
    activation = _ACTIVATION_NAMES[options["activation"]]
    return ops.Conv(graph.bias(inputs, out), output, stride, padding, dilation, channels // depth, activation)


def _fully_connected(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    if options["weights_format"]:
        raise UnsupportedError(f"fully connected {output!r} with shuffled weights is not supported")
    channels, columns = graph.constant(inputs[1]).shape
    x = graph.tensors[inputs[0]]
    rows = math.prod(x.shape) // columns
    if x.shape != (rows, columns):
        inputs = [graph.reshaped_input(x.name, f"{output}/input", (rows, columns)), *inputs[1:]]
    names = graph.bias(inputs, channels)
    return graph.with_shape(
        ops.FullyConnected, names, output, (rows, channels), _ACTIVATION_NAMES[options["activation"]]
    )


def _pool(kind: type[ops.MaxPool] | type[ops.AveragePool]) -> Callable[..., Op]:
    def read(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
        window, stride = (options["filter_height"], options["filter_width"]), (options["stride_h"], options["stride_w"])
        if options["activation"]:
            raise UnsupportedError(f"pool {output!r} with a fused activation is not supported")
        return kind(tuple(inputs), output, window, stride, graph.padding(options, inputs[0], window, stride))

    return read


def _mean(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    axes = {int(axis) % 4 for axis in graph.constant(inputs[1]).ravel()}
    shape = graph.tensors[inputs[0]].shape
    if axes != {1, 2} or len(shape) != 4:
        raise UnsupportedError(f"mean {output!r} over {sorted(axes)} is not supported, only over rows and columns")
    return graph.with_shape(ops.GlobalAveragePool, (inputs[0],), output, (shape[0], 1, 1, shape[3]))


def _pad(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    pads = graph.constant(inputs[1])
    if pads.shape != (4, 2) or pads[0].any() or pads[3].any():
        raise UnsupportedError(f"pad {output!r} is not supported: it pads more than rows and columns")
    top, bottom, left, right = (int(value) for axis in _SPATIAL for value in pads[axis])
    value = float(graph.tensors[inputs[2]].real().ravel()[0]) if len(inputs) > 2 else 0.0
    return ops.Pad((inputs[0],), output, (top, bottom, left, right), value)


def _add(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    return ops.Add(tuple(inputs), output, _ACTIVATION_NAMES[options["activation"]])


def _concat(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    rank = len(graph.tensors[output].shape)
    return ops.Concat(tuple(inputs), output, options["axis"] % rank)


def _reshape(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    return ops.Reshape((inputs[0],), output, graph.tensors[output].shape)


def _slice(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    begin, size = (tuple(int(value) for value in graph.constant(name)) for name in inputs[1:])
    shape = graph.tensors[inputs[0]].shape
    ends = (extent if n == -1 else start + n for start, n, extent in zip(begin, size, shape, strict=True))
    return ops.Slice((inputs[0],), output, begin, tuple(end - start for start, end in zip(begin, ends, strict=True)))


def _transpose(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    return ops.Transpose((inputs[0],), output, tuple(int(axis) for axis in graph.constant(inputs[1])))


def _softmax(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op:
    if options["beta"] != 1:
        raise UnsupportedError(f"softmax {output!r} with beta {options['beta']} is not supported, only 1")
    return ops.Softmax(tuple(inputs), output)


def _relu(activation: ops.Activation) -> Callable[..., Op]:
    return lambda graph, output, inputs, options: ops.Relu(tuple(inputs), output, activation)


def _dequantize(graph: _Subgraph, output: str, inputs: list[str], options: dict[str, Any]) -> Op | None:
    if graph.tensors[inputs[0]].data is None:
        return ops.Dequantize((inputs[0],), output)
    graph.stored[output] = inputs[0]
    return None


def _plain(kind: type[Op]) -> Callable[..., Op]:
    return lambda graph, output, inputs, options: kind(tuple(inputs), output)


_READERS: dict[str, Callable[..., Op | None]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _pool(ops.AveragePool),
    "CONCATENATION": _concat,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool(ops.MaxPool),
    "MEAN": _mean,
    "PAD": _pad,
    "PADV2": _pad,
    "QUANTIZE": _plain(ops.Quantize),
    "RELU": _relu("relu"),
    "RELU6": _relu("relu6"),
    "RESHAPE": _reshape,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "TRANSPOSE": _transpose,
}
