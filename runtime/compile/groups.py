"""The C functions of a row plan's groups: each computes one row, strip by strip."""

from collections.abc import Iterator, Sequence

from ..graph import Op
from ..memory.rows import Group
from .engine import Engine, Spot, comment, indented, stored
from .operations import WRITERS, elementwise


def groups_code(engine: Engine) -> str:
    """All functions of the engine."""
    groups = [_group(engine, group) for group in engine.plan.groups]
    return "\n".join([*engine.tile_texts, *engine.layer_texts, *groups, _dispatch(engine)])


def _dispatch(engine: Engine) -> str:
    """The function that runs one row of one group."""
    cases = "\n".join(f"    case {group.index}: fb_group{group.index}(a, y); break;" for group in engine.plan.groups)
    if not cases:
        # The output is the input.
        return "static void fb_step(fb_t *a, int group, int y) {\n  (void)a; (void)group; (void)y;\n}"
    return f"static void fb_step(fb_t *a, int group, int y) {{\n  switch (group) {{\n{cases}\n  }}\n}}"


def _group(engine: Engine, group: Group) -> str:
    """The function of one group."""
    lines = [f"static void fb_group{group.index}(fb_t *a, int y) {{"]
    lines += indented(_below(engine, group))
    if len(group.strips) > 1:
        fields = ["first", "end", "start", "pooled", "pooled_end"][: 5 if group.pool else 3]
        rows = ", ".join("{" + ", ".join(str(getattr(strip, f)) for f in fields) + "}" for strip in group.strips)
        kind = "uint8_t" if max(strip.end for strip in group.strips) < 256 else "uint16_t"
        lines.append(f"  static const {kind} strips[{len(group.strips)}][{len(fields)}] = {{{rows}}};")
        lines.append(f"  for (int s = 0; s < {len(group.strips)}; s++) {{")
        names = [f"{name} = strips[s][{at}]" for at, name in enumerate(fields)]
        lines.append(f"    const int {', '.join(names)};")
        lines += indented(_carry(engine, group))
    else:
        strip = next(iter(group.strips))
        pooled = f", pooled = {strip.pooled}, pooled_end = {strip.pooled_end}" if group.pool else ""
        lines.append("  {")
        lines.append(f"    const int first = 0, end = {strip.end}, start = 0{pooled};")
    lines += indented(_strip(engine, group), 2)
    lines += ["  }", "}"]
    return "\n".join(lines)


def _below(engine: Engine, group: Group) -> Iterator[str]:
    """Rows of padding below the image."""
    if group.steps == group.height:
        return
    yield f"if (y >= {group.height}) {{"
    for op in group.fills:
        place = engine.plan.places[op.output]
        root = engine.plan.roots[place.root]
        row = engine.row_of(root, f"(y - {group.height} + {root.height + root.top})", counted=True)
        width, channels = root.left + root.width + root.right, engine.graph.tensors[op.output].shape[3]
        fill = f"fb_fill({row} + {place.channel}, {root.channels}, {width}, {channels}, {stored(root.zero_point)});"
        yield f"  if (y < {group.height + root.bottom}) {fill}"
    yield "  return;"
    yield "}"


def _carry(engine: Engine, group: Group) -> Iterator[str]:
    """Columns of the strip before that a pool still needs."""
    if group.pool is None or all(strip.start == strip.first for strip in group.strips):
        return
    root = engine.plan.roots[engine.plan.places[group.pool.inputs[0]].root]
    at = f"a + {engine.plan.offset(root.name)}"
    kept = f"(first - start) * {root.channels}"
    yield f"if (s) fb_move({at}, {at} + (start - strips[s - 1][2]) * {root.channels}, {kept});"


def _strip(engine: Engine, group: Group) -> Iterator[str]:
    """What a group does with one strip."""
    yield "(void)y; (void)first; (void)start; (void)end;"
    spot = Spot("y", "first", "(end - first)", "start")
    widths = sorted({strip.end - strip.first for strip in group.strips})
    if widths[0]:
        for op in group.before:
            yield from _operation(engine, op, spot, widths)
    else:
        # The last windows of a pool may add no columns.
        yield "if (end > first) {"
        for op in group.before:
            yield from indented(_operation(engine, op, spot, widths[1:]))
        yield "}"
    if group.pool is not None:
        yield from _running(engine, group)


def _running(engine: Engine, group: Group) -> Iterator[str]:
    """The pool that takes the strip, and what follows it on the columns that it completes."""
    pool = group.pool
    assert pool is not None
    _, height, _, channels = engine.graph.tensors[pool.output].shape
    window, stride, above = pool.window[0], pool.stride[0], pool.padding[0]
    source, target = (engine.plan.roots[engine.plan.places[name].root] for name in (pool.inputs[0], pool.output))
    spot = Spot("p", "pooled", "(pooled_end - pooled)", "pooled")
    yield f"int p = y + {above} < {window - 1} ? 0 : (y + {above - window + stride}) / {stride};"
    yield f"for (; p < {height} && p * {stride} <= y + {above}; p++) {{"
    yield f"  const int top = p * {stride} - {above}, last = top + {window - 1};"
    yield "  {"
    yield f"  FB_TIMER({engine.index[pool.output]})"
    yield "  fb_t *out;"
    yield from indented(engine.open_row(pool, spot))
    yield f"  out = {engine.address(pool.output, spot)};"
    lowest = "(FB_SHIFT - 128)"
    yield f"  if (y == (top < 0 ? 0 : top)) fb_fill(out, {target.channels}, {spot.count}, {channels}, {lowest});"
    taken = f"a + {engine.plan.offset(source.name)} + {engine.plan.places[pool.inputs[0]].channel}"
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
            yield from indented(_operation(engine, op, spot, widths), 2)
        yield "  }"
    else:
        yield "  (void)last;"
    yield "}"


def _operation(engine: Engine, op: Op, spot: Spot, widths: Sequence[int]) -> Iterator[str]:
    """One operation at a spot whose number of columns is one of ``widths``."""
    yield f"{{ /* {comment(op.output)} */"
    yield f"  FB_TIMER({engine.index[op.output]})"
    yield from indented(engine.open_row(op, spot))
    yield from indented(WRITERS.get(type(op), elementwise)(engine, op, spot, widths))
    yield "}"
