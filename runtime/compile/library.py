"""The C of a library for this machine: a generated file with an entry for the model file's own layout and types."""

from ..memory.allocation import align
from .ends import Ends
from .source import CSource
from .store import CLOCK, ENTRY, SUPPORTED, TICKS
from .threads import threads_code


def library_code(source: CSource, ends: Ends, detect: str) -> str:
    """The text of a C file for a shared library.

    ``NAME_entry(arena, in, out)`` runs the network on a file's own input and output; ``NAME_supported()`` is true if
    this processor has the instructions (``detect``, an expression of C, or empty if all processors have them). A source
    with tasks has the functions of ``threads_code``, too.
    """
    name = source.name
    parts = [source.code, _input_row(source, ends), _output(source, ends), _entry(source)]
    if source.tasks:
        parts.append(threads_code(name, source.tasks))
    parts.append(f"int {name}{SUPPORTED}(void) {{ return {detect or 1}; }}")
    return "\n".join([*parts, ""])


def library_arena_bytes(source: CSource, ends: Ends) -> int:
    """Size of the arena of ``NAME_entry``: that of the network, with one row of a converted input."""
    _, _, width, channels = _input_shape(source)
    return align(source.arena_bytes) + (0 if _is_direct(ends) else align(width * channels))


def _input_shape(source: CSource) -> tuple[int, ...]:
    return source.plan.graph.tensors[source.plan.graph.inputs[0]].shape


def _is_direct(ends: Ends) -> bool:
    return ends.layout == "NHWC" and ends.input.dtype == "int8"


def _input_row(source: CSource, ends: Ends) -> str:
    """The function that gives a row of the input as the network takes it."""
    _, height, width, channels = _input_shape(source)
    head = f"static const int8_t *{source.name}_input_row(fb_t *a, const uint8_t *in, int y) {{"
    if _is_direct(ends):
        return f"{head}\n  (void)a;\n  return (const int8_t *)in + y * {width * channels};\n}}"
    # Integers of the other sign differ in their highest bit.
    flip = " ^ 128" if ends.input.dtype == "uint8" else ""
    step, pixel, row = (height * width, 1, width) if ends.layout == "NCHW" else (1, channels, width * channels)
    return f"""\
{head}
  uint8_t *const row = (uint8_t *)a + {align(source.arena_bytes)};
  in += y * {row};
  for (int x = 0; x < {width}; x++)
    for (int c = 0; c < {channels}; c++)
      row[x * {channels} + c] = in[c * {step} + x * {pixel}]{flip};
  return (const int8_t *)row;
}}"""


def _output(source: CSource, ends: Ends) -> str:
    """The function that writes the output of the file once all steps are done."""
    name = source.name
    lines = [f"static void {name}_output(void *arena, uint8_t *out) {{"]
    lines.append(f"  fb_state_of((fb_t *)arena)->step = {len(source.plan.schedule)};")
    lines.append(f"  {name}_end_in(arena, (int8_t *)out);")
    if ends.output.dtype == "uint8":
        lines.append(f"  for (int i = 0; i < {name.upper()}_OUTPUT_BYTES; i++) out[i] ^= 128;")
    return "\n".join([*lines, "}"])


def _entry(source: CSource) -> str:
    name, height, steps = source.name, _input_shape(source)[1], len(source.plan.schedule)
    return f"""\
void {name}{ENTRY}(void *arena, const uint8_t *in, uint8_t *out) {{
  fb_t *const a = (fb_t *)arena;
  fb_state *const s = fb_state_of(a);
  {name}_begin_in(arena);
  for (int y = 0; y < {height}; y++) {name}_row_in(arena, {name}_input_row(a, in, y));
  while (s->step < {steps}) fb_next_row(a, s, 0);
  {name}_output(arena, out);
}}"""


def timers(name: str, operations: int) -> str:
    """The text of a header that measures operations: included before the C file, it defines ``FB_TIMER``.

    ``NAME_ticks[i]`` sums up the time of operation ``i`` in ticks of the processor's clock.
    """
    return f"""\
#include <stdint.h>
#if defined(__x86_64__)
static inline uint64_t fb_now(void) {{ return __builtin_ia32_rdtsc(); }}
#elif defined(__aarch64__)
static inline uint64_t fb_now(void) {{ uint64_t t; __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t)); return t; }}
#else
#include <time.h>
static inline uint64_t fb_now(void) {{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}}
#endif
uint64_t {name}{TICKS}[{operations} + 1];
typedef struct {{ int operation; uint64_t start; }} fb_span;
static inline void fb_end(fb_span *span) {{ {name}{TICKS}[span->operation] += fb_now() - span->start; }}
uint64_t {name}{CLOCK}(void) {{ return fb_now(); }}
#define FB_TIMER(operation) fb_span fb_timed __attribute__((cleanup(fb_end))) = {{operation, fb_now()}}; (void)fb_timed;
"""
