// Stands before libtorch's own <torch/torch.h> on the include path and adds the
// three overloads that gotch v0.9.1 calls with the signatures of libtorch 2.1
// and that later versions changed. This project never calls them, so they only
// have to compile; a call is an error, not a guess at the new meaning.
#pragma once
#include_next <torch/torch.h>

namespace torch {

inline Tensor _cslt_sparse_mm(const Tensor &, const Tensor &, const Tensor &, bool) {
  TORCH_CHECK(false, "_cslt_sparse_mm: not available through this binding");
}

inline std::tuple<Tensor, Tensor> _scaled_mm(const Tensor &, const Tensor &, const Tensor &,
                                             std::optional<at::ScalarType>, const Tensor &,
                                             const Tensor &, const Tensor &) {
  TORCH_CHECK(false, "_scaled_mm: not available through this binding");
}

inline std::tuple<Tensor, Tensor> _scaled_mm_out(const Tensor &, const Tensor &, const Tensor &,
                                                 const Tensor &, const Tensor &,
                                                 std::optional<at::ScalarType>, const Tensor &,
                                                 const Tensor &, const Tensor &) {
  TORCH_CHECK(false, "_scaled_mm_out: not available through this binding");
}

} // namespace torch
