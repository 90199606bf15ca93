// Included once per instruction set, after its target pragma, with ISA and
// USE_FMA defined. Everything lives in namespace ISA, so that the linker never
// merges code of one instruction set into another.

#define INLINE static inline __attribute__((always_inline))

namespace ISA {

INLINE float sqrt_(float x) { return sqrtf(x); }
INLINE double sqrt_(double x) { return sqrt(x); }
INLINE float log_(float x) { return logf(x); }
INLINE double log_(double x) { return log(x); }

#include "vec.h"
#include "matmul.h"
#include "attention.h"
#include "rows.h"
#include "sample.h"

#define ATTENTION(F) \
  Attention<F>{s->heads, s->kv_heads, s->dim, s->window, s->ldq, s->ldk, s->ldv, s->ldo, F(s->scale)}
template <class F>
static void attention_forward(const ssr_attention *s, const F *q, const F *k, const F *v, const int32_t *off,
                              long seqs, F *out, F *lse) {
  ATTENTION(F).forward(q, k, v, off, seqs, out, lse);
}
template <class F>
static void attention_backward(const ssr_attention *s, const F *q, const F *k, const F *v, const F *out,
                               const F *lse, const F *dout, const int32_t *off, long seqs, F *dq, F *dk, F *dv) {
  ATTENTION(F).backward(q, k, v, out, lse, dout, off, seqs, dq, dk, dv);
}
template <class F>
static void cache_append(const ssr_attention *s, const F *k, const F *v, const int32_t *seg, long segs,
                         const int32_t *table, F *cache) {
  ATTENTION(F).append(k, v, seg, segs, table, cache);
}
template <class F>
static void attention_extend(const ssr_attention *s, const F *q, const int32_t *seg, long segs,
                             const int32_t *table, const F *cache, F *out, F *lse) {
  ATTENTION(F).extend(q, seg, segs, table, cache, out, lse);
}

extern const Table table;
#define SSR_ENTRY(R, name, F, params, args) +[] params -> R { return name<F> args; },
const Table table = {SSR_KERNELS(float, SSR_ENTRY) SSR_KERNELS(double, SSR_ENTRY) pack, linear, sample};

} // namespace ISA
