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
#define FB_WASM_NARROW wasm_u8x16_narrow_i16x8
#define FB_WASM_MAX wasm_u8x16_max
#define FB_WASM_MIN wasm_u8x16_min
#else
#define FB_WASM_EXTEND wasm_i16x8_extend_low_i8x16
#define FB_WASM_NARROW wasm_i8x16_narrow_i16x8
#define FB_WASM_MAX wasm_i8x16_max
#define FB_WASM_MIN wasm_i8x16_min
#endif
/* The sums of four channels from their parts: two channels by two parts in each vector. */
FB_INLINE v128_t fb_wasm_join(v128_t a, v128_t b, const int32_t *bias) {
  const v128_t even = wasm_i32x4_shuffle(a, b, 0, 2, 4, 6), odd = wasm_i32x4_shuffle(a, b, 1, 3, 5, 7);
  return wasm_i32x4_add(wasm_i32x4_add(even, odd), wasm_v128_load(bias));
}
/* Scaled sums, rounded to the nearest, ties to even; the conversion saturates. */
FB_INLINE v128_t fb_wasm_scale(v128_t sums, const float *scale) {
  const v128_t x = wasm_f32x4_mul(wasm_f32x4_convert_i32x4(sums), wasm_v128_load(scale));
  return wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(x));
}
"""

# Channels computed at once: half a panel, so that the sums of four pixels stay in registers.
_HALF = PANEL // 2
_PIXELS = 4


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
        """One panel by four pixels."""
        return 1, _PIXELS

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """Pixels by 8 channels, twice if the panel has more."""
        out = "int32_t" if spec.raw else "fb_t"
        lines = [
            f"static FB_NOINLINE void {name}(const fb_t *const *seg, int at, const int8_t *w, const float *scale,"
            f" const int32_t *bias, {out} *out) {{"
        ]
        if spec.raw:
            lines.append("  (void)scale;")
        else:
            lines.append(f"  const v128_t zero = wasm_i16x8_splat({spec.zero_point} + FB_SHIFT);")
            lines.append(f"  const v128_t low = wasm_i8x16_splat((int8_t)({spec.low} + FB_SHIFT));")
            lines.append(f"  const v128_t high = wasm_i8x16_splat((int8_t)({spec.high} + FB_SHIFT));")
        halves = (tail,) if tail <= _HALF else (_HALF, tail - _HALF)
        alike = len(set(halves)) == 1
        if alike:
            lines.append(f"  for (int h = 0; h < {_HALF * len(halves)}; h += {_HALF}) {{")
            lines += [*self._half(spec, pixels, halves[0]), "  }"]
        else:
            for i, channels in enumerate(halves):
                lines += [f"  {{ const int h = {i * _HALF};", *self._half(spec, pixels, channels), "  }"]
        return "\n".join([*lines, "}\n"])

    def _half(self, spec: ConvSpec, pixels: int, channels: int) -> list[str]:
        vectors = -(-channels // 2)  # of sums: two channels in two parts
        sums = [f"s{m}_{n}" for m in range(pixels) for n in range(vectors)]
        lines = [
            f"    v128_t {', '.join(f'{s} = wasm_i32x4_splat(0)' for s in sums)};",
            "    const int8_t *v = w + 4 * h;",
        ]
        lines += [f"    for (int r = 0; r < {spec.segments}; r++) {{", "      const fb_t *a = seg[r] + at;"]
        lines.append(f"      for (int k = 0; k < {spec.length}; k += 4, v += {4 * PANEL}) {{")
        for m in range(pixels):
            load = f"wasm_v128_load32_splat(a + k + {m * spec.step})"
            lines.append(f"        const v128_t x{m} = FB_WASM_EXTEND({load});")
        for n in range(vectors):
            half = "high" if n % 2 else "low"
            if not n % 2:
                lines.append(f"        {{ const v128_t q = wasm_v128_load(v + {8 * n});")
            lines.append(f"        {{ const v128_t y = wasm_i16x8_extend_{half}_i8x16(q);")
            for m in range(pixels):
                s = f"s{m}_{n}"
                lines.append(f"          {s} = wasm_i32x4_add({s}, wasm_i32x4_dot_i16x8(x{m}, y));")
            lines.append("        }" + (" }" if n % 2 or n == vectors - 1 else ""))
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
        scaled = [f"fb_wasm_scale(c{j}, scale + h + {4 * j})" for j in range(len(joined))]
        return " ".join(
            [
                *joined,
                f"v128_t p = wasm_i16x8_add_sat(wasm_i16x8_narrow_i32x4({scaled[0]}, {scaled[-1]}), zero);",
                "p = FB_WASM_MIN(FB_WASM_MAX(FB_WASM_NARROW(p, p), low), high);",
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
