// Fixed-width vectors for the kernels. This header is included once per
// instruction set, inside that set's namespace (see isa_*.cc), so it must not
// include anything itself.
//
// The contract that every kernel built on it keeps: the arithmetic of one row
// (one query and head, one token, one element) is the same sequence of
// operations however many rows are computed together. It is also the same for
// vectors of 32 bytes and of 64 where both fuse: an element of a product adds its
// terms in ascending order, and sums over a row go through part.

constexpr int VB = USE_512 ? 64 : 32; // bytes of a vector
constexpr int LINE = 64;              // bytes of a cache line

template <class F, int Bytes> struct Vec {
  typedef F T __attribute__((vector_size(Bytes)));
  typedef F U __attribute__((vector_size(Bytes), aligned(sizeof(F)), may_alias));
};
template <class F> constexpr int lanes = VB / sizeof(F);
template <class F> using vec = typename Vec<F, VB>::T;
typedef vec<float> vf;
typedef vec<double> vd;
typedef vec<int32_t> vi32;
typedef vec<int64_t> vi64;

// part holds the partial sums of a row, in 32 bytes however wide a vector is, so
// that every width adds the terms of a row in the same order.
template <class F> using part = typename Vec<F, 32>::T;
typedef part<float> pf;
typedef part<double> pd;

template <class F> INLINE vec<F> load(const F *p) { return *(const typename Vec<F, VB>::U *)p; }
// load of bfloat16 widens a vector of floats.
INLINE vf load(const uint16_t *p) {
  typedef uint16_t U __attribute__((vector_size(VB / 2), aligned(sizeof(uint16_t)), may_alias));
  typedef uint32_t W __attribute__((vector_size(VB)));
  return (vf)(__builtin_convertvector(*(const U *)p, W) << 16);
}
template <class F> INLINE part<F> load_part(const F *p) { return *(const typename Vec<F, 32>::U *)p; }
template <class F> INLINE void store(F *p, vec<F> v) { *(typename Vec<F, VB>::U *)p = v; }
// Subtracting a zero vector leaves every x as it is, so it costs nothing; adding one would not.
template <class F> INLINE vec<F> splat(F x) { return x - vec<F>{}; }

// fma is fused on instruction sets that have it and is not elsewhere, never a
// choice of the optimiser, so that every tile shape rounds alike: kernels add a
// product to something through fma only.
//
// maxv is the larger of each pair, b where a is NaN; clamp limits x to [lo, hi], and
// a NaN stays one.
#if USE_FMA
INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
INLINE pf fma(pf a, pf b, pf c) { return (pf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE pd fma(pd a, pd b, pd c) { return (pd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
INLINE pf maxv(pf a, pf b) { return (pf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE pd maxv(pd a, pd b) { return (pd)_mm256_max_pd((__m256d)a, (__m256d)b); }
#else
template <class T> INLINE T fma(T a, T b, T c) {
  T ab = a * b;
  return ab + c;
}
template <class T> INLINE T maxv(T a, T b) { return a > b ? a : b; }
#endif
#if USE_512
INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vd fma(vd a, vd b, vd c) { return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
INLINE vf maxv(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vd maxv(vd a, vd b) { return (vd)_mm512_max_pd((__m512d)a, (__m512d)b); }
INLINE vf clamp(vf x, vf lo, vf hi) { return (vf)_mm512_min_ps((__m512)hi, _mm512_max_ps((__m512)lo, (__m512)x)); }
INLINE vd clamp(vd x, vd lo, vd hi) { return (vd)_mm512_min_pd((__m512d)hi, _mm512_max_pd((__m512d)lo, (__m512d)x)); }
#elif USE_FMA
INLINE vf clamp(vf x, vf lo, vf hi) { return (vf)_mm256_min_ps((__m256)hi, _mm256_max_ps((__m256)lo, (__m256)x)); }
INLINE vd clamp(vd x, vd lo, vd hi) { return (vd)_mm256_min_pd((__m256d)hi, _mm256_max_pd((__m256d)lo, (__m256d)x)); }
#else
template <class T> INLINE T clamp(T x, T lo, T hi) {
  x = x < lo ? lo : x;
  return x > hi ? hi : x;
}
#endif

// hsum and hmax reduce by halves, always in this order.
INLINE double hsum(pd v) { return (v[0] + v[2]) + (v[1] + v[3]); }
INLINE float maxs(float a, float b) { return a > b ? a : b; }
INLINE double maxs(double a, double b) { return a > b ? a : b; }
#if USE_FMA
INLINE __m128 low(__m256 v) { return _mm256_castps256_ps128(v); }
INLINE __m128 high(__m256 v) { return _mm256_extractf128_ps(v, 1); }
INLINE float hsum(pf v) {
  __m128 s = _mm_add_ps(low((__m256)v), high((__m256)v));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float hmax(pf v) {
  __m128 s = _mm_max_ps(low((__m256)v), high((__m256)v));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
#else
INLINE float hsum(pf v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
INLINE float hmax(pf v) {
  return maxs(maxs(maxs(v[0], v[4]), maxs(v[2], v[6])), maxs(maxs(v[1], v[5]), maxs(v[3], v[7])));
}
#endif
INLINE double hmax(pd v) { return maxs(maxs(v[0], v[2]), maxs(v[1], v[3])); }

// fold adds a vector to the partial sums, its lower part first. joined is the sum of
// two parts that were summed side by side. get and put are load and store of the
// first n lanes; the others are 0, and memory there is not touched. first is a mask
// of the lanes j with i + j < n.
#if USE_512
INLINE pf lower(vf v) { return (pf)_mm512_castps512_ps256((__m512)v); }
INLINE pd lower(vd v) { return (pd)_mm512_castpd512_pd256((__m512d)v); }
INLINE pf upper(vf v) { return (pf)_mm512_extractf32x8_ps((__m512)v, 1); }
INLINE pd upper(vd v) { return (pd)_mm512_extractf64x4_pd((__m512d)v, 1); }
INLINE float hmax(vf v) { return hmax(maxv(lower(v), upper(v))); }
INLINE double hmax(vd v) { return hmax(maxv(lower(v), upper(v))); }
template <class P, class V> INLINE void fold(P &sums, V v) {
  sums += lower(v);
  sums += upper(v);
}
template <class F> INLINE part<F> joined(const vec<F> (&a)[1]) { return lower(a[0]) + upper(a[0]); }
INLINE vf get(const float *p, long n) { return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
INLINE vd get(const double *p, long n) { return (vd)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p); }
INLINE void put(float *p, vf v, long n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v); }
INLINE void put(double *p, vd v, long n) { _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v); }
INLINE vi32 first(float, long i, long n) {
  return vi32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + int32_t(i) < int32_t(n);
}
INLINE vi64 first(double, long i, long n) { return vi64{0, 1, 2, 3, 4, 5, 6, 7} + int64_t(i) < int64_t(n); }
#else
template <class P> INLINE void fold(P &sums, P v) { sums += v; }
template <class F> INLINE part<F> joined(const vec<F> (&a)[2]) { return a[0] + a[1]; }
template <class F> INLINE vec<F> get(const F *p, long n) {
  if (n == lanes<F>) return load(p);
  vec<F> v = {};
  for (long i = 0; i < n; i++) v[i] = p[i];
  return v;
}
template <class F> INLINE void put(F *p, vec<F> v, long n) {
  if (n == lanes<F>) return store(p, v);
  for (long i = 0; i < n; i++) p[i] = v[i];
}
INLINE vi32 first(float, long i, long n) { return vi32{0, 1, 2, 3, 4, 5, 6, 7} + int32_t(i) < int32_t(n); }
INLINE vi64 first(double, long i, long n) { return vi64{0, 1, 2, 3} + int64_t(i) < int64_t(n); }
#endif

// exp for arguments of any size: 0 below the smallest normal result (and at
// -inf), saturating at the largest finite power above. Error below 1.5 units in
// the last place. Cody-Waite reduction and a Taylor polynomial on |r| ≤ ln2/2.
INLINE vf vexp(vf x0) {
  const vf lo = splat<float>(-87.33654f), hi = splat<float>(88.37626f);
  vf x = clamp(x0, lo, hi);
  const float magic = 12582912.f; // 1.5·2^23: adding it rounds to an integer
  vf t = fma(x, splat<float>(1.44269504088896341f), splat<float>(magic));
  vf n = t - magic;
  vf r = fma(n, splat<float>(-0.693359375f), x);
  r = fma(n, splat<float>(2.12194440e-4f), r);
  vf p = splat<float>(1.f / 5040);
  p = fma(p, r, splat<float>(1.f / 720));
  p = fma(p, r, splat<float>(1.f / 120));
  p = fma(p, r, splat<float>(1.f / 24));
  p = fma(p, r, splat<float>(1.f / 6));
  p = fma(p, r, splat<float>(0.5f));
  p = fma(p, r * r, r) + 1.f;
  vi32 e = ((vi32)t - (vi32)splat<float>(magic)) << 23;
  vf y = (vf)((vi32)p + e);
  return x0 < lo ? vf{} : y;
}
INLINE vd vexp(vd x0) {
  const vd lo = splat<double>(-708.39641853226408), hi = splat<double>(709.4);
  vd x = clamp(x0, lo, hi);
  const double magic = 6755399441055744.; // 1.5·2^52
  vd t = fma(x, splat<double>(1.4426950408889634074), splat<double>(magic));
  vd n = t - magic;
  vd r = fma(n, splat<double>(-6.93145751953125e-1), x);
  r = fma(n, splat<double>(-1.42860682030941723212e-6), r);
  vd p = splat<double>(1. / 6227020800.);
  p = fma(p, r, splat<double>(1. / 479001600.));
  p = fma(p, r, splat<double>(1. / 39916800.));
  p = fma(p, r, splat<double>(1. / 3628800.));
  p = fma(p, r, splat<double>(1. / 362880.));
  p = fma(p, r, splat<double>(1. / 40320.));
  p = fma(p, r, splat<double>(1. / 5040.));
  p = fma(p, r, splat<double>(1. / 720.));
  p = fma(p, r, splat<double>(1. / 120.));
  p = fma(p, r, splat<double>(1. / 24.));
  p = fma(p, r, splat<double>(1. / 6.));
  p = fma(p, r, splat<double>(0.5));
  p = fma(p, r * r, r) + 1.;
  vi64 e = ((vi64)t - (vi64)splat<double>(magic)) << 52;
  vd y = (vd)((vi64)p + e);
  return x0 < lo ? vd{} : y;
}
template <class F> INLINE F sexp(F x) { return vexp(splat<F>(x))[0]; }

// Scratch is memory that a thread keeps between calls.
struct Scratch {
  void *p = nullptr;
  size_t n = 0;
  ~Scratch() { free(p); }
  template <class F> F *get(size_t count) {
    size_t need = count * sizeof(F);
    if (need > n) {
      free(p);
      n = (need + need / 4 + 4095) & ~size_t(4095);
      p = aligned_alloc(64, n);
      if (!p) abort();
    }
    return (F *)p;
  }
};

// tile computes C[MR][NV vectors] (+)= A·B, K terms in ascending order for every
// element. A is addressed by (row stride, column stride), B and C by row stride.
// ahead, where not null, is an operand of B's layout that is needed soon: its lines
// are asked for, into the second-level cache, as those of B are read. The processor
// follows one operand by itself but not from one to the next, and has more requests
// under way for the second level than for the first.
// B may be stored in another type that load widens.
template <class F, int MR, int NV, class S>
INLINE void tile(const F *A, long ars, long acs, const S *B, long ldb, long K, F *C, long ldc, bool add,
                 const S *ahead) {
  constexpr int L = lanes<F>;
  vec<F> acc[MR][NV];
  for (int r = 0; r < MR; r++)
    for (int n = 0; n < NV; n++) acc[r][n] = add ? load(C + r * ldc + n * L) : vec<F>{};
  for (long k = 0; k < K; k++) {
    if (ahead)
      for (int n = 0; n < NV; n += LINE / VB) __builtin_prefetch(ahead + k * ldb + n * L, 0, 2);
    // The shorter side waits in registers, of which the sums take 12 of 16, or 24 of 32.
    if (NV > MR) {
      vec<F> a[MR];
      for (int r = 0; r < MR; r++) a[r] = splat<F>(A[r * ars + k * acs]);
      for (int n = 0; n < NV; n++) {
        vec<F> b = load(B + k * ldb + n * L);
        for (int r = 0; r < MR; r++) acc[r][n] = fma(a[r], b, acc[r][n]);
      }
    } else {
      vec<F> b[NV];
      for (int n = 0; n < NV; n++) b[n] = load(B + k * ldb + n * L);
      for (int r = 0; r < MR; r++) {
        vec<F> a = splat<F>(A[r * ars + k * acs]);
        for (int n = 0; n < NV; n++) acc[r][n] = fma(a, b[n], acc[r][n]);
      }
    }
  }
  for (int r = 0; r < MR; r++)
    for (int n = 0; n < NV; n++) store(C + r * ldc + n * L, acc[r][n]);
}

// remainder is tile for the c columns that do not fill a vector, in any M.
template <class F>
static void remainder(const F *A, long ars, long acs, const F *B, long ldb, long M, long K, F *C, long ldc, long c,
                      bool add) {
  for (long r = 0; r < M; r++)
#if USE_512
  {
    vec<F> s = add ? get(C + r * ldc, c) : vec<F>{};
    for (long k = 0; k < K; k++) s = fma(splat(A[r * ars + k * acs]), get(B + k * ldb, c), s);
    put(C + r * ldc, s, c);
  }
#else
    for (long n = 0; n < c; n++) {
      F s = add ? C[r * ldc + n] : F(0);
      for (long k = 0; k < K; k++) s = fma(A[r * ars + k * acs], B[k * ldb + n], s);
      C[r * ldc + n] = s;
    }
#endif
}

// STRIP is the number of rows that, in two vectors each, leave registers for the rest.
constexpr int STRIP = USE_512 ? 12 : 6;

// strips is tile for any M, in strips of MR rows and what is left.
template <class F, int MR, int NV, class S>
INLINE void strips(const F *A, long ars, long acs, const S *B, long ldb, long M, long K, F *C, long ldc, bool add,
                   const S *ahead) {
  for (; M >= MR; M -= MR, A += MR * ars, C += MR * ldc, ahead = nullptr)
    tile<F, MR, NV>(A, ars, acs, B, ldb, K, C, ldc, add, ahead);
  if constexpr (MR > 1)
    if (M > 0) strips<F, MR == 12 ? 6 : MR - 1, NV>(A, ars, acs, B, ldb, M, K, C, ldc, add, ahead);
}

// mm computes C[M,N] (+)= A[M,K]·B[K,N] for small operands that sit in cache;
// ahead as tile has it.
template <class F>
static void mm(const F *A, long ars, long acs, const F *B, long ldb, long M, long N, long K, F *C, long ldc, bool add,
               const F *ahead = nullptr) {
  constexpr int L = lanes<F>;
  long n = 0;
  auto columns = [&](long width, auto run) {
    for (; n + width <= N; n += width) run(B + n, C + n, ahead ? ahead + n : nullptr);
  };
  if (M <= 3)
    columns(4 * L, [&](const F *b, F *c, const F *next) { strips<F, 3, 4>(A, ars, acs, b, ldb, M, K, c, ldc, add, next); });
  columns(2 * L, [&](const F *b, F *c, const F *next) { strips<F, STRIP, 2>(A, ars, acs, b, ldb, M, K, c, ldc, add, next); });
  columns(L, [&](const F *b, F *c, const F *next) { strips<F, STRIP, 1>(A, ars, acs, b, ldb, M, K, c, ldc, add, next); });
  if (n < N) remainder(A, ars, acs, B + n, ldb, M, K, C + n, ldc, N - n, add);
}
