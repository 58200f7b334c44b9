/* Kernels in portable C. Rows are fb_t, the int8 value plus FB_SHIFT; a step is the bytes from one pixel to the next. */

FB_INLINE int32_t fb_round(float x, float low, float high) {
  /* Round half to even after the limits, as XNNPACK does: 1.5 * 2^23 leaves the integer in the low bits. */
  int32_t bits;
  x = x < low ? low : x;
  x = x > high ? high : x;
  x += 12582912.0f;
  memcpy(&bits, &x, 4);
  return bits - 0x4B400000;
}

/* Sets n pixels of c channels to one value. */
FB_NOINLINE static void fb_fill(fb_t *out, int out_step, int n, int c, int value) {
  if (out_step == c) { memset(out, value, (size_t)n * (size_t)c); return; }
  for (int x = 0; x < n; x++) memset(out + x * out_step, value, (size_t)c);
}

FB_NOINLINE static void fb_copy(fb_t *out, int out_step, const fb_t *in, int in_step, int n, int c) {
  if (out_step == c && in_step == c) { memcpy(out, in, (size_t)n * (size_t)c); return; }
  for (int x = 0; x < n; x++) memcpy(out + x * out_step, in + x * in_step, (size_t)c);
}

/* Of width columns of in, which lie from column at on in the output, copies those among its n columns from first on. */
FB_NOINLINE static void fb_columns(fb_t *out, int out_step, int first, int n, const fb_t *in, int in_step, int at,
                                   int width, int c) {
  const int low = first > at ? first : at, high = first + n < at + width ? first + n : at + width;
  if (low < high) fb_copy(out + (low - first) * out_step, out_step, in + (low - at) * in_step, in_step, high - low, c);
}

/* Moves columns of a strip down to its start. */
FB_NOINLINE static void fb_move(fb_t *to, const fb_t *from, int n) {
  for (int i = 0; i < n; i++) to[i] = from[i];
}

FB_NOINLINE static void fb_table(fb_t *out, int out_step, const fb_t *in, int in_step, int n, int c, const int8_t *table) {
  for (int x = 0; x < n; x++, out += out_step, in += in_step)
    for (int i = 0; i < c; i++) out[i] = (fb_t)(table[in[i] + (128 - FB_SHIFT)] + FB_SHIFT);
}

/* The larger of out and the window's values of one row; column t of in is pixel t, those outside low to high are padding. */
FB_NOINLINE static void fb_max(fb_t *restrict out, int out_step, const fb_t *restrict in, int in_step, int n, int c,
                               int first, int window, int stride, int low, int high) {
  for (int x = 0; x < n; x++, first += stride, out += out_step) {
    int t = first < low ? low : first;
    const int end = first + window < high ? first + window : high;
    const fb_t *p = in + t * in_step;
    if (end - t == 3) {
      const fb_t *q = p + in_step, *r = q + in_step;
      for (int i = 0; i < c; i++) {
        fb_t a = p[i] > q[i] ? p[i] : q[i];
        a = a > r[i] ? a : r[i];
        out[i] = out[i] > a ? out[i] : a;
      }
      continue;
    }
    for (; t < end; t++, p += in_step)
      for (int i = 0; i < c; i++) out[i] = out[i] > p[i] ? out[i] : p[i];
  }
}

/* Adds the values less their zero point to the sums of an image. */
FB_NOINLINE static void fb_sum(int32_t *restrict sums, const fb_t *restrict in, int in_step, int n, int c, int zero) {
  for (int i = 0; i < c; i++) sums[i] -= n * zero;
  for (int x = 0; x < n; x++, in += in_step)
    for (int i = 0; i < c; i++) sums[i] += in[i];
}

/* The same in 16 bits, which wrap around. */
FB_NOINLINE static void fb_sum16(uint16_t *restrict sums, const fb_t *restrict in, int in_step, int n, int c, int zero) {
  for (int i = 0; i < c; i++) sums[i] = (uint16_t)(sums[i] - n * zero);
  for (int x = 0; x < n; x++, in += in_step)
    for (int i = 0; i < c; i++) sums[i] = (uint16_t)(sums[i] + in[i]);
}

/* One of the sums, of 4 bytes, or of 2 bytes and not less than least. */
FB_INLINE int32_t fb_sum_of(const fb_t *sums, int i, int bytes, int32_t least) {
  uint16_t low;
  if (bytes == 4) return fb_load4(sums + 4 * i);
  memcpy(&low, sums + 2 * i, 2);
  return least + (uint16_t)(low - least);
}

FB_NOINLINE static void fb_mean(fb_t *out, const fb_t *sums, int bytes, int least, int c, float scale, int zero,
                                const int16_t *border, int outside) {
  for (int i = 0; i < c; i++) {
    const int32_t sum = fb_sum_of(sums, i, bytes, least) + (border ? outside * border[i] : 0);
    out[i] = (fb_t)(fb_round((float)sum * scale, (float)(-128 - zero), (float)(127 - zero)) + zero + FB_SHIFT);
  }
}

/* Sums as real numbers. */
FB_NOINLINE static void fb_real(float *out, const fb_t *sums, int bytes, int least, int c, const float *scale,
                                const int16_t *border, int outside, float low, float high) {
  for (int i = 0; i < c; i++) {
    const int32_t sum = fb_sum_of(sums, i, bytes, least) + (border ? outside * border[i] : 0);
    const float x = (float)sum * scale[i];
    out[i] = x < low ? low : x > high ? high : x;
  }
}

FB_NOINLINE static void fb_add(fb_t *restrict out, int out_step, const fb_t *a, int a_step, const fb_t *b, int b_step,
                               int n, int c, float a_scale, float b_scale, int a_zero, int b_zero, int zero, int low,
                               int high) {
  for (int x = 0; x < n; x++, out += out_step, a += a_step, b += b_step)
    for (int i = 0; i < c; i++) {
      const float p = (float)(a[i] - a_zero) * a_scale, q = (float)(b[i] - b_zero) * b_scale;
      out[i] = (fb_t)(fb_round(p + q, (float)(low - zero), (float)(high - zero)) + zero + FB_SHIFT);
    }
}

/* Means of the values of a window that lie within the image; rows are those that do. */
FB_NOINLINE static void fb_average(fb_t *out, int out_step, const fb_t *const *rows, int count, int in_step, int n, int c,
                                   int first, int window, int stride, int width, float scale, int in_zero, int zero) {
  for (int x = 0; x < n; x++, first += stride, out += out_step) {
    const int low = first < 0 ? 0 : first, high = first + window < width ? first + window : width;
    const float values = (float)(count * (high - low));
    for (int i = 0; i < c; i++) {
      int32_t sum = 0;
      for (int r = 0; r < count; r++)
        for (int t = low; t < high; t++) sum += rows[r][t * in_step + i] - in_zero;
      out[i] = (fb_t)(fb_round((float)sum / values * scale, (float)(-128 - zero), (float)(127 - zero)) + zero + FB_SHIFT);
    }
  }
}

/* One weight for each tap and channel; 16 channels at a time. */
FB_NOINLINE static void fb_depthwise(fb_t *out, int out_step, const fb_t *const *taps, int count, int step, int n, int c,
                                     const int8_t *weights, const float *scale, const int32_t *bias, int zero, int low,
                                     int high) {
  const int width = (c + 15) & ~15;
  const float least = (float)(low - zero), most = (float)(high - zero);
  for (int block = 0; block < c; block += 16) {
    const int used = c - block < 16 ? c - block : 16;
    for (int x = 0; x < n; x++) {
      int32_t sums[16];
      fb_t q[16];
      memcpy(sums, bias + block, sizeof sums);
      for (int t = 0; t < count; t++) {
        const fb_t *p = taps[t] + x * step + block;
        const int8_t *w = weights + t * width + block;
        for (int i = 0; i < 16; i++) sums[i] += (int32_t)(int16_t)p[i] * (int32_t)(int16_t)w[i];
      }
      for (int i = 0; i < 16; i++) q[i] = (fb_t)(fb_round((float)sums[i] * scale[block + i], least, most) + zero + FB_SHIFT);
      if (used == 16) memcpy(out + x * out_step + block, q, 16);
      else memcpy(out + x * out_step + block, q, (size_t)used);
    }
  }
}

/* Copies the runs of n windows side by side; a window takes length bytes. */
FB_INLINE void fb_gather(fb_t *out, int length, const fb_t *const *runs, int count, int run, int step, int at, int n) {
  for (int x = 0; x < n; x++, at += step, out += length) {
    fb_t *p = out;
    for (int r = 0; r < count; r++, p += run) memcpy(p, runs[r] + at, (size_t)run);
  }
}

/* Softmax over c channels: powers[k] is exp of the difference k - 255 of two integers. */
FB_NOINLINE static void fb_softmax(fb_t *out, int out_step, const fb_t *in, int in_step, int n, int c,
                                   const double *powers, double scale, int zero) {
  for (int x = 0; x < n; x++, out += out_step, in += in_step) {
    int most = in[0];
    double sum = 0;
    for (int i = 1; i < c; i++) most = in[i] > most ? in[i] : most;
    for (int i = 0; i < c; i++) sum += powers[255 + in[i] - most];
    for (int i = 0; i < c; i++) {
      double share = powers[255 + in[i] - most] / sum / scale;
      int64_t bits;
      share = share > 127 - zero ? 127 - zero : share;
      share += 6755399441055744.0; /* as fb_round, in double: 1.5 * 2^52 */
      memcpy(&bits, &share, 8);
      out[i] = (fb_t)((int32_t)bits + zero + FB_SHIFT);
    }
  }
}

/* Pixel i of a ring of whole rows, counted in the order of the image. */
FB_INLINE const fb_t *fb_pixel(const fb_t *ring, int pitch, int step, int width, int i) {
  return ring + i / width * pitch + i % width * step;
}

/* n bytes of a flattened image, from byte at on. */
FB_NOINLINE static void fb_flat(fb_t *out, int out_step, int n, int c, int at, const fb_t *ring, int pitch, int step,
                                int width, int channels) {
  for (int x = 0; x < n; x++, out += out_step)
    for (int i = 0; i < c; i++, at++) out[i] = fb_pixel(ring, pitch, step, width, at / channels)[at % channels];
}
