"""Tiling: a graph with one input and one output, rewritten to compute the same integers tile by tile.

Tiles are row stripes or two-dimensional patches (Alwani et al., Fused-layer CNN accelerators, MICRO 2016; Lin et al.,
MCUNetV2, arXiv 2110.15352, section 3). Each is computed from its receptive field in the input, halo included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...runtime.graph import Graph, Op, Shape, Tensor, ops

# The maximum number of inputs of a concatenation in XNNPACK; tflite-micro allows ten.
MAX_JOINED = 5


@dataclass(frozen=True)
class Region:
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a tensor, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def whole(cls, shape: Shape) -> "Region":
        """The whole of a tensor of ``shape``."""
        return cls(0, shape[1], 0, shape[2])

    def shifted(self, rows: int, columns: int) -> "Region":
        """The region shifted by ``rows`` and ``columns``."""
        return Region(self.top + rows, self.bottom + rows, self.left + columns, self.right + columns)

    def union(self, other: "Region") -> "Region":
        """The smallest region that contains both."""
        return Region(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )

    def shape(self, like: Shape) -> Shape:
        """Shape of the region in a tensor of shape ``like``."""
        return like[0], self.bottom - self.top, self.right - self.left, like[3]


def can_tile(graph: Graph) -> bool:
    """True if tiles of the output can be computed separately, each from a region of the input."""
    return all(_can_tile(graph, op) for op in graph.ops)


def _can_tile(graph: Graph, op: Op) -> bool:
    shapes = [graph.tensors[name].shape for name in (op.output, *op.inputs) if graph.tensors[name].data is None]
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
        return False
    if isinstance(op, ops.Concat):
        return op.axis == 3
    if isinstance(op, ops.Slice):
        return op.begin[3] == 0 and op.size[3] == shapes[1][3]
    if isinstance(op, ops.AveragePool):
        # TFLite's paddings cannot express the border of the image within a tile.
        return op.padding == ops.NO_PADS
    if graph.tensors[op.inputs[0]].dtype == "uint8":
        # tflite-micro has no uint8 slice.
        return False
    return op.row_local


def reach(graph: Graph, op: Op, region: Region) -> tuple[Region, ops.Pads]:
    """The input region that a region of an operation's output depends on, and the padding around it."""
    if isinstance(op, ops.Slice):
        return region.shifted(op.begin[1], op.begin[2]), ops.NO_PADS
    if isinstance(op, ops.Pad):
        wanted = region.shifted(-op.padding[0], -op.padding[2])
    elif isinstance(op, ops.Windowed):
        (rows, columns), (down, right) = op.extent(*graph.shapes(op)), op.stride
        wanted = Region(
            region.top * down - op.padding[0],
            (region.bottom - 1) * down - op.padding[0] + rows,
            region.left * right - op.padding[2],
            (region.right - 1) * right - op.padding[2] + columns,
        )
    else:
        return region, ops.NO_PADS
    _, height, width, _ = graph.tensors[op.inputs[0]].shape
    inside = Region(max(wanted.top, 0), min(wanted.bottom, height), max(wanted.left, 0), min(wanted.right, width))
    pads = (
        inside.top - wanted.top,
        wanted.bottom - inside.bottom,
        inside.left - wanted.left,
        wanted.right - inside.right,
    )
    return inside, pads


def needs(graph: Graph, region: Region) -> dict[str, Region]:
    """The region of each activation that a region of the output depends on."""
    found = {graph.outputs[0]: region}
    for op in reversed(graph.ops):
        inside, _ = reach(graph, op, found[op.output])
        for name in op.inputs:
            if graph.tensors[name].data is None:
                found[name] = found[name].union(inside) if name in found else inside
    return found


def tile(graph: Graph, bands: Sequence[Sequence[Region]]) -> Graph:
    """The graph computed in bands of rows, each of one or more tiles side by side, and then concatenated.

    ``graph`` has one input and one output and passes ``can_tile``. The bands are computed in the given order and cover
    the output once.
    """
    if sum(map(len, bands)) == 1:
        return graph
    target = graph.tensors[graph.outputs[0]]
    tensors, operations, rows = dict(graph.tensors), [], []

    def join(names: Sequence[str], name: str, axis: int) -> str:
        if len(names) == 1:
            return names[0]
        while len(names) > MAX_JOINED:
            first = join(names[:MAX_JOINED], f"{name}/joined{len(names)}", axis)
            names = [first, *names[MAX_JOINED:]]
        op = ops.Concat(tuple(names), name, axis)
        operations.append(op)
        tensors[name] = replace(target, name=name, shape=op.output_shape(*(tensors[n].shape for n in names)))
        return name

    for index, band in enumerate(bands):
        outputs = []
        for column, region in enumerate(band):
            part = tile_of(graph, region, f"tile{index}" if len(band) == 1 else f"tile{index}.{column}")
            assert part is not None
            operations += part.ops
            tensors.update(part.tensors)
            outputs += part.outputs
        name = target.name if len(bands) == 1 else f"{target.name}/band{index}"
        rows.append((band[0].top, join(outputs, name, 2)))
    last = join([name for _, name in sorted(rows)], target.name, 1)
    assert last == target.name
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


def tile_of(graph: Graph, region: Region, tag: str) -> Graph | None:
    """The graph that computes a region of the output from the whole input; its tensors are named NAME/``tag``.

    Returns ``None`` if the region depends only on padding in some activation.
    """
    wanted = needs(graph, region)
    if any(part.top >= part.bottom or part.left >= part.right for part in wanted.values()):
        return None
    return _Tile(graph, wanted, tag).graph()


class _Tile:
    """A tile under construction: name and region of the computed part of each tensor."""

    def __init__(self, graph: Graph, wanted: Mapping[str, Region], tag: str):
        self.source = graph
        self.wanted = wanted
        self.tag = tag
        self.ops: list[Op] = []
        self.tensors = dict(graph.tensors)
        (name,) = graph.inputs
        self.held = {name: (name, Region.whole(graph.tensors[name].shape))}
        self.cut: dict[tuple[str, Region], str] = {}

    def graph(self) -> Graph:
        for op in self.source.ops:
            self.held[op.output] = self.compute(op), self.wanted[op.output]
        outputs = [self.held[name][0] for name in self.source.outputs]
        return Graph.of(self.source.name, self.tensors.values(), self.ops, self.source.inputs, outputs)

    def compute(self, op: Op) -> str:
        """Add the computation of an operation's output region; return the name of the tensor that holds it."""
        inside, pads = reach(self.source, op, self.wanted[op.output])
        if isinstance(op, ops.Slice):
            return self.part(op.inputs[0], inside)
        inputs = [n if self.source.tensors[n].data is not None else self.part(n, inside) for n in op.inputs]
        if isinstance(op, ops.Pad) and pads == ops.NO_PADS:
            return inputs[0]
        padding = {"padding": pads} if isinstance(op, ops.Windowed | ops.Pad) else {}
        here = replace(op, inputs=tuple(inputs), output=f"{op.output}/{self.tag}", **padding)
        tensor = self.source.tensors[op.output]
        return self.emit(here, tensor, self.wanted[op.output].shape(tensor.shape))

    def part(self, name: str, region: Region) -> str:
        """Name of a tensor with a region of ``name``, cut out with a ``Slice`` if more of it is computed."""
        held, around = self.held[name]
        if region == around:
            return held
        if (held, region) not in self.cut:
            tensor = self.source.tensors[name]
            shape = region.shape(tensor.shape)
            begin = (0, region.top - around.top, region.left - around.left, 0)
            output = f"{name}/{self.tag}/part{len(self.cut)}"
            self.cut[held, region] = self.emit(ops.Slice((held,), output, begin, shape), tensor, shape)
        return self.cut[held, region]

    def emit(self, op: Op, like: Tensor, shape: Shape) -> str:
        self.ops.append(op)
        self.tensors[op.output] = Tensor(op.output, shape, like.dtype, like.quantization)
        return op.output
