// Drawing a token from a row of logits by the definition of kernels/native's sampler: the
// inverse of the cumulative distribution in ascending id order.
#include "common.cuh"

// Request says how one row is sampled; see Go's Sampling. temperature 0 is greedy.
struct Request {
  u64 draw; // uniform in [0, 2^53)
  float temperature, top_p, min_p;
  int top_k;
};

// Weights are added as integers, 2^-44 the unit, so that sums have no order: any
// number of threads finds the same token. The largest weight is 1, and up to 2^19
// of them fit.
#define WEIGHT_BITS 44
__device__ inline u64 weight(float z, float max, float inverse) {
  const u32 bits = __float_as_uint(expf((z - max) * inverse)); // at most 1
  const int shift = int(bits >> 23) - (127 + 23 - WEIGHT_BITS);
  const u64 mantissa = (bits & 0x7fffffu) | 0x800000u;
  return shift >= 0 ? mantissa << shift : shift > -24 ? mantissa >> -shift : 0;
}

// order maps floats to integers that compare alike.
__device__ inline u32 order(float x) {
  u32 u = __float_as_uint(x);
  if (u == 0x80000000u) u = 0; // -0 equals 0
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// within says whether token i, with that key, is among the tokens kept: those with a
// larger key than limit, and of those equal to it the ids below first_out.
__device__ inline bool within(u32 key, int i, u32 limit, int first_out) {
  return key > limit || (key == limit && i < first_out);
}

// A pass of the radix search looks at DIGIT bits of the keys, in three passes at all.
#define DIGIT 11
#define BINS (1 << DIGIT)
#define PIECE 2048 // ids; a vocabulary of 2^19 has 256

// Sums of weights by digit: the words of each apart, since no GPU adds 64 bits to shared
// memory at once.
struct Bins {
  u32 low[BINS], high[BINS];
  __device__ u64 at(int i) const { return u64(high[i]) << 32 | low[i]; }
  __device__ void add(int i, u64 w) {
    const u32 was = atomicAdd(&low[i], u32(w)), carry = was + u32(w) < was;
    if (u32(w >> 32) + carry) atomicAdd(&high[i], u32(w >> 32) + carry);
  }
};

// One block of 512 threads a row of V logits. Writes the token, or -1 where the row
// has a NaN or no finite maximum; its log-probability under the softmax of the
// logits as they are; and under the distribution that it was drawn from.
KERNEL void sample_f32(const float *logits, const Request *requests, int V, int *token, float *logprob, float *sampled) {
  const int B = 512, t = threadIdx.x;
  __shared__ Bins bins;
  __shared__ u64 sums[B];
  __shared__ u64 found_mass, found_last;
  __shared__ u32 found_key;
  __shared__ int found_id;
  const i64 row = blockIdx.x;
  const float *x = logits + row * V;
  const Request r = requests[row];

  const Softmax all = softmax(x, V);
  const float max = all.max;
  if (all.sum != all.sum || !finite(max)) {
    if (t == 0) {
      token[row] = -1;
      logprob[row] = sampled[row] = 0;
    }
    return;
  }
  const double lse = log(all.sum);

  if (!(r.temperature > 0)) {
    int best = V;
    each4(x, V, [&](int i, const float v[4]) {
      for (int k = 3; k >= 0; k--)
        if (v[k] == max && i + k < best) best = i + k;
    });
    best = -block_reduce(-best, Max());
    if (t == 0) {
      token[row] = best;
      logprob[row] = float(-lse);
      sampled[row] = 0;
    }
    return;
  }
  const float inverse = float(1 / double(r.temperature));

  // The kept tokens are the best ones down to a limit, (key, id). Each rule moves it
  // up: top-k counts tokens, top-p adds their weights, min-p compares weights.
  u32 limit = 0;
  int first_out = V;
  for (int rule = 0; rule < 2; rule++) {
    const bool by_count = rule == 0;
    if (by_count ? r.top_k <= 0 || r.top_k >= V : !(r.top_p > 0 && r.top_p < 1)) continue;
    u64 want = u64(r.top_k);
    if (!by_count) {
      u64 mass = 0;
      each4(x, V, [&](int i, const float v[4]) {
        for (int k = 0; k < 4; k++)
          if (within(order(v[k]), i + k, limit, first_out)) mass += weight(v[k], max, inverse);
      });
      mass = block_reduce(mass, Sum());
      const double goal = double(r.top_p) * double(mass);
      want = u64(goal);
      want += double(want) < goal; // the smallest set that reaches it
      if (want == 0) want = 1;
    }
    // Radix search for the key at which the best tokens add up to want.
    u32 prefix = 0, known = 0;
    u64 above = 0, same = 0; // of the tokens with a larger prefix; with this one
    for (int shift = 32 - DIGIT; shift > -DIGIT; shift -= DIGIT) {
      const int low = shift > 0 ? shift : 0, width = shift + DIGIT - low; // the last digit is shorter
      for (int i = t; i < BINS; i += B) bins.low[i] = bins.high[i] = 0;
      __syncthreads();
      each4(x, V, [&](int i, const float v[4]) {
        for (int k = 0; k < 4; k++) {
          const u32 key = order(v[k]);
          if (i + k >= V || (key & known) != prefix || !within(key, i + k, limit, first_out)) continue;
          bins.add((key >> low) & ((1 << width) - 1), by_count ? u64(1) : weight(v[k], max, inverse));
        }
      });
      __syncthreads();
      // Which thread's stretch of the bins, and then which of these?
      const int each = BINS / B, first = t * each;
      u64 mine = 0, sum = above;
      for (int i = 0; i < each; i++) mine += bins.at(first + i);
      sums[t] = mine;
      __syncthreads();
      for (int i = B - 1; i > t; i--) sum += sums[i];
      if (sum < want && (sum + mine >= want || t == 0)) {
        int bin = first + each - 1;
        while (bin > first && sum + bins.at(bin) < want) sum += bins.at(bin--);
        found_key = prefix | (u32(bin) << low);
        found_mass = sum;
        found_last = bins.at(bin);
      }
      __syncthreads();
      prefix = found_key;
      above = found_mass;
      same = found_last;
      known |= ((1u << width) - 1) << low;
    }
    // All tokens of this key weigh the same. Unless all are needed: how many, in id order?
    const u64 each = by_count ? 1 : weight(__uint_as_float(prefix & 0x80000000u ? prefix ^ 0x80000000u : ~prefix), max, inverse);
    const u64 need = each && same > want - above ? (want - above + each - 1) / each : u64(V);
    const int old_limit_same = prefix == limit;
    int last = old_limit_same ? first_out : V; // ids at or beyond this are out
    u64 seen = 0;
    for (int base = 0; base < V && need < u64(V) && seen < need; base += B) {
      const int i = base + t;
      const int hit = i < V && order(x[i]) == prefix && (!old_limit_same || i < first_out);
      const u64 hits = block_reduce(u64(hit), Sum());
      if (seen + hits >= need) {
        // The one that fills the need is in this stretch.
        sums[t] = u64(hit);
        __syncthreads();
        if (t == 0) {
          u64 n = seen;
          int j = 0;
          while (n < need) n += sums[j++];
          found_id = base + j;
        }
        __syncthreads();
        last = found_id;
      }
      seen += hits;
    }
    limit = prefix;
    first_out = last;
  }
  const u64 floor = r.min_p > 0 ? u64(double(r.min_p) * double(u64(1) << WEIGHT_BITS)) : 0;

  const auto kept_weight = [&](float z, int i) -> u64 {
    const u64 w = weight(z, max, inverse);
    return w >= floor && within(order(z), i, limit, first_out) ? w : 0;
  };

  // What the tokens of each piece of the vocabulary weigh, a warp a piece.
  const int warp = t / 32, lane = t % 32, pieces = (V + PIECE - 1) / PIECE;
  const bool whole = even(x, V);
  for (int p = warp; p < pieces; p += B / 32) {
    u64 mine = 0;
#pragma unroll 4
    for (int i = p * PIECE + lane * 4; i < (p + 1) * PIECE; i += 32 * 4) {
      float v[4];
      get4(v, x, i, V, whole, negative_infinity());
      for (int k = 0; k < 4; k++) mine += kept_weight(v[k], i + k);
    }
    mine = warp_reduce(mine, Sum());
    if (lane == 0) sums[p] = mine;
  }
  __syncthreads();
  u64 kept = 0, before = 0;
  for (int p = 0; p < pieces; p++) kept += sums[p];
  // The token at which the sum passes u·kept: its piece, its lane's share of that, itself.
  const u64 u = r.draw;
  const u64 want = (__umul64hi(u, kept) << 11) | ((u * kept) >> 53);
  if (warp) return;
  int p = 0;
  while (p + 1 < pieces && want >= before + sums[p]) before += sums[p++];
  const int share = PIECE / 32, first = p * PIECE + lane * share;
  u64 mine = 0;
#pragma unroll 4
  for (int i = first; i < first + share; i += 4) {
    float v[4];
    get4(v, x, i, V, whole, negative_infinity());
    for (int k = 0; k < 4; k++) mine += kept_weight(v[k], i + k);
  }
  u64 upto = mine; // inclusive sum over the lanes
  for (int d = 1; d < 32; d *= 2) {
    const u64 other = __shfl_up_sync(FULL_WARP, upto, d);
    if (lane >= d) upto += other;
  }
  u64 sum = before + upto - mine;
  if (want < sum || want >= sum + mine) return;
  for (int i = first; i < V; i++) {
    const u64 w = kept_weight(x[i], i);
    if (want >= sum + w) {
      sum += w;
      continue;
    }
    token[row] = i;
    logprob[row] = float(double(x[i]) - double(max) - lse); // as head.cu has it
    sampled[row] = float(log(double(w) / double(kept)));
    return;
  }
}
