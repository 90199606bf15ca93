// Matrix products. The right operand B [K, N] is packed as panels of PANEL
// columns: panel p is [K, PANEL], the last one padded with zeros. Every element
// of a product adds its K terms in ascending order with one fused multiply-add
// each: the result of a row depends on neither M nor the blocking, because an
// accumulator that is stored and loaded again is unchanged.

// A panel is as wide as a cache line, in every instruction set.
template <class F> constexpr long panel_width = 64 / sizeof(F);
constexpr long KC = 384; // terms per pass: a panel's share stays in the first-level cache
constexpr long MC = 96;  // rows per pass: a block of A stays in the second-level cache

// Panels are stored as what they multiply, or, of float, as bfloat16 in half the
// memory. narrow rounds to the nearest, ties to even; a NaN stays one.
INLINE void narrow(double v, double &to) { to = v; }
INLINE void narrow(float v, float &to) { to = v; }
INLINE void narrow(float v, uint16_t &to) {
  uint32_t b;
  memcpy(&b, &v, sizeof b);
  to = uint16_t(v != v ? b >> 16 | 0x40 : (b + 0x7fff + (b >> 16 & 1)) >> 16);
}

// pack reads B[k, n] at w[k·rs + n·cs].
template <class F, class S> static void pack(const F *w, long rs, long cs, long K, long N, S *panels) {
  constexpr long P = panel_width<F>;
  for (long n = 0; n < N; n += P) {
    long c = N - n < P ? N - n : P;
    for (long k = 0; k < K; k++, panels += P) {
      const F *src = w + k * rs + n * cs;
      for (long j = 0; j < c; j++) narrow(src[j * cs], panels[j]);
      for (long j = c; j < P; j++) panels[j] = 0;
    }
  }
}

// panel_product computes M rows of one panel, c of its columns wanted, and asks for
// what comes after the panel's share B.
template <class F, class S>
static void panel_product(const F *A, long lda, const S *B, long M, long K, F *C, long ldc, long c, bool add) {
  constexpr long P = panel_width<F>;
  const S *next = B + K * P;
  if (c == P) return strips<F, STRIP, 64 / VB>(A, lda, 1, B, P, M, K, C, ldc, add, next);
  F t[MC * P];
  if (add)
    for (long r = 0; r < M; r++)
      for (long j = 0; j < P; j++) t[r * P + j] = j < c ? C[r * ldc + j] : F(0);
  strips<F, STRIP, 64 / VB>(A, lda, 1, B, P, M, K, t, P, add, next);
  for (long r = 0; r < M; r++) memcpy(C + r * ldc, t + r * P, c * sizeof(F));
}

// y[M, N] (+)= x[M, K]·B + bias; bias may be null.
template <class F, class S>
static void linear(const F *x, long ldx, const S *panels, const F *bias, long M, long N, long K, F *y, long ldy,
                   int add) {
  constexpr long P = panel_width<F>;
  for (long m = 0; m < M; m += MC) {
    long rows = M - m < MC ? M - m : MC;
    for (long n = 0; n < N; n += P) {
      long c = N - n < P ? N - n : P;
      F *out = y + m * ldy + n;
      for (long k = 0; k < K; k += KC)
        panel_product(x + m * ldx + k, ldx, panels + n * K + k * P, rows, K - k < KC ? K - k : KC, out, ldy, c, add || k > 0);
      if (bias)
        for (long r = 0; r < rows; r++)
          for (long j = 0; j < c; j++) out[r * ldy + j] += bias[n + j];
    }
  }
}
