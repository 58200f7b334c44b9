"""Reading and editing of ONNX files at the level of protobuf fields, without the ``onnx`` package.

Importing ``onnx`` takes longer than loading a network, which sessions must avoid. An ONNX file is a protobuf message
(https://protobuf.dev/programming-guides/encoding): fields, each with a number, a wire type and a value. Only operators
and constants of integer layers are parsed; all else is copied unchanged. Field numbers are those of ``onnx.proto``.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..errors import FormatError

# Names of the domain of standard ONNX operators.
STANDARD_DOMAINS = ("", "ai.onnx")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_DTYPES = {2: np.dtype(np.uint8), 3: np.dtype(np.int8)}
_TYPES = {dtype: number for number, dtype in _DTYPES.items()}
_INT32 = 6
_EXTERNAL = 1
_MAX_RANK, _MAX_SIZE = 8, 2**31 - 1

# Numbers of the fields in use.
_MODEL_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION = 1, 7, 8, 25
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 1, 3, 5, 6, 11
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT32, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 1, 2, 5, 8, 9, 14
_VALUE_NAME, _VALUE_TYPE = 1, 2

# A message under construction is a list of pieces, joined only at the end.
_Pieces = list["bytes | memoryview"]
_Field = tuple[int, int, "int | memoryview | _Pieces"]


@dataclass(frozen=True)
class Node:
    """One operator: its type, its domain, and the names of its inputs and outputs."""

    kind: str
    domain: str
    own_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fields: Sequence[_Field] = field(repr=False)

    @property
    def name(self) -> str:
        """The node's name, or that of its first output."""
        return self.own_name or next(iter(self.outputs), "")

    def input(self, position: int) -> str:
        """The name of an input, or an empty string if it is omitted."""
        return self.inputs[position] if position < len(self.inputs) else ""

    @cached_property
    def attributes(self) -> Mapping[str, int]:
        """Integer attributes by name."""
        found = {}
        for message in _messages(self.fields, _NODE_ATTRIBUTE):
            own = _fields(message)
            found |= {_text(own, _ATTRIBUTE_NAME): number for number in _integers(own, _ATTRIBUTE_INT)}
        return found

    @property
    def has_subgraph(self) -> bool:
        """True if an attribute is a graph; among the standard operators only these four have such attributes."""
        if self.domain in STANDARD_DOMAINS:
            return self.kind in ("If", "Loop", "Scan", "SequenceMap")
        attributes = map(_fields, _messages(self.fields, _NODE_ATTRIBUTE))
        return any(number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) for own in attributes for number, *_ in own)

    @property
    def value(self) -> "Constant | None":
        """The tensor of a ``Constant`` node."""
        for message in _messages(self.fields, _NODE_ATTRIBUTE):
            for tensor in _messages(_fields(message), _ATTRIBUTE_TENSOR):
                return _constant(tensor)
        return None

    def with_inputs(self, inputs: Sequence[str]) -> "Node":
        """The same operator with other inputs."""
        own = [_string(_NODE_INPUT, name) for name in inputs]
        rest = [entry for entry in self.fields if entry[0] != _NODE_INPUT]
        return replace(self, inputs=tuple(inputs), fields=(*own, *rest))


@dataclass(frozen=True)
class Constant:
    """A constant tensor; its values are parsed on first use."""

    name: str
    shape: tuple[int, ...]
    type: int
    external: bool
    fields: Sequence[_Field] = field(repr=False)

    @property
    def dtype(self) -> np.dtype | None:
        """``int8`` or ``uint8``; ``None`` for other types."""
        return _DTYPES.get(self.type)

    @cached_property
    def data(self) -> np.ndarray:
        """Values of an 8-bit constant. Raises ``FormatError`` if they are not in the file."""
        if self.external or self.dtype is None:
            raise FormatError(f"the values of {self.name!r} are not 8-bit integers in this file")
        if len(self.shape) > _MAX_RANK or any(not 1 <= size <= _MAX_SIZE for size in self.shape):
            raise FormatError(f"constant {self.name!r} has shape {self.shape}, which is impossible")
        raw = next(_messages(self.fields, _TENSOR_RAW), None)
        if raw is not None:
            values = np.frombuffer(raw, self.dtype)
        else:
            # Protobuf stores a negative number in 64 bits; the lowest 8 are the value.
            numbers = [number & 0xFF for number in _integers(self.fields, _TENSOR_INT32)]
            values = np.array(numbers, np.uint8).view(self.dtype)
        if values.size != math.prod(self.shape):
            raise FormatError(f"constant {self.name!r} has {values.size} values for shape {self.shape}")
        return values.reshape(self.shape)


class OnnxMessage:
    """An ONNX file: its operators, its constants by name, and the type numbers of its inputs by name.

    Raises ``FormatError`` if the bytes are not an ONNX file.
    """

    def __init__(self, data: bytes):
        self._model = _fields(memoryview(data))
        graphs = list(_messages(self._model, _MODEL_GRAPH))
        if len(graphs) != 1:
            raise FormatError(f"not an ONNX file: it has {len(graphs) or 'no'} graph{'s' if graphs else ''}")
        self._graph = _fields(graphs[0])
        self.nodes = [_node(value) for value in _messages(self._graph, _GRAPH_NODE)]
        initializers = [_constant(value) for value in _messages(self._graph, _GRAPH_INITIALIZER)]
        self._initializers = [constant.name for constant in initializers]
        self.constants = {constant.name: constant for constant in initializers}
        for node in self.nodes:
            value = node.value if node.kind == "Constant" and node.outputs else None
            if value is not None:
                self.constants[node.outputs[0]] = replace(value, name=node.outputs[0])
        self.inputs = dict(_declared(value) for value in _messages(self._graph, _GRAPH_INPUT))
        self._outputs = {_declared(value)[0] for value in _messages(self._graph, _GRAPH_OUTPUT)}

    @property
    def has_subgraphs(self) -> bool:
        """True if an operator has a subgraph."""
        return any(node.has_subgraph for node in self.nodes)

    @property
    def has_functions(self) -> bool:
        """True if the file defines functions."""
        return any(number == _MODEL_FUNCTION for number, *_ in self._model)

    def with_changes(self, nodes: Mapping[int, Node], constants: Iterable[tuple[str, np.ndarray]]) -> bytes:
        """The file with operators replaced, by position, and 8-bit constants added.

        Initializers that no operator reads any more are dropped, unless they are inputs or outputs of the network.
        """
        changed = [nodes.get(position, node) for position, node in enumerate(self.nodes)]
        used = {name for node in changed for name in node.inputs} | set(self.inputs) | self._outputs
        # A subgraph may read any tensor of the graphs around it.
        keep_all = self.has_subgraphs
        positions, names = iter(range(len(changed))), iter(self._initializers)
        graph: list[_Field] = []
        for number, wire, value in self._graph:
            whole = isinstance(value, memoryview)
            if number == _GRAPH_NODE and whole:
                position = next(positions)
                value = _pieces(nodes[position].fields) if position in nodes else value
            elif number == _GRAPH_INITIALIZER and whole and next(names) not in used and not keep_all:
                continue
            graph.append((number, wire, value))
        graph += [(_GRAPH_INITIALIZER, _BYTES, _tensor(name, data)) for name, data in constants]
        body = _pieces(graph)
        model = [(number, wire, body if number == _MODEL_GRAPH else value) for number, wire, value in self._model]
        return b"".join(_pieces(model))


def matmul_model(weight: np.ndarray, rows: int) -> bytes:
    """An ONNX file of one ``MatMulInteger``: ``x``, uint8 (rows, K), times a constant (K, N) is ``y``, int32."""
    inner, outer = weight.shape
    node = [(_NODE_INPUT, "x"), (_NODE_INPUT, "w"), (_NODE_OUTPUT, "y"), (_NODE_TYPE, "MatMulInteger")]
    graph = [
        _message(_GRAPH_NODE, [_string(number, text) for number, text in node]),
        _string(_GRAPH_NAME, "matmul"),
        (_GRAPH_INITIALIZER, _BYTES, _tensor("w", weight)),
        _message(_GRAPH_INPUT, _declaration("x", _TYPES[np.dtype(np.uint8)], (rows, inner))),
        _message(_GRAPH_OUTPUT, _declaration("y", _INT32, (rows, outer))),
    ]
    opset = _message(_MODEL_OPSET, [(2, _VARINT, 10)])
    return b"".join(_pieces([(_MODEL_VERSION, _VARINT, 8), opset, _message(_MODEL_GRAPH, graph)]))


def _declaration(name: str, kind: int, shape: Sequence[int]) -> list[_Field]:
    """Fields that declare a network input or output."""
    dims = _message(2, [_message(1, [(1, _VARINT, size)]) for size in shape])
    return [_string(_VALUE_NAME, name), _message(_VALUE_TYPE, [_message(1, [(1, _VARINT, kind), dims])])]


def _declared(data: memoryview) -> tuple[str, int]:
    """Name and type number of a declared input or output."""
    fields = _fields(data)
    types = (tensor for kind in _messages(fields, _VALUE_TYPE) for tensor in _messages(_fields(kind), 1))
    return _text(fields, _VALUE_NAME), next((number for t in types for number in _integers(_fields(t), 1)), 0)


def _node(data: memoryview) -> Node:
    fields = _fields(data)
    texts: dict[int, list[str]] = {}
    for number, _, value in fields:
        if number != _NODE_ATTRIBUTE and isinstance(value, memoryview):
            texts.setdefault(number, []).append(str(value, "utf-8", "surrogateescape"))
    kind, domain, name = (texts.get(number, [""])[-1] for number in (_NODE_TYPE, _NODE_DOMAIN, _NODE_NAME))
    return Node(kind, domain, name, tuple(texts.get(_NODE_INPUT, ())), tuple(texts.get(_NODE_OUTPUT, ())), fields)


def _constant(data: memoryview) -> Constant:
    fields = _fields(data)
    external = _EXTERNAL in _integers(fields, _TENSOR_LOCATION)
    kind = next(_integers(fields, _TENSOR_TYPE), 0)
    return Constant(_text(fields, _TENSOR_NAME), tuple(_integers(fields, _TENSOR_DIMS)), kind, external, fields)


def _tensor(name: str, data: np.ndarray) -> _Pieces:
    dims: list[_Field] = [(_TENSOR_DIMS, _VARINT, size) for size in data.shape]
    raw = np.ascontiguousarray(data).reshape(-1).data.cast("B")
    kind: _Field = (_TENSOR_TYPE, _VARINT, _TYPES[data.dtype])
    return _pieces([*dims, kind, _string(_TENSOR_NAME, name), (_TENSOR_RAW, _BYTES, raw)])


def _message(number: int, fields: Iterable[_Field]) -> _Field:
    return number, _BYTES, _pieces(fields)


def _string(number: int, text: str) -> _Field:
    # Names need not be valid UTF-8.
    return number, _BYTES, memoryview(text.encode(errors="surrogateescape"))


def _messages(fields: Iterable[_Field], number: int) -> Iterator[memoryview]:
    return (value for found, _, value in fields if found == number and isinstance(value, memoryview))


def _text(fields: Iterable[_Field], number: int) -> str:
    return next((str(value, "utf-8", "surrogateescape") for value in _messages(fields, number)), "")


def _integers(fields: Iterable[_Field], number: int) -> Iterator[int]:
    """Values of a repeated integer field, packed or not."""
    for found, _, value in fields:
        if found != number:
            continue
        if not isinstance(value, memoryview):
            if isinstance(value, int):
                yield value
            continue
        position = 0
        while position < len(value):
            integer, position = _varint(value, position)
            yield integer


def _fields(data: memoryview) -> list[_Field]:
    """The fields of a message, with views of it as their values."""
    found: list[_Field] = []
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            found.append((number, wire, value))
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        else:
            size = _FIXED_SIZES.get(wire, end)
        if not number or position + size > end:
            raise FormatError("not an ONNX file, or a damaged or truncated one")
        found.append((number, wire, data[position : position + size]))
        position += size
    return found


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[position : position + 10]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise FormatError("not an ONNX file, or a damaged or truncated one")


def _pieces(fields: Iterable[_Field]) -> _Pieces:
    """The encoded fields of a message."""
    found: _Pieces = []
    for number, wire, value in fields:
        found.append(_packed(number << 3 | wire))
        if isinstance(value, int):
            found.append(_packed(value))
        elif isinstance(value, list):
            found.append(_packed(sum(map(len, value))))
            found += value
        elif wire == _BYTES:
            found += (_packed(len(value)), value)
        else:
            found.append(value)
    return found


def _packed(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
