"""Tiles of AArch64: with dot products (ARMv8.2 and later), and with plain NEON for older cores."""

from collections.abc import Callable
from dataclasses import dataclass

from .spec import PANEL, ConvSpec

_DOT = r"""
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


def _segments(spec: ConvSpec, pixels: int) -> list[str]:
    """C that begins the loop over the segments, with a pointer to the inputs of each pixel."""
    return [
        f"  for (int r = 0; r < {spec.segments}; r++) {{",
        *(f"    const int8_t *a{m} = seg[r] + at + {m * spec.step}; FB_NEON_HIDE(a{m});" for m in range(pixels)),
    ]


def _steps(length: int, step: Callable[[int], list[str]], pixels: int) -> list[str]:
    """C that takes a segment in steps of 16 inputs, four groups of four, loaded as ``x<pixel>``; then what is left."""
    lines = []
    for begin, groups in ((f"for (int k = 0; k < {length // 16}; k++) ", 4), ("", length % 16 // 4)):
        if groups and (not begin or length >= 16):
            loads = (
                f"int8x16_t x{m} = vld1q_s8(a{m}); FB_NEON_VECTOR(x{m}); a{m} += {4 * groups};" for m in range(pixels)
            )
            lines += [
                f"    {begin}{{",
                *(f"      {line}" for line in (*loads, *step(groups), f"w += {64 * groups};")),
                "    }",
            ]
    return lines


def _pairs(vectors: int) -> list[range]:
    """Vectors of weights two by two, so that one instruction loads both."""
    return [range(n, min(n + 2, vectors)) for n in range(0, vectors, 2)]


def _vectors(tail: int) -> int:
    """Vectors of a panel that hold channels; the others are not computed."""
    return -(-tail // 4)


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
            for n in range(_vectors(tail))
        ] + ["  (void)scale;"]
    vectors = _vectors(tail)
    lines = [f"  const float32x4_t f{n} = vld1q_f32(scale + {4 * n});" for n in range(vectors)]
    lines.append(f"  const int16x8_t zero = vdupq_n_s16({spec.zero_point});")
    limits = ""
    if spec.low > -128:
        lines.append(f"  const int8x16_t low = vdupq_n_s8({spec.low});")
        limits += " y = vmaxq_s8(y, low);"
    if spec.high < 127:
        lines.append(f"  const int8x16_t high = vdupq_n_s8({spec.high});")
        limits += " y = vminq_s8(y, high);"
    for m in range(pixels):
        used = (min(n, vectors - 1) for n in range(_VECTORS))
        sums = ", ".join(f"c{m}_{n}, f{n}" for n in used)
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
_COMMON = r"""
#include <arm_neon.h>
#ifndef FB_NEON_HIDE
/* The first scheduling pass of gcc moves loads up until sums are spilled. */
#if defined(__GNUC__) && !defined(__clang__)
#define FB_NEON_TILE FB_NOINLINE __attribute__((optimize("no-schedule-insns")))
#else
#define FB_NEON_TILE FB_NOINLINE
#endif
/* Keeps the compiler from seeing that windows overlap: it would carry inputs over and spill sums for them. */
#define FB_NEON_HIDE(P) __asm__("" : "+r"(P))
/* And that both halves of a vector are the same: clang would take it apart. */
#define FB_NEON_VECTOR(V) __asm__("" : "+w"(V))
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
    prelude: str = _DOT + _COMMON

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """One panel by six pixels: 24 sums, six vectors of inputs and two of weights."""
        return 1, _DOT_PIXELS

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """Pixels by 16 channels; a load brings 16 inputs of a pixel."""
        vectors = _vectors(tail)
        lines = _open(name, spec)
        lines += [f"  const int32x4_t b{n} = vld1q_s32(bias + {4 * n});" for n in range(vectors)]
        sums = ", ".join(f"c{m}_{n} = b{n}" for m in range(pixels) for n in range(vectors))
        lines += [f"  int32x4_t {sums};", *_segments(spec, pixels)]
        lines += _steps(spec.length, lambda groups: self._inputs(pixels, vectors, groups), pixels)
        return "\n".join([*lines, "  }", *_store(spec, pixels, tail), "}\n"])

    def _inputs(self, pixels: int, vectors: int, groups: int) -> list[str]:
        lines = []
        for group in range(groups):
            for pair in _pairs(vectors):
                lines.append("".join(f"v{n % 2} = vld1q_s8(w + {64 * group + 16 * n}); " for n in pair))
                lines += ["".join(f"FB_SDOT(c{m}_{n}, v{n % 2}, x{m}, {group}); " for m in range(pixels)) for n in pair]
        return [f"int8x16_t {', '.join(f'v{i}' for i in range(min(vectors, 2)))};", *lines]


@dataclass(frozen=True)
class Neon:
    """NEON without dot products: Cortex-A53, A57, A72 and A73."""

    name: str = "neon"
    condition: str = "defined(__aarch64__) && defined(__ARM_NEON)"
    target: str = ""
    detect: str = ""
    signed: bool = True
    prelude: str = _COMMON

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """One panel by two pixels: 16 vectors of sums, each of two inputs' parts of two channels."""
        return 1, _PLAIN_PIXELS

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """Pixels by 16 channels; neighbouring products are added in pairs, so that a channel has two partial sums."""
        vectors = _vectors(tail)
        lines = _open(name, spec)
        halves = [(m, n, half) for m in range(pixels) for n in range(vectors) for half in ("l", "h")]
        lines.append("  int32x4_t " + ", ".join(f"s{m}_{n}{half} = vdupq_n_s32(0)" for m, n, half in halves) + ";")
        lines += _segments(spec, pixels)
        at_once = 2 if spec.symmetric else 1
        lines += _steps(spec.length, lambda groups: self._inputs(pixels, vectors, groups, at_once), pixels)
        lines.append("  }")
        for m, n in ((m, n) for m in range(pixels) for n in range(vectors)):
            both = f"vpaddq_s32(s{m}_{n}l, s{m}_{n}h)"
            lines.append(f"  const int32x4_t c{m}_{n} = vaddq_s32({both}, vld1q_s32(bias + {4 * n}));")
        return "\n".join([*lines, *_store(spec, pixels, tail), "}\n"])

    def _inputs(self, pixels: int, vectors: int, groups: int, at_once: int) -> list[str]:
        """Groups of four inputs; the products of one, or of two at once, are added in 16 bits."""
        lines = []
        for first in range(0, groups, at_once):
            some = range(first, min(first + at_once, groups))
            lines.append("{")
            for m in range(pixels):
                lane = f"vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x{m}), %d))"
                lines += [f"  int8x16_t y{m}_{group} = {lane % group}; FB_NEON_VECTOR(y{m}_{group});" for group in some]
            for pair in _pairs(vectors):
                loads = [f"v{n}_{group} = vld1q_s8(w + {64 * group + 16 * n})" for group in some for n in pair]
                lines.append(f"  {{ const int8x16_t {', '.join(loads)}; int16x8_t p;")
                lines += [f"    {self._sum(m, n, some)}" for n in pair for m in range(pixels)]
                lines.append("  }")
            lines.append("}")
        return lines

    def _sum(self, pixel: int, vector: int, groups: range) -> str:
        low, high = [], []
        for group in groups:
            more, p = ("mlal", "p, ") if low else ("mull", "")
            v, y = f"v{vector}_{group}", f"y{pixel}_{group}"
            low.append(f"p = v{more}_s8({p}vget_low_s8({v}), vget_low_s8({y}));")
            high.append(f"p = v{more}_high_s8({p}{v}, {y});")
        into = f"s{pixel}_{vector}"
        return " ".join([*low, f"{into}l = vpadalq_s16({into}l, p);", *high, f"{into}h = vpadalq_s16({into}h, p);"])
