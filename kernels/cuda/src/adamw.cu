// AdamW (arXiv 1711.05101) over many tensors in one launch, weights in float that
// the step changes with, where there is one, a copy in bfloat16; and the gradient's
// norm before it.
#include "common.cuh"

struct Tensor {
  bf16 *weight; // what products are computed with; may be null
  float *master, *mean, *square;
  const float *grad;
  u64 n;
  float decay; // multiplies the weight decay
  u32 unused;
};

// A block's share: elements [begin, begin + CHUNK) of a tensor.
struct Share {
  u64 begin;
  u32 tensor, unused;
};
#define CHUNK 4096

// decay = lr·weight decay, take1 = 1 - beta1, take2 = 1 - beta2, step = lr / (1 -
// beta1^steps), root2 = sqrt(1 - beta2^steps); gradients are multiplied by scale first.
KERNEL void adamw(const Tensor *tensors, const Share *shares, float scale, double decay, float beta2, float take1, float take2,
                  float eps, float step, float root2) {
  const Share s = shares[blockIdx.x];
  const Tensor T = tensors[s.tensor];
  const u64 end = s.begin + CHUNK < T.n ? s.begin + CHUNK : T.n;
  const float shrink = float(1 - decay * double(T.decay));
  const bool whole = aligned(T.master) && aligned(T.mean) && aligned(T.square) && aligned(T.grad) && aligned(T.weight, 8);
  for (u64 i = s.begin + threadIdx.x * 4; i < end; i += blockDim.x * 4) {
    const bool four = whole && i + 4 <= end;
    float g[4], m[4], v[4], p[4];
    get4(g, T.grad, i, end, four);
    get4(m, T.mean, i, end, four);
    get4(v, T.square, i, end, four);
    get4(p, T.master, i, end, four);
    for (int k = 0; k < 4; k++) {
      g[k] *= scale;
      m[k] += take1 * (g[k] - m[k]);
      v[k] = v[k] * beta2 + take2 * g[k] * g[k];
      p[k] = p[k] * shrink - step * (m[k] / (sqrtf(v[k]) / root2 + eps));
    }
    put4(T.mean, m, i, end, four);
    put4(T.square, v, i, end, four);
    put4(T.master, p, i, end, four);
    if (T.weight) put4(T.weight, p, i, end, four);
  }
}

// Sum of squares of each share, in double.
KERNEL void grad_squares(const Tensor *tensors, const Share *shares, double *part) {
  const Share s = shares[blockIdx.x];
  const Tensor T = tensors[s.tensor];
  const u64 end = s.begin + CHUNK < T.n ? s.begin + CHUNK : T.n;
  const bool whole = aligned(T.grad);
  double sum = 0;
#pragma unroll 4
  for (u64 i = s.begin + threadIdx.x * 4; i < end; i += blockDim.x * 4) {
    float g[4];
    get4(g, T.grad, i, end, whole && i + 4 <= end);
    for (int k = 0; k < 4; k++) sum += double(g[k]) * double(g[k]);
  }
  sum = block_reduce(sum, Sum());
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

// One block: sum[0] = Σ part [n].
KERNEL void grad_sum(const double *part, int n, double *sum) {
  double total = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) total += part[i];
  total = block_reduce(total, Sum());
  if (threadIdx.x == 0) sum[0] = total;
}
