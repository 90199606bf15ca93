// The gradient of norm.cu's norms; rows and heads are laid out as there.
#include "common.cuh"

// One block a row (x) and head (y). With r = rstd [heads, R] and g = weight·dy,
// dx = r·g - x·r³·mean(g·x). dx may be dy.
KERNEL void rms_norm_backward_f32(const float *x, const float *weight, const float *rstd, const float *dy, float *dx, int D, int ld) {
  const i64 row = blockIdx.x, at = row * ld + i64(blockIdx.y) * D;
  const float r = rstd[i64(blockIdx.y) * gridDim.x + row];
  x += at;
  dy += at;
  dx += at;
  float dot = 0;
  for (int i = threadIdx.x; i < D; i += blockDim.x) dot += dy[i] * weight[i] * x[i];
  const float along = block_reduce(dot, Sum()) / D * r * r * r;
  for (int i = threadIdx.x; i < D; i += blockDim.x) dx[i] = dy[i] * weight[i] * r - x[i] * along;
}

#define SPAN 64 // rows that one thread sums up, those of a head after those of the one before

// part [spans, D] = the sums of dy·x·r. A thread a column; grid: x over spans, y over D.
KERNEL void rms_norm_dweight_f32(const float *x, const float *rstd, const float *dy, float *part, int R, int heads, int D, int ld) {
  const int d = blockIdx.y * blockDim.x + threadIdx.x;
  if (d >= D) return;
  const i64 first = i64(blockIdx.x) * SPAN, all = i64(R) * heads, end = first + SPAN < all ? first + SPAN : all;
  float sum = 0;
  for (i64 i = first; i < end; i++) {
    const i64 at = i % R * ld + i / R * D + d;
    sum += dy[at] * x[at] * rstd[i];
  }
  part[i64(blockIdx.x) * D + d] = sum;
}

// One block a column: dweight += Σ part [spans, D].
KERNEL void rms_norm_dweight_sum_f32(const float *part, int spans, int D, float *dweight) {
  float sum = 0;
  for (int i = threadIdx.x; i < spans; i += blockDim.x) sum += part[i64(i) * D + blockIdx.x];
  sum = block_reduce(sum, Sum());
  if (threadIdx.x == 0) dweight[blockIdx.x] += sum;
}
