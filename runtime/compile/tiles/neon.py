"""Tiles of AArch64: with dot products (ARMv8.2 and later), and with plain NEON for older cores."""

from dataclasses import dataclass

from .spec import PANEL, ConvSpec

_DETECT = r"""
#include <arm_neon.h>
"""

_DOT_DETECT = r"""
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#define FB_HAS_NEONDOT ((getauxval(16 /* AT_HWCAP */) >> 20 /* HWCAP_ASIMDDP */) & 1)
#elif defined(__APPLE__) || defined(__ARM_FEATURE_DOTPROD)
#define FB_HAS_NEONDOT 1
#else
#define FB_HAS_NEONDOT 0
#endif
/* Not the intrinsic: headers of some compilers declare it only where all code may use it. */
#define FB_SDOT(C, W, X, LANE) __asm__("sdot %0.4s, %1.16b, %2.4b[" #LANE "]" : "+w"(C) : "w"(W), "w"(X))
"""

# Four lanes of 32 bits are four channels; a panel is four vectors.
_VECTORS = PANEL // 4
# Pixels of a tile: as many as leave every sum in a register, beside the operands.
_DOT_PIXELS = 6
_PLAIN_PIXELS = 2


def _open(name: str, spec: ConvSpec) -> list[str]:
    out = "int32_t" if spec.raw else "fb_t"
    return [
        f"static FB_NEON_TILE void {name}(const fb_t *const *seg, int at, const int8_t *w, const float *scale,"
        f" const int32_t *bias, {out} *out) {{"
    ]


def _some_bytes(vector: str, to: str, count: int) -> str:
    """C that writes the first ``count`` bytes, 1 to 16, of an int8x16_t and no other byte."""
    if count == PANEL:
        return f"vst1q_s8({to}, {vector});"
    parts, done = [], 0
    for size in (8, 4, 2, 1):
        if count - done >= size:
            lanes = f"vreinterpretq_s{8 * size}_s8({vector})" if size > 1 else vector
            parts.append(f"FB_NEON_LANE{size}({to} + {done}, {lanes}, {done // size});")
            done += size
    return " ".join(parts)


def _store(spec: ConvSpec, pixels: int, tail: int) -> list[str]:
    """C that turns the sums ``c<pixel>_<vector>`` into outputs."""
    if spec.raw:
        return [
            f"  {_some_sums(f'c{m}_{n}', m * spec.out_step // 4 + 4 * n, min(tail - 4 * n, 4))}"
            for m in range(pixels)
            for n in range(-(-tail // 4))
        ] + ["  (void)scale;"]
    lines = [f"  const float32x4_t f{n} = vld1q_f32(scale + {4 * n});" for n in range(_VECTORS)]
    lines.append(f"  const int16x8_t zero = vdupq_n_s16({spec.zero_point});")
    limits = ""
    if spec.low > -128:
        lines.append(f"  const int8x16_t low = vdupq_n_s8({spec.low});")
        limits += " y = vmaxq_s8(y, low);"
    if spec.high < 127:
        lines.append(f"  const int8x16_t high = vdupq_n_s8({spec.high});")
        limits += " y = vminq_s8(y, high);"
    for m in range(pixels):
        sums = ", ".join(f"c{m}_{n}, f{n}" for n in range(_VECTORS))
        store = _some_bytes("y", f"out + {m * spec.out_step}", tail)
        lines.append(f"  {{ int8x16_t y = fb_neon_quantize({sums}, zero);{limits} {store} }}")
    return lines


def _some_sums(vector: str, at: int, count: int) -> str:
    """C that writes the first ``count`` sums, 1 to 4, of an int32x4_t."""
    if count == 4:
        return f"vst1q_s32(out + {at}, {vector});"
    pair = f"vst1_s32(out + {at}, vget_low_s32({vector})); " if count > 1 else ""
    return pair + (f"vst1q_lane_s32(out + {at + count - 1}, {vector}, {count - 1});" if count != 2 else "")


# Scaled sums round to the nearest, ties to even; the conversions to int32, int16 and int8 saturate, so that all limits
# but `low` and `high` come for free, whatever the sum.
_QUANTIZE = r"""
#ifndef FB_NEON_HIDE
/* The first scheduling pass of gcc moves loads up until sums are spilled. */
#if defined(__GNUC__) && !defined(__clang__)
#define FB_NEON_TILE FB_NOINLINE __attribute__((optimize("no-schedule-insns")))
#else
#define FB_NEON_TILE FB_NOINLINE
#endif
/* Keeps the compiler from seeing that windows overlap: it would carry inputs over and spill sums for them. */
#define FB_NEON_HIDE(P) __asm__("" : "+r"(P))
#define FB_NEON_LANE1(P, V, I) vst1q_lane_s8(P, V, I)
#define FB_NEON_LANE2(P, V, I) vst1q_lane_s16((int16_t *)(void *)(P), V, I)
#define FB_NEON_LANE4(P, V, I) vst1q_lane_s32((int32_t *)(void *)(P), V, I)
#define FB_NEON_LANE8(P, V, I) vst1q_lane_s64((int64_t *)(void *)(P), V, I)
FB_INLINE int8x16_t fb_neon_quantize(int32x4_t a, float32x4_t fa, int32x4_t b, float32x4_t fb, int32x4_t c,
                                     float32x4_t fc, int32x4_t d, float32x4_t fd, int16x8_t zero) {
  a = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(a), fa));
  b = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(b), fb));
  c = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(c), fc));
  d = vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(d), fd));
  const int16x8_t p = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), zero);
  const int16x8_t q = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(c), d), zero);
  return vqmovn_high_s16(vqmovn_s16(p), q);
}
#endif
"""


@dataclass(frozen=True)
class NeonDot:
    """Dot products of four int8, four channels to a vector: Cortex-A55, A75 and later, Apple silicon, Graviton 2."""

    name: str = "neondot"
    condition: str = "defined(__aarch64__) && defined(__ARM_NEON)"
    target: str = "arch=armv8.2-a+dotprod"
    detect: str = "FB_HAS_NEONDOT"
    signed: bool = True
    prelude: str = _DOT_DETECT + _QUANTIZE

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """One panel by six pixels: 24 sums, six vectors of inputs and two of weights."""
        return 1, _DOT_PIXELS

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """Pixels by 16 channels; a load brings 16 inputs of a pixel."""
        lines = _open(name, spec)
        lines += [f"  const int32x4_t b{n} = vld1q_s32(bias + {4 * n});" for n in range(_VECTORS)]
        sums = ", ".join(f"c{m}_{n} = b{n}" for m in range(pixels) for n in range(_VECTORS))
        lines += [f"  int32x4_t {sums};", f"  for (int r = 0; r < {spec.segments}; r++) {{"]
        lines += [f"    const int8_t *a{m} = seg[r] + at + {m * spec.step}; FB_NEON_HIDE(a{m});" for m in range(pixels)]
        whole = spec.length // 16
        if whole:
            body = self._inputs(pixels, 4)
            lines += [f"    for (int k = 0; k < {whole}; k++) {{", *("  " + line for line in body), "    }"]
        if spec.length % 16:
            lines += ["    {", *("  " + line for line in self._inputs(pixels, spec.length % 16 // 4)), "    }"]
        return "\n".join([*lines, "  }", *_store(spec, pixels, tail), "}\n"])

    def _inputs(self, pixels: int, groups: int) -> list[str]:
        """Up to four groups of four inputs."""
        lines = [f"    const int8x16_t x{m} = vld1q_s8(a{m}); a{m} += {4 * groups};" for m in range(pixels)]
        lines.append("    int8x16_t v0, v1;")
        for group in range(groups):
            for n in range(0, _VECTORS, 2):
                at = 64 * group + 16 * n
                lines.append(f"    v0 = vld1q_s8(w + {at}); v1 = vld1q_s8(w + {at + 16});")
                for half in range(2):
                    dots = (f"FB_SDOT(c{m}_{n + half}, v{half}, x{m}, {group});" for m in range(pixels))
                    lines.append("    " + " ".join(dots))
        return [*lines, f"    w += {64 * groups};"]
