#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <cstring>
#include <dlfcn.h>
#include <exception>
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

char *ssr_torch_normal(void *t, double std, unsigned long long seed) {
  try {
    auto &tensor = *static_cast<at::Tensor *>(t);
    auto own = at::globalContext().defaultGenerator(tensor.device()).clone();
    own.set_current_seed(seed);
    tensor.normal_(0, std, own);
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}
}
