"""The spine: a small, framework-free, immutable representation of a network.

Activations are NHWC (or N, C once flattened). A convolution's weight is OHWI: (out, height, width, in / groups); a
fully connected layer's is (out, in). Integer tensors carry the affine quantization ``real = scale * (q - zero_point)``
(Jacob et al., arXiv 1712.05877, section 2.1). Padding is explicit, (top, bottom, left, right), and never counts:
zeros for a convolution, ignored by the pools.

Layers between float32 activations may have weights of fewer bits: float16, or int8 with their scales. That is all a
graph says of them; whether a runtime turns them into float32, or the activations into integers, is its own affair.

Everything else in firebox is a function from graph to graph, from file to graph, or from graph to file or figures.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np

from ..errors import UnsupportedError

Shape = tuple[int, ...]
Pads = tuple[int, int, int, int]
DType = Literal["float32", "float16", "int8", "uint8", "int16", "int32", "int64"]
Activation = Literal["none", "relu", "relu6"]

NO_PADS: Pads = (0, 0, 0, 0)
_MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (q - zero_point)``: one scale per tensor, or one per index of ``axis``."""

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Integers to float32."""
        return (values.astype(np.float32) - np.float32(self.zero_point)) * self._along(values.ndim)

    def quantize(self, values: np.ndarray, dtype: str) -> np.ndarray:
        """Reals to integers of ``dtype``, rounded half to even and saturated."""
        limits = np.iinfo(dtype)
        rounded = np.rint(np.asarray(values, np.float32) / self._along(values.ndim)) + self.zero_point
        return np.clip(rounded, limits.min, limits.max).astype(dtype)

    def _along(self, ndim: int) -> np.ndarray:
        scale = np.asarray(self.scale, np.float32)
        if self.axis is None:
            return scale.reshape(())
        return scale.reshape([-1 if axis == self.axis else 1 for axis in range(ndim)])


@dataclass(frozen=True)
class Tensor:
    """A named array: an activation, or a constant when ``data`` is there."""

    name: str
    shape: Shape
    dtype: DType = "float32"
    quantization: Quantization | None = None
    data: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def real(self) -> np.ndarray:
        """The constant's values as float32."""
        assert self.data is not None
        return self.quantization.dequantize(self.data) if self.quantization else self.data.astype(np.float32)


@dataclass(frozen=True)
class Op:
    """One operation: the names of the tensors it takes and of the one it makes, which is its own name too."""

    inputs: tuple[str, ...]
    output: str

    @property
    def name(self) -> str:
        """What it is called: the tensor it makes."""
        return self.output

    @property
    def kind(self) -> str:
        """Name of the operation, for people and JSON."""
        return type(self).__name__

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for these input shapes."""
        return shapes[0]

    def macs(self, *shapes: Shape) -> int:
        """Multiply-accumulates for these input shapes."""
        return 0


@dataclass(frozen=True)
class Conv(Op):
    """Two-dimensional convolution of (x, weight, bias); depthwise when ``groups`` is the number of channels."""

    stride: tuple[int, int] = (1, 1)
    padding: Pads = NO_PADS
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = "none"

    def output_shape(self, *shapes: Shape) -> Shape:
        """Rows and columns that the (dilated) window reaches; ValueError when channels do not match."""
        x, weight, bias = shapes
        if weight[3] * self.groups != x[3] or weight[0] % self.groups or bias != weight[:1]:
            raise ValueError(f"weight {weight} and bias {bias} do not match input {x} in {self.groups} groups")
        window = tuple((k - 1) * d + 1 for k, d in zip(weight[1:3], self.dilation, strict=True))
        return _slide(x, (window[0], window[1]), self.stride, self.padding, weight[0])

    def macs(self, *shapes: Shape) -> int:
        """Every output value takes one window of input values."""
        return math.prod(self.output_shape(*shapes)) * math.prod(shapes[1][1:])


@dataclass(frozen=True)
class FullyConnected(Op):
    """Matrix product of (x, weight, bias)."""

    activation: Activation = "none"

    def output_shape(self, *shapes: Shape) -> Shape:
        """(N, out)."""
        x, weight, bias = shapes
        if len(x) != 2 or weight[1] != x[1] or bias != weight[:1]:
            raise ValueError(f"weight {weight} and bias {bias} do not match input {x}")
        return x[0], weight[0]

    def macs(self, *shapes: Shape) -> int:
        """The size of the weight, for every sample."""
        return shapes[0][0] * math.prod(shapes[1])


@dataclass(frozen=True)
class Pool(Op):
    """What max and average pooling share."""

    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Pads = NO_PADS

    def output_shape(self, *shapes: Shape) -> Shape:
        """Rows and columns that the window reaches."""
        return _slide(shapes[0], self.window, self.stride, self.padding, shapes[0][3])


@dataclass(frozen=True)
class MaxPool(Pool):
    """Largest value in the window."""


@dataclass(frozen=True)
class AveragePool(Pool):
    """Mean of the values in the window; padding does not count."""


@dataclass(frozen=True)
class GlobalAveragePool(Op):
    """Mean over rows and columns, kept as (N, 1, 1, C)."""

    def output_shape(self, *shapes: Shape) -> Shape:
        """(N, 1, 1, C)."""
        return shapes[0][0], 1, 1, shapes[0][3]


@dataclass(frozen=True)
class Relu(Op):
    """A rectifier that no other operation has taken in."""

    activation: Activation = "relu"


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape."""

    activation: Activation = "none"

    def output_shape(self, *shapes: Shape) -> Shape:
        """The shape of both."""
        if shapes[0] != shapes[1]:
            raise ValueError(f"shapes {shapes[0]} and {shapes[1]} differ")
        return shapes[0]


@dataclass(frozen=True)
class Concat(Op):
    """Join along ``axis``."""

    axis: int = 3

    def output_shape(self, *shapes: Shape) -> Shape:
        """The sizes along ``axis`` add up; the others must be the same."""
        rests = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in shapes}
        if len(rests) != 1 or not 0 <= self.axis < len(shapes[0]):
            raise ValueError(f"shapes {shapes} cannot be joined along axis {self.axis}")
        total = sum(shape[self.axis] for shape in shapes)
        return (*shapes[0][: self.axis], total, *shapes[0][self.axis + 1 :])


@dataclass(frozen=True)
class Reshape(Op):
    """The same values in another shape, in NHWC order."""

    shape: Shape = ()

    def output_shape(self, *shapes: Shape) -> Shape:
        """``shape``, which must have as many elements."""
        if math.prod(self.shape) != math.prod(shapes[0]):
            raise ValueError(f"shape {shapes[0]} cannot become {self.shape}")
        return self.shape


@dataclass(frozen=True)
class Pad(Op):
    """Rows and columns of ``value`` (a real number) around the image."""

    padding: Pads = NO_PADS
    value: float = 0.0

    def output_shape(self, *shapes: Shape) -> Shape:
        """Rows and columns with the padding."""
        n, h, w, c = shapes[0]
        return n, h + self.padding[0] + self.padding[1], w + self.padding[2] + self.padding[3], c


@dataclass(frozen=True)
class Slice(Op):
    """The part of ``size`` that begins at the index ``begin`` along every axis."""

    begin: Shape = ()
    size: Shape = ()

    def output_shape(self, *shapes: Shape) -> Shape:
        """``size``, which must lie within the input."""
        parts = list(zip(self.begin, self.size, shapes[0], strict=True))
        if any(begin < 0 or size < 1 or begin + size > extent for begin, size, extent in parts):
            raise ValueError(f"{self.size} from {self.begin} on is not within {shapes[0]}")
        return self.size


@dataclass(frozen=True)
class Transpose(Op):
    """The axes in another order, as files of other makers have it around what is NHWC within."""

    order: tuple[int, ...] = ()

    def output_shape(self, *shapes: Shape) -> Shape:
        """Each axis as long as that of the input which ``order`` names."""
        if sorted(self.order) != list(range(len(shapes[0]))):
            raise ValueError(f"{self.order} is no order of the axes of {shapes[0]}")
        return tuple(shapes[0][axis] for axis in self.order)


@dataclass(frozen=True)
class Softmax(Op):
    """Over the last axis."""


@dataclass(frozen=True)
class Quantize(Op):
    """From float32, or from another quantization, to integers."""


@dataclass(frozen=True)
class Dequantize(Op):
    """From integers to float32."""


@dataclass(frozen=True)
class Graph:
    """Tensors by name, operations in an order in which they can run, and which tensors go in and out.

    Raises ``UnsupportedError`` when the parts contradict each other: an operation that uses what is not there yet,
    a shape that does not follow from the inputs.
    """

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        for tensor in self.tensors.values():
            _check_tensor(tensor)
        known = {name for name, tensor in self.tensors.items() if tensor.data is not None} | set(self.inputs)
        for op in self.ops:
            for name in op.inputs:
                if name not in known:
                    raise UnsupportedError(f"{op.kind} {op.name!r} uses {name!r} before anything makes it")
            self._check_shapes(op)
            known.add(op.output)
        for name in self.outputs:
            if name not in known:
                raise UnsupportedError(f"output {name!r} of {self.name} is not made by any operation")

    def _check_shapes(self, op: Op) -> None:
        try:
            expected = op.output_shape(*(self.tensors[name].shape for name in op.inputs))
        except (ValueError, IndexError) as error:
            raise UnsupportedError(f"{op.kind} {op.name!r} cannot run: {error}") from error
        if min(expected, default=1) < 1:
            raise UnsupportedError(f"{op.kind} {op.name!r} has an empty output {expected}; the input is too small")
        if self.tensors[op.output].shape != expected:
            shape = self.tensors[op.output].shape
            raise UnsupportedError(f"{op.kind} {op.name!r} gives {expected}, but {op.output!r} is declared {shape}")

    @classmethod
    def of(
        cls,
        name: str,
        tensors: Iterable[Tensor],
        ops: Iterable[Op],
        inputs: Iterable[str],
        outputs: Iterable[str],
    ) -> "Graph":
        """A graph of what the outputs need: operations and tensors that lead nowhere are left out."""
        outputs, inputs, needed, kept = tuple(outputs), tuple(inputs), set(outputs), []
        for op in reversed(list(ops)):
            if op.output in needed:
                needed.update(op.inputs)
                kept.append(op)
        used = {tensor.name: tensor for tensor in tensors if tensor.name in needed or tensor.name in inputs}
        return cls(name, used, tuple(reversed(kept)), inputs, outputs)

    def input_values(self, reals: np.ndarray) -> np.ndarray:
        """What the single input takes for real numbers of its shape (NHWC): these as float32, or its integers."""
        (name,) = self.inputs
        tensor = self.tensors[name]
        if tensor.quantization is None:
            return reals.astype(np.float32)
        return tensor.quantization.quantize(reals, tensor.dtype)

    def shapes(self, op: Op) -> list[Shape]:
        """Shapes of an operation's inputs."""
        return [self.tensors[name].shape for name in op.inputs]

    def op_macs(self, op: Op) -> int:
        """Multiply-accumulates of one operation."""
        return op.macs(*self.shapes(op))

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(self.op_macs(op) for op in self.ops)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(tensor.nbytes for tensor in self.tensors.values() if tensor.data is not None)

    @cached_property
    def activations(self) -> tuple[Tensor, ...]:
        """Everything that is not constant, in the order in which it comes to life."""
        names = dict.fromkeys([*self.inputs, *(op.output for op in self.ops)])
        return tuple(self.tensors[name] for name in names)

    @cached_property
    def producers(self) -> Mapping[str, Op]:
        """The operation that makes each tensor."""
        return {op.output: op for op in self.ops}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Op, ...]]:
        """The operations that use each tensor."""
        found: dict[str, list[Op]] = {name: [] for name in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    def only_consumer(self, name: str) -> Op | None:
        """The single operation that uses a tensor that is not an output of the network, if there is just one."""
        users = self.consumers[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> Tensor:
        """A tensor that must be constant. Raises ``UnsupportedError``."""
        tensor = self.tensors[name]
        if tensor.data is None:
            raise UnsupportedError(f"{name!r} must be constant, but is computed")
        return tensor


# Values per pixel and their order stay what they are through these.
ELEMENTWISE = (Relu, Quantize, Dequantize)


def flattened_image(graph: Graph, name: str) -> Shape | None:
    """The shape of the image that a tensor was flattened from, if it has more than one pixel."""
    op = graph.producers.get(name)
    while isinstance(op, ELEMENTWISE):
        op = graph.producers.get(op.inputs[0])
    if not isinstance(op, Reshape):
        return None
    shape = graph.tensors[op.inputs[0]].shape
    return shape if len(shape) == 4 and shape[1:3] != (1, 1) else None


def same_pads(size: int, window: int, stride: int) -> tuple[int, int]:
    """The padding TensorFlow calls SAME along one dimension, (before, after); ``window`` with its dilation."""
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def rename(op: Op, names: Mapping[str, str]) -> Op:
    """The operation with some of its tensors replaced."""
    return replace(
        op,
        inputs=tuple(names.get(name, name) for name in op.inputs),
        output=names.get(op.output, op.output),
    )


def _slide(x: Shape, window: tuple[int, int], stride: tuple[int, int], padding: Pads, channels: int) -> Shape:
    if len(x) != 4:
        raise ValueError(f"input {x} is not (N, height, width, channels)")
    if min(*window, *stride) < 1 or min(padding) < 0:
        raise ValueError(f"window {window}, stride {stride} or padding {padding} is not possible")
    top, bottom, left, right = padding
    rows = (x[1] + top + bottom - window[0]) // stride[0] + 1
    columns = (x[2] + left + right - window[1]) // stride[1] + 1
    return x[0], rows, columns, channels


def _check_tensor(tensor: Tensor) -> None:
    if any(size < 1 for size in tensor.shape):
        raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}; every dimension must be fixed and positive")
    if math.prod(tensor.shape) > _MAX_ELEMENTS:
        raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}, too large to be real")
    if tensor.data is not None and (tensor.data.shape != tensor.shape or tensor.data.dtype != tensor.dtype):
        raise UnsupportedError(f"{tensor.name!r} holds {tensor.data.dtype} {tensor.data.shape}, not {tensor.shape}")
