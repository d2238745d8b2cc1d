/* What every generated file begins with: vectors of floats and the functions of them. It calls no library. */
#define LANES (VECTOR_BYTES / 4)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns") /* loops that copy or clear must not become calls */
#endif
typedef float vf __attribute__((vector_size(VECTOR_BYTES)));
typedef int vi __attribute__((vector_size(VECTOR_BYTES)));
typedef float vf_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
#ifdef __clang__
#define NOINLINE __attribute__((noinline))
#define ROLLED _Pragma("nounroll")
#define UNROLLED _Pragma("unroll 4")
#define v_shuffle __builtin_shufflevector
#else
#define NOINLINE __attribute__((noipa)) /* GCC 12 takes some functions that write vectors for pure, and drops the calls */
#define UNROLLED _Pragma("GCC unroll 4")
#define v_shuffle(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#define ROLLED _Pragma("GCC unroll 1") /* all rows of all pictures written out would be a lot of code */
#endif
#define INLINE static inline __attribute__((always_inline, unused))

INLINE vf v_splat(float x) { return x - (vf){0}; }
INLINE vf v_load(const float *p) { return *(const vf_anywhere *)p; }
INLINE void v_store(float *p, vf v) { *(vf_anywhere *)p = v; }
INLINE vf v_load_part(const float *p, int step, int n) {
  vf v = {0};
  for (int i = 0; i < n; ++i) v[i] = p[i * step];
  return v;
}
INLINE void v_store_part(float *p, int step, vf v, int n) {
  for (int i = 0; i < n; ++i) p[i * step] = v[i];
}
INLINE vf v_choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf v_truth(vi mask) { return v_choose(mask, v_splat(1.0f), v_splat(0.0f)); }
INLINE vf v_where(vf truth, vf a, vf b) { return v_choose(truth != v_splat(0.0f), a, b); }
INLINE vf v_max(vf a, vf b) { return v_choose(a > b, a, b); }
INLINE vf v_min(vf a, vf b) { return v_choose(a < b, a, b); }
INLINE vf v_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
/* exp: 2^n by the exponent's bits, times a polynomial of the rest, |rest| <= ln(2) / 2 (Cephes' coefficients). */
INLINE vf v_exp(vf x) {
  vi tiny = x < v_splat(-87.0f); /* numbers below the smallest normal one would take a hundred times as long */
  x = v_min(v_max(x, v_splat(-87.0f)), v_splat(88.3f));
  vf rounder = v_splat(12582912.0f); /* 1.5 * 2^23: the sum has no digits behind the point, and ends with the whole */
  vf sum = x * 1.44269504f + rounder, n = sum - rounder;
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = v_splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return v_choose(tiny, v_splat(0.0f), p * (vf)(((vi)sum - (vi)rounder + 127) << 23));
}
/* log: the exponent times log(2), and a polynomial of the rest, from sqrt(1/2) to sqrt(2) (Cephes' coefficients). */
INLINE vf v_log(vf x) {
  vi bits = (vi)v_max(x, v_splat(1.17549435e-38f)); /* the smallest normal number */
  vf rounder = v_splat(12582912.0f), m = (vf)((bits & 0x7fffff) | 0x3f000000);
  vf n = (vf)((vi)rounder + ((bits >> 23) - 126)) - rounder;
  vi small = m < v_splat(0.707106781f);
  n = v_choose(small, n - 1.0f, n);
  m = v_choose(small, m + m, m) - 1.0f;
  vf p = v_splat(7.0376836292e-2f), s = m * m;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  vf y = m + (p * m * s - n * 2.12194440e-4f - s * 0.5f) + n * 0.693359375f;
  return v_choose(x > v_splat(0.0f), y, v_splat(-__builtin_inff()));
}
INLINE vf v_sigmoid(vf x) { return 1.0f / (1.0f + v_exp(-x)); }
INLINE vf v_silu(vf x) { return x / (1.0f + v_exp(-x)); }
/* tanh: (1 - e) / (1 + e) with e = exp(-2 |x|) loses digits near 0, where a polynomial takes over. */
INLINE vf v_tanh(vf x) {
  vf a = v_abs(x), e = v_exp(a * -2.0f), s = x * x;
  vf p = v_splat(-5.70498872745e-3f);
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  vf large = (1.0f - e) / (1.0f + e);
  return v_choose(a < v_splat(0.625f), x + x * s * p, v_choose(x < v_splat(0.0f), -large, large));
}
/* erf: Abramowitz and Stegun, 7.1.26, with an error of at most 1.5e-7. */
INLINE vf v_erf(vf x) {
  vf a = v_abs(x), t = 1.0f / (1.0f + a * 0.3275911f);
  vf p = v_splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  vf y = 1.0f - p * t * v_exp(-a * a);
  return v_choose(x < v_splat(0.0f), -y, y);
}
INLINE vf v_sqrt(vf x) {
  vf y;
  for (int i = 0; i < LANES; ++i) y[i] = __builtin_sqrtf(x[i]); /* an instruction wherever there are vectors */
  return y;
}

INLINE void copy_row(float *y, const float *x, int begin, int end, int width, int step) {
  for (int j = 0; j < begin; ++j) y[j] = 0.0f;
  if (step == 1)
    for (int j = begin; j < end; ++j) y[j] = x[j];
  else if (step == 2)
    for (int j = begin; j < end; ++j) y[j] = x[2 * j];
  else
    for (int j = begin; j < end; ++j) y[j] = x[j * step];
  for (int j = end; j < width; ++j) y[j] = 0.0f;
}
/* Rows [i0, i1) and columns [j0, j1) of a picture come from x, whose first pixel may lie outside; the rest is zero. */
INLINE void copy_picture(float *y, const float *x, int height, int width, int pitch, int i0, int i1, int j0, int j1,
                         int row, int column) {
  ROLLED
  for (int i = 0; i < height; ++i)
    copy_row(y + i * pitch, x + i * row, i < i0 || i >= i1 ? width : j0, i < i0 || i >= i1 ? width : j1, width, column);
}
/* Zeros in a channel, from `around` floats before its first pixel to as many behind the last, but for the pixels. */
INLINE void clear_margins(float *y, int base, int height, int width, int pitch, int around) {
  for (int i = base - around; i < base; ++i) y[i] = 0.0f;
  for (int i = 0; i < height - 1; ++i)
    for (int j = width; j < pitch; ++j) y[base + i * pitch + j] = 0.0f;
  for (int i = 0; i < around; ++i) y[base + (height - 1) * pitch + width + i] = 0.0f;
}
INLINE void pool_row_max(float *y, const float *x, int i, int count, int height, int width, int row, int column, int kh,
                         int kw, int sh, int sw, int ph, int pw, int count_padding) {
  (void)count_padding;
  for (int j = 0; j < count; ++j) {
    float best = -3.4e38f;
    for (int a = i * sh - ph < 0 ? ph - i * sh : 0; a < kh && i * sh - ph + a < height; ++a)
      for (int b = j * sw - pw < 0 ? pw - j * sw : 0; b < kw && j * sw - pw + b < width; ++b) {
        float v = x[(i * sh - ph + a) * row + (j * sw - pw + b) * column];
        best = v > best ? v : best;
      }
    y[j] = best;
  }
}
INLINE void pool_row_mean(float *y, const float *x, int i, int count, int height, int width, int row, int column,
                          int kh, int kw, int sh, int sw, int ph, int pw, int count_padding) {
  for (int j = 0; j < count; ++j) {
    float sum = 0.0f;
    int n = 0;
    for (int a = i * sh - ph < 0 ? ph - i * sh : 0; a < kh && i * sh - ph + a < height; ++a)
      for (int b = j * sw - pw < 0 ? pw - j * sw : 0; b < kw && j * sw - pw + b < width; ++b, ++n)
        sum += x[(i * sh - ph + a) * row + (j * sw - pw + b) * column];
    y[j] = sum / (float)(count_padding ? kh * kw : n);
  }
}
