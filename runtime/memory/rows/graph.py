"""A quantized graph in the form that a row plan and the C compiler take: images, int8, and nothing that only renames.

The rewrites are exact. Every activation becomes (1, height, width, channels) of int8; uint8 tensors lose 128, in values
and zero points. A fully connected layer becomes a convolution, over the whole image where its input was a flattened
one. Padding with the zero point moves into the convolutions that read it; reshapes that move no value disappear.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Op, Quantization, Shape, Tensor, ops
from ...graph.reference import run_operation
from ...graph.rewrite import integer_ends

# Integers that do not fit 8 bits, or real numbers, have no kernels in C.
_TYPES = ("int8", "uint8")
# The types of sums, and of real numbers, which are no images; all others are int8.
SUM_BYTES = {"int16": 2, "int32": 4, "float32": 4}
# Quotients of such scales, and their products with integers, are finite in float32.
_LEAST_SCALE, _GREATEST_SCALE = 1e-16, 1e16
# Most rows with padding, which the state of a network counts in 16 bits.
MOST_ROWS = 65535
# A sum of so many pixels has at most 16 bits.
_SHORT_SUMS = 65535 // 255
# Most rows and columns of an image. Generated C counts them, and rows of padding, in 16 bits.
_MOST_ROWS = 32767


@dataclass(frozen=True)
class Sums(Op):
    """Sums of the integers less their zero point over rows and columns, (1, 1, 1, C) of int32.

    Sums of few pixels are int16: the low 16 bits, which tell the sum because the range of all sums is not wider.
    """

    def output_shape(self, *shapes: Shape) -> Shape:
        """(N, 1, 1, C)."""
        return shapes[0][0], 1, 1, shapes[0][3]


@dataclass(frozen=True)
class Mean(Op):
    """The second half of a global average: (sums, x, border) become means over ``pixels`` pixels.

    The sums cover ``x``; the other pixels all have the values of the constant ``border``. A 1x1 convolution with
    padding, as in SqueezeNet v1.0, gives every padded pixel the values of its bias alone.
    """

    scale: float = 1.0
    outside: int = 0

    def output_shape(self, *shapes: Shape) -> Shape:
        """The shape of the sums."""
        return shapes[0]


@dataclass(frozen=True)
class Real(Op):
    """Real numbers from int32 sums: (sums, scale, border), the sums as in ``Mean``, times the scale of each channel."""

    outside: int = 0
    activation: ops.Activation = "none"

    def output_shape(self, *shapes: Shape) -> Shape:
        """The shape of the sums."""
        return shapes[0]


def row_graph(graph: Graph, *, real_output: bool = False) -> Graph:
    """The graph as images of int8, with the names of the activations unchanged.

    With ``real_output`` the output is float32, computed from the sums of the last operation without a rounding to int8,
    if that is a global average or a layer over the whole image. Raises ``UnsupportedError`` for a graph that is not
    quantized to 8 bits, has several inputs or outputs or a batch, has more than 32,767 rows or columns, or has
    an operation without kernel.
    """
    graph = integer_ends(graph)
    _check(graph)
    tensors = {name: _as_int8(tensor) for name, tensor in graph.tensors.items()}
    builder = _Builder(graph, {name: replace(tensor, shape=image_shape(tensor)) for name, tensor in tensors.items()})
    for op in graph.ops:
        builder.add(op)
    found = _averages(_padded(builder.graph()))
    return _viewable(_real(found) if real_output else found)


def image_shape(tensor: Tensor) -> Shape:
    """The shape of an activation as an image: the last axis has the channels, those before it are rows and columns."""
    if tensor.data is not None or len(tensor.shape) == 4:
        return tensor.shape
    middle = tensor.shape[1:-1]
    return (1, 1, math.prod(middle), tensor.shape[-1] if len(tensor.shape) > 1 else 1)


def _check(graph: Graph) -> None:
    for what, names in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if len(names) != 1:
            raise UnsupportedError(f"{graph.name} has {len(names)} {what}; C is generated for networks with one")
    for tensor in graph.activations:
        if tensor.dtype not in _TYPES or tensor.quantization is None:
            raise UnsupportedError(
                f"{tensor.name!r} of {graph.name} is {tensor.dtype}; C is generated for int8 graphs: export the model "
                "with --precision int8"
            )
        if tensor.quantization.axis is not None:
            raise UnsupportedError(f"{tensor.name!r} has a scale for each channel; quantize activations per tensor")
        if (len(tensor.shape) > 1 and tensor.shape[0] != 1) or len(tensor.shape) > 4:
            raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}; C is generated for a batch of 1")
        if max(image_shape(tensor)[1:3]) > _MOST_ROWS:
            raise UnsupportedError(
                f"{tensor.name!r} has shape {tensor.shape}; C is generated for at most {_MOST_ROWS:,} rows and "
                "columns; use a smaller image"
            )
        _check_numbers(tensor, tensor.quantization)


def _check_numbers(tensor: Tensor, found: Quantization) -> None:
    """Raise ``UnsupportedError`` for numbers of an activation that would not fit the types of the generated C."""
    if not _LEAST_SCALE <= found.scale[0] <= _GREATEST_SCALE:
        raise UnsupportedError(
            f"{tensor.name!r} has the scale {found.scale[0]:g}; C is generated for scales from {_LEAST_SCALE:g} to "
            f"{_GREATEST_SCALE:g}"
        )
    limits = np.iinfo(tensor.dtype)
    if not limits.min <= found.zero_point <= limits.max:
        raise UnsupportedError(
            f"{tensor.name!r} has the zero point {found.zero_point}, which {tensor.dtype} does not hold"
        )


def _as_int8(tensor: Tensor) -> Tensor:
    if tensor.dtype != "uint8" or tensor.quantization is None:
        return tensor
    quantization = replace(tensor.quantization, zero_point=tensor.quantization.zero_point - 128)
    data = None if tensor.data is None else (tensor.data.astype(np.int16) - 128).astype(np.int8)
    return replace(tensor, dtype="int8", quantization=quantization, data=data)


class _Builder:
    """Collects the operations of the new graph; ``names`` maps activations that disappear to those that stay."""

    def __init__(self, graph: Graph, tensors: dict[str, Tensor]):
        self.source = graph
        self.tensors = tensors
        self.ops: list[Op] = []
        self.names: dict[str, str] = {}
        # Flattened images by the name of the flattened tensor.
        self.images: dict[str, str] = {}

    def add(self, op: Op) -> None:
        rewrite = _REWRITES.get(type(op), _Builder.elementwise if is_table(op) else None)
        if rewrite is None:
            raise UnsupportedError(f"{op.kind} {op.name!r} has no kernel in C; run the file in a runtime instead")
        inputs = tuple(self.names.get(name, name) for name in op.inputs)
        rewrite(self, replace(op, inputs=inputs))

    def emit(self, op: Op) -> None:
        self.ops.append(op)

    def layer(self, op: Any) -> None:
        x, weight, bias = (self.tensors[name] for name in op.inputs)
        if isinstance(op, ops.FullyConnected):
            image = self.images.get(op.inputs[0])
            shape = self.tensors[image].shape[1:] if image else (1, 1, weight.shape[1])
            kernel = replace(weight, shape=(weight.shape[0], *shape))
            if weight.data is not None:
                kernel = replace(kernel, data=weight.data.reshape(kernel.shape))
            weight = kernel
            inputs = (image or op.inputs[0], *op.inputs[1:])
            op = ops.Conv(inputs, op.output, activation=op.activation)
            if image is None and x.shape[1:] != shape:
                raise UnsupportedError(f"FullyConnected {op.name!r} reads {x.shape}; C is generated for one sample")
        self.tensors[op.inputs[1]] = _centered_weight(op, weight)
        self.tensors[op.inputs[2]] = _integer_bias(op, x, weight, bias)
        self.emit(op)

    def reshape(self, op: ops.Reshape) -> None:
        source, target = self.tensors[op.inputs[0]], self.tensors[op.output]
        origin = self.images.get(op.inputs[0], op.inputs[0])
        same = self.tensors[origin].shape == target.shape
        if same and source.quantization == target.quantization:
            self.names[op.output] = origin
            return
        if target.shape[1:3] == (1, 1) and source.quantization == target.quantization:
            # Layers read the image itself, so this copy may have no reader, and disappears.
            self.images[op.output] = origin
        self.emit(replace(op, inputs=(origin,), shape=target.shape))

    def concat(self, op: ops.Concat) -> None:
        axis = op.axis + 4 - len(self.source.tensors[op.output].shape)
        if axis == 0:
            raise UnsupportedError(f"Concat {op.name!r} joins images of a batch; C is generated for a batch of 1")
        inputs = tuple(self.rescaled(name, op) for name in op.inputs)
        self.emit(replace(op, inputs=inputs, axis=axis))

    def rescaled(self, name: str, op: Op) -> str:
        """The tensor with the quantization of the output of ``op``."""
        tensor, wanted = self.tensors[name], self.tensors[op.output].quantization
        if tensor.quantization == wanted:
            return name
        new = f"{op.output}/{name}"
        if new in self.tensors:
            return new
        self.tensors[new] = replace(tensor, name=new, quantization=wanted, data=None)
        self.emit(ops.Quantize((name,), new))
        return new

    def elementwise(self, op: Op) -> None:
        """An operation of one tensor, which becomes a table of 256 values; none if it changes nothing."""
        same = self.tensors[op.inputs[0]].quantization == self.tensors[op.output].quantization
        if same and isinstance(op, ops.Quantize):
            self.names[op.output] = op.inputs[0]
        else:
            self.emit(op)

    def pad(self, op: ops.Pad) -> None:
        self.emit(replace(op, inputs=(self.rescaled(op.inputs[0], op),)))

    def slice(self, op: ops.Slice) -> None:
        missing = 4 - len(op.begin)
        if missing and len(op.begin) != 2:
            raise UnsupportedError(f"Slice {op.name!r} reads {len(op.begin)} axes; C is generated for images of 4 axes")
        begin, size = (0,) * missing + op.begin, (1,) * missing + op.size
        self.emit(replace(op, begin=begin, size=size))

    def transpose(self, op: ops.Transpose) -> None:
        if len(op.order) != 4 or op.order[0] != 0:
            raise UnsupportedError(f"Transpose {op.name!r} has order {op.order}; C is generated for images")
        self.emit(op)

    def graph(self) -> Graph:
        output = self.names.get(self.source.outputs[0], self.source.outputs[0])
        return Graph.of(self.source.name, self.tensors.values(), self.ops, self.source.inputs, (output,))


_REWRITES: Mapping[type[Op], Any] = {
    ops.Conv: _Builder.layer,
    ops.FullyConnected: _Builder.layer,
    ops.MaxPool: _Builder.emit,
    ops.AveragePool: _Builder.emit,
    ops.GlobalAveragePool: _Builder.emit,
    ops.Add: _Builder.emit,
    ops.Concat: _Builder.concat,
    ops.Reshape: _Builder.reshape,
    ops.Pad: _Builder.pad,
    ops.Slice: _Builder.slice,
    ops.Transpose: _Builder.transpose,
    ops.Softmax: _Builder.emit,
}


def _centered_weight(op: Op, weight: Tensor) -> Tensor:
    """The weight without zero point."""
    if weight.data is None or weight.quantization is None or weight.dtype not in _TYPES:
        raise UnsupportedError(f"{op.kind} {op.name!r} has {weight.dtype} weights; C is generated for int8 weights")
    centered = weight.data.astype(np.int16) - weight.quantization.zero_point
    if centered.min() < -128 or centered.max() > 127:
        zero = weight.quantization.zero_point
        raise UnsupportedError(f"{op.kind} {op.name!r} has weights with zero point {zero} that do not fit int8")
    return replace(
        weight, dtype="int8", data=centered.astype(np.int8), quantization=replace(weight.quantization, zero_point=0)
    )


def _integer_bias(op: Op, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The bias as integers on the scale of the sums."""
    if bias.data is None:
        raise UnsupportedError(f"{op.kind} {op.name!r} has a computed bias; C is generated for constant ones")
    if bias.dtype != "float32":
        values = bias.data.astype(np.int64)
    else:
        assert x.quantization is not None and weight.quantization is not None
        with np.errstate(all="ignore"):
            steps = np.float32(x.quantization.scale[0]) * np.asarray(weight.quantization.scale, np.float32)
            values = np.rint(bias.data / steps)
    # Not a number, after a division by a scale that underflows, compares as false.
    if not (np.abs(values) < 2**31).all():
        raise UnsupportedError(f"{op.kind} {op.name!r} has a bias beyond 32 bits; quantize with a larger scale")
    return replace(bias, dtype="int32", data=values.astype(np.int32), quantization=None)


def _padded(graph: Graph) -> Graph:
    """The graph with padding by the zero point moved into the convolutions behind it."""
    moved: dict[str, ops.Pad] = {}
    for op in graph.ops:
        readers = graph.consumers[op.output]
        zero = graph.tensors[op.output].quantization
        if (
            isinstance(op, ops.Pad)
            and op.output not in graph.outputs
            and readers
            and all(isinstance(reader, ops.Conv) for reader in readers)
            and zero is not None
            and int(zero.quantize(np.array(op.value), "int8")) == zero.zero_point
            and graph.tensors[op.inputs[0]].quantization == zero
        ):
            moved[op.output] = op
    operations = [
        replace(
            op,
            inputs=(moved[op.inputs[0]].inputs[0], *op.inputs[1:]),
            padding=tuple(a + b for a, b in zip(op.padding, moved[op.inputs[0]].padding, strict=True)),
        )
        if isinstance(op, ops.Conv) and op.inputs[0] in moved
        else op
        for op in graph.ops
    ]
    return Graph.of(graph.name, graph.tensors.values(), operations, graph.inputs, graph.outputs)


def _averages(graph: Graph) -> Graph:
    """The graph with each global average as sums and their means.

    If it reads a 1x1 convolution with padding, the convolution loses the padding: these pixels are constant.
    """
    tensors, operations = dict(graph.tensors), list[Op]()
    for op in graph.ops:
        reader = graph.only_consumer(op.output)
        if isinstance(op, ops.Conv) and isinstance(reader, ops.GlobalAveragePool) and _is_padded_pixelwise(graph, op):
            operations.append(replace(op, padding=ops.NO_PADS))
            rows, columns = graph.tensors[op.inputs[0]].shape[1:3]
            tensors[op.output] = replace(tensors[op.output], shape=(1, rows, columns, tensors[op.output].shape[3]))
        elif isinstance(op, ops.GlobalAveragePool):
            operations += _average(graph, op, tensors)
        else:
            operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _average(graph: Graph, op: Op, tensors: dict[str, Tensor]) -> list[Op]:
    (x,) = op.inputs
    before, after = quantization_of(graph, x).scale[0], quantization_of(graph, op.output).scale[0]
    count = math.prod(graph.tensors[x].shape[1:3])
    outside = count - math.prod(tensors[x].shape[1:3])
    sums, border = f"{op.output}/sums", f"{op.output}/border"
    channels = (1, 1, 1, graph.tensors[x].shape[3])
    short = math.prod(tensors[x].shape[1:3]) <= _SHORT_SUMS
    tensors[sums] = Tensor(sums, channels, "int16" if short else "int32")
    scale = np.float32(before) / (np.float32(after) * np.float32(count))
    inputs = (sums,)
    if outside:
        conv = graph.producers[x]
        data = _bias_alone(graph, conv).reshape(channels)
        tensors[border] = Tensor(border, channels, "int8", quantization_of(graph, x), data)
        inputs = (sums, border)
    return [Sums((x,), sums), Mean(inputs, op.output, float(scale), outside)]


def _real(graph: Graph) -> Graph:
    """The graph with a real output, if its last operation computes it from sums."""
    tensors, (name,) = dict(graph.tensors), graph.outputs
    op = graph.producers.get(name)
    scale, real = f"{name}/scale", f"{name}/real"
    channels = (1, 1, 1, graph.tensors[name].shape[3])
    if isinstance(op, Mean):
        factors = np.full(channels, op.scale * quantization_of(graph, name).scale[0], np.float32)
        last: list[Op] = [Real((op.inputs[0], scale, *op.inputs[1:]), real, op.outside)]
    elif isinstance(op, ops.Conv) and graph.tensors[name].shape == channels and op.groups == 1:
        weights = np.asarray(quantization_of(graph, op.inputs[1]).scale, np.float32)
        factors = np.broadcast_to(np.float32(quantization_of(graph, op.inputs[0]).scale[0]) * weights, channels)
        sums = f"{name}/sums"
        tensors[sums] = Tensor(sums, channels, "int32")
        linear = replace(op, output=sums, activation="none")
        last = [linear, Real((sums, scale), real, activation=op.activation)]
    else:
        return graph
    tensors[scale] = Tensor(scale, channels, data=np.ascontiguousarray(factors))
    tensors[real] = Tensor(real, channels)
    operations = [other for other in graph.ops if other is not op]
    return Graph.of(graph.name, tensors.values(), [*operations, *last], graph.inputs, (real,))


def _is_padded_pixelwise(graph: Graph, op: ops.Conv) -> bool:
    window = graph.tensors[op.inputs[1]].shape[1:3]
    return any(op.padding) and window == (1, 1) and op.stride == (1, 1) and op.groups == 1


def _viewable(graph: Graph) -> Graph:
    """The graph with a copy of each operand that cannot be computed inside the output of its channel concat."""
    tensors, operations = dict(graph.tensors), list[Op]()
    taken = {*graph.inputs, *graph.outputs}
    for op in graph.ops:
        if isinstance(op, ops.Concat) and op.axis == 3:
            inputs = []
            for position, name in enumerate(op.inputs):
                if name in taken:
                    copy = f"{op.output}/{position}"
                    tensors[copy] = replace(tensors[name], name=copy)
                    operations.append(ops.Quantize((name,), copy))
                    name = copy
                taken.add(name)
                inputs.append(name)
            op = replace(op, inputs=tuple(inputs))
        operations.append(op)
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def _bias_alone(graph: Graph, op: Op) -> np.ndarray:
    """What a convolution gives where its whole window is padding, by channel: int8."""
    x = graph.tensors[op.inputs[0]]
    assert x.quantization is not None
    output = replace(graph.tensors[op.output], shape=(1, 1, 1, graph.tensors[op.output].shape[3]))
    pixel = np.full((1, 1, 1, x.shape[3]), x.quantization.zero_point, np.int8)
    tensors = {**graph.tensors, x.name: replace(x, shape=pixel.shape), output.name: output}
    alone = replace(op, padding=ops.NO_PADS)  # pyright: ignore[reportCallIssue]
    return run_operation(_Operands(tensors), alone, {x.name: pixel}).reshape(-1)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _Operands:
    """The tensors of a single operation, where a whole graph is not needed."""

    tensors: Mapping[str, Tensor]


def is_table(op: Op) -> bool:
    """True for an elementwise operation of one tensor: a table of its 256 values is its kernel."""
    return op.elementwise and len(op.inputs) == 1


def table_of(graph: Graph, op: Op) -> np.ndarray:
    """The output of an elementwise operation of one tensor for each input, from -128 on: int8, shape (256,)."""
    x, y = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    shape = (1, 1, 1, 256)
    tensors = {x.name: replace(x, shape=shape), y.name: replace(y, shape=shape)}
    values = np.arange(-128, 128).astype(np.int8).reshape(shape)
    return run_operation(_Operands(tensors), op, {x.name: values}).reshape(-1)  # pyright: ignore[reportArgumentType]


def real_output(graph: Graph, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The real output of a row graph, float32, from the int8 activations by name: what generated C must give."""
    (name,) = graph.outputs
    op = graph.producers.get(name)
    if not isinstance(op, Real):
        return quantization_of(graph, name).dequantize(values[name])
    before = graph.producers[op.inputs[0]]
    x = values[before.inputs[0]]
    if isinstance(before, Sums):
        # The reference has the constant pixels around the image in place.
        pixels = x.reshape(-1, x.shape[-1]).astype(np.int32)
        sums = (pixels - quantization_of(graph, before.inputs[0]).zero_point).sum(0, dtype=np.int32)
    else:
        sums = _layer_sums(graph, before, x.reshape(graph.tensors[before.inputs[0]].shape))
    real = sums.reshape(-1).astype(np.float32) * graph.tensors[op.inputs[1]].real().reshape(-1)
    limits = {"none": (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}[op.activation]
    return np.clip(real, *limits).astype(np.float32)


def _layer_sums(graph: Graph, op: Op, x: np.ndarray) -> np.ndarray:
    """The sums of a convolution with a single window, int32."""
    weight, bias = (graph.tensors[name].data for name in op.inputs[1:])
    assert weight is not None and bias is not None and isinstance(op, ops.Conv)
    window = np.zeros(weight.shape[1:], np.int64)
    top, _, left, _ = op.padding
    centered = x[0].astype(np.int64) - quantization_of(graph, op.inputs[0]).zero_point
    rows = np.arange(weight.shape[1]) * op.dilation[0] - top
    columns = np.arange(weight.shape[2]) * op.dilation[1] - left
    inside = np.ix_((rows >= 0) & (rows < x.shape[1]), (columns >= 0) & (columns < x.shape[2]))
    kept = np.ix_(rows[(rows >= 0) & (rows < x.shape[1])], columns[(columns >= 0) & (columns < x.shape[2])])
    window[inside] = centered[kept]
    return np.tensordot(weight.astype(np.int64), window, 3) + bias


def quantization_of(graph: Graph, name: str) -> Quantization:
    """The quantization of an activation, which every one has."""
    found = graph.tensors[name].quantization
    assert found is not None
    return found
