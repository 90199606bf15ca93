// Picks the instruction set when the program starts.
#include "table.h"

namespace base {
extern const Table table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Table table;
}
static bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

namespace {
struct Choice {
  const char *name;
  const Table *table;
};
Choice choose() {
#if defined(__x86_64__)
  if (has_avx2()) return {"avx2", &avx2::table};
#endif
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

int32_t ssr_sample(const float *x, long V, double temperature, long topk, double topp, double minp, double u, float *lp,
                   float *slp) {
  return current().table->sample(x, V, temperature, topk, topp, minp, u, lp, slp);
}

const char *ssr_isa(void) { return current().name; }

int ssr_force_isa(const char *name) {
  if (!strcmp(name, "base")) {
    current() = {"base", &base::table};
    return 1;
  }
#if defined(__x86_64__)
  if (!strcmp(name, "avx2") && has_avx2()) {
    current() = {"avx2", &avx2::table};
    return 1;
  }
#endif
  return 0;
}
}
