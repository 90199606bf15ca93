// The operations of a transformer, composed of libtorch's, on any device. Tensors
// are handles of gotch's libtch (at::Tensor *). Each returns NULL, or an error to free.
#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t heads, kv_heads, dim;
  int64_t window; // tokens that a query sees, itself the last; 0 means all before it
  double scale;
  int64_t scores; // how many scores may exist at a time
  int fused;      // libtorch's own attention, of bfloat16, where the window hides nothing
} ssr_heads;

typedef struct {
  double grad_scale, lr, beta1, beta2, eps, decay;
  double correct1, correct2; // 1 - beta^step
} ssr_adamw;

char *ssr_t_gather(void *out, void *from, void *rows);
char *ssr_t_scatter(void *to, void *from, void *rows);
char *ssr_t_scatter_add(void *to, void *from, void *rows);
char *ssr_t_add_columns(void *sum, void *m);
char *ssr_t_scaled(void *out, void *in, double by);
char *ssr_t_product(void *out, void *a, void *b, void *bias, int add, int half);
char *ssr_t_rms(void *x, void *y, int64_t first, int64_t heads, void *w, void *rstd, double eps);
char *ssr_t_rms_backward(void *x, void *w, void *rstd, void *dy, void *dx, void *dw, int64_t first, int64_t heads);
char *ssr_t_rope(void *x, int64_t heads, int64_t dim, void *positions, void *cos, void *sin, int inverse);
char *ssr_t_swiglu(void *gate_up, void *y);
char *ssr_t_swiglu_backward(void *gate_up, void *dy);
char *ssr_t_attention(ssr_heads h, void *qkv, const int32_t *offsets, int64_t sequences, void *out, void *lse);
char *ssr_t_attention_backward(ssr_heads h, void *qkv, void *out, void *lse, void *dout, const int32_t *offsets,
                               int64_t sequences, void *dqkv);
char *ssr_t_logprob(void *logits, void *targets, void *logprob, void *entropy, void *lse);
char *ssr_t_logprob_backward(void *logits, void *targets, void *lse, void *g);
char *ssr_t_squares(void *t, double *sum);
char *ssr_t_adamw(ssr_adamw o, void *p, void *g, void *m, void *v);
char *ssr_t_lerp(void *mean, void *x, double weight);
char *ssr_t_cache_append(ssr_heads h, void *qkv, void *slots, void *cache, int64_t block);
char *ssr_t_attention_extend(ssr_heads h, void *qkv, int64_t row, int64_t rows, int64_t past, void *pages, int64_t base,
                             void *cache, int64_t block, void *out);
char *ssr_t_attention_decode(ssr_heads h, void *qkv, void *rows, void *pages, void *base, void *length, void *cache,
                             int64_t block, void *out);
char *ssr_t_sample(void *logits, void *shape, int filter, void *token, void *logprob, void *sampled);

#ifdef __cplusplus
}
#endif
