"""The part of TensorFlow Lite's flatbuffer schema that firebox reads and writes, described once.

A table's fields stand in the order of their slots; ``-`` is a slot that is not used here. ``[T]`` is a vector,
``union`` takes two slots: the type and the table. ``read_table`` turns bytes into plain dicts and checks every offset
and length on the way, so that a hostile file ends in a ``FormatError`` and never in memory it has not paid for.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FormatError

IDENTIFIER = b"TFL3"

_TABLES = """
Model version:u32 operator_codes:[OperatorCode] subgraphs:[SubGraph] description:str buffers:[Buffer] -:[i32] \
  metadata:[Metadata]
OperatorCode deprecated_builtin_code:i8 custom_code:str version:i32=1 builtin_code:i32
SubGraph tensors:[Tensor] inputs:[i32] outputs:[i32] operators:[Operator] name:str
Tensor shape:[i32] type:u8 buffer:u32 name:str quantization:QuantizationParameters is_variable:u8 \
  -:Sparsity shape_signature:[i32]
QuantizationParameters -:[f32] -:[f32] scale:[f32] zero_point:[i64] -:u8 -:Details quantized_dimension:i32
Operator opcode_index:u32 inputs:[i32] outputs:[i32] options:union
Buffer data:[u8] offset:u64 size:u64
Metadata name:str buffer:u32
Conv2DOptions padding:u8 stride_w:i32 stride_h:i32 activation:u8 dilation_w:i32=1 dilation_h:i32=1
DepthwiseConv2DOptions padding:u8 stride_w:i32 stride_h:i32 depth_multiplier:i32 activation:u8 dilation_w:i32=1 \
  dilation_h:i32=1
Pool2DOptions padding:u8 stride_w:i32 stride_h:i32 filter_width:i32 filter_height:i32 activation:u8
FullyConnectedOptions activation:u8 weights_format:u8 keep_num_dims:u8 asymmetric_quantize_inputs:u8
SoftmaxOptions beta:f32
ConcatenationOptions axis:i32 activation:u8
AddOptions activation:u8 pot_scale_int16:u8=1
ReshapeOptions new_shape:[i32]
ReducerOptions keep_dims:u8
PadOptions
PadV2Options
QuantizeOptions
DequantizeOptions
SliceOptions
TransposeOptions
"""

# Members of the union BuiltinOptions that are read and written.
OPTIONS = {
    1: "Conv2DOptions", 2: "DepthwiseConv2DOptions", 5: "Pool2DOptions", 8: "FullyConnectedOptions",
    9: "SoftmaxOptions", 10: "ConcatenationOptions", 11: "AddOptions", 17: "ReshapeOptions", 22: "PadOptions",
    26: "TransposeOptions", 27: "ReducerOptions", 38: "DequantizeOptions", 43: "PadV2Options", 48: "SliceOptions",
    89: "QuantizeOptions",
}  # fmt: skip

OPERATORS = {
    "ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "DEQUANTIZE": 6,
    "FULLY_CONNECTED": 9, "MAX_POOL_2D": 17, "RELU": 19, "RELU6": 21, "RESHAPE": 22, "SOFTMAX": 25, "PAD": 34,
    "TRANSPOSE": 39, "MEAN": 40, "PADV2": 60, "SLICE": 65, "QUANTIZE": 114,
}  # fmt: skip

TENSOR_TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int16": 7, "int8": 9}
PADDINGS = {"SAME": 0, "VALID": 1}
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 3}

# The metadata entry for "offline planned" tensors (tflite-micro, docs/memory_management.md): int32 version 1,
# subgraph 0, the number of tensors, and for each tensor in file order its offset in the arena in bytes, or -1 if
# tflite-micro is to choose it.
OFFLINE_PLAN = "OfflineMemoryAllocation"
_OFFLINE_VERSION = 1
_ANYWHERE = -1

# struct codes of the scalars.
SCALARS = {"u8": "B", "i8": "b", "u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f"}


@dataclass(frozen=True)
class Field:
    """One field of a table: its slot, its type and what it is when it is not stored."""

    name: str
    slot: int
    type: str
    default: Any


def _parse(line: str) -> tuple[str, tuple[Field, ...]]:
    table, *items = line.split()
    fields, slot = [], 0
    for item in items:
        name, _, rest = item.partition(":")
        type_, _, default = rest.partition("=")
        empty: Any = "" if type_ == "str" else [] if type_.startswith("[") else 0 if type_ in SCALARS else None
        fields.append(Field(name, slot, type_, int(default) if default else empty))
        slot += 2 if type_ == "union" else 1
    return table, tuple(field for field in fields if field.name != "-")


TABLES: dict[str, tuple[Field, ...]] = dict(_parse(line) for line in _TABLES.strip().splitlines())


def read_model(data: bytes) -> dict[str, Any]:
    """The whole file as plain dicts and lists; the data of buffers as uint8 arrays that share its memory.

    Raises ``FormatError`` for anything that is not a whole TFLite file.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise FormatError("not a TFLite file: the identifier TFL3 is missing")
    try:
        reader = _Reader(data)
        model = reader.table(reader.unpack("I", 0), "Model")
    except (struct.error, RecursionError, UnicodeDecodeError, IndexError) as error:
        raise FormatError("the TFLite file is damaged or cut short; get it again from where it came") from error
    for buffer in model["buffers"]:
        _fetch(buffer, data)
    return model


def _fetch(buffer: dict[str, Any], data: bytes) -> None:
    """The data of a buffer that lies behind the flatbuffer, where files larger than 2 GiB must have it."""
    offset, size = buffer["offset"], buffer["size"]
    if not size or len(buffer["data"]):
        return
    if offset + size > len(data):
        raise FormatError(
            f"the TFLite file is cut short: a buffer of {size:,} bytes begins at {offset:,} of {len(data):,}"
        )
    buffer["data"] = np.frombuffer(data, np.uint8, size, offset)


class _Reader:
    def __init__(self, data: bytes):
        self.data = data
        # Every value of an honest file takes at least a byte of it; one that refers to the same bytes again and
        # again would not end.
        self.left = len(data)

    def unpack(self, code: str, position: int) -> Any:
        if position < 0:
            raise FormatError("the TFLite file is damaged: an offset points before its start")
        return struct.unpack_from("<" + code, self.data, position)[0]

    def table(self, position: int, name: str) -> dict[str, Any]:
        vtable = position - self.unpack("i", position)
        slots = (self.unpack("H", vtable) - 4) // 2
        values = {}
        for field in TABLES[name]:
            self._spend(1)
            offset = self.unpack("H", vtable + 4 + 2 * field.slot) if field.slot < slots else 0
            if field.type == "union":
                values.update(self._union(position, vtable, field, slots))
            else:
                values[field.name] = self._value(position + offset, field.type) if offset else field.default
        return values

    def _union(self, position: int, vtable: int, field: Field, slots: int) -> dict[str, Any]:
        offsets = [self.unpack("H", vtable + 4 + 2 * s) if s < slots else 0 for s in (field.slot, field.slot + 1)]
        kind = OPTIONS.get(self.unpack("B", position + offsets[0])) if offsets[0] else None
        value = self._value(position + offsets[1], kind) if kind and offsets[1] else None
        return {field.name: value, f"{field.name}_type": kind}

    def _value(self, position: int, type_: str) -> Any:
        if type_ in SCALARS:
            return self.unpack(SCALARS[type_], position)
        target = position + self.unpack("I", position)
        if type_ in TABLES:
            return self.table(target, type_)
        length = self.unpack("I", target)
        start = target + 4
        item = "u8" if type_ == "str" else type_[1:-1]
        width = struct.calcsize("<" + SCALARS.get(item, "I"))
        if start + length * width > len(self.data):
            raise FormatError(
                f"the TFLite file is cut short: {length} values of {item} do not fit into what is left of it"
            )
        if type_ == "str":
            self._spend(length)
            return self.data[start : start + length].decode()
        if item == "u8":
            return np.frombuffer(self.data, np.uint8, length, start)
        self._spend(length)
        if item in SCALARS:
            return list(struct.unpack_from(f"<{length}{SCALARS[item]}", self.data, start))
        return [self._value(start + 4 * i, item) for i in range(length)]

    def _spend(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise FormatError("the TFLite file is damaged: it refers to the same bytes more often than it has any")


def pack_offline_plan(offsets: Sequence[int | None]) -> bytes:
    """The metadata entry for the arena offsets of a file's tensors, in file order; ``None``: anywhere."""
    values = [_ANYWHERE if offset is None else offset for offset in offsets]
    return np.array([_OFFLINE_VERSION, 0, len(values), *values], "<i4").tobytes()


def unpack_offline_plan(data: bytes, tensors: int) -> list[int | None]:
    """The arena offset of each of a file's ``tensors``. Raises ``FormatError`` if the entry does not match the file."""
    if len(data) != 4 * (3 + tensors):
        raise FormatError(f"the TFLite file's offline plan has {len(data)} bytes, expected {4 * (3 + tensors)}")
    version, subgraph, count, *values = np.frombuffer(data, "<i4").tolist()
    if (version, subgraph, count) != (_OFFLINE_VERSION, 0, tensors) or min(values, default=0) < _ANYWHERE:
        raise FormatError("the TFLite file's offline plan is not in a form that tflite-micro reads")
    return [None if value == _ANYWHERE else value for value in values]
