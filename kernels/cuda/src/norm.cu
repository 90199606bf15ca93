// Root-mean-square norm (arXiv 1910.07467), fused with the residual sum before it.
#include "common.cuh"

// `across` threads, a warp or the block, a row and head (y) of width D; rows are at a
// stride of ld. Where residual is not null, it takes x in first and is what is normalised:
// residual += x; y = weight·residual / sqrt(mean(residual²) + eps). y may be x. rstd
// [heads, R], 1/sqrt(…), may be null.
template <class T, class Y>
__device__ void rms_norm(const T *x, T *residual, const T *weight, Y *y, float *rstd, int R, int D, int ld, int across, float eps) {
  const int thread = threadIdx.x % across;
  const i64 row = i64(blockIdx.x) * (blockDim.x / across) + threadIdx.x / across, at = row * ld + i64(blockIdx.y) * D;
  if (row >= R) return; // whole warps, and then none waits for another
  const bool each = D % 4 == 0 && ld % 4 == 0;
  const bool even_x = each && even(x, D), even_y = each && even(y, D), even_w = even(weight, D);
  const bool even_r = residual && each && even(residual, D);
  x += at;
  y += at;
  if (residual) residual += at;
  float sum = 0;
  each4(x, D, even_x, 0, thread, across, [&](int i, float v[4]) {
    if (residual) {
      float r[4];
      get4(r, residual, i, D, even_r);
      for (int k = 0; k < 4; k++) {
        T rounded; // as it will be read again
        put(&rounded, r[k] + v[k]);
        v[k] = get(&rounded);
      }
      put4(residual, v, i, D, even_r);
    }
    for (int k = 0; k < 4; k++) sum += v[k] * v[k];
  });
  sum = across == 32 ? warp_reduce(sum, Sum()) : block_reduce(sum, Sum());
  const float scale = 1 / sqrtf(sum / D + eps);
  const T *from = residual ? residual : x;
  const bool even_from = residual ? even_r : even_x;
  each4(from, D, even_from, 0, thread, across, [&](int i, float v[4]) {
    float w[4];
    get4(w, weight, i, D, even_w);
    for (int k = 0; k < 4; k++) v[k] = v[k] * scale * w[k];
    put4(y, v, i, D, even_y);
  });
  if (rstd && thread == 0) rstd[i64(blockIdx.y) * R + row] = scale;
}

KERNEL void rms_norm_f32(const float *x, float *residual, const float *weight, float *y, float *rstd, int R, int D, int ld,
                          int across, float eps) {
  rms_norm(x, residual, weight, y, rstd, R, D, ld, across, eps);
}
KERNEL void rms_norm_f32_bf16(const float *x, float *residual, const float *weight, bf16 *y, float *rstd, int R, int D, int ld,
                               int across, float eps) {
  rms_norm(x, residual, weight, y, rstd, R, D, ld, across, eps);
}
KERNEL void rms_norm_bf16(const bf16 *x, bf16 *residual, const bf16 *weight, bf16 *y, float *rstd, int R, int D, int ld,
                          int across, float eps) {
  rms_norm(x, residual, weight, y, rstd, R, D, ld, across, eps);
}
