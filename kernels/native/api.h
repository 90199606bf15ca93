/* The C face of the kernels: one function per kernel and element type (f32,
   f64). Sizes and strides are in elements. See native.go for the contracts. */
#pragma once
#include <stdint.h>

#define SSR_BLOCK 32

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  long heads, kv_heads, dim, window, ldq, ldk, ldv, ldo;
  double scale;
} ssr_attention;

#define SSR_KERNELS(F, X)                                                                                             \
  X(void, attention_forward, F,                                                                                       \
    (const ssr_attention *s, const F *q, const F *k, const F *v, const int32_t *off, long seqs, F *out, F *lse),      \
    (s, q, k, v, off, seqs, out, lse))                                                                                \
  X(void, attention_backward, F,                                                                                      \
    (const ssr_attention *s, const F *q, const F *k, const F *v, const F *out, const F *lse, const F *dout,           \
     const int32_t *off, long seqs, F *dq, F *dk, F *dv),                                                             \
    (s, q, k, v, out, lse, dout, off, seqs, dq, dk, dv))                                                              \
  X(void, cache_append, F,                                                                                            \
    (const ssr_attention *s, const F *k, const F *v, const int32_t *seg, long segs, const int32_t *table, F *cache),  \
    (s, k, v, seg, segs, table, cache))                                                                               \
  X(void, attention_extend, F,                                                                                        \
    (const ssr_attention *s, const F *q, const int32_t *seg, long segs, const int32_t *table, const F *cache, F *out, \
     F *lse),                                                                                                         \
    (s, q, seg, segs, table, cache, out, lse))                                                                        \
  X(void, pack, F, (const F *w, long rs, long cs, long K, long N, F *panels), (w, rs, cs, K, N, panels))               \
  X(void, linear, F,                                                                                                  \
    (const F *x, long ldx, const F *panels, const F *bias, long M, long N, long K, F *y, long ldy, int add),          \
    (x, ldx, panels, bias, M, N, K, y, ldy, add))                                                                     \
  X(void, rmsnorm, F, (const F *x, const F *w, long R, long D, long ldx, long ldy, double eps, F *y, F *rstd),        \
    (x, w, R, D, ldx, ldy, eps, y, rstd))                                                                             \
  X(void, rmsnorm_backward, F,                                                                                        \
    (const F *x, const F *w, const F *rstd, const F *dy, long R, long D, long ldx, long ldy, F *dx, F *dw),           \
    (x, w, rstd, dy, R, D, ldx, ldy, dx, dw))                                                                         \
  X(void, rope, F,                                                                                                    \
    (F * x, const int32_t *pos, const F *cos, const F *sin, long R, long H, long D, long ldx, double sign),           \
    (x, pos, cos, sin, R, H, D, ldx, sign))                                                                           \
  X(void, swiglu, F, (const F *gate, const F *up, long R, long D, long ldg, long ldy, F *y),                          \
    (gate, up, R, D, ldg, ldy, y))                                                                                    \
  X(void, swiglu_backward, F,                                                                                         \
    (const F *gate, const F *up, const F *dy, long R, long D, long ldg, long ldy, F *dgate, F *dup),                  \
    (gate, up, dy, R, D, ldg, ldy, dgate, dup))                                                                       \
  X(void, logprob, F, (const F *x, const int32_t *target, long R, long V, long ldx, F *lp, F *entropy, F *lse),       \
    (x, target, R, V, ldx, lp, entropy, lse))                                                                         \
  X(void, logprob_backward, F,                                                                                        \
    (F * x, const int32_t *target, const F *lse, const F *g, long R, long V, long ldx),                               \
    (x, target, lse, g, R, V, ldx))                                                                                   \
  X(void, adamw, F,                                                                                                   \
    (F * p, const F *g, F *m, F *v, long n, double gscale, double lr, double b1, double b2, double eps, double decay, \
     double correct1, double correct2),                                                                               \
    (p, g, m, v, n, gscale, lr, b1, b2, eps, decay, correct1, correct2))                                              \
  X(double, sum_squares, F, (const F *x, long n), (x, n))

#define SSR_DECLARE(R, name, F, params, args) R ssr_##name##_##F params;
SSR_KERNELS(float, SSR_DECLARE)
SSR_KERNELS(double, SSR_DECLARE)

/* pack and linear of float, with panels stored as bfloat16. */
void ssr_pack_bfloat16(const float *w, long rs, long cs, long K, long N, uint16_t *panels);
void ssr_linear_bfloat16(const float *x, long ldx, const uint16_t *panels, const float *bias, long M, long N, long K,
                         float *y, long ldy, int add);

int32_t ssr_sample(const float *x, long V, double temperature, long topk, double topp, double minp, double u, float *lp,
                   float *slp);

/* ssr_isa names the instruction set that the kernels run with. */
const char *ssr_isa(void);
/* ssr_force_isa selects one by name for tests; returns 0 when this processor lacks it. */
int ssr_force_isa(const char *name);

#ifdef __cplusplus
}
#endif
