// SwiGLU (arXiv 2002.05202) over rows [gate | up] of width 2D, and its gradient.
#include "common.cuh"

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// y = silu(gate)·up. Grid: x over D, y over rows; a thread four columns.
template <class T, class Y> __device__ void swiglu(const T *gate_up, Y *y, int D) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  const i64 row = blockIdx.y;
  if (i >= D) return;
  const bool even_in = even(gate_up, D), even_y = even(y, D);
  const T *gate = gate_up + row * 2 * D, *up = gate + D;
  float g[4], u[4];
  get4(g, gate, i, D, even_in);
  get4(u, up, i, D, even_in);
  for (int k = 0; k < 4; k++) u[k] = g[k] * sigmoid(g[k]) * u[k];
  put4(y + row * D, u, i, D, even_y);
}

// gate_up becomes its own gradient, given that of y.
template <class T> __device__ void swiglu_backward(T *gate_up, const T *dy, int D) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  const i64 row = blockIdx.y;
  if (i >= D) return;
  const bool even_in = even(gate_up, D), even_y = even(dy, D);
  T *gate = gate_up + row * 2 * D, *up = gate + D;
  float g[4], u[4], d[4];
  get4(g, gate, i, D, even_in);
  get4(u, up, i, D, even_in);
  get4(d, dy + row * D, i, D, even_y);
  for (int k = 0; k < 4; k++) {
    const float s = sigmoid(g[k]), t = d[k] * u[k];
    u[k] = d[k] * g[k] * s;
    g[k] = t * (s + g[k] * s * (1 - s));
  }
  put4(up, u, i, D, even_in);
  put4(gate, g, i, D, even_in);
}

KERNEL void swiglu_f32(const float *gate_up, float *y, int D) { swiglu(gate_up, y, D); }
KERNEL void swiglu_f32_bf16(const float *gate_up, bf16 *y, int D) { swiglu(gate_up, y, D); }
KERNEL void swiglu_bf16(const bf16 *gate_up, bf16 *y, int D) { swiglu(gate_up, y, D); }
KERNEL void swiglu_backward_f32(float *gate_up, const float *dy, int D) { swiglu_backward(gate_up, dy, D); }
KERNEL void swiglu_backward_bf16(bf16 *gate_up, const bf16 *dy, int D) { swiglu_backward(gate_up, dy, D); }
