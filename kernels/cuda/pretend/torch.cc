// The results of libtorch's operations on the pretended devices. Every operation that
// has a CUDA kernel runs as it does on a GPU, with its allocations, copies, waits and
// launches, but its kernels do nothing; then the CPU's kernel of the same operation is
// queued on the stream, on the same memory. So the flow is CUDA's and the values are right.
#include "pretend.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

namespace pretend {
namespace {

using at::Tensor;
using Stack = torch::jit::Stack;

// A key that libtorch keeps for tests like this one; it is above all others.
constexpr auto key = c10::DispatchKey::TESTING_ONLY_GenericMode;

enum class Kind { through, allocates, computes };

Kind kind_of(const c10::OperatorHandle &op) {
  static std::unordered_map<c10::OperatorName, Kind> known;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto found = known.find(op.operator_name());
  if (found != known.end()) return found->second;
  static const std::set<std::string> through{
      "aten::resize_", "aten::set_", "aten::record_stream", "aten::_local_scalar_dense", "aten::is_pinned", "aten::_pin_memory", "aten::_fused_sdp_choice",
      "aten::resize_as_", "aten::_record_function_exit"};
  Kind kind = Kind::through;
  const auto &schema = op.schema();
  const std::string &name = schema.name();
  if (name == "aten::empty" || name == "aten::empty_strided") {
    kind = Kind::allocates;
  } else if ((op.hasKernelForDispatchKey(c10::DispatchKey::CUDA) || name == "aten::copy_") && !through.count(name)) {
    bool view = false, tensors = false;
    for (const auto &r : schema.returns()) {
      view = view || (r.alias_info() && !r.alias_info()->isWrite());
      tensors = tensors || r.type()->kind() == c10::TypeKind::TensorType || r.type()->kind() == c10::TypeKind::ListType;
    }
    if (tensors && !view) kind = Kind::computes;
  }
  return known[op.operator_name()] = kind;
}

template <class F> void each(const c10::IValue &v, F f) {
  if (v.isTensor()) {
    if (v.toTensor().defined()) f(v.toTensor());
  } else if (v.isTensorList()) {
    for (const Tensor &t : v.toTensorVector())
      if (t.defined()) f(t);
  } else if (v.isList()) {
    for (const c10::IValue &e : v.toListRef()) each(e, f);
  }
}

// on_cpu is the same memory as a tensor of the CPU's.
Tensor on_cpu(const Tensor &t) {
  if (!t.defined() || !t.is_cuda()) return t;
  const auto options = t.options().device(at::kCPU).requires_grad(false);
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); i++) last += (t.size(i) - 1) * t.stride(i);
  check_memory(operation, t.data_ptr(), size_t(last + 1) * t.element_size(), t.device().index());
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), options);
}

// on_cpu is the CPU's generator that draws for a device's: others, but as many and by its seed.
at::Generator on_cpu(const at::Generator &g) {
  static std::map<c10::GeneratorImpl *, std::pair<at::Generator, at::Generator>> known; // with the device's, which keeps its address
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto &pair = known[g.unsafeGetGeneratorImpl()];
  if (!pair.first.defined()) pair = {g, at::detail::createCPUGenerator(g.current_seed())};
  return pair.second;
}

c10::IValue on_cpu(const c10::IValue &v) {
  if (v.isGenerator() && v.toGenerator().device().is_cuda()) return on_cpu(v.toGenerator());
  if (v.isTensor()) return on_cpu(v.toTensor());
  if (v.isDevice() && v.toDevice().is_cuda()) return c10::Device(at::kCPU);
  if (v.isTensorList()) {
    std::vector<Tensor> all;
    for (const Tensor &t : v.toTensorVector()) all.push_back(on_cpu(t));
    return all;
  }
  if (v.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> all;
    for (const std::optional<Tensor> &t : v.toOptionalTensorVector()) all.push_back(t ? std::optional<Tensor>(on_cpu(*t)) : std::nullopt);
    return all;
  }
  return v;
}

// attention is what stands for the fused kernels of scaled_dot_product_attention, which the
// CPU does not have: its definition, with a causal mask or none.
bool attention(const std::string &name, Stack &s) {
  auto causal = [](const Tensor &q, const Tensor &k, bool is, std::optional<double> scale) {
    Tensor p = at::matmul(q, k.transpose(-2, -1)) * scale.value_or(1 / std::sqrt(double(q.size(-1))));
    if (is) p = p.masked_fill(at::ones({q.size(-2), k.size(-2)}, at::kBool).triu(1 + k.size(-2) - q.size(-2)), -INFINITY);
    return p;
  };
  auto wide = [](const c10::IValue &v) { return v.toTensor().to(at::kDouble); };
  auto optional = [](const c10::IValue &v) { return v.isNone() ? std::optional<double>() : v.toDouble(); };
  if (name == "aten::_scaled_dot_product_flash_attention") { // q k v dropout causal debug scale
    Tensor p = causal(wide(s[0]), wide(s[1]), s[4].toBool(), optional(s[6]));
    Tensor out = at::matmul(p.softmax(-1), wide(s[2])), lse = p.logsumexp(-1);
    s.clear();
    s.push_back(out);
    s.push_back(lse);
    return true;
  }
  if (name == "aten::_scaled_dot_product_efficient_attention") { // q k v bias lse dropout causal scale
    Tensor p = causal(wide(s[0]), wide(s[1]), s[6].toBool(), optional(s[7]));
    Tensor out = at::matmul(p.softmax(-1), wide(s[2])), lse = p.logsumexp(-1);
    s.clear();
    s.push_back(out);
    s.push_back(lse);
    return true;
  }
  const bool flash = name == "aten::_scaled_dot_product_flash_attention_backward", efficient = name == "aten::_scaled_dot_product_efficient_attention_backward";
  if (!flash && !efficient) return false;
  // flash: dout q k v out lse cum_q cum_k max_q max_k dropout causal seed offset scale
  // efficient: dout q k v bias out lse seed offset dropout mask causal scale
  const auto scale = optional(flash ? s[14] : s[12]);
  Tensor go = wide(s[0]), q = wide(s[1]), k = wide(s[2]), v = wide(s[3]), p = causal(q, k, s[11].toBool(), scale).softmax(-1);
  Tensor dv = at::matmul(p.transpose(-2, -1), go), dp = at::matmul(go, v.transpose(-2, -1));
  Tensor ds = p * (dp - (dp * p).sum(-1, true)) * scale.value_or(1 / std::sqrt(double(q.size(-1))));
  Tensor dq = at::matmul(ds, k), dk = at::matmul(ds.transpose(-2, -1), q);
  s.clear();
  for (const Tensor &t : {dq, dk, dv}) s.push_back(t);
  return true;
}

// packed_attention is what stands for FlashAttention over packed sequences: q [T, H, D], k and
// v [T, K, D]. The logs of its denominators are laid out as the device's are.
bool packed_attention(const std::string &name, Stack &s, const std::vector<Tensor> &results) {
  const bool forward = name == "aten::_flash_attention_forward", backward = name == "aten::_flash_attention_backward";
  if (!forward && !backward) return false;
  // forward: q k v starts_q starts_k max_q max_k dropout causal debug scale [left right …]
  // backward: dout q k v out lse starts_q starts_k max_q max_k dropout causal seed offset scale [left right]
  const size_t first = forward ? 0 : 1, at = forward ? 3 : 6, windows = forward ? 11 : 15;
  const Tensor q = s[first].toTensor().to(at::kDouble), k = s[first + 1].toTensor().to(at::kDouble), v = s[first + 2].toTensor().to(at::kDouble);
  const Tensor starts = s[at].toTensor().to(at::kLong), go = forward ? q : s[0].toTensor().to(at::kDouble);
  const double scale = s[windows - 1].toDouble();
  const int64_t left = windows < s.size() && s[windows].isInt() ? s[windows].toInt() : -1, G = q.size(1) / k.size(1);
  Tensor out = at::zeros_like(q), lse = forward ? at::zeros_like(results[1]) : Tensor(), dq = at::zeros_like(q), dk = at::zeros_like(k), dv = at::zeros_like(v);
  for (int64_t i = 0; i + 1 < starts.numel(); i++) {
    const int64_t lo = starts[i].item<int64_t>(), n = starts[i + 1].item<int64_t>() - lo;
    if (n == 0) continue;
    auto of = [&](const Tensor &t) { return t.narrow(0, lo, n).transpose(0, 1); }; // [heads, n, D]
    auto shared = [&](const Tensor &t) { return of(t).repeat_interleave(G, 0); };
    Tensor hidden = at::ones({n, n}, at::kBool).triu(1);
    if (left >= 0) hidden = hidden.logical_or(at::ones({n, n}, at::kBool).tril(-left - 1));
    Tensor score = (at::matmul(of(q), shared(k).transpose(1, 2)) * scale).masked_fill(hidden, -INFINITY), p = score.softmax(-1);
    if (forward) {
      of(out).copy_(at::matmul(p, shared(v)));
      (lse.dim() == 2 ? lse.narrow(1, lo, n) : lse.select(0, i).narrow(1, 0, n)).copy_(score.logsumexp(-1));
      continue;
    }
    auto grouped = [&](const Tensor &t) { return t.view({-1, G, n, t.size(2)}).sum(1); };
    Tensor dp = at::matmul(of(go), shared(v).transpose(1, 2)), ds = p * (dp - (dp * p).sum(-1, true)) * scale;
    of(dq).copy_(at::matmul(ds, shared(k)));
    of(dk).copy_(grouped(at::matmul(ds.transpose(1, 2), of(q))));
    of(dv).copy_(grouped(at::matmul(p.transpose(1, 2), of(go))));
  }
  s.clear();
  if (forward)
    for (const Tensor &t : {out, lse}) s.push_back(t);
  else
    for (const Tensor &t : {dq, dk, dv}) s.push_back(t);
  return true;
}

void compute(const c10::OperatorHandle &op, const Stack &args, const std::vector<Tensor> &results) {
  c10::impl::ExcludeDispatchKeyGuard plain(key);
  at::AutoDispatchBelowADInplaceOrView below;
  Stack s = args;
  if (!attention(op.schema().name(), s) && !packed_attention(op.schema().name(), s, results)) op.callBoxed(s);
  size_t i = 0;
  for (const c10::IValue &v : s)
    each(v, [&](const Tensor &t) {
      if (i >= results.size() || !results[i].defined()) return void(i++);
      if (results[i].data_ptr() != t.data_ptr()) {
        if (!results[i].sizes().equals(t.sizes()))
          fault(op.schema().name().c_str(), "the CPU's result " + std::to_string(i) + " has another shape");
        else
          results[i].copy_(t);
      }
      i++;
    });
}

void intercept(const c10::OperatorHandle &op, c10::DispatchKeySet keys, Stack *stack) {
  const auto below = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key);
  const Kind kind = kind_of(op);
  const char *name = op.schema().name().c_str();
  if (kind == Kind::through) return op.redispatchBoxed(below, stack);
  if (kind == Kind::allocates) {
    op.redispatchBoxed(below, stack);
    const Tensor &t = stack->back().toTensor();
    if (!t.is_cuda() || !t.nbytes()) return;
    const c10::cuda::CUDAGuard guard(t.device().index());
    // NaNs, and indices that are none
    enqueue("empty", c10::cuda::getCurrentCUDAStream(t.device().index()).stream(), [p = t.data_ptr(), n = std::min(t.nbytes(), size_t(4) << 20)] { return memset(p, 0xff, n), true; });
    return;
  }
  const size_t n = op.schema().arguments().size();
  auto args = std::make_shared<Stack>(stack->end() - long(n), stack->end());
  std::set<int> devices;
  bool host = false;
  for (const c10::IValue &v : *args)
    each(v, [&](const Tensor &t) {
      if (t.is_cuda())
        devices.insert(t.device().index());
      else if (t.dim() > 0)
        host = true;
    });
  if (devices.empty()) return op.redispatchBoxed(below, stack);
  auto streams = [&](auto f) {
    for (int d : devices) {
      const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(d)); // of whose streams the default one is
      f(c10::cuda::getCurrentCUDAStream().stream());
    }
  };
  if (devices.size() > 1) streams(finish);
  {
    c10::impl::ExcludeDispatchKeyGuard inner(key);
    struct Dry {
      bool was = dry;
      const char *before = operation;
      Dry(const char *name) { dry = true, operation = name; }
      ~Dry() { dry = was, operation = before; }
    } now(name);
    op.redispatchBoxed(below, stack);
  }
  count(Counter::operations, 1);
  operation = name;
  std::vector<Tensor> results;
  int device = *devices.begin();
  const auto &returns = op.schema().returns();
  for (size_t i = 0; i < returns.size(); i++) {
    const c10::IValue &v = (*stack)[stack->size() - returns.size() + i];
    if (v.isTensor() && !v.toTensor().defined())
      results.push_back(Tensor());
    else
      each(v, [&](const Tensor &t) {
        if (t.is_cuda()) device = t.device().index();
        results.push_back(on_cpu(t.detach()));
      });
  }
  for (c10::IValue &v : *args) v = on_cpu(v);
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
  const bool captured = capturing(stream);
  const int code = enqueue(name, stream, [op, args, results] {
    try {
      compute(op, *args, results);
    } catch (const std::exception &e) {
      fault(op.schema().name().c_str(), std::string("the CPU: ") + std::string(e.what()).substr(0, 300));
    }
    return true;
  });
  if (code && !captured) fail(code, name, "not queued");
  if (!captured && (host || devices.size() > 1)) streams(finish);
  operation = nullptr;
}

} // namespace

void begin_operations() {
  static torch::Library library(torch::Library::IMPL, "_", key, __FILE__, __LINE__);
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&intercept>());
  begin_thread();
}

void begin_thread() { c10::impl::tls_set_dispatch_key_included(key, true); }

} // namespace pretend
