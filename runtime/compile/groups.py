"""The C functions of a row plan's groups: each computes one row, strip by strip."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph import Graph, Op, ops
from ..memory.rows import Group, Read, Root, RowPlan, reads_of
from ..memory.rows.graph import Mean, Real, Sums, quantization_of, table_of
from .layers import ConvLayer, conv_layer, limits
from .tiles.spec import PANEL, ConvSpec, StatefulTiles, Tiles

# Most bytes on the stack for windows that are gathered; few where memory is scarce.
_GATHERED_STACK = 4096
_GATHERED_STACK_PLAIN = 256
# Frames of the deepest chain of calls, as compiled for Cortex-M4 and M7, with some to spare.
_CALLS_STACK = 640


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
    """The C of one plan for one instruction set: constants, kernels, groups.

    Functions end in the name of the instruction set; constants are shared by all.
    """

    def __init__(self, plan: RowPlan, layers: Mapping[str, ConvLayer], tiles: Tiles):
        self.plan, self.layers, self.tiles = plan, layers, tiles
        self.graph = plan.graph
        self.index = {op.output: index for index, op in enumerate(self.graph.ops)}
        # Tiles by what they compute, so that layers of one shape share them.
        self.tile_names: dict[tuple[Any, ...], str] = {}
        self.tile_texts: list[str] = []
        self.layer_texts: list[str] = []

    def text(self) -> str:
        """All functions of the engine."""
        groups = [self.group(group) for group in self.plan.groups]
        return "\n".join([*self.tile_texts, *self.layer_texts, *groups, self.dispatch()])

    def dispatch(self) -> str:
        """The function that runs one row of one group."""
        cases = "\n".join(f"    case {group.index}: fb_group{group.index}(a, y); break;" for group in self.plan.groups)
        return f"static void fb_step(fb_t *a, int group, int y) {{\n  switch (group) {{\n{cases}\n  }}\n}}"

    def group(self, group: Group) -> str:
        """The function of one group."""
        lines = [f"static void fb_group{group.index}(fb_t *a, int y) {{"]
        lines += _indented(self.below(group))
        if len(group.strips) > 1:
            fields = ["first", "end", "start", "pooled", "pooled_end"][: 5 if group.pool else 3]
            rows = ", ".join("{" + ", ".join(str(getattr(strip, f)) for f in fields) + "}" for strip in group.strips)
            kind = "uint8_t" if max(strip.end for strip in group.strips) < 256 else "uint16_t"
            lines.append(f"  static const {kind} strips[{len(group.strips)}][{len(fields)}] = {{{rows}}};")
            lines.append(f"  for (int s = 0; s < {len(group.strips)}; s++) {{")
            names = [f"{name} = strips[s][{at}]" for at, name in enumerate(fields)]
            lines.append(f"    const int {', '.join(names)};")
            lines += _indented(self.carry(group))
        else:
            strip = next(iter(group.strips))
            pooled = f", pooled = {strip.pooled}, pooled_end = {strip.pooled_end}" if group.pool else ""
            lines.append("  {")
            lines.append(f"    const int first = 0, end = {strip.end}, start = 0{pooled};")
        lines += _indented(self.strip(group), 2)
        lines += ["  }", "}"]
        return "\n".join(lines)

    def below(self, group: Group) -> Iterator[str]:
        """Rows of padding below the image."""
        if group.steps == group.height:
            return
        yield f"if (y >= {group.height}) {{"
        for op in group.fills:
            place = self.plan.places[op.output]
            root = self.plan.roots[place.root]
            row = self.row_of(root, f"(y - {group.height} + {root.height + root.top})", counted=True)
            width, channels = root.left + root.width + root.right, self.graph.tensors[op.output].shape[3]
            fill = (
                f"fb_fill({row} + {place.channel}, {root.channels}, {width}, {channels}, {_stored(root.zero_point)});"
            )
            yield f"  if (y < {group.height + root.bottom}) {fill}"
        yield "  return;"
        yield "}"

    def carry(self, group: Group) -> Iterator[str]:
        """Columns of the strip before that a pool still needs."""
        if group.pool is None or all(strip.start == strip.first for strip in group.strips):
            return
        root = self.plan.roots[self.plan.places[group.pool.inputs[0]].root]
        at = f"a + {self.plan.offset(root.name)}"
        kept = f"(first - start) * {root.channels}"
        yield f"if (s) fb_move({at}, {at} + (start - strips[s - 1][2]) * {root.channels}, {kept});"

    def strip(self, group: Group) -> Iterator[str]:
        """What a group does with one strip."""
        yield "(void)y; (void)first; (void)start; (void)end;"
        spot = Spot("y", "first", "(end - first)", "start")
        widths = sorted({strip.end - strip.first for strip in group.strips})
        if widths[0]:
            for op in group.before:
                yield from self.operation(op, spot, widths)
        else:
            # The last windows of a pool may add no columns.
            yield "if (end > first) {"
            for op in group.before:
                yield from _indented(self.operation(op, spot, widths[1:]))
            yield "}"
        if group.pool is not None:
            yield from self.running(group)

    def running(self, group: Group) -> Iterator[str]:
        """The pool that takes the strip, and what follows it on the columns that it completes."""
        pool = group.pool
        assert pool is not None
        _, height, _, channels = self.graph.tensors[pool.output].shape
        window, stride, above = pool.window[0], pool.stride[0], pool.padding[0]
        source, target = (self.plan.roots[self.plan.places[name].root] for name in (pool.inputs[0], pool.output))
        spot = Spot("p", "pooled", "(pooled_end - pooled)", "pooled")
        yield f"int p = y + {above} < {window - 1} ? 0 : (y + {above - window + stride}) / {stride};"
        yield f"for (; p < {height} && p * {stride} <= y + {above}; p++) {{"
        yield f"  const int top = p * {stride} - {above}, last = top + {window - 1};"
        yield "  {"
        yield f"  FB_TIMER({self.index[pool.output]})"
        yield "  fb_t *out;"
        yield from _indented(self.open_row(pool, spot))
        yield f"  out = {self.address(pool.output, spot)};"
        lowest = "(FB_SHIFT - 128)"
        yield f"  if (y == (top < 0 ? 0 : top)) fb_fill(out, {target.channels}, {spot.count}, {channels}, {lowest});"
        taken = f"a + {self.plan.offset(source.name)} + {self.plan.places[pool.inputs[0]].channel}"
        columns = f"pooled * {pool.stride[1]} - {pool.padding[2]} - start"
        yield (
            f"  fb_max(out, {target.channels}, {taken}, {source.channels}, {spot.count}, {channels}, {columns}, "
            f"{pool.window[1]}, {pool.stride[1]}, -start, {source.width} - start);"
        )
        yield "  }"
        if group.behind:
            yield f"  if (y == (last < {group.height - 1} ? last : {group.height - 1})) {{"
            widths = sorted({strip.pooled_end - strip.pooled for strip in group.strips})
            for op in group.behind:
                yield from _indented(self.operation(op, spot, widths), 2)
            yield "  }"
        else:
            yield "  (void)last;"
        yield "}"

    def open_row(self, op: Op, spot: Spot) -> Iterator[str]:
        """Padding around the rows of a ring: written when the memory of a row is used for the first time."""
        place = self.plan.places[op.output]
        root = self.plan.roots[place.root]
        if root.kind != "ring" or not root.is_padded:
            return
        channels = self.graph.tensors[op.output].shape[3]
        zero = _stored(root.zero_point)
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

    def operation(self, op: Op, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """One operation at a spot whose number of columns is one of ``widths``."""
        yield f"{{ /* {_comment(op.output)} */"
        yield f"  FB_TIMER({self.index[op.output]})"
        yield from _indented(self.open_row(op, spot))
        yield from _indented(_WRITERS.get(type(op), Engine.elementwise)(self, op, spot, widths))
        yield "}"

    def step_of(self, name: str) -> int:
        """Bytes between the pixels of an activation."""
        return self.plan.roots[self.plan.places[name].root].channels

    def read(self, op: Op, name: str | None = None) -> Read:
        """How an operation reads one of its inputs."""
        return next(read for read in reads_of(self.graph, op) if name is None or read.tensor == name)

    def row_pointers(self, op: Any, spot: Spot) -> Iterator[str]:
        """An array ``rows`` of the rows within the image that a window covers, and their ``count``."""
        read = self.read(op)
        root = self.plan.roots[self.plan.places[read.tensor].root]
        yield f"const fb_t *rows[{read.rows.extent}] = {{0}}; int count = 0;"
        start = f"{spot.row} * {read.rows.stride} - {read.rows.before}"
        yield f"for (int r = {start}, e = r + {read.rows.extent}; r < e; r++)"
        row = replace(spot, row="r", first="0", start="0")
        yield f"  if (r >= 0 && r < {root.height}) rows[count++] = {self.address(read.tensor, row)};"

    def conv(self, op: ops.Conv, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """A convolution: the beginnings of its runs, then its kernel."""
        layer = self.layers[op.output]
        yield "{"
        yield f"  const fb_t *seg[{len(layer.taps)}];"
        yield from _indented(self.runs(op, layer, spot))
        kind = "int32_t" if layer.spec.raw else "fb_t"
        yield f"  {kind} *out = ({kind} *)({self.address(op.output, spot)});"
        number = self.index[op.output]
        if layer.form == "depthwise":
            _, _, _, channels = self.graph.tensors[op.output].shape
            spec = layer.spec
            numbers = f"(const int8_t *)fb_w{number}, fb_k{number}, fb_b{number}"
            yield (
                f"  fb_depthwise(out, {spec.out_step}, seg, {len(layer.taps)}, {spec.step}, {spot.count}, {channels}, "
                f"{numbers}, {spec.zero_point}, {spec.low}, {spec.high});"
            )
        elif layer.groups == 1:
            self.layer(op, layer, widths)
            yield f"  fb_conv{number}(seg, {spot.count}, out, 0);"
        else:
            self.layer(op, layer, widths)
            yield f"  for (int g = 0; g < {layer.groups}; g++) {{"
            yield f"    fb_conv{number}(seg, {spot.count}, out, g);"
            run = self.graph.tensors[op.inputs[1]].shape[3]
            yield f"    for (int r = 0; r < {len(layer.taps)}; r++) seg[r] += {run};"
            yield f"    out += {layer.spec.channels};"
            yield "  }"
        yield "}"

    def runs(self, op: ops.Conv, layer: ConvLayer, spot: Spot) -> Iterator[str]:
        """The beginnings of the runs of the first window."""
        place = self.plan.places[op.inputs[0]]
        root = self.plan.roots[place.root]
        if root.kind != "ring":
            yield f"seg[0] = {self.address(op.inputs[0], spot)};"
            return
        stride, before = op.stride[0], op.padding[0]
        column = f"{spot.first} * {op.stride[1]} + {root.left - op.padding[2]}"
        if root.rows > 1:
            yield f"const int row = {spot.row} * {stride} + {root.top - before};"
        columns = len({column for _, column in layer.taps})
        step = self._tap_step(layer)
        if len(layer.taps) == 1:
            yield f"seg[0] = {self.row_of(root, 'row', counted=True)} + ({column}) * {root.channels} + {place.channel};"
            return
        yield f"for (int r = 0; r < {len(layer.taps) // columns}; r++) {{"
        row = f"(row + r * {step})" if step > 1 else "(row + r)"
        start = f"{self.row_of(root, row, counted=True)} + ({column}) * {root.channels} + {place.channel}"
        if columns == 1:
            yield f"  seg[r] = {start};"
        else:
            between = op.dilation[1] * root.channels
            yield f"  const fb_t *const start = {start};"
            yield f"  for (int c = 0; c < {columns}; c++) seg[r * {columns} + c] = start + c * {between};"
        yield "}"

    @staticmethod
    def _tap_step(layer: ConvLayer) -> int:
        rows = sorted({row for row, _ in layer.taps})
        return rows[1] - rows[0] if len(rows) > 1 else 1

    def layer(self, op: ops.Conv, layer: ConvLayer, widths: Sequence[int]) -> None:
        """The function that computes a row of a convolution with its tiles."""
        number, spec = self.index[op.output], layer.spec
        panels, most = self.tiles.shape(spec)
        if layer.form == "gathered":
            stack = _GATHERED_STACK_PLAIN if self.tiles.name == "plain" else _GATHERED_STACK
            most = min(most, max(1, stack // spec.length))
        kind = "int32_t" if spec.raw else "fb_t"
        lines = [f"static FB_NOINLINE void fb_conv{number}(const fb_t *const *seg, int n, {kind} *out, int g) {{"]
        group_bytes = spec.panels * spec.panel_bytes
        lines.append(f"  const int8_t *const w = (const int8_t *)fb_w{number} + g * {group_bytes};")
        lines.append(f"  const float *const k = fb_k{number} + g * {spec.panels * PANEL};")
        lines.append(f"  const int32_t *const b = fb_b{number} + g * {spec.panels * PANEL};")
        for at, width in enumerate(widths):
            last = at == len(widths) - 1
            lines.append("  (void)n;" if last and at == 0 else f"  if (n == {width}) {{" if not last else "  {")
            body = (
                self._gathered(layer, width, panels, most)
                if layer.form == "gathered"
                else (self._tiled(spec, width, panels, most))
            )
            lines += _indented(self._with_state(spec, width, most, body), 2)
            if not (last and at == 0):
                lines.append("    return;" if not last else "")
                lines.append("  }")
        lines.append("}")
        self.layer_texts.append("\n".join(line for line in lines if line))

    def _with_state(self, spec: ConvSpec, width: int, most: int, body: Iterator[str]) -> Iterator[str]:
        """The tiles of a row, between what they need before and after."""
        if not isinstance(self.tiles, StatefulTiles):
            yield from body
            return
        yield self.tiles.enter(spec, self.cut(width, most)[0][1])
        yield from body
        yield self.tiles.leave(spec)

    def _tiled(self, spec: ConvSpec, width: int, panels: int, most: int) -> Iterator[str]:
        """Panels, then the tiles of a row: the weights of a panel stay in the cache."""
        for first, count, blocks in _blocks(spec.panels, panels):
            tail = spec.tail(first + (blocks - 1) * count, count)
            whole = blocks if tail == PANEL else blocks - 1
            for begin, number, channels in ((first, whole, PANEL), (first + whole * count, blocks - whole, tail)):
                if number:
                    yield f"for (int p = {begin}; p < {begin + number * count}; p += {count}) {{"
                    for at, size, times in self.cut(width, most):
                        name = self.tile(spec, size, count, channels)
                        args = f"w + p * {spec.panel_bytes}, k + p * {PANEL}, b + p * {PANEL}"
                        x = str(at) if times == 1 else "x"
                        call = f"{name}(seg, {x} * {spec.step}, {args}, out + {x} * {spec.out_step} + p * {PANEL});"
                        loop = f"for (int x = {at}; x < {at + size * times}; x += {size}) " if times > 1 else ""
                        yield f"  {loop}{call}"
                    yield "}"

    def _gathered(self, layer: ConvLayer, width: int, panels: int, most: int) -> Iterator[str]:
        """Windows gathered for one tile after another; all panels read them."""
        spec = layer.spec
        size = max(size for _, size, _ in self.cut(width, most))
        yield f"fb_t windows[{size * spec.length + 16}]; const fb_t *const gathered[1] = {{windows}};"
        for at, pixels, times in self.cut(width, most):
            yield f"for (int x = {at}; x < {at + pixels * times}; x += {pixels}) {{"
            runs, step = f"seg, {len(layer.taps)}, {layer.run_bytes}", self.gather_step(layer)
            yield f"  fb_gather(windows, {spec.length}, {runs}, {step}, x * {step}, {pixels});"
            for first, count, blocks in _blocks(spec.panels, panels):
                for p in range(first, first + count * blocks, count):
                    name = self.tile(spec, pixels, count, spec.tail(p, count))
                    args = f"w + {p * spec.panel_bytes}, k + {p * PANEL}, b + {p * PANEL}"
                    yield f"  {name}(gathered, 0, {args}, out + x * {spec.out_step} + {p * PANEL});"
            yield "}"

    def cut(self, width: int, most: int) -> list[tuple[int, int, int]]:
        """A row as tiles of at most ``most`` pixels: (first pixel, pixels of a tile, tiles side by side)."""
        count = -(-width // most)
        if isinstance(self.tiles, StatefulTiles):  # all of one size: the last may overlap
            size = -(-width // count)
            regular = width // size
            return [(0, size, regular)] + ([(width - size, size, 1)] if width % size else [])
        size, larger = divmod(width, count)
        parts = [(0, size + 1, larger), (larger * (size + 1), size, count - larger)]
        return [part for part in parts if part[2]]

    def gather_step(self, layer: ConvLayer) -> int:
        """Bytes between the windows of neighbouring pixels before they are gathered."""
        return layer.op.stride[1] * self.step_of(layer.op.inputs[0])

    def tile(self, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """The name of a tile; its function is written once."""
        same = replace(spec, channels=0)
        key = (same, pixels, panels, tail)
        if key not in self.tile_names:
            name = f"fb_tile{len(self.tile_names)}"
            self.tile_names[key] = name
            self.tile_texts.append(self.tiles.tile(name, spec, pixels, panels, tail))
        return self.tile_names[key]

    def max_pool(self, op: ops.MaxPool, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """A pool over rows of a ring."""
        channels, step, out_step = self._steps(op)
        width = self.graph.tensors[op.inputs[0]].shape[2]
        yield "{"
        yield from _indented(self.row_pointers(op, spot))
        yield f"  fb_t *out = {self.address(op.output, spot)};"
        yield f"  fb_fill(out, {out_step}, {spot.count}, {channels}, FB_SHIFT - 128);"
        columns = f"{spot.first} * {op.stride[1]} - {op.padding[2]}"
        window = f"{columns}, {op.window[1]}, {op.stride[1]}, 0, {width}"
        taken = f"rows[r], {step}, {spot.count}, {channels}, {window}"
        yield f"  for (int r = 0; r < count; r++) fb_max(out, {out_step}, {taken});"
        yield "}"

    def average_pool(self, op: ops.AveragePool, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """A mean over the rows of a ring."""
        channels, step, out_step = self._steps(op)
        x, y = quantization_of(self.graph, op.inputs[0]), quantization_of(self.graph, op.output)
        ratio = np.float32(x.scale[0]) * np.float32(1.0) / np.float32(y.scale[0])
        width = self.graph.tensors[op.inputs[0]].shape[2]
        yield "{"
        yield from _indented(self.row_pointers(op, spot))
        columns = f"{spot.first} * {op.stride[1]} - {op.padding[2]}, {op.window[1]}, {op.stride[1]}, {width}"
        yield (
            f"  fb_average({self.address(op.output, spot)}, {out_step}, rows, count, {step}, {spot.count}, {channels}, "
            f"{columns}, {c_float(ratio)}, {x.zero_point} + FB_SHIFT, {y.zero_point});"
        )
        yield "}"

    def _steps(self, op: Op) -> tuple[int, int, int]:
        return self.graph.tensors[op.output].shape[3], self.step_of(op.inputs[0]), self.step_of(op.output)

    def add(self, op: ops.Add, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """A sum of two rows."""
        channels = self.graph.tensors[op.output].shape[3]
        y = quantization_of(self.graph, op.output)
        found = [quantization_of(self.graph, name) for name in op.inputs]
        scales = [np.float32(q.scale[0]) * np.float32(1.0) / np.float32(y.scale[0]) for q in found]
        terms = ", ".join(f"{self.address(name, spot)}, {self.step_of(name)}" for name in op.inputs)
        low, high = limits(self.graph, op)
        zeros = ", ".join(f"{q.zero_point} + FB_SHIFT" for q in found)
        yield (
            f"fb_add({self.address(op.output, spot)}, {self.step_of(op.output)}, {terms}, {spot.count}, {channels}, "
            f"{c_float(scales[0])}, {c_float(scales[1])}, {zeros}, {y.zero_point}, {low}, {high});"
        )

    def elementwise(self, op: Op, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """A table of 256 values, or a copy."""
        channels, step, out_step = self._steps(op)
        where = f"{self.address(op.output, spot)}, {out_step}, {self.address(op.inputs[0], spot)}, {step}"
        table = self.table(op)
        if table is None:
            yield f"fb_copy({where}, {spot.count}, {channels});"
        else:
            yield f"fb_table({where}, {spot.count}, {channels}, fb_t{self.index[op.output]});"

    def table(self, op: Op) -> np.ndarray | None:
        """The table of an operation, or ``None`` if it changes nothing."""
        found = table_of(self.graph, op)
        return None if np.array_equal(found, np.arange(-128, 128)) else found

    def sums(self, op: Sums, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Sums over the image."""
        x = op.inputs[0]
        channels, zero = self.graph.tensors[x].shape[3], quantization_of(self.graph, x).zero_point
        root = self.plan.roots[self.plan.places[op.output].root]
        kernel, kind = ("fb_sum16", "uint16_t") if root.sum_bytes == 2 else ("fb_sum", "int32_t")
        sums = f"({kind} *)(a + {self.plan.offset(root.name)})"
        yield f"if ({spot.row} == 0 && {spot.first} == 0) memset({sums}, 0, {root.nbytes});"
        values = f"{self.address(x, spot)}, {self.step_of(x)}, {spot.count}, {channels}"
        yield f"{kernel}({sums}, {values}, {zero} + FB_SHIFT);"

    def read_sums(self, op: Op) -> str:
        """Where the sums lie, the bytes of each, and the least that sums of 16 bits can be."""
        before, root = self.graph.producers[op.inputs[0]], self.plan.roots[self.plan.places[op.inputs[0]].root]
        least = 0
        if isinstance(before, Sums):
            _, height, width, _ = self.graph.tensors[before.inputs[0]].shape
            least = height * width * (-128 - quantization_of(self.graph, before.inputs[0]).zero_point)
        return f"a + {self.plan.offset(root.name)}, {root.sum_bytes}, {least}"

    def mean(self, op: Mean, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Means of the sums."""
        sums = self.read_sums(op)
        channels, zero = self.graph.tensors[op.output].shape[3], quantization_of(self.graph, op.output).zero_point
        border = f"fb_t{self.index[op.output]}" if op.outside else "0"
        out = self.address(op.output, spot)
        yield f"fb_mean({out}, {sums}, {channels}, {c_float(op.scale)}, {zero}, {border}, {op.outside});"

    def real(self, op: Real, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Real numbers of the sums."""
        sums = self.read_sums(op)
        channels, number = self.graph.tensors[op.output].shape[3], self.index[op.output]
        border = f"fb_t{number}" if op.outside else "0"
        out = f"(float *)(a + {self.plan.offset(self.plan.places[op.output].root)})"
        high = {"none": "3.4e38f", "relu": "3.4e38f", "relu6": "6.0f"}[op.activation]
        low = "-3.4e38f" if op.activation == "none" else "0.0f"
        yield f"fb_real({out}, {sums}, {channels}, fb_k{number}, {border}, {op.outside}, {low}, {high});"

    def pad(self, op: ops.Pad, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Rows and columns of one value around an image."""
        channels, step, out_step = self._steps(op)
        _, height, width, _ = self.graph.tensors[op.inputs[0]].shape
        top, _, left, right = op.padding
        value = _stored(int(quantization_of(self.graph, op.output).quantize(np.array(op.value), "int8")))
        out = f"{self.address(op.output, spot)}, {out_step}"
        within = f"{spot.row} >= {top} && {spot.row} < {top + height}"
        fill = f"fb_fill({out}, {spot.count}, {channels}, {value});"
        yield fill if left or right else f"if (!({within})) {fill}"
        source = self.address(op.inputs[0], replace(spot, row=f"({spot.row} - {top})", first="0", start="0"))
        yield f"if ({within})"
        yield f"  fb_columns({out}, {spot.first}, {spot.count}, {source}, {step}, {left}, {width}, {channels});"

    def slice(self, op: ops.Slice, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Part of an image."""
        channels, step, out_step = self._steps(op)
        _, row, column, channel = op.begin
        # A strip holds the columns of the spot alone; a slice of some columns reads a ring.
        first = spot if not column else replace(spot, first=f"({spot.first} + {column})")
        source = self.address(op.inputs[0], replace(first, row=f"({spot.row} + {row})") if row else first)
        out = self.address(op.output, spot)
        yield f"fb_copy({out}, {out_step}, {source} + {channel}, {step}, {spot.count}, {channels});"

    def concat(self, op: ops.Concat, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Images one below the other, or side by side."""
        at, channels = 0, self.graph.tensors[op.output].shape[3]
        for name in op.inputs:
            _, height, width, _ = self.graph.tensors[name].shape
            row, column = (f"({spot.row} - {at})", 0) if op.axis == 1 else (spot.row, at)
            source = f"{self.address(name, replace(spot, row=row, first='0', start='0'))}, {self.step_of(name)}"
            out = f"{self.address(op.output, spot)}, {self.step_of(op.output)}, {spot.first}, {spot.count}"
            copy = f"fb_columns({out}, {source}, {column}, {width}, {channels});"
            within = f"if ({spot.row} >= {at} && {spot.row} < {at + height}) " if op.axis == 1 else ""
            yield within + copy
            at += height if op.axis == 1 else width

    def reshape(self, op: ops.Reshape, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """The bytes of a whole image in another shape."""
        _, _, width, channels = self.graph.tensors[op.output].shape
        x = op.inputs[0]
        _, _, in_width, in_channels = self.graph.tensors[x].shape
        root = self.plan.roots[self.plan.places[x].root]
        ring = self.address(x, replace(spot, row="0", first="0", start="0"))
        yield (
            f"fb_flat({self.address(op.output, spot)}, {self.step_of(op.output)}, {width}, {channels}, "
            f"{spot.row} * {width * channels}, {ring}, {root.pitch}, {root.channels}, {in_width}, {in_channels});"
        )

    def transpose(self, op: ops.Transpose, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """A permutation of rows, columns and channels of a whole image."""
        _, _, width, channels = self.graph.tensors[op.output].shape
        x = op.inputs[0]
        root = self.plan.roots[self.plan.places[x].root]
        # Bytes between neighbours along the axes of the input, in the order of the output.
        step = {1: root.pitch, 2: root.channels, 3: 1}
        down, along, inner = (step[axis] for axis in op.order[1:])
        ring = self.address(x, replace(spot, row="0", first="0", start="0"))
        yield f"for (int x = 0; x < {width}; x++)"
        yield f"  for (int c = 0; c < {channels}; c++)"
        out = f"({self.address(op.output, spot)})[x * {self.step_of(op.output)} + c]"
        yield f"    {out} = ({ring})[{spot.row} * {down} + x * {along} + c * {inner}];"

    def softmax(self, op: ops.Softmax, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
        """Shares of the exponentials."""
        channels, step, out_step = self._steps(op)
        y = quantization_of(self.graph, op.output)
        where = f"{self.address(op.output, spot)}, {out_step}, {self.address(op.inputs[0], spot)}, {step}"
        scale = float(np.float64(y.scale[0])).hex()
        yield f"fb_softmax({where}, {spot.count}, {channels}, fb_t{self.index[op.output]}, {scale}, {y.zero_point});"


_WRITERS: Mapping[type[Op], Callable[[Engine, Any, Spot, Sequence[int]], Iterator[str]]] = {
    ops.Conv: Engine.conv,
    ops.MaxPool: Engine.max_pool,
    ops.AveragePool: Engine.average_pool,
    ops.Add: Engine.add,
    Sums: Engine.sums,
    Mean: Engine.mean,
    Real: Engine.real,
    ops.Pad: Engine.pad,
    ops.Slice: Engine.slice,
    ops.Concat: Engine.concat,
    ops.Reshape: Engine.reshape,
    ops.Transpose: Engine.transpose,
    ops.Softmax: Engine.softmax,
}


def layers_of(plan: RowPlan) -> dict[str, ConvLayer]:
    """The numbers of all convolutions of a plan."""
    return {op.output: conv_layer(plan, op) for op in plan.graph.ops if isinstance(op, ops.Conv)}


def stack_bytes(plan: RowPlan) -> int:
    """An upper estimate of the stack that plain C needs on a 32-bit processor: calls, and the windows of one layer."""
    found = 0
    for layer in layers_of(plan).values():
        windows = max(_GATHERED_STACK_PLAIN, layer.spec.length) + 16 if layer.form == "gathered" else 0
        found = max(found, windows + 4 * len(layer.taps))
    return _CALLS_STACK + found


def c_float(value: float | np.floating) -> str:
    """A float32 as a C constant, exactly."""
    return float(np.float32(value)).hex() + "f"


def powers(graph: Graph, op: ops.Softmax) -> np.ndarray:
    """exp of the differences -255 to 255 of two inputs, as real numbers: float64, shape (511,)."""
    scale = np.float64(quantization_of(graph, op.inputs[0]).scale[0])
    return np.exp(np.arange(-255, 1) * scale)


def _stored(value: int) -> str:
    return f"(FB_SHIFT + {value})" if value >= 0 else f"(FB_SHIFT - {-value})"


def _blocks(total: int, panels: int) -> list[tuple[int, int, int]]:
    """Panels in blocks of ``panels``, and a smaller one: (first, panels in a block, blocks)."""
    whole, rest = divmod(total, panels)
    found = [(0, panels, whole)] if whole else []
    return found + ([(whole * panels, rest, 1)] if rest else [])


def _indented(lines: Any, levels: int = 1) -> list[str]:
    return ["  " * levels + line for line in lines]


def _comment(text: str) -> str:
    """Text that cannot end a C comment, or continue a line."""
    return "".join(c if c.isascii() and c.isprintable() and c not in "\\?" else "_" for c in text).replace("*/", "*_")
