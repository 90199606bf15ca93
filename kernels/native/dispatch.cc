// Picks the instruction set when the program starts.
#include "table.h"

namespace base {
extern const Table table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Table table;
}
namespace avx512 {
extern const Table table;
}
#endif

namespace {
struct Choice {
  const char *name;
  const Table *table;
};

// usable is the table of an instruction set, null where the processor or the system
// lacks it.
const Table *usable(const char *name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!strcmp(name, "avx2")) return has_avx2 ? &avx2::table : nullptr;
  if (!strcmp(name, "avx512"))
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? &avx512::table
               : nullptr;
#endif
  return strcmp(name, "base") ? nullptr : &base::table;
}

Choice choose() {
  for (const char *name : {"avx512", "avx2"})
    if (const Table *t = usable(name)) return {name, t};
  return {"base", &base::table};
}
Choice &current() {
  static Choice c = choose();
  return c;
}
} // namespace

extern "C" {
#define SSR_DEFINE(R, name, F, params, args)                                                                          \
  R ssr_##name##_##F params { return current().table->name##_##F args; }
SSR_KERNELS(float, SSR_DEFINE)
SSR_KERNELS(double, SSR_DEFINE)

void ssr_pack_bfloat16(const float *w, long rs, long cs, long K, long N, uint16_t *panels) {
  current().table->pack_bfloat16(w, rs, cs, K, N, panels);
}

void ssr_linear_bfloat16(const float *x, long ldx, const uint16_t *panels, const float *bias, long M, long N, long K,
                         float *y, long ldy, int add) {
  current().table->linear_bfloat16(x, ldx, panels, bias, M, N, K, y, ldy, add);
}

int32_t ssr_sample(const float *x, long V, double temperature, long topk, double topp, double minp, double u, float *lp,
                   float *slp) {
  return current().table->sample(x, V, temperature, topk, topp, minp, u, lp, slp);
}

const char *ssr_isa(void) { return current().name; }

int ssr_force_isa(const char *name) {
  for (const char *known : {"avx512", "avx2", "base"}) {
    const Table *t = usable(known);
    if (t && !strcmp(name, known)) {
      current() = {known, t};
      return 1;
    }
  }
  return 0;
}
}
