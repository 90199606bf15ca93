// Which of the functions that gotch calls this libtorch has no longer, or not with
// gotch's arguments. compat/include/torch/torch.h stands in for them.
#include "shim.h"

#include <ATen/ATen.h>

#include <optional>
#include <type_traits>

namespace {

// A call through arguments of a template finds only what namespace at declares, and
// counts as missing, not as an error, where it declares nothing that fits.
#define PROBE(name, ...)                                                                  \
  template <class T, class = void> struct lacks_##name : std::true_type {};              \
  template <class T> struct lacks_##name<T, std::void_t<decltype(__VA_ARGS__)>> : std::false_type {};

#define A std::declval<T &>()
#define DTYPE std::declval<std::optional<std::enable_if_t<!std::is_void_v<T>, at::ScalarType>>>()
PROBE(_cslt_sparse_mm, _cslt_sparse_mm(A, A, A, true))
PROBE(_scaled_mm, std::tuple<T, T>(_scaled_mm(A, A, A, DTYPE, A, A, A)))
PROBE(_scaled_mm_out, std::tuple<T, T>(_scaled_mm_out(A, A, A, A, A, DTYPE, A, A, A)))
PROBE(align_as, A.align_as(A))
PROBE(align_tensors, align_tensors(std::declval<c10::ArrayRef<T>>()))
PROBE(cholesky, cholesky(A, true))
PROBE(cholesky_out, cholesky_out(A, A, true))
PROBE(qr, qr(A, true))
PROBE(qr_out, qr_out(A, A, A, true))

} // namespace

extern "C" const char *ssr_torch_lacks(void) {
  static const std::string all = [] {
    std::string s;
#define TELL(name) \
  if (lacks_##name<at::Tensor>::value) s += (s.empty() ? "" : " ") + std::string(#name);
    TELL(_cslt_sparse_mm) TELL(_scaled_mm) TELL(_scaled_mm_out) TELL(align_as) TELL(align_tensors)
    TELL(cholesky) TELL(cholesky_out) TELL(qr) TELL(qr_out)
    return s;
  }();
  return all.c_str();
}
