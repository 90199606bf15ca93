// The output head a chunk of the vocabulary at a time, so that no [rows, V] array
// ever exists: the caller multiplies, these kernels keep the running softmax.
#include "common.cuh"

// Running statistics of a row: the maximum so far, Σ exp(x - max), Σ exp(x - max)·(x - max),
// and the target's logit.
struct Row {
  double sum, dot;
  float max, target;
};

// One block a row of logits [R, n], tokens first … first + n of the vocabulary.
template <class T> __device__ void head_update(const T *logits, const i64 *target, int n, int first, Row *rows) {
  const i64 row = blockIdx.x;
  const T *x = logits + row * n;
  float max = negative_infinity();
  for (int i = threadIdx.x; i < n; i += blockDim.x) max = get(x + i) > max ? get(x + i) : max;
  max = block_reduce(max, Max());
  const Row old = rows[row];
  const float to = first > 0 && old.max > max ? old.max : max;
  double sum = 0, dot = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float z = get(x + i) - to;
    const double e = double(expf(z));
    sum += e;
    if (e > 0) dot += e * z;
  }
  sum = block_reduce(sum, Sum());
  dot = block_reduce(dot, Sum());
  if (threadIdx.x) return;
  Row now = {sum, dot, to, old.target};
  if (first > 0 && old.sum > 0) {
    const double d = double(old.max) - double(to), f = exp(d);
    now.sum += old.sum * f;
    now.dot += f * (old.dot + old.sum * d);
  }
  const int at = int(target[row] - first);
  if (at >= 0 && at < n) now.target = get(x + at);
  rows[row] = now;
}

// A thread a row: log-probability of the target, entropy in nats, log of the denominator.
KERNEL void head_finish(const Row *rows, int R, float *logprob, float *entropy, float *lse) {
  const int r = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= R) return;
  const double l = log(rows[r].sum);
  lse[r] = float(double(rows[r].max) + l);
  logprob[r] = float(double(rows[r].target) - double(rows[r].max) - l);
  entropy[r] = float(l - rows[r].dot / rows[r].sum);
}

// logits ← g·(onehot(target) - softmax), given lse and g = dLoss/dLogprob [R].
template <class T>
__device__ void head_backward(T *logits, const i64 *target, const float *lse, const float *g, int n, int first) {
  const i64 row = blockIdx.x;
  T *x = logits + row * n;
  const float s = lse[row], gr = g[row];
  const int at = int(target[row] - first);
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    put(x + i, gr == 0 ? 0.f : (i == at ? gr : 0.f) - gr * expf(get(x + i) - s));
}

#define HEAD(T, name)                                                                                                   \
  KERNEL void head_update_##name(const T *logits, const i64 *target, int n, int first, Row *rows) {                     \
    head_update(logits, target, n, first, rows);                                                                        \
  }                                                                                                                     \
  KERNEL void head_backward_##name(T *logits, const i64 *target, const float *lse, const float *g, int n, int first) { \
    head_backward(logits, target, lse, g, n, first);                                                                    \
  }
HEAD(float, f32)
HEAD(bf16, bf16)
