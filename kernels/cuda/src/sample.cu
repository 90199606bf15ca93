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
  return u64(double(expf((z - max) * inverse)) * double(u64(1) << WEIGHT_BITS));
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

// One block of 256 threads a row of V logits. Writes the token, or -1 where the row
// has a NaN or no finite maximum; its log-probability under the softmax of the
// logits as they are; and under the distribution that it was drawn from.
KERNEL void sample_f32(const float *logits, const Request *requests, int V, int *token, float *logprob, float *sampled) {
  const int B = 256, t = threadIdx.x;
  __shared__ u64 bins[256];
  __shared__ u64 found_mass;
  __shared__ u32 found_key;
  __shared__ int found_id;
  const i64 row = blockIdx.x;
  const float *x = logits + row * V;
  const Request r = requests[row];

  float max = negative_infinity();
  int nans = 0;
  for (int i = t; i < V; i += B) {
    nans += x[i] != x[i];
    max = x[i] > max ? x[i] : max;
  }
  max = block_reduce(max, Max());
  nans = block_reduce(nans, Sum());
  if (nans || !finite(max)) {
    if (t == 0) {
      token[row] = -1;
      logprob[row] = sampled[row] = 0;
    }
    return;
  }
  double total = 0;
  for (int i = t; i < V; i += B) total += double(expf(x[i] - max));
  const double lse = log(block_reduce(total, Sum()));

  if (!(r.temperature > 0)) {
    int best = V;
    for (int i = t; i < V; i += B)
      if (x[i] == max && i < best) best = i;
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
      for (int i = t; i < V; i += B)
        if (within(order(x[i]), i, limit, first_out)) mass += weight(x[i], max, inverse);
      mass = block_reduce(mass, Sum());
      const double goal = double(r.top_p) * double(mass);
      want = u64(goal);
      want += double(want) < goal; // the smallest set that reaches it
      if (want == 0) want = 1;
    }
    // Radix search for the key at which the best tokens add up to want: eight bits a pass.
    u32 prefix = 0, known = 0;
    u64 above = 0; // of the tokens with a larger prefix
    for (int shift = 24; shift >= 0; shift -= 8) {
      bins[t] = 0;
      __syncthreads();
      for (int i = t; i < V; i += B) {
        const u32 key = order(x[i]);
        if ((key & known) != prefix || !within(key, i, limit, first_out)) continue;
        atomicAdd(&bins[(key >> shift) & 255], by_count ? u64(1) : weight(x[i], max, inverse));
      }
      __syncthreads();
      if (t == 0) {
        int bin = 255;
        u64 sum = above;
        while (bin > 0 && sum + bins[bin] < want) sum += bins[bin--];
        found_key = prefix | (u32(bin) << shift);
        found_mass = sum;
      }
      __syncthreads();
      prefix = found_key;
      above = found_mass;
      known |= u32(255) << shift;
    }
    // All tokens of this key weigh the same; how many of them are needed, in id order?
    const u64 each = by_count ? 1 : weight(__uint_as_float(prefix & 0x80000000u ? prefix ^ 0x80000000u : ~prefix), max, inverse);
    const u64 need = each ? (want - above + each - 1) / each : u64(V);
    const int old_limit_same = prefix == limit;
    int last = V; // ids at or beyond this are out
    u64 seen = 0;
    for (int base = 0; base < V && seen < need; base += B) {
      const int i = base + t;
      const int hit = i < V && order(x[i]) == prefix && (!old_limit_same || i < first_out);
      const u64 hits = block_reduce(u64(hit), Sum());
      if (seen + hits >= need) {
        // The one that fills the need is in this stretch.
        bins[t] = u64(hit);
        __syncthreads();
        if (t == 0) {
          u64 n = seen;
          int j = 0;
          while (n < need) n += bins[j++];
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

  // Each warp owns a stretch of ids; what they keep is added up per warp, in order.
  const int warp = t / 32, lane = t % 32, warps = B / 32;
  const int stretch = ((V + warps - 1) / warps + 31) / 32 * 32, lo = warp * stretch, hi = lo + stretch < V ? lo + stretch : V;
  u64 mine = 0;
  for (int i = lo + lane; i < hi; i += 32) {
    const u64 w = weight(x[i], max, inverse);
    if (w >= floor && within(order(x[i]), i, limit, first_out)) mine += w;
  }
  mine = warp_reduce(mine, Sum());
  if (lane == 0) bins[warp] = mine;
  __syncthreads();
  u64 kept = 0, before = 0;
  for (int i = 0; i < warps; i++) {
    if (i < warp) before += bins[i];
    kept += bins[i];
  }
  // The token at which the sum passes u·kept.
  const u64 u = r.draw;
  const u64 want = (__umul64hi(u, kept) << 11) | ((u * kept) >> 53);
  if (want >= before && want < before + mine) {
    u64 sum = before;
    for (int base = lo; base < hi; base += 32) {
      const int i = base + lane;
      u64 w = 0;
      if (i < hi) {
        w = weight(x[i], max, inverse);
        if (!(w >= floor && within(order(x[i]), i, limit, first_out))) w = 0;
      }
      u64 upto = w; // inclusive sum over the lanes
      for (int d = 1; d < 32; d *= 2) {
        const u64 other = __shfl_up_sync(FULL_WARP, upto, d);
        if (lane >= d) upto += other;
      }
      if (sum + upto - w <= want && want < sum + upto) {
        token[row] = i;
        logprob[row] = float(double(x[i]) - double(max) - lse); // as head.cu has it
        sampled[row] = float(log(double(w) / double(kept)));
      }
      sum += __shfl_sync(FULL_WARP, upto, 31);
    }
  }
}
