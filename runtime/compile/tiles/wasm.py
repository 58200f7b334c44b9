"""Tiles of WebAssembly with 128-bit SIMD.

The relaxed SIMD extension has dot products of four int8 (``i32x4.relaxed_dot_i8x16_i7x16_add_s``), but their answer is
the same on all engines only for weights of 7 bits.
"""

from dataclasses import dataclass

from .spec import PANEL, ConvSpec

_PRELUDE = r"""
#include <wasm_simd128.h>
#if FB_SHIFT
#define FB_WASM_EXTEND wasm_u16x8_extend_low_u8x16
#define FB_WASM_EXTEND_HIGH wasm_u16x8_extend_high_u8x16
#define FB_WASM_NARROW wasm_u8x16_narrow_i16x8
#else
#define FB_WASM_EXTEND wasm_i16x8_extend_low_i8x16
#define FB_WASM_EXTEND_HIGH wasm_i16x8_extend_high_i8x16
#define FB_WASM_NARROW wasm_i8x16_narrow_i16x8
#endif
/* 8 weights in 16 bits. The pointer is aligned to 32, and "or" tells the compiler that the address cannot wrap around,
   so that the offset becomes part of the instruction. */
#define FB_WASM_WEIGHTS(p, offset) \
  wasm_i16x8_load8x8((const void *)(((uintptr_t)(p) & ~(uintptr_t)31) | (offset)))
FB_INLINE void fb_wasm_extend(int16_t *to, const fb_t *from, int n) {
  for (int i = 0; i < n; i += 16) {
    const v128_t x = wasm_v128_load(from + i);
    wasm_v128_store(to + i, FB_WASM_EXTEND(x));
    wasm_v128_store(to + i + 8, FB_WASM_EXTEND_HIGH(x));
  }
}
/* The sums of four channels from their parts: two channels by two parts in each vector. */
FB_INLINE v128_t fb_wasm_join(v128_t a, v128_t b, const int32_t *bias) {
  const v128_t even = wasm_i32x4_shuffle(a, b, 0, 2, 4, 6), odd = wasm_i32x4_shuffle(a, b, 1, 3, 5, 7);
  return wasm_i32x4_add(wasm_i32x4_add(even, odd), wasm_v128_load(bias));
}
/* Scaled sums within the limits, rounded half to even: 1.5 * 2^23 leaves the integer in the low bits. */
FB_INLINE v128_t fb_wasm_scale(v128_t sums, const float *scale, v128_t low, v128_t high) {
  v128_t x = wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sums), wasm_v128_load(scale));
  x = wasm_f32x4_pmin(wasm_f32x4_pmax(x, low), high);
  return wasm_i32x4_sub(wasm_f32x4_add(x, wasm_f32x4_splat(12582912.0f)), wasm_i32x4_splat(0x4B400000));
}
"""

# Channels computed at once: half a panel, so that the sums of three pixels stay in the 16 registers of x86.
_HALF = PANEL // 2
_PIXELS = 3
# A tile extends its input to 16 bits once, for all its panels. The weights of so many panels stay near the processor.
_PANELS = 4
# Most bytes of extended input, on the stack.
_WIDE_BYTES = 16384


@dataclass(frozen=True)
class _Run:
    """The input of a tile in 16 bits: ``count`` runs of ``size`` values for each segment, pixels ``step`` apart."""

    count: int
    size: int
    step: int
    is_wide: bool

    @classmethod
    def of(cls, spec: ConvSpec, pixels: int) -> "_Run":
        """Overlapping windows are one run; distant ones a run each. Long ones are extended in the inner loop."""
        is_one = spec.step <= spec.length
        real = spec.length + (pixels - 1) * spec.step if is_one else spec.length
        size = -(-real // 16) * 16
        count = 1 if is_one else pixels
        is_wide = 2 * spec.segments * count * size <= _WIDE_BYTES
        return cls(count, size, (spec.step if is_one else size) if is_wide else spec.step, is_wide)

    @property
    def segment(self) -> str:
        """C that points ``a`` at segment ``r``."""
        return (
            f"const int16_t *a = wide + r * {self.count * self.size};"
            if self.is_wide
            else "const fb_t *a = seg[r] + at;"
        )

    def load(self, pixel: int) -> str:
        """C of the four inputs from ``k`` on of a pixel, twice, in 16 bits."""
        at = f"a + k + {pixel * self.step}"
        if self.is_wide:
            return f"wasm_v128_load64_splat({at})"
        return f"FB_WASM_EXTEND(wasm_v128_load32_splat({at}))"

    def extended(self, spec: ConvSpec, pixels: int) -> list[str]:
        """C that extends the input into an array of its own."""
        if not self.is_wide:
            return []
        lines = [f"  int16_t wide[{spec.segments * self.count * self.size}] __attribute__((aligned(16)));"]
        lines.append(f"  for (int r = 0; r < {spec.segments}; r++)")
        if self.count > 1:
            lines.append(f"    for (int m = 0; m < {self.count}; m++)")
        to = f"wide + (r * {self.count} + m) * {self.size}" if self.count > 1 else f"wide + r * {self.size}"
        at = f"seg[r] + at + m * {spec.step}" if self.count > 1 else "seg[r] + at"
        return [*lines, f"      fb_wasm_extend({to}, {at}, {self.size});"]


@dataclass(frozen=True)
class WasmSimd:
    """Products of 16 bits, added in pairs: ``i32x4.dot_i16x8_s``, in all engines since 2021."""

    name: str = "wasmsimd"
    condition: str = "defined(__wasm_simd128__)"
    target: str = ""
    detect: str = ""
    signed: bool = False
    prelude: str = _PRELUDE

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """Four panels by three pixels."""
        return min(spec.panels, _PANELS), _PIXELS

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """Pixels by 8 channels, for one half of a panel after another."""
        out = "int32_t" if spec.raw else "fb_t"
        lines = [
            f"static FB_NOINLINE void {name}(const fb_t *const *seg, int at, const int8_t *w, const float *scale,"
            f" const int32_t *bias, {out} *out) {{"
        ]
        if spec.raw:
            lines.append("  (void)scale;")
        else:
            lines.append(f"  const v128_t zero = wasm_i16x8_splat({spec.zero_point} + FB_SHIFT);")
            lines.append(f"  const v128_t low = wasm_f32x4_splat({spec.low - spec.zero_point}.0f);")
            lines.append(f"  const v128_t high = wasm_f32x4_splat({spec.high - spec.zero_point}.0f);")
        run = _Run.of(spec, pixels)
        lines += run.extended(spec, pixels)
        channels = PANEL * (panels - 1) + tail
        whole = channels // _HALF
        # Channels from h on: their sums, and the weights of half a panel.
        head = f"const int8_t *v = w + (h / {PANEL}) * {spec.panel_bytes} + (h % {PANEL}) * 4;"
        if whole:
            lines.append(f"  for (int h = 0; h < {_HALF * whole}; h += {_HALF}) {{ {head}")
            lines += [*self._half(spec, run, pixels, _HALF), "  }"]
        if channels % _HALF:
            lines.append(f"  {{ const int h = {_HALF * whole}; {head}")
            lines += [*self._half(spec, run, pixels, channels % _HALF), "  }"]
        return "\n".join([*lines, "}\n"])

    def _half(self, spec: ConvSpec, run: "_Run", pixels: int, channels: int) -> list[str]:
        vectors = -(-channels // 2)  # of sums: two channels in two parts
        sums = [f"s{m}_{n}" for m in range(pixels) for n in range(vectors)]
        lines = [f"    v128_t {', '.join(f'{s} = wasm_i32x4_splat(0)' for s in sums)};"]
        lines += [f"    for (int r = 0; r < {spec.segments}; r++) {{", f"      {run.segment}"]
        lines.append(f"      for (int k = 0; k < {spec.length}; k += 4, v += {4 * PANEL}) {{")
        for m in range(pixels):
            lines.append(f"        const v128_t x{m} = {run.load(m)};")
        for n in range(vectors):
            lines.append(f"        {{ const v128_t y = FB_WASM_WEIGHTS(v, {8 * n});")
            for m in range(pixels):
                s = f"s{m}_{n}"
                lines.append(f"          {s} = wasm_i32x4_add({s}, wasm_i32x4_dot_i16x8(x{m}, y));")
            lines.append("        }")
        lines += ["      }", "    }"]
        for m in range(pixels):
            lines.append(f"    {{ {self._outputs(spec, m, channels, vectors)} }}")
        return lines

    def _outputs(self, spec: ConvSpec, pixel: int, channels: int, vectors: int) -> str:
        joined = []
        for j in range(-(-vectors // 2)):
            pair = f"s{pixel}_{2 * j}, s{pixel}_{min(2 * j + 1, vectors - 1)}"
            joined.append(f"const v128_t c{j} = fb_wasm_join({pair}, bias + h + {4 * j});")
        if spec.raw:
            to = f"(int8_t *)out + {pixel * spec.out_step} + 4 * h"
            stores = [_some(f"c{j}", f"{to} + {16 * j}", min(4 * channels - 16 * j, 16)) for j in range(len(joined))]
            return " ".join(joined + stores)
        scaled = [f"fb_wasm_scale(c{j}, scale + h + {4 * j}, low, high)" for j in range(len(joined))]
        return " ".join(
            [
                *joined,
                f"v128_t p = wasm_i16x8_add(wasm_i16x8_narrow_i32x4({scaled[0]}, {scaled[-1]}), zero);",
                "p = FB_WASM_NARROW(p, p);",
                _some("p", f"out + {pixel * spec.out_step} + h", channels),
            ]
        )


def _some(vector: str, to: str, count: int) -> str:
    """C that writes the first ``count`` bytes of a vector and no other byte."""
    if count == 16:
        return f"wasm_v128_store({to}, {vector});"
    parts, done = [], 0
    for size in (8, 4, 2, 1):
        if count - done >= size:
            parts.append(f"wasm_v128_store{8 * size}_lane({to} + {done}, {vector}, {done // size});")
            done += size
    return " ".join(parts)
