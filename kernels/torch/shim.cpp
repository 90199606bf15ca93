#include "shim.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/version.h>

extern "C" {

const char *ssr_torch_version(void) { return TORCH_VERSION; }

int ssr_torch_get_threads(void) { return at::get_num_threads(); }

void ssr_torch_threads(int n) {
  at::set_num_threads(n);
  // A BLAS of the pthread kind has threads of its own. The function is looked
  // up, because another BLAS (or another libtorch) does not have it.
  using set_threads = void (*)(int);
  if (auto set = reinterpret_cast<set_threads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"))) set(n);
}
}
