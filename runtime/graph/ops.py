"""The operations of a graph: their attributes, the shapes they make and the multiply-accumulates they take.

Padding is explicit, (top, bottom, left, right), and never counts: zeros for a convolution, ignored by the pools.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Shape = tuple[int, ...]
Pads = tuple[int, int, int, int]
Activation = Literal["none", "relu", "relu6"]

NO_PADS: Pads = (0, 0, 0, 0)


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


# Values per pixel and their order stay what they are through these.
ELEMENTWISE = (Relu, Quantize, Dequantize)


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
