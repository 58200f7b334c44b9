"""TensorFlow Lite's flatbuffer schema, as far as firebox reads and writes it.

Fields are listed in slot order; ``-`` marks an unused slot, ``[T]`` a vector, ``union`` two slots: type and table.
``read_model`` parses a file into plain dicts and checks each offset and length, so that a malicious file raises
``FormatError`` instead of exhausting memory.
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


@dataclass(frozen=True)
class Builtin:
    """A builtin operator: its code, the table of its options, and the number of that table in the options union."""

    code: int
    options: str = ""
    options_code: int = 0


BUILTINS = {
    "ADD": Builtin(0, "AddOptions", 11),
    "AVERAGE_POOL_2D": Builtin(1, "Pool2DOptions", 5),
    "CONCATENATION": Builtin(2, "ConcatenationOptions", 10),
    "CONV_2D": Builtin(3, "Conv2DOptions", 1),
    "DEPTHWISE_CONV_2D": Builtin(4, "DepthwiseConv2DOptions", 2),
    "DEQUANTIZE": Builtin(6, "DequantizeOptions", 38),
    "FULLY_CONNECTED": Builtin(9, "FullyConnectedOptions", 8),
    "MAX_POOL_2D": Builtin(17, "Pool2DOptions", 5),
    "MEAN": Builtin(40, "ReducerOptions", 27),
    "PAD": Builtin(34, "PadOptions", 22),
    "PADV2": Builtin(60, "PadV2Options", 43),
    "QUANTIZE": Builtin(114, "QuantizeOptions", 89),
    "RELU": Builtin(19),
    "RELU6": Builtin(21),
    "RESHAPE": Builtin(22, "ReshapeOptions", 17),
    "SLICE": Builtin(65, "SliceOptions", 48),
    "SOFTMAX": Builtin(25, "SoftmaxOptions", 9),
    "TRANSPOSE": Builtin(39, "TransposeOptions", 26),
}
# Tables of the options union by their number.
OPTIONS = {builtin.options_code: builtin.options for builtin in BUILTINS.values() if builtin.options}

TENSOR_TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int16": 7, "int8": 9}
PADDINGS = {"SAME": 0, "VALID": 1}
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 3}

# The metadata entry for "offline planned" tensors (tflite-micro, docs/memory_management.md): int32 version 1,
# subgraph 0, the number of tensors, and for each tensor in file order its offset in the arena in bytes, or -1 if
# tflite-micro is to choose it.
OFFLINE_PLAN = "OfflineMemoryAllocation"
_OFFLINE_VERSION = 1
_ANYWHERE = -1

# Format characters of ``struct`` for the scalar types.
SCALARS = {"u8": "B", "i8": "b", "u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f"}


@dataclass(frozen=True)
class Field:
    """One field of a table: its slot, its type and its default."""

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
    """The whole file as plain dicts and lists; buffer data are uint8 arrays that share the file's memory.

    Raises ``FormatError`` if the bytes are not a complete TFLite file.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise FormatError("not a TFLite file: the identifier TFL3 is missing")
    try:
        reader = _Reader(data)
        model = reader.table(reader.unpack("I", 0), "Model")
    except (struct.error, RecursionError, UnicodeDecodeError, IndexError) as error:
        raise FormatError("the TFLite file is damaged or cut short; download or export it again") from error
    for buffer in model["buffers"]:
        _fetch(buffer, data)
    return model


def _fetch(buffer: dict[str, Any], data: bytes) -> None:
    """Load a buffer stored after the flatbuffer, as files larger than 2 GiB require."""
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
        # Each value of a valid file takes at least one byte. The budget stops files that refer to the same bytes again
        # and again.
        self.left = len(data)

    def unpack(self, code: str, position: int) -> Any:
        if position < 0:
            raise FormatError("the TFLite file is damaged: an offset points before the start of the file")
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
            raise FormatError(f"the TFLite file is cut short: {length} values of {item} extend past its end")
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
            raise FormatError("the TFLite file is damaged: its tables refer to the same bytes too often")


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
