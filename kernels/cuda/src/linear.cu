// Products of rows with a matrix, for where a row's bits must not depend on the others:
// every element is one sum over the columns in ascending order, whatever the shape of
// the launch. A library chooses its order by the shape.
#include "common.cuh"

#define STEP 16 // columns of x that are in shared memory at a time

// pick takes a thread's elements of a row of shared memory: by fours, which are as far
// apart as the threads reach, or one.
template <int EACH, int THREADS> __device__ inline void pick(float v[EACH], const Vector<float> *row, int thread) {
  if (EACH == 1) {
    v[0] = row[thread / 4].at[thread % 4];
  } else {
#pragma unroll
    for (int i = 0; i < EACH; i++) v[i] = row[i / 4 * THREADS + thread].at[i % 4];
  }
}
template <int EACH, int THREADS> __device__ inline int picked(int i, int thread) {
  return EACH == 1 ? thread : (i / 4 * THREADS + thread) * 4 + i % 4;
}

// y [R, N] = x [R, C] · wᵀ + bias, w [N, C]; bias [N] may be null, and with add y takes
// it in. A block computes ROWS (y) by COLUMNS (x), a thread HIGH by WIDE of them. The next
// columns are loaded while those in shared memory are multiplied.
template <int ROWS, int COLUMNS, int HIGH, int WIDE>
__device__ void linear(const float *x, const float *w, const float *bias, float *y, int R, int N, int C, int add) {
  enum {
    DOWN = ROWS / HIGH, // threads
    ACROSS = COLUMNS / WIDE,
    PIECES = (ROWS + COLUMNS) * STEP / 4, // of four columns
    MINE = (PIECES + DOWN * ACROSS - 1) / (DOWN * ACROSS),
  };
  // Four more, so that writes of one column meet in fewer banks.
  __shared__ Vector<float> xs[2][STEP][ROWS / 4 + 1], ws[2][STEP][COLUMNS / 4 + 1];
  const int down = threadIdx.x / ACROSS, across = threadIdx.x % ACROSS;
  const i64 first_row = i64(blockIdx.y) * ROWS, first_column = i64(blockIdx.x) * COLUMNS;
  const bool even_x = even(x, C), even_w = even(w, C);
  float next[MINE][4], sum[HIGH][WIDE] = {};

  auto load = [&](int base) {
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const int piece = i * DOWN * ACROSS + threadIdx.x, row = piece / (STEP / 4), c = base + piece % (STEP / 4) * 4;
      const i64 r = first_row + row, n = first_column + row - ROWS;
      const bool left = row < ROWS;
      for (int k = 0; k < 4; k++) next[i][k] = 0;
      if (left && r < R) get4(next[i], x + r * C, c, C, even_x);
      if (!left && piece < PIECES && n < N) get4(next[i], w + n * C, c, C, even_w);
    }
  };
  auto store = [&](int to) {
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const int piece = i * DOWN * ACROSS + threadIdx.x, row = piece / (STEP / 4), c = piece % (STEP / 4) * 4;
      for (int k = 0; k < 4; k++) {
        if (row < ROWS)
          xs[to][c + k][row / 4].at[row % 4] = next[i][k];
        else if (piece < PIECES)
          ws[to][c + k][(row - ROWS) / 4].at[row % 4] = next[i][k];
      }
    }
  };
  load(0);
  store(0);
  __syncthreads();
  for (int base = 0, now = 0; base < C; base += STEP, now = 1 - now) {
    if (base + STEP < C) load(base + STEP);
#pragma unroll
    for (int k = 0; k < STEP; k++) {
      float a[HIGH], b[WIDE];
      pick<HIGH, DOWN>(a, xs[now][k], down);
      pick<WIDE, ACROSS>(b, ws[now][k], across);
#pragma unroll
      for (int i = 0; i < HIGH; i++)
#pragma unroll
        for (int j = 0; j < WIDE; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
    if (base + STEP < C) store(1 - now);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < HIGH; i++)
#pragma unroll
    for (int j = 0; j < WIDE; j++) {
      const i64 r = first_row + picked<HIGH, DOWN>(i, down), n = first_column + picked<WIDE, ACROSS>(j, across);
      if (r >= R || n >= N) continue;
      const float v = bias ? sum[i][j] + bias[n] : sum[i][j];
      y[r * N + n] = add ? y[r * N + n] + v : v;
    }
}

KERNEL void linear_f32_16x32(const float *x, const float *w, const float *bias, float *y, int R, int N, int C, int add) {
  linear<16, 32, 4, 1>(x, w, bias, y, R, N, C, add);
}
KERNEL void linear_f32_64x64(const float *x, const float *w, const float *bias, float *y, int R, int N, int C, int add) {
  linear<64, 64, 4, 4>(x, w, bias, y, R, N, C, add);
}
KERNEL void linear_f32_128x128(const float *x, const float *w, const float *bias, float *y, int R, int N, int C, int add) {
  linear<128, 128, 8, 8>(x, w, bias, y, R, N, C, add);
}
