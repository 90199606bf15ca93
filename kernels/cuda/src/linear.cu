// Products of rows with a matrix, for where a row's bits must not depend on the others:
// every element is one sum over the columns in ascending order, whatever the shape of
// the launch. A library chooses its order by the shape.
#include "common.cuh"

#define TILE 64 // rows, and columns, of a block's share of y
#define STEP 16 // columns of x that are in shared memory at a time

// y [R, N] = x [R, C] · wᵀ + bias, w [N, C]; bias [N] may be null, and with add y takes
// it in. A block of 256 threads computes TILE rows (y) of TILE columns (x), a thread four
// of each.
KERNEL void linear_f32(const float *x, const float *w, const float *bias, float *y, int R, int N, int C, int add) {
  __shared__ float xs[STEP][TILE + 1], ws[STEP][TILE + 1];
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  const i64 first_row = i64(blockIdx.y) * TILE, first_column = i64(blockIdx.x) * TILE;
  float sum[4][4] = {};
  for (int base = 0; base < C; base += STEP) {
    for (int i = threadIdx.x; i < TILE * STEP; i += 256) {
      const int k = i % STEP, c = base + k;
      const i64 r = first_row + i / STEP, n = first_column + i / STEP;
      xs[k][i / STEP] = r < R && c < C ? x[r * C + c] : 0;
      ws[k][i / STEP] = n < N && c < C ? w[n * C + c] : 0;
    }
    __syncthreads();
    const int end = C - base < STEP ? C - base : STEP;
    for (int k = 0; k < end; k++)
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(xs[k][row + 16 * i], ws[k][column + 16 * j], sum[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) {
      const i64 r = first_row + row + 16 * i, n = first_column + column + 16 * j;
      if (r >= R || n >= N) continue;
      const float v = bias ? sum[i][j] + bias[n] : sum[i][j];
      y[r * N + n] = add ? y[r * N + n] + v : v;
    }
}
