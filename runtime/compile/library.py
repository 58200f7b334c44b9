"""The C of a library for this machine: a generated file with an entry for the model file's own layout and types."""

from ..memory.allocation import align
from .ends import Ends
from .source import CSource
from .store import CLOCK, ENTRY, SUPPORTED, TICKS


def library_code(source: CSource, ends: Ends, detect: str) -> str:
    """The text of a C file for a shared library.

    ``NAME_entry(arena, in, out)`` runs the network on a file's own input and output; ``NAME_supported()`` is true if
    this processor has the instructions (``detect``, an expression of C, or empty if all processors have them).
    """
    return "\n".join(
        [source.code, _entry(source, ends), f"int {source.name}{SUPPORTED}(void) {{ return {detect or 1}; }}", ""]
    )


def library_arena_bytes(source: CSource, ends: Ends) -> int:
    """Size of the arena of ``NAME_entry``: that of the network, with one row of a converted input."""
    _, _, width, channels = _input_shape(source)
    return align(source.arena_bytes) + (0 if _is_direct(ends) else align(width * channels))


def _input_shape(source: CSource) -> tuple[int, ...]:
    return source.plan.graph.tensors[source.plan.graph.inputs[0]].shape


def _is_direct(ends: Ends) -> bool:
    return ends.layout == "NHWC" and ends.input.dtype == "int8"


def _entry(source: CSource, ends: Ends) -> str:
    """The entry; integers of the other sign differ in their highest bit."""
    name = source.name
    _, height, width, channels = _input_shape(source)
    lines = [f"void {name}{ENTRY}(void *arena, const uint8_t *in, uint8_t *out) {{"]
    if _is_direct(ends):
        lines.append(f"  {name}_run_in(arena, (const int8_t *)in, (int8_t *)out);")
    else:
        flip = " ^ 128" if ends.input.dtype == "uint8" else ""
        step, pixel, row = (height * width, 1, width) if ends.layout == "NCHW" else (1, channels, width * channels)
        lines += [
            f"  uint8_t *const row = (uint8_t *)arena + {align(source.arena_bytes)};",
            f"  {name}_begin_in(arena);",
            f"  for (int y = 0; y < {height}; y++, in += {row}) {{",
            f"    for (int x = 0; x < {width}; x++)",
            f"      for (int c = 0; c < {channels}; c++)",
            f"        row[x * {channels} + c] = in[c * {step} + x * {pixel}]{flip};",
            f"    {name}_row_in(arena, (const int8_t *)row);",
            "  }",
            f"  {name}_end_in(arena, (int8_t *)out);",
        ]
    if ends.output.dtype == "uint8":
        lines.append(f"  for (int i = 0; i < {name.upper()}_OUTPUT_BYTES; i++) out[i] ^= 128;")
    return "\n".join([*lines, "}"])


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
