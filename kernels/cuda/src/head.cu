// The output head a chunk of the vocabulary at a time, so that no [rows, V] array
// ever exists: the caller multiplies, these kernels keep the running softmax.
#include "common.cuh"

// A row's softmax so far, and the target's logit.
struct Row {
  double sum, dot;
  float max, target;
};

// One block a row of logits [R, n], tokens first … first + n of the vocabulary.
template <class T> __device__ void head_update(const T *logits, const i64 *target, int n, int first, Row *rows) {
  const i64 row = blockIdx.x;
  const T *x = logits + row * n;
  Softmax now = softmax(x, n);
  if (threadIdx.x) return;
  float logit = 0;
  if (first > 0) {
    const Row was = rows[row];
    Softmax before = {was.sum, was.dot, was.max};
    const float most = now.max > before.max ? now.max : before.max;
    before.rescale(most);
    now.rescale(most);
    now.sum += before.sum;
    now.dot += before.dot;
    logit = was.target;
  }
  const int at = int(target[row] - first);
  if (at >= 0 && at < n) logit = get(x + at);
  rows[row] = {now.sum, now.dot, now.max, logit};
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
  const bool whole = even(x, n);
  each4(x, n, [&](int i, const float v[4]) {
    float out[4];
    for (int k = 0; k < 4; k++) out[k] = gr == 0 ? 0.f : (i + k == at ? gr : 0.f) - gr * expf(v[k] - s);
    put4(x, out, i, n, whole);
  });
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
