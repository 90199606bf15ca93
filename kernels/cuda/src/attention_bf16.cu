// Attention on tensor cores over a paged cache of bfloat16 (see attention.cu), the online
// softmax of FlashAttention-2 (arXiv 2307.08691): one kernel for a new token a sequence,
// for many, and for training.
//
// A row's order of sums is fixed by its keys alone. Keys are visited a step of 16 or, with
// smaller heads, 32 at a time, with a running maximum; each `split` of them has a result of
// its own, and these are joined in ascending order. A step without a key that the row sees
// changes nothing. So a row has the same bits whatever shares its tile, and whether one
// warp goes through all splits or each split has a warp.
#include "common.cuh"

constexpr int page = 32, split = 128; // keys
constexpr int rows = 16;              // of a tile: what mma takes

// What a warp attends with, for each of the K key heads: up to 16 pairs of a token and one
// of the G = H/K heads that share a key head. Pair i is head (first + i) % G of token
// (first + i) / G; row, table and keys are as Query has them for token 0, and each further
// token is one row on and sees one key more.
struct Tile {
  i64 row, table, keys, first, pairs;
};

// A pair of a tile: its query's row and head, and the keys that it sees.
struct Pair {
  bool valid;
  int row, head, begin, end;
  __device__ Pair(const Tile &t, int i, int G, int k, int window) {
    const int at = int(t.first) + i, token = at / G;
    valid = i < int(t.pairs);
    row = int(t.row) + token;
    head = k * G + at - token * G;
    end = valid ? int(t.keys) + token : 0;
    begin = window > 0 && end > window ? end - window : 0;
  }
  __device__ i64 place(int H) const { return i64(row) * H + head; }
};

typedef Vector<u32> Words; // eight bfloat16
typedef Vector<float> Floats;

// Two words' lower and upper halves as one.
__device__ inline u32 lower_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ inline u32 upper_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

__device__ inline float log2e() { return 1.44269504f; }

// A softmax over some keys: the largest score and, relative to it, the sum of weights. The
// sum is 0 where there is no key. c is log2(e) times what scales the scores.
struct Running {
  float m, l;
  __device__ Running() : m(negative_infinity()), l(0) {}
  // Takes further keys in: a weighted sum of values becomes sum·was + theirs·now.
  __device__ void join(Running next, float c, float &was, float &now) {
    const float most = next.m > m ? next.m : m;
    was = l == 0 ? 0 : exp2f((m - most) * c);
    now = next.l == 0 ? 0 : exp2f((next.m - most) * c);
    if (next.l == 0) was = 1;
    l = fmaf(l, was, next.l * now);
    m = most;
  }
  __device__ float of(float sum) const { return l == 0 ? 0 : sum / l; }
  __device__ float lse(float scale) const { return fmaf(m, scale, logf(l)); }
};

// The a-fragments of a tile's queries. The columns of a chunk of 32 are permuted as those
// of the keys are, so that a lane has 8 adjacent ones.
template <int D> __device__ void load_queries(u32 (&a)[D / 16][4], const float *q, int ldq, const Pair (&pair)[2], int p) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float *from = q + i64(pair[r].row) * ldq + pair[r].head * D + 8 * p;
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
      Floats x{}, y{};
      if (pair[r].valid) {
        x = *reinterpret_cast<const Floats *>(from + 32 * c);
        y = *reinterpret_cast<const Floats *>(from + 32 * c + 4);
      }
      a[2 * c][r] = pack(x.at[0], x.at[1]);
      a[2 * c][r + 2] = pack(x.at[2], x.at[3]);
      a[2 * c + 1][r] = pack(y.at[0], y.at[1]);
      a[2 * c + 1][r + 2] = pack(y.at[2], y.at[3]);
    }
  }
}

// A lane's 16 bytes of a row at each `stride` columns.
template <int N> __device__ void load(Words (&to)[N], const bf16 *row, int stride) {
#pragma unroll
  for (int c = 0; c < N; c++) to[c] = *reinterpret_cast<const Words *>(row + stride * c);
}

// The first of the i-th four columns that a lane holds of a row's result.
__device__ inline int column(int i, int p) { return i / 4 * 64 + 16 * p + i % 4 * 4; }

// A warp a tile (x), key head (y) and, where splits is not 0, split (z); whole warps a
// block. A head's query: q + row·ldq + head·D. Where splits is 0, a warp goes through all
// of its keys, and out [rows, H, D] holds what it has joined so far; else the results
// of each split are left for attention_join: weighted sums o [tiles, K, splits, 16, D],
// and softmax [tiles, K, splits, 16]; nothing where no pair of the tile sees a key of the
// split. lse [rows, H], the log of the softmax's denominator, may be null.
//
// With g = lane / 4 and p = lane % 4, a lane holds of the scores of 16 keys rows g and
// g + 8 of keys 2p, 2p + 1, 2p + 8 and 2p + 9. Of a key's values it loads columns
// 8g to 8g + 7 of each 64, and the n-tile j of their product stands for columns 8·i + j.
template <int D>
__device__ void attention(const float *q, int ldq, const bf16 *cache, const i64 *table, const Tile *tiles, int n, int H, int K,
                          int window, float scale, int splits, float *o, Running *softmax, float *out, float *lse) {
  constexpr int step = D > 64 ? 16 : 32; // keys, for whose loads there are registers
  const int lane = threadIdx.x % 32, g = lane / 4, p = lane % 4, k = blockIdx.y, G = H / K;
  const int at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= n) return;
  const Tile tile = tiles[at];
  const Pair pair[2] = {Pair(tile, g, G, k, window), Pair(tile, g + 8, G, k, window)};
  int begin = Pair(tile, 0, G, k, window).begin, end = Pair(tile, int(tile.pairs) - 1, G, k, window).end;
  if (splits) {
    const int from = blockIdx.z * split;
    if (begin < from) begin = from;
    if (end > from + split) end = from + split;
    if (begin >= end) return;
  }
  const float c = scale * log2e();

  u32 queries[D / 16][4];
  load_queries<D>(queries, q, ldq, pair, p);
  const i64 *own = table + tile.table;
  // A lane's block of the 32 around key j, and where the keys of one are.
  auto lookup = [&](int j) {
    const int i = j / page / 32 * 32 + lane;
    return i >= begin / page && i <= (end - 1) / page ? int(own[i]) : 0;
  };
  int blocks = 0;
  auto find = [&](int j) {
    const int block = __shfl_sync(FULL_WARP, blocks, j / page % 32);
    return cache + (i64(block) * K + k) * 2 * page * D + j % page * D;
  };
  // All of a step is in one block, which has a key that is seen; what is in it beside
  // those may be anything.
  Words keys[step / 8][D / 32], values[step / 4][D / 64];
  auto load_keys = [&](const bf16 *from) {
#pragma unroll
    for (int i = 0; i < step / 8; i++) load(keys[i], from + (8 * i + g) * D + 8 * p, 32);
  };
  auto row = [&](int i) { return 2 * p + i % 2 + i / 2 * 8; }; // a key of a step

  Running joined[2];
  int j = begin / step * step;
  const bf16 *from = cache;
  if (j < end) {
    blocks = lookup(j);
    from = find(j);
    load_keys(from);
  }
  for (int s = begin / split; s * split < end; s++) {
    Running part[2];
    float sums[D / 8][4] = {};
    for (; j < end && j < (s + 1) * split; j += step) {
#pragma unroll
      for (int i = 0; i < step / 4; i++) load(values[i], from + (page + row(i)) * D + 8 * g, 64);
      float x[step / 8][4] = {};
#pragma unroll
      for (int d = 0; d < D / 32; d++)
#pragma unroll
        for (int i = 0; i < step / 8; i++) {
          mma(x[i], queries[2 * d], keys[i][d].at);
          mma(x[i], queries[2 * d + 1], keys[i][d].at + 2);
        }
      const int next = j + step;
      if (next < end) { // on their way while this step is computed
        if (next % (32 * page) == 0) blocks = lookup(next);
        from = find(next);
        load_keys(from);
      }

      float keep[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        Running &now = part[r];
        float most = now.m;
#pragma unroll
        for (int i = 0; i < step / 8; i++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int key = j + 8 * i + 2 * p + e;
            float &v = x[i][2 * r + e];
            if (key < pair[r].begin || key >= pair[r].end) v = negative_infinity();
            if (v > most) most = v;
          }
        for (int other = 1; other < 4; other *= 2) most = Max()(most, __shfl_xor_sync(FULL_WARP, most, other));
        const bool none = most == negative_infinity();
        const float base = none ? 0 : most * c;
        keep[r] = none ? 1 : exp2f((now.m - most) * c);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < step / 8; i++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            float &v = x[i][2 * r + e];
            v = exp2f(fmaf(v, c, -base));
            sum += v;
          }
        now.l = fmaf(now.l, keep[r], sum); // of the lane's own keys
        now.m = most;
      }
      if (__any_sync(FULL_WARP, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
#pragma unroll
          for (int e = 0; e < 4; e++) sums[i][e] *= keep[e / 2];
      }
      if (j < begin || next > end) { // a weight of 0 does not make nothing of a NaN
#pragma unroll
        for (int i = 0; i < step / 4; i++)
          if (j + row(i) < begin || j + row(i) >= end)
#pragma unroll
            for (int c = 0; c < D / 64; c++) values[i][c] = Words{};
      }
#pragma unroll
      for (int h = 0; h < step / 16; h++) {
        u32 weights[4];
#pragma unroll
        for (int e = 0; e < 4; e++) weights[e] = pack(x[2 * h + e / 2][e % 2 * 2], x[2 * h + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < D / 64; i++)
#pragma unroll
          for (int w = 0; w < 4; w++) {
            const u32 a = values[4 * h][i].at[w], b = values[4 * h + 1][i].at[w], c = values[4 * h + 2][i].at[w], d = values[4 * h + 3][i].at[w];
            const u32 even[2] = {lower_halves(a, b), lower_halves(c, d)}, odd[2] = {upper_halves(a, b), upper_halves(c, d)};
            mma(sums[8 * i + 2 * w], weights, even);
            mma(sums[8 * i + 2 * w + 1], weights, odd);
          }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      for (int other = 1; other < 4; other *= 2) part[r].l += __shfl_xor_sync(FULL_WARP, part[r].l, other);
      const i64 place = ((i64(at) * K + k) * splits + s) * rows + g + 8 * r;
      const bool first = splits || joined[r].l == 0;
      float was = 0, now = 1;
      if (!splits) joined[r].join(part[r], c, was, now);
      if (pair[r].valid) {
        if (splits && p == 0) softmax[place] = part[r];
        float *to = splits ? o + place * D : out + pair[r].place(H) * D;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
          Floats &x = *reinterpret_cast<Floats *>(to + column(i, p)), sum{};
          if (!first) sum = x;
#pragma unroll
          for (int e = 0; e < 4; e++) sum.at[e] = fmaf(sum.at[e], was, sums[i / 4 * 8 + i % 2 * 4 + e][2 * r + i / 2 % 2] * now);
          x = sum;
        }
      }
    }
  }
  if (splits) return;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (!pair[r].valid) continue;
#pragma unroll 1
    for (int i = 0; i < D / 16; i++) { // what the lane itself has written
      Floats &x = *reinterpret_cast<Floats *>(out + pair[r].place(H) * D + column(i, p));
      Floats whole = x;
#pragma unroll
      for (int e = 0; e < 4; e++) whole.at[e] = joined[r].of(whole.at[e]);
      x = whole;
    }
    if (lse && p == 0) lse[pair[r].place(H)] = joined[r].lse(scale);
  }
}

KERNEL void attention_bf16_64(const float *q, int ldq, const bf16 *cache, const i64 *table, const Tile *tiles, int n, int H, int K, int window,
                              float scale, int splits, float *o, Running *softmax, float *out, float *lse) {
  attention<64>(q, ldq, cache, table, tiles, n, H, K, window, scale, splits, o, softmax, out, lse);
}
KERNEL void attention_bf16_128(const float *q, int ldq, const bf16 *cache, const i64 *table, const Tile *tiles, int n, int H, int K, int window,
                              float scale, int splits, float *o, Running *softmax, float *out, float *lse) {
  attention<128>(q, ldq, cache, table, tiles, n, H, K, window, scale, splits, o, softmax, out, lse);
}

// Joins the splits, in their order. One block of D threads a pair of a tile (x) and key
// head (y).
KERNEL void attention_join(const float *o, const Running *softmax, const Tile *tiles, int splits, int H, int K, int D, int window,
                           float scale, float *out, float *lse) {
  const int at = blockIdx.x / rows, i = blockIdx.x % rows, k = blockIdx.y;
  const Tile tile = tiles[at];
  const Pair pair(tile, i, H / K, k, window);
  if (!pair.valid) return;
  const float c = scale * log2e();
  Running joined;
  float sum = 0;
#pragma unroll 8
  for (int s = pair.begin / split; s * split < pair.end; s++) {
    const i64 place = ((i64(at) * K + k) * splits + s) * rows + i;
    float was, now;
    joined.join(softmax[place], c, was, now);
    sum = fmaf(sum, was, o[place * D + threadIdx.x] * now);
  }
  out[pair.place(H) * D + threadIdx.x] = joined.of(sum);
  if (lse && threadIdx.x == 0) lse[pair.place(H)] = joined.lse(scale);
}
