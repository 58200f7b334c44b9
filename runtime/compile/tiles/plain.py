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
#if FB_PLAIN_DSP
#if FB_SHIFT
#define FB_PLAIN_XTB16 "uxtb16"
#else
#define FB_PLAIN_XTB16 "sxtb16"
#endif
/* Four inputs of two pixels by two channels: 20 instructions for 16 products. Inputs 0 and 2, and 1 and 3, become
   halves of a word. All in one block, because compilers neither fold the rotations nor keep within the registers. */
#define FB_PLAIN_STEP(AT) \
  "ldr %[x0], [%[a]], #4\n\tldr %[w0], [%[w], #" #AT "]\n\tldr %[x1], [%[b]], #4\n\t" \
  FB_PLAIN_XTB16 " %[y0], %[x0]\n\t" FB_PLAIN_XTB16 " %[x0], %[x0], ror #8\n\t" \
  "sxtb16 %[w1], %[w0]\n\tsxtb16 %[w0], %[w0], ror #8\n\t" \
  FB_PLAIN_XTB16 " %[y1], %[x1]\n\t" FB_PLAIN_XTB16 " %[x1], %[x1], ror #8\n\t" \
  "smlad %[s00], %[y0], %[w1], %[s00]\n\tsmlad %[s10], %[y1], %[w1], %[s10]\n\t" \
  "smlad %[s00], %[x0], %[w0], %[s00]\n\tsmlad %[s10], %[x1], %[w0], %[s10]\n\t" \
  "ldr %[w0], [%[w], #" #AT " + 4]\n\t" \
  "sxtb16 %[w1], %[w0]\n\tsxtb16 %[w0], %[w0], ror #8\n\t" \
  "smlad %[s01], %[y0], %[w1], %[s01]\n\tsmlad %[s11], %[y1], %[w1], %[s11]\n\t" \
  "smlad %[s01], %[x0], %[w0], %[s01]\n\tsmlad %[s11], %[x1], %[w0], %[s11]\n\t"
#define FB_PLAIN_INPUTS(STEPS, COUNT) \
  { \
    uint32_t x0, x1, y0, y1, w0, w1; \
    __asm__ volatile(STEPS \
      : [s00] "+r"(s00), [s01] "+r"(s01), [s10] "+r"(s10), [s11] "+r"(s11), [a] "+r"(a), [b] "+r"(b), \
        [x0] "=&r"(x0), [x1] "=&r"(x1), [y0] "=&r"(y0), [y1] "=&r"(y1), [w0] "=&r"(w0), [w1] "=&r"(w1) \
      : [w] "r"(w) : "memory"); \
    w += 16 * (COUNT); \
  }
#else
#define FB_PLAIN_INPUTS(STEPS, COUNT) \
  { \
    for (int i = 0; i < (COUNT); i++) { \
      const int32_t x0 = *a++, x1 = *b++, w0 = w[i], w1 = w[4 + i]; \
      s00 += x0 * w0; s01 += x0 * w1; s10 += x1 * w0; s11 += x1 * w1; \
    } \
    w += 16 * (COUNT); \
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
#if FB_PLAIN_DSP
        while (end - a >= 16)
          FB_PLAIN_INPUTS(FB_PLAIN_STEP(0) FB_PLAIN_STEP(64) FB_PLAIN_STEP(128) FB_PLAIN_STEP(192), 16)
#endif
        while (a != end) FB_PLAIN_INPUTS(FB_PLAIN_STEP(0), 4)
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
