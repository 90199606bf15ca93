// A paged KV cache: its writing, with the rotary embedding (arXiv 2104.09864), and
// attention of one token at a time over one of float32, grouped queries (arXiv 2305.13245).
// attention_bf16.cu has that over one of bfloat16.
//
// A cache block holds PAGE tokens: [block, K, 2, PAGE, D], keys then values.
#include "common.cuh"
#define PAGE 32

// The pair (a, b) turned by an angle. The sums are spelled out, so that every kernel
// that turns has the same bits.
__device__ inline void turn(float &a, float &b, float c, float s) {
  const float was = a;
  a = fmaf(a, c, -(b * s));
  b = fmaf(b, c, was * s);
}

// One block a token (y) and head (x) of rows of x at a stride of ld: each of the
// first heads is rotated in place, or back. cos and sin are [positions, D/2].
template <class T>
__device__ void rope(T *x, int ld, const i64 *position, const float *cosine, const float *sine, int D, int inverse) {
  const int half = D / 2;
  T *in = x + i64(blockIdx.y) * ld + i64(blockIdx.x) * D;
  const float *c = cosine + position[blockIdx.y] * half, *s = sine + position[blockIdx.y] * half;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    float a = get(in + i), b = get(in + i + half);
    turn(a, b, c[i], inverse ? -s[i] : s[i]);
    put(in + i, a);
    put(in + i + half, b);
  }
}

KERNEL void rope_f32(float *x, int ld, const i64 *position, const float *cosine, const float *sine, int D, int inverse) {
  rope(x, ld, position, cosine, sine, D, inverse);
}
KERNEL void rope_bf16(bf16 *x, int ld, const i64 *position, const float *cosine, const float *sine, int D, int inverse) {
  rope(x, ld, position, cosine, sine, D, inverse);
}

// One block a token and head of qkv [T, (H+2K)·D]; D/2 threads at least, each for the
// pairs (i, i + D/2). Queries and keys are rotated in place, all is rounded to the type of
// the cache, and keys and values are copied there. slot[t] is block·PAGE + place, or -1 for
// a token that is not kept, whose keys and values stay as they are. cos and sin are
// [positions, D/2], or null where all is rotated already.
template <class T>
__device__ void rope_append(float *qkv, const i64 *position, const i64 *slot, const float *cosine, const float *sine, int H, int K,
                            int D, T *cache) {
  const int half = D / 2, head = blockIdx.x;
  const i64 t = blockIdx.y;
  float *in = qkv + (t * (H + 2 * K) + head) * D;
  T *out = nullptr;
  if (head >= H) {
    if (slot[t] < 0) return;
    const int k = (head - H) % K, value = (head - H) / K;
    out = cache + (((slot[t] / PAGE * K + k) * 2 + value) * PAGE + slot[t] % PAGE) * D;
  }
  const bool rotate = cosine && head < H + K;
  const i64 at = rotate ? position[t] * half : 0;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    float a = in[i], b = in[i + half];
    if (rotate) turn(a, b, cosine[at + i], sine[at + i]);
    T x, y;
    put(&x, a);
    put(&y, b);
    in[i] = get(&x);
    in[i + half] = get(&y);
    if (!out) continue;
    out[i] = x;
    out[i + half] = y;
  }
}

KERNEL void rope_append_f32(float *qkv, const i64 *position, const i64 *slot, const float *cosine, const float *sine, int H,
                            int K, int D, float *cache) {
  rope_append(qkv, position, slot, cosine, sine, H, K, D, cache);
}
KERNEL void rope_append_bf16(float *qkv, const i64 *position, const i64 *slot, const float *cosine, const float *sine, int H,
                             int K, int D, bf16 *cache) {
  rope_append(qkv, position, slot, cosine, sine, H, K, D, cache);
}

// Keys that one block visits. It is fixed, so that a sequence's result does not
// depend on the others: a longer one has more splits, not longer ones.
#define SPLIT 256

// A token that attends: its row in q and in out, where in the table the blocks of its
// sequence begin, and how many keys there are, its own the last; 0 gives zeros.
struct Query {
  i64 row, table, keys;
};

// One block of 128 threads a query (x), key head (y) and split (z). The G = H/K
// heads that share the key head are kept in shared memory and each key is read
// once for all of them. A head's query: q + row·ldq + (y·G + g)·D. The last `window`
// keys are seen (0: all). Partial results: o [queries, H, splits, D], and their running
// maximum and sum ml [queries, H, splits, 2]; splits without a key that is seen have
// none. Shared memory: G·(D + SPLIT) floats.
KERNEL void decode_f32(const float *q, int ldq, const float *cache, const i64 *table, const Query *list, int H, int K, int D,
                       int window, float scale, float *o, float *ml) {
  DYNAMIC_SHARED(float, shared);
  const int G = H / K, seq = blockIdx.x, k = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
  const Query query = list[seq];
  const int n = int(query.keys), first = window > 0 && n > window ? n - window : 0;
  int lo = split * SPLIT, hi = lo + SPLIT < n ? lo + SPLIT : n;
  if (lo < first) lo = first;
  if (lo >= hi) return;
  float *queries = shared, *scores = shared + G * D; // [G, D], [G, SPLIT]
  for (int i = threadIdx.x; i < G * D; i += blockDim.x)
    queries[i] = q[query.row * ldq + i64(k) * G * D + i] * scale;
  __syncthreads();
  const i64 *pages = table + query.table;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  // A warp a key: its lanes share the products.
  for (int j = lo + warp; j < hi; j += warps) {
    const float *key = cache + ((pages[j / PAGE] * K + k) * 2 * PAGE + j % PAGE) * D;
    for (int g = 0; g < G; g++) {
      float dot = 0;
      for (int d = lane; d < D; d += 32) dot += key[d] * queries[g * D + d];
      dot = warp_reduce(dot, Sum());
      if (lane == 0) scores[g * SPLIT + j - lo] = dot;
    }
  }
  __syncthreads();
  for (int g = 0; g < G; g++) {
    float *s = scores + g * SPLIT;
    float m = negative_infinity(), l = 0;
    for (int j = threadIdx.x; j < hi - lo; j += blockDim.x) m = s[j] > m ? s[j] : m;
    m = block_reduce(m, Max());
    for (int j = threadIdx.x; j < hi - lo; j += blockDim.x) {
      s[j] = expf(s[j] - m);
      l += s[j];
    }
    l = block_reduce(l, Sum());
    const i64 at = (i64(seq) * H + k * G + g) * splits + split;
    if (threadIdx.x == 0) {
      ml[at * 2] = m;
      ml[at * 2 + 1] = l;
    }
  }
  __syncthreads();
  // A thread an element of the head: values are read along D.
  for (int d = threadIdx.x; d < G * D; d += blockDim.x) {
    const int g = d / D, e = d % D;
    float sum = 0;
    for (int j = lo; j < hi; j++) {
      const float *value = cache + (((pages[j / PAGE] * K + k) * 2 + 1) * PAGE + j % PAGE) * D;
      sum += scores[g * SPLIT + j - lo] * value[e];
    }
    o[((i64(seq) * H + k * G + g) * splits + split) * D + e] = sum;
  }
}

// Joins the splits, in their order. One block a query (x) and head (y); out [rows, H, D],
// and lse [rows, H], the log of the softmax's denominator, unless it is null.
KERNEL void decode_join_f32(const float *o, const float *ml, const Query *list, int splits, int H, int D, int window, float *out,
                            float *lse) {
  const Query query = list[blockIdx.x];
  const i64 row = i64(blockIdx.x) * H + blockIdx.y, to = query.row * H + blockIdx.y;
  const int n = int(query.keys), used = (n + SPLIT - 1) / SPLIT;
  const int begin = window > 0 && n > window ? (n - window) / SPLIT : 0;
  o += row * splits * D;
  ml += row * splits * 2;
  float m = negative_infinity();
  for (int s = begin; s < used; s++) m = ml[s * 2] > m ? ml[s * 2] : m;
  float l = 0;
  for (int s = begin; s < used; s++) l += ml[s * 2 + 1] * expf(ml[s * 2] - m);
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    float sum = 0;
    for (int s = begin; s < used; s++) sum += o[s * D + d] * expf(ml[s * 2] - m);
    out[to * D + d] = n > 0 ? sum / l : 0;
  }
  if (lse && threadIdx.x == 0) lse[to] = m + logf(l);
}
