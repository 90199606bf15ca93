// Root-mean-square norm (arXiv 1910.07467), fused with the residual sum before it.
#include "common.cuh"

// One block a row (x) and head (y) of width D; rows are at a stride of ld. Where
// residual is not null, it takes x in first and is what is normalised: residual += x;
// y = weight·residual / sqrt(mean(residual²) + eps). y may be x. rstd [heads, R],
// 1/sqrt(…), may be null.
template <class T, class Y>
__device__ void rms_norm(const T *x, T *residual, const T *weight, Y *y, float *rstd, int D, int ld, float eps) {
  const i64 row = blockIdx.x, at = row * ld + i64(blockIdx.y) * D;
  x += at;
  y += at;
  if (residual) residual += at;
  float sum = 0;
  for (int i = threadIdx.x; i < D; i += blockDim.x) {
    float v = get(x + i);
    if (residual) {
      put(residual + i, get(residual + i) + v);
      v = get(residual + i); // as it will be read again
    }
    sum += v * v;
  }
  const float scale = 1 / sqrtf(block_reduce(sum, Sum()) / D + eps);
  const T *from = residual ? residual : x;
  for (int i = threadIdx.x; i < D; i += blockDim.x) put(y + i, get(from + i) * scale * get(weight + i));
  if (rstd && threadIdx.x == 0) rstd[i64(blockIdx.y) * gridDim.x + row] = scale;
}

KERNEL void rms_norm_f32(const float *x, float *residual, const float *weight, float *y, float *rstd, int D, int ld,
                          float eps) {
  rms_norm(x, residual, weight, y, rstd, D, ld, eps);
}
KERNEL void rms_norm_f32_bf16(const float *x, float *residual, const float *weight, bf16 *y, float *rstd, int D, int ld,
                               float eps) {
  rms_norm(x, residual, weight, y, rstd, D, ld, eps);
}
KERNEL void rms_norm_bf16(const bf16 *x, bf16 *residual, const bf16 *weight, bf16 *y, float *rstd, int D, int ld,
                          float eps) {
  rms_norm(x, residual, weight, y, rstd, D, ld, eps);
}
