// Causal attention. Shapes: T tokens, H query heads, G = H / KV heads that share
// a key head, D head dimension, BK tokens of a key block (SSR_BLOCK).
//
// A row is one query of one head. Its keys are visited in spans of SPAN, which
// begin at multiples of SPAN whatever the row's window; within a span the scores
// are complete dot products, the running maximum moves at most once, and keys are
// added in ascending order. A span without a key of the row leaves it as it is.
// Nothing in that depends on which other rows share the tile, which is why the
// packed forward pass and the cached one agree bit for bit.

constexpr long BK = SSR_BLOCK;
constexpr long SPAN = 4 * BK; // SpanTokens in attention.go: keys between two looks at the running maximum
constexpr long TILE = 24;     // rows of a query tile, at most

// softmax_row folds the scores s[SPAN] of one span, n of them valid, into the
// running maximum and sum of a row, and turns s into weights: 0 from n to upto.
// It returns the factor by which what was accumulated must be scaled.
template <class F> INLINE F softmax_row(F *s, long n, long upto, F &m, F &l) {
  constexpr int L = lanes<F>;
  const vec<F> ninf = splat<F>(-INFINITY);
  const long full = n / L * L, end = (n + L - 1) / L * L;
  if (full < n) store(s + full, first(F(), full, n) ? load(s + full) : ninf);
  vec<F> mx = ninf;
  for (long j = 0; j < end; j += L) mx = maxv(load(s + j), mx);
  F bm = hmax(mx), alpha = 1;
  if (bm > m) {
    // Before the first span there is nothing to scale.
    if (m > -INFINITY) alpha = sexp<F>(m - bm);
    m = bm;
  }
  part<F> sum = {};
  const vec<F> vm = splat<F>(m);
  for (long j = 0; j < end; j += L) {
    vec<F> p = vexp(load(s + j) - vm);
    fold(sum, p);
    store(s + j, p);
  }
  for (long j = end; j < upto; j += L) store(s + j, vec<F>{});
  l = fma(l, alpha, hsum(sum));
  return alpha;
}

// Rows is the state of a tile of rows while its keys are visited.
template <class F> struct Rows {
  long n;        // rows
  const F *q;    // [n, D], already scaled
  F *o;          // [n, D]
  F *s;          // [n, SPAN]
  long window;    // keys that a row sees, its own the last; 0 for all before it
  long pos[TILE]; // position of each row's query in its sequence
  F m[TILE], l[TILE];
};

// FEW is the number of rows in a tile below which reading the keys takes longer
// than computing with them: they are asked for one span ahead.
constexpr long FEW = 8;

// Keys is where a key block is: keys [D, BK], and values with a row stride; null
// past the last block that anybody is known to need.
template <class F> struct Keys {
  const F *k, *v;
  long ldv;
};

// visit adds the span of keys that begins at base to every row of the tile.
// block(b) says where key block b is.
template <class F, class Block> static void visit(Rows<F> &t, long D, long base, const Block &block) {
  long most = 0;
  for (long r = 0; r < t.n; r++) most = t.pos[r] + 1 - base > most ? t.pos[r] + 1 - base : most;
  if (most <= 0) return;
  if (most > SPAN) most = SPAN;
  const bool few = t.n <= FEW;
  for (long j = 0; j < most; j += BK) {
    const F *next = few ? block((base + j + SPAN) / BK).k : nullptr;
    mm<F>(t.q, D, 1, block((base + j) / BK).k, BK, t.n, BK, D, t.s + j, SPAN, false, next);
  }
  const long upto = (most + BK - 1) / BK * BK;
  for (long r = 0; r < t.n; r++) {
    F *s = t.s + r * SPAN;
    long n = t.pos[r] + 1 - base, low = t.window ? n - t.window : 0;
    if (n <= 0 || low >= SPAN) {
      memset(s, 0, sizeof(F) * upto);
      continue;
    }
    for (long j = 0; j < low; j++) s[j] = -INFINITY;
    F alpha = softmax_row<F>(s, n < SPAN ? n : SPAN, upto, t.m[r], t.l[r]);
    if (alpha != 1) {
      F *o = t.o + r * D;
      // The added zero turns -0 into +0, so that a later weight of 0 changes no bit.
      for (long d = 0; d < D; d++) o[d] = fma(o[d], alpha, F(0));
    }
  }
  for (long j = 0; j < most; j += BK) {
    const F *next = few ? block((base + j + SPAN) / BK).v : nullptr;
    Keys<F> b = block((base + j) / BK);
    mm<F>(t.s + j, SPAN, 1, b.v, b.ldv, t.n, D, most - j < BK ? most - j : BK, t.o, D, true, next);
  }
}

template <class F> static void begin(Rows<F> &t, long D) {
  for (long r = 0; r < t.n; r++) {
    t.m[r] = -INFINITY;
    t.l[r] = 0;
  }
  memset(t.o, 0, sizeof(F) * t.n * D);
}

// finish writes row r: out = o / l, and its logsumexp where wanted.
template <class F> INLINE void finish(const Rows<F> &t, long r, long D, F *out, F *lse) {
  F inv = 1 / t.l[r];
  const F *o = t.o + r * D;
  for (long d = 0; d < D; d++) out[d] = o[d] * inv;
  if (lse) *lse = t.m[r] + log_(t.l[r]);
}

// transpose packs keys [n, D] (row stride ldk) as [D, BK]; columns past n are 0.
template <class F> static void transpose(const F *k, long ldk, long n, long D, F *kt) {
  for (long d = 0; d < D; d++) {
    for (long j = 0; j < n; j++) kt[d * BK + j] = k[j * ldk + d];
    for (long j = n; j < BK; j++) kt[d * BK + j] = 0;
  }
}

static thread_local Scratch keys_, rows_, grads_;

template <class F> struct Attention {
  long H, KV, D, window, ldq, ldk, ldv, ldo;
  F scale;
  long G() const { return H / KV; }
  long queries() const { return TILE / G() > 0 ? TILE / G() : 1; }

  // Queries i0 … i1 of one sequence, for the heads that share key head h.
  // block(b) says where key block b is.
  template <class Block>
  void rows(const F *q, F *out, F *lse, long h, long i0, long i1, long past, const Block &block) const {
    F *buf = rows_.get<F>(TILE * (2 * D + SPAN));
    for (long g0 = 0; g0 < G(); g0 += TILE) {
      long g1 = g0 + TILE < G() ? g0 + TILE : G(), ng = g1 - g0, step = TILE / ng;
      for (long i = i0; i < i1; i += step) {
        long ie = i + step < i1 ? i + step : i1;
        Rows<F> t;
        t.n = (ie - i) * ng;
        t.window = window;
        F *tq = buf;
        t.q = tq;
        t.o = buf + TILE * D;
        t.s = buf + 2 * TILE * D;
        for (long x = i, r = 0; x < ie; x++)
          for (long g = g0; g < g1; g++, r++) {
            const F *src = q + x * ldq + (h * G() + g) * D;
            for (long d = 0; d < D; d++) tq[r * D + d] = src[d] * scale;
            t.pos[r] = past + x;
          }
        begin(t, D);
        const long low = past + i + 1 - window; // the first key of the first query, if there is a window
        for (long base = window && low > 0 ? low / SPAN * SPAN : 0; base < past + ie; base += SPAN)
          visit<F>(t, D, base, block);
        for (long x = i, r = 0; x < ie; x++)
          for (long g = g0; g < g1; g++, r++)
            finish<F>(t, r, D, out + x * ldo + (h * G() + g) * D, lse ? lse + x * H + h * G() + g : nullptr);
      }
    }
  }

  void forward(const F *q, const F *k, const F *v, const int32_t *off, long seqs, F *out, F *lse) const {
    for (long s = 0; s < seqs; s++) {
      long t0 = off[s], T = off[s + 1] - t0, nb = (T + BK - 1) / BK;
      for (long h = 0; h < KV; h++) {
        F *kt = keys_.get<F>(nb * BK * D);
        const F *kh = k + t0 * ldk + h * D, *vh = v + t0 * ldv + h * D;
        for (long b = 0; b < nb; b++)
          transpose(kh + b * BK * ldk, ldk, T - b * BK < BK ? T - b * BK : BK, D, kt + b * BK * D);
        rows(q + t0 * ldq, out + t0 * ldo, lse ? lse + t0 * H : nullptr, h, 0, T, 0,
             [&](long b) { return b < nb ? Keys<F>{kt + b * BK * D, vh + b * BK * ldv, ldv} : Keys<F>{}; });
      }
    }
  }

  // A cache block holds, for each key head, keys [D, BK] then values [BK, D].
  long block_size() const { return KV * 2 * D * BK; }

  void append(const F *k, const F *v, const int32_t *seg, long segs, const int32_t *table, F *cache) const {
    for (long s = 0; s < segs; s++, seg += 4) {
      long row = seg[0], n = seg[1], past = seg[2];
      const int32_t *blocks = table + seg[3];
      // A key is spread over as many lines as it has elements: the next segment's first
      // are on their way while this one is written.
      if (s + 1 < segs) {
        const F *next = cache + table[seg[7] + seg[6] / BK] * block_size() + seg[6] % BK;
        for (long h = 0; h < KV; h++, next += 2 * D * BK)
          for (long d = 0; d < D; d++) __builtin_prefetch(next + d * BK, 1, 2);
      }
      for (long i = 0; i < n; i++) {
        long pos = past + i, j = pos % BK;
        F *blk = cache + blocks[pos / BK] * block_size();
        for (long h = 0; h < KV; h++, blk += 2 * D * BK) {
          const F *ks = k + (row + i) * ldk + h * D, *vs = v + (row + i) * ldv + h * D;
          for (long d = 0; d < D; d++) blk[d * BK + j] = ks[d];
          memcpy(blk + D * BK + j * D, vs, sizeof(F) * D);
        }
      }
    }
  }

  void extend(const F *q, const int32_t *seg, long segs, const int32_t *table, const F *cache, F *out, F *lse) const {
    // Key block b of head h in a segment, or, past its last, of what comes next: the
    // next head, then the next segment.
    auto find = [&](const int32_t *s, const int32_t *end, long h, long b) {
      long nb = (s[2] + s[1] + BK - 1) / BK;
      if (b >= nb) {
        b -= nb;
        if (++h == KV) {
          h = 0;
          if ((s += 4) == end) return Keys<F>{};
          nb = (s[2] + s[1] + BK - 1) / BK;
        }
        if (b >= nb) return Keys<F>{};
      }
      const F *k = cache + table[s[3] + b] * block_size() + h * 2 * D * BK;
      return Keys<F>{k, k + D * BK, D};
    };
    for (const int32_t *end = seg + 4 * segs; seg < end; seg += 4) {
      const long row = seg[0];
      for (long h = 0; h < KV; h++)
        rows(q + row * ldq, out + row * ldo, lse ? lse + row * H : nullptr, h, 0, seg[1], seg[2],
             [&](long b) { return find(seg, end, h, b); });
    }
  }

  // Gradients of one sequence and key head. With P the weights and dP = dO·Vᵀ:
  // dS = P∘(dP - rowsum(dO∘O)), dQ = dS·K·scale, dK = dSᵀ·Q·scale, dV = Pᵀ·dO.
  void backward(const F *q, const F *k, const F *v, const F *out, const F *lse, const F *dout, const int32_t *off,
                long seqs, F *dq, F *dk, F *dv) const {
    constexpr int L = lanes<F>;
    const long g = G(), step = queries(), R = step * g;
    for (long s = 0; s < seqs; s++) {
      long t0 = off[s], T = off[s + 1] - t0, nb = (T + BK - 1) / BK, N = T * g;
      for (long h = 0; h < KV; h++) {
        F *qs = grads_.get<F>(N * D * 3 + N * 2 + BK * D * 4 + R * BK * 2);
        F *os = qs + N * D, *gq = os + N * D, *ls = gq + N * D, *delta = ls + N;
        F *kt = delta + N, *vt = kt + BK * D, *gk = vt + BK * D, *gv = gk + BK * D;
        F *P = gv + BK * D, *dP = P + R * BK;
        for (long i = 0, r = 0; i < T; i++)
          for (long x = 0; x < g; x++, r++) {
            long t = t0 + i, head = h * g + x;
            const F *qr = q + t * ldq + head * D, *dr = dout + t * ldo + head * D, *orow = out + t * ldo + head * D;
            F sum = 0;
            for (long d = 0; d < D; d++) {
              qs[r * D + d] = qr[d] * scale;
              os[r * D + d] = dr[d];
              sum = fma(dr[d], orow[d], sum);
            }
            delta[r] = sum;
            ls[r] = lse[t * H + head];
          }
        memset(gq, 0, sizeof(F) * N * D);
        const F *kh = k + t0 * ldk + h * D, *vh = v + t0 * ldv + h * D;
        for (long b = 0; b < nb; b++) {
          long base = b * BK, n = T - base < BK ? T - base : BK;
          transpose(kh + base * ldk, ldk, n, D, kt);
          transpose(vh + base * ldv, ldv, n, D, vt);
          memset(gk, 0, sizeof(F) * 2 * BK * D);
          const long end = window && base + n + window - 1 < T ? base + n + window - 1 : T;
          for (long i = base; i < end; i += step) {
            long ie = i + step < end ? i + step : end, m = (ie - i) * g;
            const F *qt = qs + i * g * D, *dt = os + i * g * D;
            mm<F>(qt, D, 1, kt, BK, m, BK, D, P, BK, false);
            mm<F>(dt, D, 1, vt, BK, m, BK, D, dP, BK, false);
            for (long r = 0; r < m; r++) {
              long valid = i + r / g - base + 1, low = window ? valid - window : 0;
              F lr = ls[i * g + r], dr = delta[i * g + r];
              for (long j = 0; j < BK; j += L) {
                vec<F> p = vexp(load(P + r * BK + j) - lr);
                p = first(F(), j, valid < n ? valid : n) ? p : vec<F>{};
                if (j < low) p = first(F(), j, low) ? vec<F>{} : p;
                store(P + r * BK + j, p);
                store(dP + r * BK + j, p * (load(dP + r * BK + j) - dr));
              }
            }
            mm<F>(P, 1, BK, dt, D, n, D, m, gv, D, true);
            mm<F>(dP, 1, BK, qt, D, n, D, m, gk, D, true);
            mm<F>(dP, BK, 1, kh + base * ldk, ldk, m, D, n, gq + i * g * D, D, true);
          }
          for (long j = 0; j < n; j++) {
            memcpy(dk + (t0 + base + j) * ldk + h * D, gk + j * D, sizeof(F) * D);
            memcpy(dv + (t0 + base + j) * ldv + h * D, gv + j * D, sizeof(F) * D);
          }
        }
        for (long i = 0, r = 0; i < T; i++)
          for (long x = 0; x < g; x++, r++) {
            F *dst = dq + (t0 + i) * ldq + (h * g + x) * D;
            for (long d = 0; d < D; d++) dst[d] = gq[r * D + d] * scale;
          }
      }
    }
  }
};
