// Stands before libtorch's own <torch/torch.h> on the include path and gives gotch
// v0.9.1, written for libtorch 2.1, the functions that later versions changed or
// removed; lacks.cpp says which version lacks what. This project never calls them,
// so they only have to compile: a call is an error, not a guess at a new meaning.
//
// It is right for every version. gotch names torch::f, and what is declared in
// namespace torch itself goes before what that takes over from namespace at.
#pragma once
#include_next <torch/torch.h>

namespace torch {

template <class T> [[noreturn]] inline T unavailable(const char *name) {
  TORCH_CHECK(false, name, ": not available through this binding");
}

// Other parameters since 2.2 to 2.6.
inline Tensor _cslt_sparse_mm(const Tensor &, const Tensor &, const Tensor &, bool) {
  return unavailable<Tensor>("_cslt_sparse_mm");
}
inline std::tuple<Tensor, Tensor> _scaled_mm(const Tensor &, const Tensor &, const Tensor &,
                                             std::optional<at::ScalarType>, const Tensor &,
                                             const Tensor &, const Tensor &) {
  return unavailable<std::tuple<Tensor, Tensor>>("_scaled_mm");
}
inline std::tuple<Tensor, Tensor> _scaled_mm_out(const Tensor &, const Tensor &, const Tensor &,
                                                 const Tensor &, const Tensor &,
                                                 std::optional<at::ScalarType>, const Tensor &,
                                                 const Tensor &, const Tensor &) {
  return unavailable<std::tuple<Tensor, Tensor>>("_scaled_mm_out");
}

// Removed by 2.14.
inline std::vector<Tensor> align_tensors(TensorList) { return unavailable<std::vector<Tensor>>("align_tensors"); }
inline Tensor cholesky(const Tensor &, bool) { return unavailable<Tensor>("cholesky"); }
inline Tensor &cholesky_out(Tensor &, const Tensor &, bool) { return unavailable<Tensor &>("cholesky_out"); }
inline std::tuple<Tensor, Tensor> qr(const Tensor &, bool) { return unavailable<std::tuple<Tensor, Tensor>>("qr"); }
inline std::tuple<Tensor &, Tensor &> qr_out(Tensor &, Tensor &, const Tensor &, bool) {
  return unavailable<std::tuple<Tensor &, Tensor &>>("qr_out");
}

} // namespace torch

// A method, which cannot be added; gotch is the only one to name it after this.
#define align_as(other) expand_as(torch::unavailable<const at::Tensor &>("align_as"))
