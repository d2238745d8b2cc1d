/* Convolutions of 3 x 3 by Winograd's algorithm F(M x M, 3 x 3), M 4 or 2 (Lavin and Gray, 1509.09308).

   The output comes in tiles of M x M pixels, each made of (M + 2) x (M + 2) pixels of the input, which overlap. A vector
   holds the same pixel of tiles that follow each other, row after row of them, so that it is full whatever the width. */
#ifdef __clang__
#define V_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define V_PICK(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
#if VECTOR_BYTES == 64
#define V_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define V_EVEN(a, b) V_PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define V_ODD(a, b) V_PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define V_LOW(a, b) V_PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define V_HIGH(a, b) V_PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VECTOR_BYTES == 32
#define V_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#define V_EVEN(a, b) V_PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define V_ODD(a, b) V_PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define V_LOW(a, b) V_PICK(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define V_HIGH(a, b) V_PICK(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define V_NUMBERS 0, 1, 2, 3
#define V_EVEN(a, b) V_PICK(a, b, 0, 2, 4, 6)
#define V_ODD(a, b) V_PICK(a, b, 1, 3, 5, 7)
#define V_LOW(a, b) V_PICK(a, b, 0, 4, 1, 5)
#define V_HIGH(a, b) V_PICK(a, b, 2, 6, 3, 7)
#endif

/* M vectors side by side into every M-th float of them, from the first on, from the second on, … */
INLINE void w_split(float *y, int apart, const float *x, int m) {
  vf a = v_load(x), b = v_load(x + LANES), even = V_EVEN(a, b), odd = V_ODD(a, b);
  if (m == 2) {
    v_store(y, even);
    v_store(y + apart, odd);
    return;
  }
  vf c = v_load(x + 2 * LANES), d = v_load(x + 3 * LANES), even2 = V_EVEN(c, d), odd2 = V_ODD(c, d);
  v_store(y, V_EVEN(even, even2));
  v_store(y + apart, V_EVEN(odd, odd2));
  v_store(y + 2 * apart, V_ODD(even, even2));
  v_store(y + 3 * apart, V_ODD(odd, odd2));
}
INLINE void w_join(float *y, const vf *x, int m) {
  if (m == 2) {
    v_store(y, V_LOW(x[0], x[1]));
    v_store(y + LANES, V_HIGH(x[0], x[1]));
    return;
  }
  vf even = V_LOW(x[0], x[2]), even2 = V_HIGH(x[0], x[2]), odd = V_LOW(x[1], x[3]), odd2 = V_HIGH(x[1], x[3]);
  v_store(y, V_LOW(even, odd));
  v_store(y + LANES, V_HIGH(even, odd));
  v_store(y + 2 * LANES, V_LOW(even2, odd2));
  v_store(y + 3 * LANES, V_HIGH(even2, odd2));
}

/* M + 2 pixels in a row into as many factors of the products: those of the points 0, 1, -1 and infinity for M = 2, of
   0, 3/4, -3/4, 3/2, -3/2 and infinity for M = 4, which lose fewer digits than 0, 1, -1, 2, -2. */
INLINE void w_factors(vf *y, int apart, const vf *x, int m) {
  if (m == 2) {
    y[0] = x[2] - x[0];
    y[apart] = x[2] + x[1];
    y[2 * apart] = x[2] - x[1];
    y[3 * apart] = x[3] - x[1];
    return;
  }
  vf even = x[4] - 2.25f * x[2], odd = x[3] - 2.25f * x[1], even2 = x[4] - 0.5625f * x[2], odd2 = x[3] - 0.5625f * x[1];
  y[0] = x[4] - 2.8125f * x[2] + 1.265625f * x[0];
  y[apart] = even + 0.75f * odd;
  y[2 * apart] = even - 0.75f * odd;
  y[3 * apart] = even2 + 1.5f * odd2;
  y[4 * apart] = even2 - 1.5f * odd2;
  y[5 * apart] = x[5] - 2.8125f * x[3] + 1.265625f * x[1];
}
/* M + 2 products into M pixels of the output in a row: pixel i is the sum over the points p of p^i times its product. */
INLINE void w_pixels(vf *y, int apart, const vf *x, int m) {
  vf even = x[1] + x[2], odd = x[1] - x[2];
  if (m == 2) {
    y[0] = x[0] + even;
    y[apart] = odd + x[3];
    return;
  }
  vf even2 = x[3] + x[4], odd2 = x[3] - x[4];
  y[0] = x[0] + even + even2;
  y[apart] = 0.75f * odd + 1.5f * odd2;
  y[2 * apart] = 0.5625f * even + 2.25f * even2;
  y[3 * apart] = 0.421875f * odd + 3.375f * odd2 + x[5];
}

/* Every M-th row of a picture from row `top` on, zeros outside: each as wide as its tiles, zeros behind the last one.
   Those of the next picture, `next` floats on, will be wanted soon. */
INLINE void w_lines(float *y, const float *end, const float *x, int next, int pitch, int height, int width, int top,
                    int rows, int tiles, int m) {
  const vi inside = (vi){V_NUMBERS} < width % LANES;
  for (int r = top; r < top + rows * m; r += m, y += tiles * m) {
    const int here = r >= 0 && r < height ? width : 0;
    const float *from = x + r * pitch;
    int j = 0;
    for (; j + LANES <= here; j += LANES) {
      __builtin_prefetch(from + next + j);
      v_store(y + j, v_load(from + j));
    }
    if (j < here) v_store(y + j, (vf)((vi)v_load(from + j) & inside)), j += LANES;
    for (; j < tiles * m; j += LANES) v_store(y + j, v_splat(0.0f));
  }
  for (; y < end; y += LANES) v_store(y, v_splat(0.0f));
}

/* The factors of one channel, from row `top` of the picture on: those of LANES tiles from t on for product k lie at
   y + k * apart + t.

   Row a of all tiles, its pixels b side by side, is at phases + (a * M + b) * span; that of the tiles above is the first
   of row M - 1, that of the tiles below the last of row 0. `edges` are masks of what lies beside a tile in the picture. */
INLINE void w_read(float *y, int apart, int vectors, const float *x, int next, int pitch, int height, int width,
                   int top, int rows, int tiles, const int *edges, float *lines, float *phases, int span, int m) {
  const int n = m + 2;
  for (int a = 0; a < m; ++a) {
    const int more = a == 0 || a == m - 1, floats = more ? span : vectors * LANES;
    w_lines(lines, lines + floats * m, x, next, pitch, height, width, a < m - 1 ? top + a : top - 1, rows + more, tiles, m);
    for (int t = 0; t < floats; t += LANES) w_split(phases + a * m * span + t, span, lines + t * m, m);
  }
  v_store(phases + m * m * span, v_splat(0.0f));
  for (int t = 0; t < vectors * LANES; t += LANES) {
    const vi left = *(const vi *)(edges + t), right = *(const vi *)(edges + vectors * LANES + t);
    vf part[36], pixels[6], factors[6];
    for (int a = 0; a < n; ++a) {
      const float *p = phases + (a + m - 1) % m * m * span + (a < m ? 0 : tiles) + t;
      pixels[0] = (vf)((vi)v_load(p + (m - 1) * span - 1) & left);
      for (int b = 1; b <= m; ++b) pixels[b] = v_load(p + (b - 1) * span);
      pixels[m + 1] = (vf)((vi)v_load(p + 1) & right);
      w_factors(part + a, n, pixels, m);
    }
    for (int b = 0; b < n; ++b) {
      w_factors(factors, 1, part + b * n, m);
      for (int a = 0; a < n; ++a) v_store(y + (a * n + b) * apart + t, factors[a]);
    }
  }
}
/* The pixels of one channel: those of row a of all tiles after each other are at lines + a * M * LANES * vectors. */
INLINE void w_write(float *lines, const float *x, int apart, int vectors, int m) {
  const int n = m + 2;
  for (int t = 0; t < vectors * LANES; t += LANES) {
    vf part[24], x1[6], y1[16];
    for (int b = 0; b < n; ++b) {
      for (int a = 0; a < n; ++a) x1[a] = v_load(x + (a * n + b) * apart + t);
      w_pixels(part + b, n, x1, m);
    }
    for (int a = 0; a < m; ++a) {
      w_pixels(y1, 1, part + a * n, m);
      w_join(lines + (a * vectors * LANES + t) * m, y1, m);
    }
  }
}

#define W_FUNCTIONS(m)                                                                                                \
  static NOINLINE void w_read_##m(float *y, int apart, int vectors, const float *x, int next, int pitch, int height,  \
                                  int width, int top, int rows, int tiles, const int *edges, float *lines,            \
                                  float *phases, int span) {                                                          \
    w_read(y, apart, vectors, x, next, pitch, height, width, top, rows, tiles, edges, lines, phases, span, m);        \
  }                                                                                                                   \
  static NOINLINE void w_write_##m(float *lines, const float *x, int apart, int vectors) {                            \
    w_write(lines, x, apart, vectors, m);                                                                             \
  }
