// The token-level tail of an objective: from log-probabilities to the loss, its
// gradient and what is counted. The clipped surrogate (arXiv 1707.06347) with
// bounds of its own on either side (arXiv 2503.14476), and the importance of the
// sampler against the trainer truncated at `truncate` (0: not corrected).
#include "common.cuh"

// Per token: ratio = exp(logprob - old); loss = -weight·min(ratio·A, clip(ratio)·A)
// where weight = scale·min(exp(old - behaviour), truncate). Masked tokens have a
// gradient of 0. A block's sums of loss, ratio - 1 - log ratio (an estimate of the
// KL divergence from old), clipped tokens and tokens go to part [blocks, 4].
KERNEL void objective_f32(const float *logprob, const float *old, const float *behaviour, const float *advantage,
                          const unsigned char *mask, int n, float low, float high, float truncate, float scale,
                          float *gradient, double *part) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  double loss = 0, kl = 0, clipped = 0, tokens = 0;
  if (i < n) {
    float g = 0;
    if (mask[i]) {
      const float d = logprob[i] - old[i], ratio = expf(d), a = advantage[i];
      float w = scale;
      if (truncate > 0) {
        const float importance = expf(old[i] - behaviour[i]);
        w *= importance < truncate ? importance : truncate;
      }
      const float bounded = ratio < 1 - low ? 1 - low : ratio > 1 + high ? 1 + high : ratio;
      const bool open = ratio * a <= bounded * a; // the unclipped side is the smaller one
      loss = -double(w) * double(open ? ratio * a : bounded * a);
      g = open ? -w * ratio * a : 0;
      kl = double(ratio) - 1 - double(d);
      clipped = !open;
      tokens = 1;
    }
    gradient[i] = g;
  }
  loss = block_reduce(loss, Sum());
  kl = block_reduce(kl, Sum());
  clipped = block_reduce(clipped, Sum());
  tokens = block_reduce(tokens, Sum());
  if (threadIdx.x == 0) {
    double *out = part + i64(blockIdx.x) * 4;
    out[0] = loss;
    out[1] = kl;
    out[2] = clipped;
    out[3] = tokens;
  }
}

// Adds rows [n, 4] in their order: four threads, one a column.
KERNEL void objective_sum(const double *part, int n, double *out) {
  if (threadIdx.x >= 4) return;
  double sum = 0;
  for (int i = 0; i < n; i++) sum += part[i64(i) * 4 + threadIdx.x];
  out[threadIdx.x] = sum;
}
