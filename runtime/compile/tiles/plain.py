"""Tiles of plain C99, with the DSP instructions of Cortex-M4 and M7 where the compiler has them."""

from dataclasses import dataclass

from .spec import PANEL, ConvSpec

# One function serves all convolutions, with a small table for each: code is scarce on a microcontroller, and the inner
# loop, two pixels by two channels, is the same for all. A surplus second pixel or channel is computed and dropped.
_PRELUDE = r"""
#if defined(__ARM_FEATURE_DSP) && !defined(__aarch64__)
#define FB_PLAIN_DSP 1
#else
#define FB_PLAIN_DSP 0
#endif
typedef struct {
  int segments, length, step, out_step, pixels, channels, raw; /* out_step in values */
  int32_t offset;  /* the zero point as it is stored */
  float low, high; /* limits of the rounded value, before the zero point is added */
} fb_plain_conv;
#if FB_PLAIN_DSP
/* Inputs 0 and 2, or 1 and 3, of four as 16-bit halves; compilers do not fold the rotation into the instruction. */
FB_INLINE uint32_t fb_even_s8(uint32_t x) { uint32_t y; __asm__("sxtb16 %0, %1" : "=r"(y) : "r"(x)); return y; }
FB_INLINE uint32_t fb_odd_s8(uint32_t x) { uint32_t y; __asm__("sxtb16 %0, %1, ror #8" : "=r"(y) : "r"(x)); return y; }
#if FB_SHIFT
FB_INLINE uint32_t fb_even(uint32_t x) { uint32_t y; __asm__("uxtb16 %0, %1" : "=r"(y) : "r"(x)); return y; }
FB_INLINE uint32_t fb_odd(uint32_t x) { uint32_t y; __asm__("uxtb16 %0, %1, ror #8" : "=r"(y) : "r"(x)); return y; }
#else
#define fb_even fb_even_s8
#define fb_odd fb_odd_s8
#endif
FB_INLINE int32_t fb_smlad(uint32_t x, uint32_t w, int32_t sum) {
  int32_t y;
  __asm__("smlad %0, %1, %2, %3" : "=r"(y) : "r"(x), "r"(w), "r"(sum));
  return y;
}
#endif
/* Rounds to the nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits of the float. */
FB_INLINE int32_t fb_plain_round(int32_t sum, float scale, float low, float high) {
  float x = (float)sum * scale;
  int32_t bits;
  x = x < low ? low : x;
  x = x > high ? high : x;
  x += 12582912.0f;
  memcpy(&bits, &x, 4);
  return bits - 0x4B400000;
}
/* Four inputs of two pixels by two channels. */
#if FB_PLAIN_DSP
#define FB_PLAIN_STEP(K) \
  { \
    const uint32_t x0 = (uint32_t)fb_load4(a + (K)), x1 = (uint32_t)fb_load4(b + (K)); \
    const uint32_t w0 = (uint32_t)fb_load4(w + 16 * (K)), w1 = (uint32_t)fb_load4(w + 16 * (K) + 4); \
    const uint32_t x0e = fb_even(x0), x0o = fb_odd(x0), x1e = fb_even(x1), x1o = fb_odd(x1); \
    const uint32_t w0e = fb_even_s8(w0), w0o = fb_odd_s8(w0), w1e = fb_even_s8(w1), w1o = fb_odd_s8(w1); \
    s00 = fb_smlad(x0e, w0e, s00); s10 = fb_smlad(x1e, w0e, s10); \
    s00 = fb_smlad(x0o, w0o, s00); s10 = fb_smlad(x1o, w0o, s10); \
    s01 = fb_smlad(x0e, w1e, s01); s11 = fb_smlad(x1e, w1e, s11); \
    s01 = fb_smlad(x0o, w1o, s01); s11 = fb_smlad(x1o, w1o, s11); \
  }
#else
#define FB_PLAIN_STEP(K) \
  for (int i = 0; i < 4; i++) { \
    const int32_t x0 = a[(K) + i], x1 = b[(K) + i], w0 = w[16 * (K) + i], w1 = w[16 * (K) + 4 + i]; \
    s00 += x0 * w0; s01 += x0 * w1; s10 += x1 * w0; s11 += x1 * w1; \
  }
#endif
static FB_NOINLINE void fb_plain(const fb_plain_conv *conv, const fb_t *const *seg, int at, const int8_t *weights,
                                 const float *scale, const int32_t *bias, void *out) {
  const int length = conv->length, panel = conv->segments * length * 16;
  for (int n = 0; n < conv->channels; n += 2) {
    const int8_t *const first = weights + (n >> 4) * panel + (n & 15) * 4;
    const int pair = n + 1 < conv->channels;
    for (int x = 0; x < conv->pixels; x += 2) {
      const int next = x + 1 < conv->pixels, start = at + x * conv->step;
      const int8_t *w = first;
      int32_t s00 = bias[n], s01 = bias[n + 1], s10 = s00, s11 = s01;
      for (int r = 0; r < conv->segments; r++) {
        const fb_t *a = seg[r] + start, *b = next ? a + conv->step : a, *const end = a + length;
        for (; a != end; a += 4, b += 4, w += 64) FB_PLAIN_STEP(0)
      }
      if (conv->raw) {
        int32_t *o = (int32_t *)out + x * conv->out_step + n;
        o[0] = s00;
        if (pair) o[1] = s01;
        if (next) o[conv->out_step] = s10;
        if (next && pair) o[conv->out_step + 1] = s11;
      } else {
        fb_t *o = (fb_t *)out + x * conv->out_step + n;
        const float low = conv->low, high = conv->high;
        o[0] = (fb_t)(fb_plain_round(s00, scale[n], low, high) + conv->offset);
        if (pair) o[1] = (fb_t)(fb_plain_round(s01, scale[n + 1], low, high) + conv->offset);
        if (next) o[conv->out_step] = (fb_t)(fb_plain_round(s10, scale[n], low, high) + conv->offset);
        if (next && pair) o[conv->out_step + 1] = (fb_t)(fb_plain_round(s11, scale[n + 1], low, high) + conv->offset);
      }
    }
  }
}
"""


@dataclass(frozen=True)
class Plain:
    """Plain C99, for any processor; activations are stored as ``FB_SHIFT`` says."""

    name: str = "plain"
    condition: str = "1"
    target: str = ""
    detect: str = ""
    signed: bool = False
    prelude: str = _PRELUDE

    def shape(self, spec: ConvSpec) -> tuple[int, int]:
        """All panels and any number of pixels: a call computes a whole row."""
        return spec.panels, 1 << 16

    def tile(self, name: str, spec: ConvSpec, pixels: int, panels: int, tail: int) -> str:
        """A table and a call of the one function that computes all convolutions."""
        channels = (panels - 1) * PANEL + tail
        out_step = spec.out_step // 4 if spec.raw else spec.out_step
        integers = (spec.segments, spec.length, spec.step, out_step, pixels, channels, int(spec.raw))
        out = "int32_t" if spec.raw else "fb_t"
        return f"""\
static FB_NOINLINE void {name}(const fb_t *const *seg, int at, const int8_t *w, const float *scale,
                               const int32_t *bias, {out} *out) {{
  static const fb_plain_conv conv = {{{", ".join(map(str, integers))}, {spec.zero_point} + FB_SHIFT,
                                     {spec.low - spec.zero_point}.0f, {spec.high - spec.zero_point}.0f}};
  fb_plain(&conv, seg, at, w, scale, bias, out);
}}
"""
