"""The C of a row plan: constants, an engine for each instruction set, and the functions that run it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..graph import Graph, ops
from ..memory.rows import Root, RowPlan
from ..memory.rows.graph import Mean, Real, is_table, quantization_of
from .engine import Engine, words
from .groups import groups_code
from .isa import Family
from .layers import ConvLayer, layers_of
from .operations import changing_table, powers
from .tiles.spec import KernelTiles, StatefulTiles, Tiles, clang_target

_KERNELS = Path(__file__).with_name("kernels.c")
_ARRIVAL = "FB_ARRIVAL"


def engines(plan: RowPlan, families: Sequence[Family]) -> str:
    """The constants and the schedule of a plan, and an engine for each instruction set."""
    layers = layers_of(plan)
    parts = [_constants(plan, layers), _schedule(plan)]
    for number, family in enumerate(families):
        parts.append(f"#{'elif' if number else 'if'} {family.condition}\n{_prelude(family)}")
        for tiles in family.tiles:
            parts.append(_engine(plan, layers, tiles))
        parts.append(_choice(family))
    parts.append("#endif")
    return "\n".join(parts)


def _prelude(family: Family) -> str:
    return "\n".join(dict.fromkeys(tiles.prelude for tiles in family.tiles))


def _engine(plan: RowPlan, layers: Mapping[str, ConvLayer], tiles: Tiles) -> str:
    text = groups_code(Engine(plan, layers, tiles))
    text = _kernels(text, tiles.kernels if isinstance(tiles, KernelTiles) else "") + text
    own = set(re.findall(r"^(?:FB_INLINE|FB_NOINLINE static|static)[^(=;]*?\b(fb_\w+)\(", text, re.MULTILINE))
    text = re.sub(r"\bfb_\w+", lambda match: f"{match[0]}_{tiles.name}" if match[0] in own else match[0], text)
    if not tiles.target:
        return text
    return f"""\
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("{clang_target(tiles.target)}"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("{tiles.target}")
#endif
{text}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif"""


def _kernels(text: str, special: str) -> str:
    """The kernels that ``text`` calls, and those that these call: ``special`` ones instead of portable ones."""
    portable = _KERNELS.read_text(encoding="utf-8").split("\n\n")[1:]
    found = special.split("\n\n") if special else []
    replaced = {name for function in found for name in _defined(function)}
    functions = [function for function in portable if not replaced & set(_defined(function))] + found
    needed: list[str] = []
    called = _called(text)
    for function in reversed(functions):
        if called & set(_defined(function)):
            needed.insert(0, function)
            called |= _called(function)
    return "\n".join(needed) + "\n"


def _called(text: str) -> set[str]:
    """The names of functions and macros that C uses."""
    return set(re.findall(r"\bfb_\w+(?=\()", text))


def _defined(function: str) -> list[str]:
    return re.findall(r"^(?:FB_INLINE|FB_NOINLINE static)[^(]*?\b(fb_\w+)\(", function, re.MULTILINE)


def _choice(family: Family) -> str:
    """The choice between the engines of a family at the first call."""
    if len(family.tiles) == 1:
        (tiles,) = family.tiles
        only = f'#define fb_step fb_step_{tiles.name}\n#define fb_isa "{tiles.name}"'
        if not isinstance(tiles, StatefulTiles):
            return only
        # Detection also asks for the registers.
        return f"{only}\n#define FB_CHOOSE() do {{ static int has; if (!has) has = {tiles.detect}; }} while (0)"
    lines = ["static void (*fb_chosen)(fb_t *, int, int);", "static const char *fb_isa;"]
    lines.append("static void fb_choose(void) {")
    for tiles in family.tiles[:-1]:
        lines.append(f'  if ({tiles.detect}) {{ fb_isa = "{tiles.name}"; fb_chosen = fb_step_{tiles.name}; return; }}')
    last = family.tiles[-1].name
    lines.append(f'  fb_isa = "{last}"; fb_chosen = fb_step_{last};')
    lines.append("}")
    lines.append("#define fb_step(a, group, y) fb_chosen(a, group, y)")
    lines.append("#define FB_CHOOSE() do { if (!fb_chosen) fb_choose(); } while (0)")
    return "\n".join(lines)


def _constants(plan: RowPlan, layers: Mapping[str, ConvLayer]) -> str:
    parts = []
    index = {op.output: number for number, op in enumerate(plan.graph.ops)}
    for name, layer in layers.items():
        number = index[name]
        parts.append(words(f"fb_w{number}", layer.weights))
        parts.append(_array("float", f"fb_k{number}", [float(value).hex() + "f" for value in layer.scale], 8))
        parts.append("#if FB_SHIFT")
        parts.append(_array("int32_t", f"fb_b{number}", layer.stored_bias(128), 16))
        parts.append("#else")
        parts.append(_array("int32_t", f"fb_b{number}", layer.stored_bias(0), 16))
        parts.append("#endif")
    for number, op in enumerate(plan.graph.ops):
        table = _table(plan.graph, op)
        if table is not None:
            kind = "double" if table.dtype == np.float64 else f"{table.dtype}_t"
            values = [float(value).hex() for value in table] if kind == "double" else table
            parts.append(_array(kind, f"fb_t{number}", values, 16))
        if isinstance(op, Real):
            scale = plan.graph.tensors[op.inputs[1]].real().reshape(-1)
            parts.append(_array("float", f"fb_k{number}", [float(value).hex() + "f" for value in scale], 8))
    return "\n".join(parts)


def _table(graph: Graph, op: ops.Op) -> np.ndarray | None:
    """The constants of an operation that is no convolution, or ``None`` if it has none."""
    if is_table(op):
        return changing_table(graph, op)
    if isinstance(op, Mean | Real) and op.outside:
        border = graph.tensors[op.inputs[-1]].data
        zero = graph.tensors[op.inputs[-1]].quantization
        assert border is not None
        return border.reshape(-1).astype(np.int16) - (zero.zero_point if zero else 0)
    if isinstance(op, ops.Softmax):
        return powers(graph, op)
    return None


def _array(kind: str, name: str, values: Sequence[object] | np.ndarray, per_line: int) -> str:
    texts = [str(value) for value in values]
    lines = (",".join(texts[at : at + per_line]) for at in range(0, len(texts), per_line))
    return f"FB_TABLE({kind}, {name}, {len(texts)}) = {{\n" + ",\n".join(lines) + "};"


def _schedule(plan: RowPlan) -> str:
    """The order of the steps: the group of each, or the arrival of a row of input."""
    count = len(plan.groups)
    kind = "uint8_t" if count < 255 else "uint16_t"
    arrival = 255 if count < 255 else 65535
    steps = [step.group if step.group >= 0 else arrival for step in plan.schedule]
    return f"#define FB_ARRIVAL {arrival}\n" + _array(kind, "fb_schedule", steps, 32)


def api(plan: RowPlan, prefix: str, real: bool = False) -> Iterator[str]:
    """The functions that take an arena; their names begin with ``prefix``."""
    graph = plan.graph
    source, target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    _, height, width, channels = source.shape
    row = width * channels
    root = plan.roots[plan.places[source.name].root]
    kind = output_type(real)
    yield f"""\
#ifndef FB_CHOOSE
#define FB_CHOOSE() (void)0
#endif
typedef struct {{ uint32_t step; uint16_t arrived; uint16_t row[{len(plan.groups)}]; }} fb_state;
static fb_state *fb_state_of(fb_t *a) {{ return (fb_state *)(void *)(a + {plan.state_offset}); }}
"""
    yield from _arrive(plan, root, row, channels)
    yield f"""\
/* Runs the steps up to the next row of input. */
static void fb_run_steps(fb_t *a, fb_state *s) {{
  while (s->step < {len(plan.schedule)} && fb_schedule[s->step] != {_ARRIVAL}) {{
    const int group = fb_schedule[s->step++];
    fb_step(a, group, s->row[group]++);
  }}
}}
static void fb_next_row(fb_t *a, fb_state *s, const int8_t *in) {{
  s->step++;
  fb_arrive(a, s->arrived++, in);
  fb_run_steps(a, s);
}}
static void fb_finish(fb_t *a, fb_state *s, {kind} *out) {{
  while (s->step < {len(plan.schedule)}) fb_next_row(a, s, 0);
{_output(plan, target.name, real)}
}}
"""
    yield f"const char *{prefix}_isa(void) {{ FB_CHOOSE(); return fb_isa; }}"
    yield _whole_api(plan, prefix, kind, height, row) if plan.input == "whole" else _rows_api(prefix, kind, height, row)


def _whole_api(plan: RowPlan, prefix: str, kind: str, height: int, row: int) -> str:
    """The functions of a network whose input is whole in the arena: ``height`` rows of ``row`` bytes."""
    return f"""\
int8_t *{prefix}_input_in(void *arena) {{ return (int8_t *)arena + {plan.input_offset}; }}
void {prefix}_invoke_in(void *arena, {kind} *out) {{
  fb_t *a = (fb_t *)arena;
  fb_state *s = fb_state_of(a);
  FB_CHOOSE();
  memset(s, 0, sizeof *s);
  fb_run_steps(a, s);
  while (s->arrived < {height}) fb_next_row(a, s, {prefix}_input_in(arena) + s->arrived * {row});
  fb_finish(a, s, out);
}}
void {prefix}_run_in(void *arena, const int8_t *in, {kind} *out) {{
  memcpy({prefix}_input_in(arena), in, {row * height});
  {prefix}_invoke_in(arena, out);
}}"""


def _rows_api(prefix: str, kind: str, height: int, row: int) -> str:
    """The functions of a network whose input is delivered by rows: ``height`` rows of ``row`` bytes."""
    return f"""\
void {prefix}_begin_in(void *arena) {{
  fb_t *a = (fb_t *)arena;
  FB_CHOOSE();
  memset(fb_state_of(a), 0, sizeof(fb_state));
  fb_run_steps(a, fb_state_of(a));
}}
void {prefix}_row_in(void *arena, const int8_t *row) {{
  fb_t *a = (fb_t *)arena;
  if (fb_state_of(a)->arrived < {height}) fb_next_row(a, fb_state_of(a), row);
}}
void {prefix}_end_in(void *arena, {kind} *out) {{ fb_finish((fb_t *)arena, fb_state_of((fb_t *)arena), out); }}
void {prefix}_run_in(void *arena, const int8_t *in, {kind} *out) {{
  {prefix}_begin_in(arena);
  for (int y = 0; y < {height}; y++) {prefix}_row_in(arena, in + y * {row});
  {prefix}_end_in(arena, out);
}}"""


def _arrive(plan: RowPlan, root: Root, row: int, channels: int) -> Iterator[str]:
    """The function that takes a row of input."""
    yield "static void fb_arrive(fb_t *a, int y, const int8_t *in) {"
    at = plan.offset(root.name)
    if plan.input == "whole" and not root.is_padded:
        # The row lies in the arena; only its stored form may differ.
        yield f"  fb_t *out = a + {at} + y * {row};\n  (void)in;"
        yield f"  if (FB_SHIFT) for (int i = 0; i < {row}; i++) out[i] = (fb_t)(((int8_t *)out)[i] + FB_SHIFT);\n}}"
        return
    pad = f"FB_SHIFT + ({root.zero_point})"
    yield f"  fb_t *out = a + {at} + (y + {root.top}) % {root.rows} * {root.pitch};"
    if root.bottom:
        yield f"  if (y >= {root.height}) {{ memset(out, {pad}, {root.pitch}); return; }}"
    if root.top:
        yield f"  if (y == 0) memset(a + {at}, {pad}, {root.top * root.pitch});"
    if root.left or root.right:
        yield f"  if (y + {root.top} < {root.rows}) memset(out, {pad}, {root.pitch});"
    yield f"  out += {root.left * channels};"
    yield f"  if (!in) memset(out, {pad}, {row}); /* a row that never came */"
    yield f"  else for (int i = 0; i < {row}; i++) out[i] = (fb_t)(in[i] + FB_SHIFT);\n}}"


def output_type(real: bool) -> str:
    """The C type of the output."""
    return "float" if real else "int8_t"


def _output(plan: RowPlan, name: str, real: bool) -> str:
    tensor = plan.graph.tensors[name]
    _, height, width, channels = tensor.shape
    root = plan.roots[plan.places[name].root]
    if tensor.dtype == "float32":
        return f"  memcpy(out, a + {plan.offset(root.name)}, {4 * channels});"
    start = plan.rows(root.name).at(root.top) + plan.column(name)
    value = f"a[{start} + y * {root.pitch} + x * {root.channels} + i] - FB_SHIFT"
    if real:
        found = quantization_of(plan.graph, name)
        value = f"(float)({value} - ({found.zero_point})) * {float(np.float32(found.scale[0])).hex()}f"
    else:
        value = f"(int8_t)({value})"
    return f"""\
  for (int y = 0; y < {height}; y++)
    for (int x = 0; x < {width}; x++)
      for (int i = 0; i < {channels}; i++)
        *out++ = {value};"""
