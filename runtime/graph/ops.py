"""The operations of a graph: attributes, output shapes, multiply-accumulates, and the traits that other modules read.

A new operation needs a class here, a function in ``reference.py``, one entry in the table of each reader and writer
(``runtime/formats``, ``export/formats``) and one in the tables of the kernels that run it (``runtime/memory/tflm.py``,
``export/quantization/fake_quantize.py``). Rewrites and quantization ask for its traits, not for its name.

Padding is explicit, (top, bottom, left, right): zeros for a convolution, ignored by the pools.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

Shape = tuple[int, ...]
Pads = tuple[int, int, int, int]
Activation = Literal["none", "relu", "relu6"]

NO_PADS: Pads = (0, 0, 0, 0)


@dataclass(frozen=True)
class Op:
    """One operation: the names of its input tensors and of its output tensor, which is its own name too."""

    inputs: tuple[str, ...]
    output: str

    # Each output value depends only on the input values at the same index.
    elementwise: ClassVar[bool] = False
    # Each output row depends only on a window of input rows, so that tiles of the output can be computed separately.
    row_local: ClassVar[bool] = False
    # Each output value is a value of an input or a constant, never a computed one.
    selects_values: ClassVar[bool] = False
    # Integer kernels do not rescale: inputs and output share scale and zero point (TFLite's quantization spec).
    requires_same_scale: ClassVar[bool] = False
    # Scale and zero point that TFLite's kernels prescribe for the output, by its type.
    fixed_output_scale: ClassVar[Mapping[str, tuple[float, int]]] = MappingProxyType({})

    @property
    def name(self) -> str:
        """Name of the operation: that of its output tensor."""
        return self.output

    @property
    def kind(self) -> str:
        """Name of the operation's class, for messages and JSON."""
        return type(self).__name__

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for these input shapes. Raises ``ValueError`` or ``IndexError`` if they do not match."""
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

    row_local = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """Rows and columns from the dilated window's positions, channels from the weight."""
        x, weight, bias = shapes
        if weight[3] * self.groups != x[3] or weight[0] % self.groups or bias != weight[:1]:
            raise ValueError(f"weight {weight} and bias {bias} do not match input {x} in {self.groups} groups")
        return _slide(x, self.extent(*shapes), self.stride, self.padding, weight[0])

    def extent(self, *shapes: Shape) -> tuple[int, int]:
        """Rows and columns that a window spans, dilation included."""
        _, rows, columns, _ = shapes[1]
        return (rows - 1) * self.dilation[0] + 1, (columns - 1) * self.dilation[1] + 1

    def macs(self, *shapes: Shape) -> int:
        """Each output value takes one window of input values."""
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
        """The size of the weight, for each sample."""
        return shapes[0][0] * math.prod(shapes[1])


@dataclass(frozen=True)
class Pool(Op):
    """Common base of max and average pooling."""

    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Pads = NO_PADS

    row_local = True
    requires_same_scale = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """Rows and columns from the window's positions."""
        return _slide(shapes[0], self.window, self.stride, self.padding, shapes[0][3])

    def extent(self, *shapes: Shape) -> tuple[int, int]:
        """Rows and columns that a window spans."""
        return self.window


@dataclass(frozen=True)
class MaxPool(Pool):
    """Largest value in the window."""

    selects_values = True


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
    """A rectifier of its own, not fused into the operation before it."""

    activation: Activation = "relu"

    elementwise = True
    row_local = True


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape."""

    activation: Activation = "none"

    elementwise = True
    row_local = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """The shape of both."""
        if shapes[0] != shapes[1]:
            raise ValueError(f"shapes {shapes[0]} and {shapes[1]} differ")
        return shapes[0]


@dataclass(frozen=True)
class Concat(Op):
    """Concatenation along ``axis``."""

    axis: int = 3

    row_local = True
    selects_values = True
    requires_same_scale = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """Sizes along ``axis`` add up; all other sizes must be equal."""
        rests = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in shapes}
        if len(rests) != 1 or not 0 <= self.axis < len(shapes[0]):
            raise ValueError(f"shapes {shapes} cannot be joined along axis {self.axis}")
        total = sum(shape[self.axis] for shape in shapes)
        return (*shapes[0][: self.axis], total, *shapes[0][self.axis + 1 :])


@dataclass(frozen=True)
class Reshape(Op):
    """The same values in another shape, in NHWC order."""

    shape: Shape = ()

    selects_values = True
    requires_same_scale = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """``shape``, which must have the same number of elements."""
        if math.prod(self.shape) != math.prod(shapes[0]):
            raise ValueError(f"shape {shapes[0]} cannot become {self.shape}")
        return self.shape


@dataclass(frozen=True)
class Pad(Op):
    """Rows and columns of ``value`` (a real number) around the image."""

    padding: Pads = NO_PADS
    value: float = 0.0

    row_local = True
    selects_values = True
    requires_same_scale = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """Rows and columns with the padding."""
        n, h, w, c = shapes[0]
        return n, h + self.padding[0] + self.padding[1], w + self.padding[2] + self.padding[3], c


@dataclass(frozen=True)
class Slice(Op):
    """The part of ``size`` that starts at index ``begin`` along each axis."""

    begin: Shape = ()
    size: Shape = ()

    row_local = True
    selects_values = True
    requires_same_scale = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """``size``, which must lie within the input."""
        parts = list(zip(self.begin, self.size, shapes[0], strict=True))
        if any(begin < 0 or size < 1 or begin + size > extent for begin, size, extent in parts):
            raise ValueError(f"{self.size} from {self.begin} on is not within {shapes[0]}")
        return self.size


@dataclass(frozen=True)
class Transpose(Op):
    """A permutation of the axes; files by other converters have some around subgraphs that are NHWC."""

    order: tuple[int, ...] = ()

    selects_values = True
    requires_same_scale = True

    def output_shape(self, *shapes: Shape) -> Shape:
        """The input's sizes in ``order``."""
        if sorted(self.order) != list(range(len(shapes[0]))):
            raise ValueError(f"{self.order} is not a permutation of the axes of {shapes[0]}")
        return tuple(shapes[0][axis] for axis in self.order)


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax over the last axis."""

    # Integers cover 0 to 1.
    fixed_output_scale = MappingProxyType({"int8": (1 / 256, -128), "int16": (1 / 32768, 0)})


@dataclass(frozen=True)
class Quantize(Op):
    """Float32 values, or integers of another scale, to integers."""

    elementwise = True
    row_local = True


@dataclass(frozen=True)
class Dequantize(Op):
    """Integers to float32 values."""

    elementwise = True
    row_local = True


# Operations of (x, weight, bias), and those that can fuse the rectifier behind them.
Layer = Conv | FullyConnected
Fusing = Conv | FullyConnected | Add
# Operations that slide a window over rows and columns.
Windowed = Conv | Pool


def same_pads(size: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding along one dimension, (before, after); ``window`` includes dilation."""
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def rename(op: Op, names: Mapping[str, str]) -> Op:
    """The operation with some of its tensors renamed."""
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
