// AdamW (arXiv 1711.05101) over many tensors in one launch, weights in bfloat16
// beside a float copy that the step changes, and the gradient's norm before it.
#include "common.cuh"

struct Tensor {
  bf16 *weight; // what the model computes with
  float *master, *mean, *square;
  const float *grad;
  u64 n;
  float decay; // weight decay of this tensor
  u32 unused;
};

// A block's share: elements [begin, begin + CHUNK) of a tensor.
struct Share {
  u64 begin;
  u32 tensor, unused;
};
#define CHUNK 4096

// take1 = 1 - beta1, take2 = 1 - beta2, step = lr / (1 - beta1^steps), root2 =
// sqrt(1 - beta2^steps); gradients are multiplied by gscale[0] first, which
// clipping leaves on the device.
KERNEL void adamw_bf16(const Tensor *tensors, const Share *shares, const float *gscale, double lr, float beta2, float take1,
                       float take2, float eps, float step, float root2) {
  const Share s = shares[blockIdx.x];
  const Tensor T = tensors[s.tensor];
  const u64 end = s.begin + CHUNK < T.n ? s.begin + CHUNK : T.n;
  const float scale = gscale[0], shrink = float(1 - lr * double(T.decay));
  for (u64 i = s.begin + threadIdx.x; i < end; i += blockDim.x) {
    const float g = T.grad[i] * scale;
    const float m = T.mean[i] + take1 * (g - T.mean[i]);
    const float v = T.square[i] * beta2 + take2 * g * g;
    const float p = T.master[i] * shrink - step * (m / (sqrtf(v) / root2 + eps));
    T.mean[i] = m;
    T.square[i] = v;
    T.master[i] = p;
    put(T.weight + i, p);
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

// One block of at least 32 threads: norm[0] = sqrt(Σ part [n]), and gscale[0] what
// clips it to clip (0: no limit).
KERNEL void clip_scale(const double *part, int n, double clip, double *norm, float *gscale) {
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += part[i];
  sum = sqrt(block_reduce(sum, Sum()));
  if (threadIdx.x == 0) {
    norm[0] = sum;
    gscale[0] = clip > 0 && sum > clip ? float(clip / sum) : 1.f;
  }
}
