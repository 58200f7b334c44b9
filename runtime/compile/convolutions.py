"""The C of convolutions: rows of tiles over the panels of the weights."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..graph import ops
from ..memory.rows import RowPlan
from .engine import Engine, Spot, indented
from .layers import ConvLayer, layers_of
from .tiles.spec import PANEL, ConvSpec, StatefulTiles

# Most bytes on the stack for windows that are gathered; few where memory is scarce.
_GATHERED_STACK = 4096
_GATHERED_STACK_PLAIN = 256
# Frames of the deepest chain of calls, as compiled for Cortex-M4 and M7, with some to spare.
_CALLS_STACK = 640


def convolution(engine: Engine, op: ops.Conv, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """A convolution: the beginnings of its runs, then its kernel."""
    layer = engine.layers[op.output]
    yield "{"
    yield f"  const fb_t *seg[{len(layer.taps)}];"
    yield from indented(_runs(engine, op, layer, spot))
    kind = "int32_t" if layer.spec.raw else "fb_t"
    yield f"  {kind} *out = ({kind} *)({engine.address(op.output, spot)});"
    number = engine.index[op.output]
    if layer.form == "depthwise":
        _, _, _, channels = engine.graph.tensors[op.output].shape
        spec = layer.spec
        numbers = f"(const int8_t *)fb_w{number}, fb_k{number}, fb_b{number}"
        yield (
            f"  fb_depthwise(out, {spec.out_step}, seg, {len(layer.taps)}, {spec.step}, {spot.count}, {channels}, "
            f"{numbers}, {spec.zero_point}, {spec.low}, {spec.high});"
        )
    elif layer.groups == 1:
        _layer_function(engine, op, layer, widths)
        yield f"  fb_conv{number}(seg, {spot.count}, out, 0);"
    else:
        _layer_function(engine, op, layer, widths)
        yield f"  for (int g = 0; g < {layer.groups}; g++) {{"
        yield f"    fb_conv{number}(seg, {spot.count}, out, g);"
        run = engine.graph.tensors[op.inputs[1]].shape[3]
        yield f"    for (int r = 0; r < {len(layer.taps)}; r++) seg[r] += {run};"
        yield f"    out += {layer.spec.channels};"
        yield "  }"
    yield "}"


def _runs(engine: Engine, op: ops.Conv, layer: ConvLayer, spot: Spot) -> Iterator[str]:
    """The beginnings of the runs of the first window."""
    place = engine.plan.places[op.inputs[0]]
    root = engine.plan.roots[place.root]
    if root.kind != "ring":
        yield f"seg[0] = {engine.address(op.inputs[0], spot)};"
        return
    stride, before = op.stride[0], op.padding[0]
    column = f"{spot.first} * {op.stride[1]} + {root.left - op.padding[2]}"
    if root.rows > 1:
        yield f"const int row = {spot.row} * {stride} + {root.top - before};"
    columns = len({column for _, column in layer.taps})
    step = _tap_step(layer)
    if len(layer.taps) == 1:
        yield f"seg[0] = {engine.row_of(root, 'row', counted=True)} + ({column}) * {root.channels} + {place.channel};"
        return
    yield f"for (int r = 0; r < {len(layer.taps) // columns}; r++) {{"
    row = f"(row + r * {step})" if step > 1 else "(row + r)"
    start = f"{engine.row_of(root, row, counted=True)} + ({column}) * {root.channels} + {place.channel}"
    if columns == 1:
        yield f"  seg[r] = {start};"
    else:
        between = op.dilation[1] * root.channels
        yield f"  const fb_t *const start = {start};"
        yield f"  for (int c = 0; c < {columns}; c++) seg[r * {columns} + c] = start + c * {between};"
    yield "}"


def _tap_step(layer: ConvLayer) -> int:
    rows = sorted({row for row, _ in layer.taps})
    return rows[1] - rows[0] if len(rows) > 1 else 1


def _layer_function(engine: Engine, op: ops.Conv, layer: ConvLayer, widths: Sequence[int]) -> None:
    """The function that computes a row of a convolution with its tiles."""
    number, spec = engine.index[op.output], layer.spec
    panels, most = engine.tiles.shape(spec)
    if layer.form == "gathered":
        stack = _GATHERED_STACK_PLAIN if engine.tiles.name == "plain" else _GATHERED_STACK
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
            _gathered(engine, layer, width, panels, most)
            if layer.form == "gathered"
            else (_tiled(engine, spec, width, panels, most))
        )
        lines += indented(_with_state(engine, spec, width, most, body), 2)
        if not (last and at == 0):
            lines.append("    return;" if not last else "")
            lines.append("  }")
    lines.append("}")
    engine.layer_texts.append("\n".join(line for line in lines if line))


def _with_state(engine: Engine, spec: ConvSpec, width: int, most: int, body: Iterator[str]) -> Iterator[str]:
    """The tiles of a row, between what they need before and after."""
    if not isinstance(engine.tiles, StatefulTiles):
        yield from body
        return
    yield engine.tiles.enter(spec, _cut(engine, width, most)[0][1])
    yield from body
    yield engine.tiles.leave(spec)


def _tiled(engine: Engine, spec: ConvSpec, width: int, panels: int, most: int) -> Iterator[str]:
    """Panels, then the tiles of a row: the weights of a panel stay in the cache."""
    for first, count, blocks in _blocks(spec.panels, panels):
        tail = spec.tail(first + (blocks - 1) * count, count)
        whole = blocks if tail == PANEL else blocks - 1
        for begin, number, channels in ((first, whole, PANEL), (first + whole * count, blocks - whole, tail)):
            if number:
                yield f"for (int p = {begin}; p < {begin + number * count}; p += {count}) {{"
                for at, size, times in _cut(engine, width, most):
                    name = _tile(engine, spec, size, count, channels)
                    args = f"w + p * {spec.panel_bytes}, k + p * {PANEL}, b + p * {PANEL}"
                    x = str(at) if times == 1 else "x"
                    call = f"{name}(seg, {x} * {spec.step}, {args}, out + {x} * {spec.out_step} + p * {PANEL});"
                    loop = f"for (int x = {at}; x < {at + size * times}; x += {size}) " if times > 1 else ""
                    yield f"  {loop}{call}"
                yield "}"


def _gathered(engine: Engine, layer: ConvLayer, width: int, panels: int, most: int) -> Iterator[str]:
    """Windows gathered for one tile after another; all panels read them."""
    spec = layer.spec
    size = max(size for _, size, _ in _cut(engine, width, most))
    yield f"fb_t windows[{size * spec.length + 16}]; const fb_t *const gathered[1] = {{windows}};"
    for at, pixels, times in _cut(engine, width, most):
        yield f"for (int x = {at}; x < {at + pixels * times}; x += {pixels}) {{"
        runs, step = f"seg, {len(layer.taps)}, {layer.run_bytes}", _gather_step(engine, layer)
        yield f"  fb_gather(windows, {spec.length}, {runs}, {step}, x * {step}, {pixels});"
        for first, count, blocks in _blocks(spec.panels, panels):
            for p in range(first, first + count * blocks, count):
                name = _tile(engine, spec, pixels, count, spec.tail(p, count))
                args = f"w + {p * spec.panel_bytes}, k + {p * PANEL}, b + {p * PANEL}"
                yield f"  {name}(gathered, 0, {args}, out + x * {spec.out_step} + {p * PANEL});"
        yield "}"


def _cut(engine: Engine, width: int, most: int) -> list[tuple[int, int, int]]:
    """A row as tiles of at most ``most`` pixels: (first pixel, pixels of a tile, tiles side by side)."""
    count = -(-width // most)
    if isinstance(engine.tiles, StatefulTiles):  # all of one size: the last may overlap
        size = -(-width // count)
        regular = width // size
        return [(0, size, regular)] + ([(width - size, size, 1)] if width % size else [])
    size, larger = divmod(width, count)
    parts = [(0, size + 1, larger), (larger * (size + 1), size, count - larger)]
    return [part for part in parts if part[2]]


def _gather_step(engine: Engine, layer: ConvLayer) -> int:
    """Bytes between the windows of neighbouring pixels before they are gathered."""
    return layer.op.stride[1] * engine.step_of(layer.op.inputs[0])


def _tile(engine: Engine, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
    """The name of a tile; its function is written once."""
    same = replace(spec, channels=0)
    key = (same, pixels, panels, tail)
    if key not in engine.tile_names:
        name = f"fb_tile{len(engine.tile_names)}"
        engine.tile_names[key] = name
        engine.tile_texts.append(engine.tiles.tile(name, spec, pixels, panels, tail))
    return engine.tile_names[key]


def _blocks(total: int, panels: int) -> list[tuple[int, int, int]]:
    """Panels in blocks of ``panels``, and a smaller one: (first, panels in a block, blocks)."""
    whole, rest = divmod(total, panels)
    found = [(0, panels, whole)] if whole else []
    return found + ([(whole * panels, rest, 1)] if rest else [])


def stack_bytes(plan: RowPlan) -> int:
    """An upper estimate of the stack that plain C needs on a 32-bit processor: calls, and the windows of one layer."""
    found = 0
    for layer in layers_of(plan).values():
        windows = max(_GATHERED_STACK_PLAIN, layer.spec.length) + 16 if layer.form == "gathered" else 0
        found = max(found, windows + 4 * len(layer.taps))
    return _CALLS_STACK + found
