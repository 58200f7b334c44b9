"""Which rows and columns of its inputs an operation reads."""

from dataclasses import dataclass

from ...graph import Graph, Op, Shape, ops
from .graph import Mean, Real, Sums


@dataclass(frozen=True)
class Window:
    """The rows (or columns) of an input that row ``y`` of the output reads: ``extent`` from ``y * stride - before``."""

    extent: int = 1
    stride: int = 1
    before: int = 0

    @property
    def is_pointwise(self) -> bool:
        """True if row ``y`` reads row ``y`` alone."""
        return (self.extent, self.stride, self.before) == (1, 1, 0)

    def start(self, y: int) -> int:
        """The first row that row ``y`` reads, negative in the padding."""
        return y * self.stride - self.before


@dataclass(frozen=True)
class Read:
    """One activation that an operation reads, with its windows; ``padded`` reads include rows beyond the tensor."""

    tensor: str
    rows: Window
    columns: Window
    padded: bool = False


def driving_shape(graph: Graph, op: Op) -> Shape:
    """The shape whose rows and columns an operation goes through: its output's, or its input's if it only adds up."""
    return graph.tensors[op.inputs[0] if isinstance(op, Sums) else op.output].shape


def reads_of(graph: Graph, op: Op) -> tuple[Read, ...]:
    """The activations that an operation reads."""
    shape = graph.tensors[op.inputs[0]].shape
    if isinstance(op, ops.Windowed):
        extent = op.extent(*graph.shapes(op))
        rows, columns = (Window(extent[axis], op.stride[axis], op.padding[2 * axis]) for axis in (0, 1))
        return (Read(op.inputs[0], rows, columns, isinstance(op, ops.Conv)),)
    if isinstance(op, ops.Reshape | ops.Transpose):
        return (Read(op.inputs[0], Window(shape[1], 0), Window(shape[2], 0)),)
    if isinstance(op, ops.Pad):
        return (Read(op.inputs[0], Window(before=op.padding[0]), Window(before=op.padding[2])),)
    if isinstance(op, ops.Slice):
        return (Read(op.inputs[0], Window(before=-op.begin[1]), Window(before=-op.begin[2])),)
    if isinstance(op, ops.Concat) and op.axis != 3:
        reads, at = [], 0
        for name in op.inputs:
            rows, columns = (Window(before=at if axis == op.axis else 0) for axis in (1, 2))
            reads.append(Read(name, rows, columns))
            at += graph.tensors[name].shape[op.axis]
        return tuple(reads)
    names = op.inputs[:1] if isinstance(op, Mean | Real) else op.inputs
    return tuple(Read(name, Window(), Window()) for name in dict.fromkeys(names))
