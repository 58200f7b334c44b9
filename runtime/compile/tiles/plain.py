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
#define FB_PLAIN_SHARED static __attribute__((noinline, unused))
typedef struct {
  int segments, length, step, out_step, pixels, channels, raw; /* out_step in values */
  int32_t offset;  /* the zero point as it is stored, less the integer that stands for zero in a rounded float */
  float low, high; /* limits of the rounded value, before the zero point is added */
} fb_plain_conv;
/* Rounds to the nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits of the float. */
FB_INLINE fb_t fb_plain_round(int32_t sum, float scale, float low, float high, int32_t offset) {
  float x = (float)sum * scale;
  int32_t bits;
  x = x < low ? low : x;
  x = x > high ? high : x;
  x += 12582912.0f;
  memcpy(&bits, &x, 4);
  return (fb_t)(bits + offset);
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
/* Four inputs of one pixel by four channels: 23 instructions. */
#define FB_PLAIN_ONE_CHANNEL(AT, SUM) \
  "ldr %[w0], [%[w], #" #AT "]\n\tsxtb16 %[w1], %[w0]\n\tsxtb16 %[w0], %[w0], ror #8\n\t" \
  "smlad %[" #SUM "], %[y0], %[w1], %[" #SUM "]\n\tsmlad %[" #SUM "], %[x0], %[w0], %[" #SUM "]\n\t"
#define FB_PLAIN_ONE_STEP(AT) \
  "ldr %[x0], [%[a]], #4\n\t" \
  FB_PLAIN_XTB16 " %[y0], %[x0]\n\t" FB_PLAIN_XTB16 " %[x0], %[x0], ror #8\n\t" \
  FB_PLAIN_ONE_CHANNEL(AT, s0) FB_PLAIN_ONE_CHANNEL(AT + 4, s1) \
  FB_PLAIN_ONE_CHANNEL(AT + 8, s2) FB_PLAIN_ONE_CHANNEL(AT + 12, s3)
#define FB_PLAIN_ONE_INPUTS(STEPS, COUNT) \
  { \
    uint32_t x0, y0, w0, w1; \
    __asm__ volatile(STEPS \
      : [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3), [a] "+r"(a), \
        [x0] "=&r"(x0), [y0] "=&r"(y0), [w0] "=&r"(w0), [w1] "=&r"(w1) \
      : [w] "r"(w) : "memory"); \
    w += 16 * (COUNT); \
  }
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
#define FB_PLAIN_ONE_INPUTS(STEPS, COUNT) \
  { \
    for (int i = 0; i < (COUNT); i++) { \
      const int32_t x = *a++; \
      s0 += x * w[i]; s1 += x * w[4 + i]; s2 += x * w[8 + i]; s3 += x * w[12 + i]; \
    } \
    w += 16 * (COUNT); \
  }
#endif
/* One pixel, the last of an odd number. */
FB_PLAIN_SHARED void fb_plain_one(const fb_plain_conv *conv, const fb_t *const *seg, int at, const int8_t *weights,
                                 const float *scale, const int32_t *bias, void *out) {
  const int length = conv->length;
  const fb_t *const *const segments = seg + conv->segments;
  for (int n = 0; n < conv->channels; n += 4) {
    const int8_t *w = weights + (n >> 4) * (conv->segments * length * 16) + (n & 15) * 4;
    int32_t s0 = bias[n], s1 = bias[n + 1], s2 = bias[n + 2], s3 = bias[n + 3];
    for (const fb_t *const *s = seg; s != segments; s++) {
      const fb_t *a = *s + at, *const end = a + length;
#if FB_PLAIN_DSP
      while (end - a >= 16)
        FB_PLAIN_ONE_INPUTS(
          FB_PLAIN_ONE_STEP(0) FB_PLAIN_ONE_STEP(64) FB_PLAIN_ONE_STEP(128) FB_PLAIN_ONE_STEP(192), 16)
#endif
      while (a != end) FB_PLAIN_ONE_INPUTS(FB_PLAIN_ONE_STEP(0), 4)
    }
    const int32_t sums[4] = {s0, s1, s2, s3};
    for (int i = n; i < n + 4 && i < conv->channels; i++) {
      if (conv->raw)
        ((int32_t *)out)[i] = sums[i - n];
      else
        ((fb_t *)out)[i] = fb_plain_round(sums[i - n], scale[i], conv->low, conv->high, conv->offset);
    }
  }
}
/* Pixels in pairs. */
FB_PLAIN_SHARED void fb_plain(const fb_plain_conv *conv, const fb_t *const *seg, int at, const int8_t *weights,
                             const float *scale, const int32_t *bias, void *out) {
  const int length = conv->length, step = conv->step, out_step = conv->out_step, offset = conv->offset;
  const float low = conv->low, high = conv->high;
  const fb_t *const *const segments = seg + conv->segments;
  for (int n = 0; n < conv->channels; n += 2) {
    const int8_t *const first = weights + (n >> 4) * (conv->segments * length * 16) + (n & 15) * 4;
    const int32_t b0 = bias[n], b1 = bias[n + 1];
    const float f0 = scale[n], f1 = scale[n + 1];
    const int pair = n + 1 < conv->channels;
    int start = at, o = n;
    for (int left = conv->pixels; left > 1; left -= 2, start += 2 * step, o += 2 * out_step) {
      const int8_t *w = first;
      int32_t s00 = b0, s01 = b1, s10 = b0, s11 = b1;
      for (const fb_t *const *s = seg; s != segments; s++) {
        const fb_t *a = *s + start, *b = a + step, *const end = a + length;
#if FB_PLAIN_DSP
        while (end - a >= 16)
          FB_PLAIN_INPUTS(FB_PLAIN_STEP(0) FB_PLAIN_STEP(64) FB_PLAIN_STEP(128) FB_PLAIN_STEP(192), 16)
#endif
        while (a != end) FB_PLAIN_INPUTS(FB_PLAIN_STEP(0), 4)
      }
      if (conv->raw) {
        int32_t *const to = (int32_t *)out + o;
        to[0] = s00;
        if (pair) to[1] = s01;
        to[out_step] = s10;
        if (pair) to[out_step + 1] = s11;
      } else {
        fb_t *to = (fb_t *)out + o;
        to[0] = fb_plain_round(s00, f0, low, high, offset);
        if (pair) to[1] = fb_plain_round(s01, f1, low, high, offset);
        to += out_step;
        to[0] = fb_plain_round(s10, f0, low, high, offset);
        if (pair) to[1] = fb_plain_round(s11, f1, low, high, offset);
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
        last = pixels - 1
        calls = ["fb_plain(&conv, seg, at, w, scale, bias, out);"] if last else []
        if pixels % 2:
            to = f"out + {last * out_step}"
            calls.append(f"fb_plain_one(&conv, seg, at + {last * spec.step}, w, scale, bias, {to});")
        return f"""\
static FB_NOINLINE void {name}(const fb_t *const *seg, int at, const int8_t *w, const float *scale,
                               const int32_t *bias, {out} *out) {{
  static const fb_plain_conv conv = {{{", ".join(map(str, integers))}, {spec.zero_point} + FB_SHIFT - 0x4B400000,
                                     {spec.low - spec.zero_point}.0f, {spec.high - spec.zero_point}.0f}};
  {" ".join(calls)}
}}
"""
