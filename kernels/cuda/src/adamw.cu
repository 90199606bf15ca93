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
  for (u64 i = s.begin + threadIdx.x; i < end; i += blockDim.x) {
    const float g = T.grad[i] * scale;
    const float m = T.mean[i] + take1 * (g - T.mean[i]);
    const float v = T.square[i] * beta2 + take2 * g * g;
    const float p = T.master[i] * shrink - step * (m / (sqrtf(v) / root2 + eps));
    T.mean[i] = m;
    T.square[i] = v;
    T.master[i] = p;
    if (T.weight) put(T.weight + i, p);
  }
}

// Sum of squares of each share, in double.
KERNEL void grad_squares(const Tensor *tensors, const Share *shares, double *part) {
  const Share s = shares[blockIdx.x];
  const Tensor T = tensors[s.tensor];
  const u64 end = s.begin + CHUNK < T.n ? s.begin + CHUNK : T.n;
  double sum = 0;
  for (u64 i = s.begin + threadIdx.x; i < end; i += blockDim.x) sum += double(T.grad[i]) * double(T.grad[i]);
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
