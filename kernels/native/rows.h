// Row-wise and elementwise kernels. R rows, D width, V vocabulary.

template <class F> static F row_sum(const F *x, long n) {
  constexpr int L = lanes<F>, step = 64 / sizeof(F);
  vec<F> a[64 / VB] = {};
  long i = 0;
  for (; i + step <= n; i += step)
    for (int j = 0; j < step / L; j++) a[j] += load(x + i + j * L);
  F s = hsum(joined<F>(a));
  for (; i < n; i++) s += x[i];
  return s;
}

template <class F> static F row_dot(const F *x, const F *y, long n) {
  constexpr int L = lanes<F>, step = 64 / sizeof(F);
  vec<F> a[64 / VB] = {};
  long i = 0;
  for (; i + step <= n; i += step)
    for (int j = 0; j < step / L; j++) a[j] = fma(load(x + i + j * L), load(y + i + j * L), a[j]);
  F s = hsum(joined<F>(a));
  for (; i < n; i++) s = fma(x[i], y[i], s);
  return s;
}

template <class F> static F row_max(const F *x, long n) {
  constexpr int L = lanes<F>;
  vec<F> m = splat<F>(-INFINITY);
  long i = 0;
  for (; i + L <= n; i += L) {
    m = maxv(load(x + i), m);
  }
  F s = hmax(m);
  for (; i < n; i++) s = maxs(x[i], s);
  return s;
}

// y = w∘x / sqrt(mean(x²) + eps); rstd[R] may be null.
template <class F>
static void rmsnorm(const F *x, const F *w, long R, long D, long ldx, long ldy, F eps, F *y, F *rstd) {
  constexpr int L = lanes<F>;
  for (long r = 0; r < R; r++, x += ldx, y += ldy) {
    F s = F(1) / sqrt_(row_dot(x, x, D) / F(D) + eps);
    long i = 0;
    for (; i + L <= D; i += L) store(y + i, load(x + i) * s * load(w + i));
    for (; i < D; i++) y[i] = x[i] * s * w[i];
    if (rstd) rstd[r] = s;
  }
}

// dx = rstd·(w∘dy - x·rstd²·mean(x∘w∘dy)); dw += Σ dy∘x·rstd. dx may be dy.
template <class F>
static void rmsnorm_backward(const F *x, const F *w, const F *rstd, const F *dy, long R, long D, long ldx, long ldy,
                             F *dx, F *dw) {
  for (long r = 0; r < R; r++, x += ldx, dx += ldx, dy += ldy) {
    F s = rstd[r], c = 0;
    constexpr int L = lanes<F>, P = 32 / sizeof(F);
    part<F> a = {};
    long i = 0;
    for (; i + P <= D; i += P) a = fma(load_part(x + i) * load_part(w + i), load_part(dy + i), a);
    c = hsum(a);
    for (; i < D; i++) c = fma(x[i] * w[i], dy[i], c);
    c *= s * s / F(D);
    for (i = 0; i + L <= D; i += L) {
      vec<F> xi = load(x + i), g = load(dy + i);
      store(dw + i, fma(g * xi, splat(s), load(dw + i)));
      store(dx + i, s * fma(load(w + i), g, -(xi * c)));
    }
    for (; i < D; i++) {
      F xi = x[i], g = dy[i];
      dw[i] = fma(g * xi, s, dw[i]);
      dx[i] = s * fma(w[i], g, -(xi * c));
    }
  }
}

// Rotates the two halves of each head in place: (a, b) → (a·c - b·s, b·c + a·s).
// cos and sin are [positions, D/2]; sign -1 is the inverse, and the gradient.
template <class F>
static void rope(F *x, const int32_t *pos, const F *cos, const F *sin, long R, long H, long D, long ldx, F sign) {
  constexpr int L = lanes<F>;
  const long half = D / 2;
  for (long r = 0; r < R; r++, x += ldx) {
    const F *c = cos + pos[r] * half, *s = sin + pos[r] * half;
    for (long h = 0; h < H; h++) {
      F *a = x + h * D, *b = a + half;
      long i = 0;
      for (; i + L <= half; i += L) {
        vec<F> va = load(a + i), vb = load(b + i), vc = load(c + i), vs = load(s + i) * sign;
        store(a + i, fma(va, vc, -(vb * vs)));
        store(b + i, fma(vb, vc, va * vs));
      }
      for (; i < half; i++) {
        F xa = a[i], xb = b[i], xs = s[i] * sign;
        a[i] = fma(xa, c[i], -(xb * xs));
        b[i] = fma(xb, c[i], xa * xs);
      }
    }
  }
}

template <class F> INLINE vec<F> vsigmoid(vec<F> x) { return F(1) / (F(1) + vexp(-x)); }

// each goes through a row; its tail goes through the same vector arithmetic, by get and put.
template <class F, class Body> INLINE void each(long n, const Body &body) {
  constexpr int L = lanes<F>;
  long i = 0;
  for (; i + L <= n; i += L) body(i, L);
  if (i < n) body(i, n - i);
}
// y = silu(gate)∘up, all with row strides.
template <class F>
static void swiglu(const F *gate, const F *up, long R, long D, long ldg, long ldy, F *y) {
  for (long r = 0; r < R; r++, gate += ldg, up += ldg, y += ldy)
    each<F>(D, [&](long i, long n) {
      vec<F> g = get(gate + i, n);
      put(y + i, g * vsigmoid<F>(g) * get(up + i, n), n);
    });
}

// dgate and dup may be gate and up.
template <class F>
static void swiglu_backward(const F *gate, const F *up, const F *dy, long R, long D, long ldg, long ldy, F *dgate,
                            F *dup) {
  for (long r = 0; r < R; r++, gate += ldg, up += ldg, dgate += ldg, dup += ldg, dy += ldy)
    each<F>(D, [&](long i, long n) {
      vec<F> g = get(gate + i, n), u = get(up + i, n), d = get(dy + i, n);
      vec<F> s = vsigmoid<F>(g), gs = g * s;
      put(dup + i, d * gs, n);
      put(dgate + i, d * u * fma(gs, F(1) - s, s), n);
    });
}

// One softmax row: its maximum, and Σ exp(x - max) and, when wanted, Σ exp(x - max)(x - max),
// summed in vector lanes over chunks and then in double.
template <class F> struct Softmax {
  F max;
  double sum, dot;
};
template <class F> static Softmax<F> softmax_stats(const F *x, long V, bool entropy) {
  Softmax<F> st = {row_max(x, V), 0, 0};
  const long chunk = 512;
  for (long c = 0; c < V; c += chunk) {
    long n = V - c < chunk ? V - c : chunk;
    part<F> s = {}, d = {};
    each<F>(n, [&](long i, long k) {
      vec<F> z = get(x + c + i, k) - st.max;
      vec<F> e = vexp(z);
      if (k < lanes<F>)
        for (long j = k; j < lanes<F>; j++) e[j] = 0;
      fold(s, e);
      // A logit of -inf has weight 0 and no share in the entropy.
      if (entropy) fold(d, e > F(0) ? e * z : vec<F>{});
    });
    st.sum += hsum(s);
    st.dot += hsum(d);
  }
  return st;
}

// logprob[r] = x[r][target[r]] - lse[r]; entropy (nats) and lse may be null.
template <class F>
static void logprob(const F *x, const int32_t *target, long R, long V, long ldx, F *lp, F *entropy, F *lse) {
  for (long r = 0; r < R; r++, x += ldx) {
    Softmax<F> st = softmax_stats(x, V, entropy != nullptr);
    double ls = log(st.sum);
    lp[r] = F(double(x[target[r]] - st.max) - ls);
    if (lse) lse[r] = F(double(st.max) + ls);
    if (entropy) entropy[r] = F(ls - st.dot / st.sum);
  }
}

// x ← g·(onehot(target) - softmax(x)), in place over the logits.
template <class F>
static void logprob_backward(F *x, const int32_t *target, const F *lse, const F *g, long R, long V, long ldx) {
  for (long r = 0; r < R; r++, x += ldx) {
    if (g[r] == 0) {
      memset(x, 0, sizeof(F) * V);
      continue;
    }
    F s = lse[r], gr = g[r];
    each<F>(V, [&](long i, long n) { put(x + i, -gr * vexp(get(x + i, n) - s), n); });
    x[target[r]] += gr;
  }
}

// AdamW with decoupled decay; g is multiplied by gscale (loss scale, clipping) first.
template <class F>
static void adamw(F *p, const F *g, F *m, F *v, long n, double gscale, double lr, double b1, double b2, double eps,
                  double decay, double correct1, double correct2) {
  const F gs = F(gscale), w = F(1 - lr * decay), c1 = F(1 - b1), c2 = F(1 - b2), B2 = F(b2);
  const F step = F(lr / correct1), root = F(sqrt(correct2)), e = F(eps);
  for (long i = 0; i < n; i++) {
    F gi = g[i] * gs;
    F mi = fma(c1, gi - m[i], m[i]);
    F vi = fma(v[i], B2, c2 * gi * gi);
    m[i] = mi;
    v[i] = vi;
    p[i] = fma(-step, mi / (sqrt_(vi) / root + e), p[i] * w);
  }
}

template <class F> static double sum_squares(const F *x, long n) {
  double a[8] = {};
  long i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; j++) a[j] = fma(double(x[i + j]), double(x[i + j]), a[j]);
  for (int j = 0; i < n; i++, j++) a[j] = fma(double(x[i]), double(x[i]), a[j]);
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
