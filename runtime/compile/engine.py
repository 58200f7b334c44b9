"""What the C of all operations shares: where tensors lie, as C expressions, and the tiles written so far."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph import Op
from ..memory.rows import Root, RowPlan, reads_of
from .layers import ConvLayer
from .tiles.spec import Tiles


@dataclass(frozen=True)
class Spot:
    """Columns of one row where an operation works, as C expressions.

    ``row`` is the row, ``first`` and ``count`` the columns; ``start`` is the first column in the strips' buffers.
    """

    row: str
    first: str
    count: str
    start: str


class Engine:
    """The C of one plan for one instruction set: what operations share, and the functions written so far."""

    def __init__(self, plan: RowPlan, layers: Mapping[str, ConvLayer], tiles: Tiles):
        self.plan, self.layers, self.tiles = plan, layers, tiles
        self.graph = plan.graph
        self.index = {op.output: index for index, op in enumerate(self.graph.ops)}
        # Tiles by what they compute, so that layers of one shape share them.
        self.tile_names: dict[tuple[Any, ...], str] = {}
        self.tile_texts: list[str] = []
        self.layer_texts: list[str] = []

    def open_row(self, op: Op, spot: Spot) -> Iterator[str]:
        """Padding around the rows of a ring: written when the memory of a row is used for the first time."""
        place = self.plan.places[op.output]
        root = self.plan.roots[place.root]
        if root.kind != "ring" or not root.is_padded:
            return
        channels = self.graph.tensors[op.output].shape[3]
        zero = stored(root.zero_point)
        once = "" if spot.first == "0" else f"{spot.first} == 0 && "
        if root.top:
            yield f"if ({once}{spot.row} == 0)"
            row = self.row_of(root, "v", counted=True)
            whole = root.left + root.width + root.right
            fill = f"fb_fill({row} + {place.channel}, {root.channels}, {whole}, {channels}, {zero});"
            yield f"  for (int v = 0; v < {root.top}; v++) {fill}"
        if root.left or root.right:
            yield f"if ({once}{spot.row} + {root.top} < {root.rows}) {{"
            row = f"{self.row_of(root, spot.row)} + {place.channel}"
            for count, at in ((root.left, 0), (root.right, root.left + root.width)):
                if count:
                    yield f"  fb_fill({row} + {at * root.channels}, {root.channels}, {count}, {channels}, {zero});"
            yield "}"

    def row_of(self, root: Root, row: str, *, counted: bool = False) -> str:
        """The first byte of a row of a ring; ``counted`` rows include the padding above."""
        rows = self.plan.rows(root.name)
        at = f"a + {rows.base}"
        if rows.rows == 1:
            return at
        number = row if counted or not root.top else f"({row} + {root.top})"
        return f"{at} + {number} * {rows.pitch}" if not rows.rows else f"{at} + {number} % {rows.rows} * {rows.pitch}"

    def address(self, name: str, spot: Spot) -> str:
        """The first byte of an activation at a spot."""
        root = self.plan.roots[self.plan.places[name].root]
        at = f"{self.row_of(root, spot.row)} + {self.plan.column(name)}"
        if root.kind == "strip":
            if spot.first == spot.start:
                return at
            return f"{at} + ({spot.first} - {spot.start}) * {root.channels}"
        return f"{at} + {spot.first} * {root.channels}"

    def step_of(self, name: str) -> int:
        """Bytes between the pixels of an activation."""
        return self.plan.roots[self.plan.places[name].root].channels

    def row_pointers(self, op: Any, spot: Spot) -> Iterator[str]:
        """An array ``rows`` of the rows within the image that a window covers, and their ``count``."""
        read = reads_of(self.graph, op)[0]
        root = self.plan.roots[self.plan.places[read.tensor].root]
        yield f"const fb_t *rows[{read.rows.extent}] = {{0}}; int count = 0;"
        start = f"{spot.row} * {read.rows.stride} - {read.rows.before}"
        yield f"for (int r = {start}, e = r + {read.rows.extent}; r < e; r++)"
        row = replace(spot, row="r", first="0", start="0")
        yield f"  if (r >= 0 && r < {root.height}) rows[count++] = {self.address(read.tensor, row)};"

    def steps(self, op: Op) -> tuple[int, int, int]:
        """Channels of an operation, and the steps of its input and its output."""
        return self.graph.tensors[op.output].shape[3], self.step_of(op.inputs[0]), self.step_of(op.output)


def c_float(value: float | np.floating) -> str:
    """A float32 as a C constant, exactly."""
    return float(np.float32(value)).hex() + "f"


def stored(value: int) -> str:
    """An int8 value as it is stored, in C."""
    return f"(FB_SHIFT + {value})" if value >= 0 else f"(FB_SHIFT - {-value})"


def indented(lines: Iterable[str], levels: int = 1) -> list[str]:
    """Lines of C, further to the right."""
    return ["  " * levels + line for line in lines]


def comment(text: str) -> str:
    """Text that can neither begin nor end a C comment, nor continue a line."""
    return "".join(c if c.isascii() and c.isprintable() and c not in "\\?*" else "_" for c in text)


def words(name: str, values: np.ndarray) -> str:
    """A constant of bytes as 64-bit words, which compilers read several times as fast as bytes."""
    data = values.tobytes()
    found = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
    lines = (",".join(f"0x{word:x}" for word in found[at : at + 12]) for at in range(0, len(found), 12))
    return f"FB_TABLE(uint64_t, {name}, {len(found)}) = {{\n" + ",\n".join(lines) + "};"
