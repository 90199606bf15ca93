// SwiGLU (arXiv 2002.05202) over rows [gate | up] of width 2D, and its gradient.
#include "common.cuh"

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// y = silu(gate)·up. Grid: x over D, y over rows.
template <class T, class Y> __device__ void swiglu(const T *gate_up, Y *y, int D) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const i64 row = blockIdx.y;
  if (i >= D) return;
  const T *gate = gate_up + row * 2 * D, *up = gate + D;
  const float g = get(gate + i);
  put(y + row * D + i, g * sigmoid(g) * get(up + i));
}

// gate_up becomes its own gradient, given that of y.
template <class T> __device__ void swiglu_backward(T *gate_up, const T *dy, int D) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const i64 row = blockIdx.y;
  if (i >= D) return;
  T *gate = gate_up + row * 2 * D, *up = gate + D;
  const float g = get(gate + i), u = get(up + i), d = get(dy + row * D + i);
  const float s = sigmoid(g);
  put(up + i, d * g * s);
  put(gate + i, d * u * (s + g * s * (1 - s)));
}

KERNEL void swiglu_f32(const float *gate_up, float *y, int D) { swiglu(gate_up, y, D); }
KERNEL void swiglu_f32_bf16(const float *gate_up, bf16 *y, int D) { swiglu(gate_up, y, D); }
KERNEL void swiglu_bf16(const bf16 *gate_up, bf16 *y, int D) { swiglu(gate_up, y, D); }
KERNEL void swiglu_backward_f32(float *gate_up, const float *dy, int D) { swiglu_backward(gate_up, dy, D); }
KERNEL void swiglu_backward_bf16(bf16 *gate_up, const bf16 *dy, int D) { swiglu_backward(gate_up, dy, D); }
