"""Random convolutions for generated tiles: a program in C around them, and what numpy says they must write."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from boards import Board, build_for, run_on

from firebox.runtime.compile.tiles.spec import PANEL, ConvSpec, StatefulTiles, Tiles, clang_target

_FREE = 0xA5  # bytes that a tile must not touch
_BEFORE = 64  # of them before the output
_SLACK = 15  # bytes beyond a segment that a tile may read
_MOST_PIXELS = 20  # of a case, for tiles without a limit
_BOARD_MAIN = Path(__file__).parent / "cortex_m" / "tiles.c"
SKIPPED = 77  # exit status of the program on a processor without the instruction set


@dataclass(frozen=True)
class Case:
    """One call of one tile: ``pixels`` of ``panels`` panels from panel ``first`` on, with its numbers."""

    spec: ConvSpec
    pixels: int
    first: int
    panels: int
    at: int
    activations: np.ndarray  # stored integers, [segments, bytes]
    weights: np.ndarray  # int8, [panels, segments, length / 4, 16, 4]
    scale: np.ndarray  # float32, [panels * 16]
    bias: np.ndarray  # int32, [panels * 16]

    @property
    def tail(self) -> int:
        return self.spec.tail(self.first, self.panels)

    @property
    def item(self) -> int:
        return 4 if self.spec.raw else 1

    @property
    def out_bytes(self) -> int:
        """From the first byte of the first pixel to the last byte of the last."""
        return (self.pixels - 1) * self.spec.out_step + ((self.panels - 1) * PANEL + self.tail) * self.item


def random_cases(tiles: Tiles, count: int, seed: int) -> list[Case]:
    """Convolutions of all kinds, cut into tiles as the compiler cuts them."""
    rng = np.random.default_rng(seed)
    return [_random_case(tiles, _random_spec(rng), rng) for _ in range(count)]


def _random_spec(rng: np.random.Generator) -> ConvSpec:
    length = 4 * int(rng.choice([rng.integers(1, 76), rng.integers(1, 9), 4 * rng.integers(1, 17)]))
    channels = int(
        rng.choice([rng.integers(1, 71), PANEL * rng.integers(1, 5), rng.integers(64, 420)], p=[0.5, 0.3, 0.2])
    )
    raw = bool(rng.random() < 0.15)
    zero_point = int(rng.choice([-128, rng.integers(-128, 128)]))
    low, high = [(-128, 127), (zero_point, 127), (zero_point, min(zero_point + 60, 127))][rng.integers(3)]
    return ConvSpec(
        segments=int(rng.integers(1, 10)),
        length=length,
        step=int(rng.choice([rng.integers(1, 80), length])),
        out_step=(channels + int(rng.choice([0, rng.integers(0, 40)]))) * (4 if raw else 1),
        channels=channels,
        zero_point=zero_point,
        low=low,
        high=high,
        clamps=bool(rng.random() < 0.2),
        raw=raw,
        symmetric=bool(rng.random() < 0.5),
    )


def _random_case(tiles: Tiles, spec: ConvSpec, rng: np.random.Generator) -> Case:
    most_panels, most_pixels = tiles.shape(spec)
    most_pixels = min(most_pixels, _MOST_PIXELS)
    first = most_panels * int(rng.integers(-(-spec.panels // most_panels)))
    panels = min(most_panels, spec.panels - first)
    pixels = int(rng.choice([most_pixels, rng.integers(1, most_pixels + 1)]))
    at = int(rng.integers(0, 20))
    kind = np.int8 if tiles.signed else np.uint8
    limits = np.iinfo(kind)
    shape = spec.segments, at + (pixels - 1) * spec.step + spec.length + _SLACK
    activations = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
    if rng.random() < 0.2:  # what saturates where it must not
        activations[:] = limits.max
    weights = rng.integers(-128, 128, (panels, spec.segments, spec.length // 4, PANEL, 4)).astype(np.int8)
    if rng.random() < 0.2:
        weights = np.where(weights < 0, -128, 127).astype(np.int8)
    if spec.symmetric:
        weights = np.maximum(weights, -127)
    weights[:, :, -1, :, 4 - int(rng.integers(0, 4)) :] = 0
    scale = rng.uniform(0.2, 1, panels * PANEL) * 70 / (128 * 74 * np.sqrt(spec.segments * spec.length))
    if spec.clamps:
        scale *= rng.choice([1, 1e9], scale.shape)
    bias = rng.integers(-50000, 50000, panels * PANEL)
    unused = slice((panels - 1) * PANEL + spec.tail(first, panels), None)
    weights[-1, :, :, spec.tail(first, panels) :] = 0
    scale[unused] = bias[unused] = 0
    return Case(spec, pixels, first, panels, at, activations, weights, scale.astype(np.float32), bias.astype(np.int32))


def expected(case: Case) -> bytes:
    """What lies in the output's memory afterwards, with the untouched bytes before it and in its gaps."""
    spec = case.spec
    starts = case.at + np.arange(case.pixels) * spec.step
    windows = case.activations[:, starts[:, None] + np.arange(spec.length)].astype(np.int64)
    weights = case.weights.transpose(0, 3, 1, 2, 4).reshape(case.panels * PANEL, spec.segments, spec.length)
    sums = np.einsum("spl,csl->pc", windows, weights.astype(np.int64)) + case.bias
    sums = sums[:, : (case.panels - 1) * PANEL + case.tail]
    if spec.raw:
        values = sums.astype("<i4")
    else:
        scaled = np.rint(sums.astype(np.float32) * case.scale[: sums.shape[1]]).astype(np.float64) + spec.zero_point
        values = np.clip(scaled, spec.low, spec.high).astype(np.int8)
        if case.activations.dtype == np.uint8:
            values = (values.astype(np.int16) + 128).astype(np.uint8)
    out = np.full(_BEFORE + case.out_bytes, _FREE, np.uint8)
    for pixel, row in enumerate(values):
        start = _BEFORE + pixel * spec.out_step
        out[start : start + row.nbytes] = np.frombuffer(row.tobytes(), np.uint8)
    return out.tobytes()


def source(tiles: Tiles, cases: Sequence[Case]) -> str:
    """A program that reads the numbers of all cases from stdin and writes their outputs to stdout."""
    kind = "int8_t" if tiles.signed else "uint8_t"
    shift = "0" if tiles.signed else "128"
    begin = _BEGIN.replace("FB_T", kind).replace("FB_SHIFT SHIFT", f"FB_SHIFT {shift}")
    lines = [f"#if {tiles.condition or 1}", begin, tiles.prelude]
    if tiles.target:
        lines.append(_PUSH % (clang_target(tiles.target), tiles.target))
    for i, case in enumerate(cases):
        lines.append(tiles.tile(f"tile{i}", case.spec, case.pixels, case.panels, case.tail))
        out = "int32_t" if case.spec.raw else "fb_t"
        enter = tiles.enter(case.spec, case.pixels) if isinstance(tiles, StatefulTiles) else ""
        leave = tiles.leave(case.spec) if isinstance(tiles, StatefulTiles) else ""
        lines.append(
            f"static void run{i}(const fb_t *const *s, const int8_t *w, const float *c, const int32_t *b, void *o)"
            f" {{ {enter} tile{i}(s, {case.at}, w, c, b, ({out} *)o); {leave} }}"
        )
    if tiles.target:
        lines.append(_POP)
    lines.append(
        f"FB_INLINE int detected(void) {{ return {tiles.detect or '1'}; }}\nstatic const struct fb_case cases[] = {{"
    )
    for i, case in enumerate(cases):
        segments, size = case.activations.shape
        lines.append(f"  {{ run{i}, {segments}, {size}, {case.weights.nbytes}, {case.panels}, {case.out_bytes} }},")
    lines.append("};")
    total = sum(_BEFORE + case.out_bytes for case in cases)
    weights, out = max(case.weights.nbytes for case in cases), max(case.out_bytes for case in cases)
    panels = max(case.panels for case in cases)
    lines.append(f"enum {{ MOST_WEIGHTS = {weights}, MOST_PANELS = {panels}, MOST_OUT = {out} }};")
    lines.append(f"extern const uint32_t out_bytes;\nconst uint32_t out_bytes = {total};")
    end = f"#else\nint main(void) {{ return {SKIPPED}; }}\n#endif\n"
    return "\n".join([*lines, _MAIN.replace("SKIPPED", str(SKIPPED)), end])


def vectors(cases: Sequence[Case]) -> bytes:
    """The numbers of all cases, as the program reads them."""
    arrays = [array for case in cases for array in (case.activations, case.weights, case.scale, case.bias)]
    return b"".join(array.tobytes() for array in arrays)


def build(folder: Path, tiles: Tiles, cases: Sequence[Case], compiler: Sequence[str]) -> Path:
    """The program, compiled by a command such as ``gcc -O2``; a warning is an error."""
    path = folder / "tiles.c"
    path.write_text(source(tiles, cases))
    program = folder / "tiles"
    command = [
        *compiler,
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffp-contract=off",
        path.name,
        "-o",
        program.name,
    ]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:4000]
    return program


def run(program: Path, cases: Sequence[Case], emulator: Sequence[str] = ()) -> list[bytes] | None:
    """The memory around each output afterwards, or None if the processor lacks the instruction set."""
    ran = subprocess.run([*emulator, str(program)], input=vectors(cases), capture_output=True)
    if ran.returncode == SKIPPED:
        return None
    assert ran.returncode == 0, (ran.returncode, ran.stderr.decode(errors="replace")[-2000:])
    return _outputs(ran.stdout, cases)


def _outputs(data: bytes, cases: Sequence[Case]) -> list[bytes]:
    ends = np.cumsum([_BEFORE + case.out_bytes for case in cases])
    assert len(data) == ends[-1]
    return [data[end - _BEFORE - case.out_bytes : end] for end, case in zip(ends, cases, strict=True)]


def run_on_board(folder: Path, board: Board, tiles: Tiles, cases: Sequence[Case]) -> list[bytes]:
    """``run`` on a bare Cortex-M."""
    (folder / "tiles.c").write_text(source(tiles, cases))
    (folder / "tiles.in").write_bytes(vectors(cases))
    program = build_for(board, [folder / "tiles.c", _BOARD_MAIN], folder / "tiles.elf")
    run_on(board, program, folder)
    return _outputs((folder / "tiles.out").read_bytes(), cases)


_BEGIN = """\
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#if defined(__linux__)
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#endif
typedef FB_T fb_t;
#define FB_SHIFT SHIFT
#define FB_INLINE static inline __attribute__((always_inline, unused))
#define FB_NOINLINE __attribute__((noinline))
FB_INLINE int32_t fb_load4(const void *p) { int32_t v; memcpy(&v, p, 4); return v; }
typedef void fb_run(const fb_t *const *, const int8_t *, const float *, const int32_t *, void *);
struct fb_case { fb_run *run; int segments, size, weights, panels, out; };
"""

_PUSH = """\
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("%s"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("%s")
#endif
"""

_POP = """\
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
"""

# Every buffer ends where a page begins that can be neither read nor written. Without an operating system, the numbers
# and the outputs are in memory.
_MAIN = """\
#if defined(__linux__)
struct fb_buffer { uint8_t *start, *map; size_t size; };
static struct fb_buffer guarded(size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (size + page - 1) / page * page;
  uint8_t *map = mmap(0, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED || mprotect(map + used, page, PROT_NONE)) _exit(1);
  struct fb_buffer b = { map + used - size, map, used + page };
  return b;
}
static struct fb_buffer input(size_t size) {
  struct fb_buffer b = guarded(size);
  if (fread(b.start, 1, size, stdin) != size) _exit(2);
  return b;
}
int main(void) {
  if (!detected()) return SKIPPED;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const struct fb_case *c = &cases[i];
    struct fb_buffer used[16]; const fb_t *seg[9]; int n = 0;
    for (; n < c->segments; n++) { used[n] = input((size_t)c->size); seg[n] = (const fb_t *)used[n].start; }
    struct fb_buffer w = used[n++] = input((size_t)c->weights), scale = used[n++] = input((size_t)c->panels * 64);
    struct fb_buffer bias = used[n++] = input((size_t)c->panels * 64), out = used[n++] = guarded((size_t)c->out + 64);
    memset(out.start, 0xA5, (size_t)c->out + 64);
    const float *c_scale = (const float *)(void *)scale.start;
    const int32_t *c_bias = (const int32_t *)(void *)bias.start;
    c->run(seg, (const int8_t *)w.start, c_scale, c_bias, out.start + 64);
    if (fwrite(out.start, 1, (size_t)c->out + 64, stdout) != (size_t)c->out + 64) return 3;
    while (n--) munmap(used[n].map, used[n].size);
  }
  return fflush(stdout) ? 4 : 0;
}
#else
static uint8_t weights[MOST_WEIGHTS] __attribute__((aligned(64))), to[MOST_OUT + 64] __attribute__((aligned(64)));
static float scale[MOST_PANELS * 16] __attribute__((aligned(64)));
static int32_t bias[MOST_PANELS * 16] __attribute__((aligned(64)));
static const uint8_t *take(void *to_, const uint8_t *in, size_t size) { memcpy(to_, in, size); return in + size; }
void run_cases(const uint8_t *in, uint8_t *out);
void run_cases(const uint8_t *in, uint8_t *out) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const struct fb_case *c = &cases[i];
    const fb_t *seg[9];
    for (int n = 0; n < c->segments; n++, in += c->size) seg[n] = (const fb_t *)in;
    in = take(weights, in, (size_t)c->weights);
    in = take(scale, in, (size_t)c->panels * 64);
    in = take(bias, in, (size_t)c->panels * 64);
    memset(to, 0xA5, sizeof to);
    c->run(seg, (const int8_t *)weights, scale, bias, to + 64);
    memcpy(out, to, (size_t)c->out + 64);
    out += c->out + 64;
  }
}
#endif
"""
