#include "transformer.h"

#include <ATen/ATen.h>
#include <ATen/TensorIndexing.h>
#include <c10/core/GradMode.h>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

// Legend: T tokens, H query heads, K key heads, G = H/K, D head dimension, N queries
// and M keys of a block, S sequences, V vocabulary.

namespace {

using at::Tensor;

// How many elements of the weights are updated at a time.
constexpr int64_t kUpdate = 16 << 20; // torch.Updated

Tensor &ref(void *t) { return *static_cast<Tensor *>(t); }

template <class F> char *run(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}

// Heads [T, n, D] of the columns of x from head first on.
Tensor heads(const Tensor &x, int64_t first, int64_t n, int64_t dim) {
  return x.narrow(1, first * dim, n * dim).view({x.size(0), n, dim});
}

// The columns of x [T, width] that n heads from first on take, [T, n, D], where D
// is that of a norm's weight.
Tensor columns(const Tensor &x, int64_t first, int64_t n, const Tensor &w) { return heads(x, first, n, w.size(0)); }

// Statistics are kept head by head, [n, T] or [T]; here they are [T, n, 1].
Tensor statistics(const Tensor &rstd, int64_t n) { return rstd.view({n, -1}).t().unsqueeze(2); }

struct Parts {
  Tensor q, k, v;
};
Parts split(const Tensor &qkv, const ssr_heads &h) {
  return {heads(qkv, 0, h.heads, h.dim), heads(qkv, h.heads, h.kv_heads, h.dim),
          heads(qkv, h.heads + h.kv_heads, h.kv_heads, h.dim)};
}

// [N, H, D] as [K, G·N, D], for products with keys.
Tensor grouped(const Tensor &x, const ssr_heads &h) {
  return x.reshape({x.size(0), h.kv_heads, -1, h.dim}).permute({1, 2, 0, 3}).reshape({h.kv_heads, -1, h.dim});
}
// The inverse.
Tensor ungrouped(const Tensor &x, int64_t n, const ssr_heads &h) {
  return x.view({h.kv_heads, -1, n, h.dim}).permute({2, 0, 1, 3}).reshape({n, h.heads, h.dim});
}

// A run of queries of a sequence and the keys that they see.
struct Block {
  int64_t q, n;    // rows of the queries
  int64_t k, m;    // rows of the keys
};

// Calls f for the blocks of n queries at positions past, past+1, …, whose keys
// begin at position base.
template <class F> void blocks(const ssr_heads &h, int64_t n, int64_t past, int64_t base, F f) {
  const int64_t span = h.window > 0 ? std::min(past + n - base, 2 * h.window) : past + n - base;
  int64_t size = std::max<int64_t>(1, h.scores / (h.heads * std::max<int64_t>(span, 1)));
  if (h.window > 0) size = std::min(size, h.window);
  for (int64_t q = 0; q < n; q += size) {
    Block b{q, std::min(size, n - q), 0, 0};
    const int64_t first = h.window > 0 ? std::max(base, past + q - h.window + 1) : base;
    b.k = first - base;
    b.m = past + q + b.n - first;
    f(b);
  }
}

// Scores [K, G, N, M] of a block; those of keys that are not seen are -inf.
Tensor scores(const ssr_heads &h, const Block &b, const Tensor &q, const Tensor &k, int64_t past, int64_t base) {
  Tensor s = at::bmm(q, k.narrow(0, b.k, b.m).permute({1, 2, 0})).mul_(h.scale).view({h.kv_heads, -1, b.n, b.m});
  Tensor at_q = at::arange(past + b.q, past + b.q + b.n, q.options().dtype(at::kLong)).unsqueeze(1);
  Tensor at_k = at::arange(base + b.k, base + b.k + b.m, q.options().dtype(at::kLong)).unsqueeze(0);
  Tensor hidden = at_k > at_q;
  if (h.window > 0) hidden = hidden.logical_or_(at_k <= at_q - h.window);
  return s.masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

// Attention of q [N, H, D] over k and v [M, K, D]; lse [N, H] may be undefined.
void attend(const ssr_heads &h, const Tensor &q, const Tensor &k, const Tensor &v, int64_t past, int64_t base, const Tensor &out,
            const Tensor &lse) {
  blocks(h, q.size(0), past, base, [&](const Block &b) {
    Tensor s = scores(h, b, grouped(q.narrow(0, b.q, b.n), h), k, past, base);
    Tensor l = s.logsumexp(-1, true);
    s.sub_(l).exp_();
    Tensor o = at::bmm(s.view({h.kv_heads, -1, b.m}), v.narrow(0, b.k, b.m).transpose(0, 1));
    out.narrow(0, b.q, b.n).copy_(ungrouped(o, b.n, h));
    if (lse.defined()) lse.narrow(0, b.q, b.n).copy_(l.view({h.heads, b.n}).t());
  });
}

void attend_backward(const ssr_heads &h, const Parts &x, const Tensor &out, const Tensor &lse, const Tensor &dout, const Parts &d) {
  d.k.zero_();
  d.v.zero_();
  blocks(h, x.q.size(0), 0, 0, [&](const Block &b) {
    Tensor q = grouped(x.q.narrow(0, b.q, b.n), h), go = grouped(dout.narrow(0, b.q, b.n), h);
    Tensor k = x.k.narrow(0, b.k, b.m).transpose(0, 1), v = x.v.narrow(0, b.k, b.m).transpose(0, 1);
    Tensor p = scores(h, b, q, x.k, 0, 0).view({h.kv_heads, -1, b.m});
    p.sub_(lse.narrow(0, b.q, b.n).t().reshape({h.kv_heads, -1, 1})).exp_();
    d.v.narrow(0, b.k, b.m).add_(at::bmm(p.transpose(1, 2), go).transpose(0, 1));
    Tensor delta = (go * grouped(out.narrow(0, b.q, b.n), h)).sum(-1, true);
    Tensor ds = at::bmm(go, v.transpose(1, 2)).sub_(delta).mul_(p).mul_(h.scale);
    d.q.narrow(0, b.q, b.n).copy_(ungrouped(at::bmm(ds, k), b.n, h));
    d.k.narrow(0, b.k, b.m).add_(at::bmm(ds.transpose(1, 2), q).transpose(0, 1));
  });
}

// Whether the window hides nothing.
bool whole(const ssr_heads &h, int64_t n) { return h.window <= 0 || h.window >= n; }

// FlashAttention of all sequences at once, with keys that heads share (arXiv 2307.08691).
class Flash {
  static constexpr auto kForward = [](const auto &...a) -> decltype(at::_flash_attention_forward(a...)) {
    return at::_flash_attention_forward(a...);
  };
  static constexpr auto kBackward = [](const auto &...a) -> decltype(at::_flash_attention_backward(a...)) {
    return at::_flash_attention_backward(a...);
  };
  // Whether the version at hand takes windows.
  static constexpr bool kWindows =
      std::is_invocable_v<decltype(kForward), Tensor, Tensor, Tensor, Tensor, Tensor, int64_t, int64_t, double, bool, bool, double, int64_t, int64_t>;

  template <class F, class... A> auto windowed(F f, const A &...a) const {
    if constexpr (kWindows) {
      if (!whole(h, longest)) return f(a..., h.window - 1, int64_t(0));
    }
    return f(a...);
  }

  ssr_heads h;
  Parts x; // of bfloat16
  const int32_t *starts;
  Tensor offsets; // on the device
  int64_t longest;

  auto call() const { return windowed(kForward, x.q, x.k, x.v, offsets, offsets, longest, longest, 0.0, true, false, h.scale); }

  // The logs of the denominators are [T, H] here. libtorch has them as [H, T], and in older
  // versions as [S, H, longest].
  static bool padded(at::Device device) {
    static const bool answer = [&] {
      const int32_t starts[] = {0, 2};
      Tensor qkv = at::zeros({2, 3 * 64}, at::TensorOptions(device).dtype(at::kBFloat16));
      const Flash one({1, 1, 64, 0, 1, 0, 1}, qkv, starts, 1, 2);
      return std::get<1>(one.call()).dim() == 3;
    }();
    return answer;
  }
  // Calls f with each sequence's rows of ours and of the padded.
  template <class F> void each(const Tensor &ours, const Tensor &theirs, F f) const {
    for (int64_t i = 0; i < theirs.size(0); i++) {
      const int64_t n = starts[i + 1] - starts[i];
      f(ours.narrow(0, starts[i], n), theirs.select(0, i).narrow(1, 0, n).t());
    }
  }

public:
  Flash(const ssr_heads &h, const Tensor &qkv, const int32_t *starts, int64_t sequences, int64_t longest)
      : h(h), x(split(qkv.to(at::kBFloat16), h)), starts(starts), longest(longest) {
    offsets = at::from_blob(const_cast<int32_t *>(starts), {sequences + 1}, at::kInt).to(qkv.device());
  }

  // out [T, H, D], and lse [T, H] unless it is undefined.
  void forward(const Tensor &out, const Tensor &lse) const {
    auto all = call();
    out.copy_(std::get<0>(all));
    const Tensor &theirs = std::get<1>(all);
    if (!lse.defined()) return;
    if (theirs.dim() == 2) {
      lse.copy_(theirs.t());
    } else {
      each(lse, theirs, [](Tensor to, Tensor from) { to.copy_(from); });
    }
  }

  // The gradients of x, given dout and what forward gave.
  Parts backward(const Tensor &dout, const Tensor &out, const Tensor &lse) const {
    Tensor theirs = lse.t().to(at::kFloat).contiguous();
    if (padded(lse.device())) {
      theirs = at::zeros({offsets.size(0) - 1, h.heads, longest}, theirs.options());
      each(lse, theirs, [](Tensor from, Tensor to) { to.copy_(from); });
    }
    Tensor random = at::zeros({2}, offsets.options().dtype(at::kLong)); // of the dropout, of which there is none
    auto all = windowed(kBackward, dout.to(at::kBFloat16), x.q, x.k, x.v, out.to(at::kBFloat16), theirs, offsets, offsets, longest, longest,
                        0.0, true, random, random, h.scale);
    return {std::get<0>(all), std::get<1>(all), std::get<2>(all)};
  }

  // Whether libtorch has it for sequences of up to longest tokens on the device of x.
  static bool has(const ssr_heads &h, const Tensor &x, int64_t longest) {
    return h.fused && x.is_cuda() && longest > 0 && h.dim % 8 == 0 && h.dim <= 256 && (kWindows || whole(h, longest));
  }
};

int64_t longest(const int32_t *offsets, int64_t sequences) {
  int64_t n = 0;
  for (int64_t i = 0; i < sequences; i++) n = std::max<int64_t>(n, offsets[i + 1] - offsets[i]);
  return n;
}

bool fused(const ssr_heads &h, int64_t n) { return h.fused && n > 0 && whole(h, n); }

// libtorch's own attention of one sequence, [N, H, D], for where there is no Flash.
Tensor fused_attention(const ssr_heads &h, const Parts &x) {
  const int64_t n = x.q.size(0);
  auto half = [](const Tensor &t) { return t.to(at::kBFloat16).transpose(0, 1); };
  // Every query head gets keys of its own: not all versions share them.
  auto repeated = [&](const Tensor &t) {
    return half(t).unsqueeze(1).expand({h.kv_heads, h.heads / h.kv_heads, n, h.dim}).reshape({1, h.heads, n, h.dim});
  };
  Tensor out = at::scaled_dot_product_attention(half(x.q).unsqueeze(0), repeated(x.k), repeated(x.v), {}, 0.0, true, h.scale);
  return out.squeeze(0).transpose(0, 1).to(x.q.scalar_type());
}

void fused_backward(const ssr_heads &h, const Parts &x, const Tensor &dout, const Parts &d) {
  c10::AutoGradMode on(true);
  auto leaf = [](const Tensor &t) { return t.detach().requires_grad_(true); };
  const Parts again{leaf(x.q), leaf(x.k), leaf(x.v)};
  fused_attention(h, again).backward(dout);
  d.q.copy_(again.q.grad());
  d.k.copy_(again.k.grad());
  d.v.copy_(again.v.grad());
}

// y (+)= a @ b of bfloat16. Where libtorch can, on a GPU from 2.8 on, the result is not
// rounded to bfloat16 as the operands are.
template <class T> void half_product(T &y, const Tensor &a, const Tensor &b, bool add) {
  const Tensor x = a.to(at::kBFloat16), w = b.to(at::kBFloat16);
  auto exact = [&](auto &out) -> decltype(at::mm_out(out, x, w, at::kFloat)) { return at::mm_out(out, x, w, at::kFloat); };
  if constexpr (std::is_invocable_v<decltype(exact), T &>) {
    if (y.is_cuda() && y.scalar_type() == at::kFloat) {
      T p = add ? at::empty_like(y) : y;
      exact(p);
      if (add) y.add_(p);
      return;
    }
  }
  Tensor p = at::mm(x, w);
  add ? y.add_(p) : y.copy_(p);
}

// The cache [blocks · K · 2 · block · D] as blocks.
Tensor paged(const Tensor &cache, const ssr_heads &h, int64_t block) {
  return cache.view({-1, h.kv_heads, 2, block, h.dim});
}

} // namespace

extern "C" {

char *ssr_t_gather(void *out, void *from, void *rows) {
  return run([&] { ref(out).copy_(ref(from).index_select(0, ref(rows))); });
}

char *ssr_t_scatter(void *to, void *from, void *rows) {
  return run([&] { ref(to).index_copy_(0, ref(rows), ref(from)); });
}

// index_put_ sorts, where index_add_ on a GPU would add in no fixed order.
char *ssr_t_scatter_add(void *to, void *from, void *rows) {
  return run([&] { ref(to).index_put_({ref(rows)}, ref(from), true); });
}

char *ssr_t_add_columns(void *sum, void *m) {
  return run([&] { ref(sum).add_(ref(m).sum(0)); });
}

char *ssr_t_scaled(void *out, void *in, double by) {
  return run([&] { ref(out).copy_(ref(in)).mul_(by); });
}

char *ssr_t_product(void *out, void *a, void *b, void *bias, int add, int half) {
  return run([&] {
    Tensor &y = ref(out);
    if (half) {
      half_product(y, ref(a), ref(b), add);
    } else if (add) {
      y.addmm_(ref(a), ref(b));
    } else {
      at::mm_out(y, ref(a), ref(b));
    }
    if (bias) y.add_(ref(bias));
  });
}

char *ssr_t_rms(void *x, void *y, int64_t first, int64_t n, void *weight, void *rstd, double eps) {
  return run([&] {
    const Tensor &w = ref(weight);
    Tensor in = columns(ref(x), first, n, w);
    Tensor r = in.square().mean(-1, true).add_(eps).rsqrt_();
    if (rstd) statistics(ref(rstd), n).copy_(r);
    columns(ref(y), first, n, w).copy_((in * r).mul_(w));
  });
}

char *ssr_t_rms_backward(void *x, void *weight, void *rstd, void *dy, void *dx, void *dw, int64_t first, int64_t n) {
  return run([&] {
    const Tensor &w = ref(weight);
    Tensor r = statistics(ref(rstd), n), normal = columns(ref(x), first, n, w) * r, g = columns(ref(dy), first, n, w);
    if (dw) ref(dw).add_((g * normal).sum(at::IntArrayRef({0, 1})));
    g = g * w;
    Tensor along = (g * normal).mean(-1, true);
    columns(ref(dx), first, n, w).copy_(g.sub_(normal.mul_(along)).mul_(r));
  });
}

char *ssr_t_rope(void *x, int64_t n, int64_t dim, void *positions, void *cos, void *sin, int inverse) {
  return run([&] {
    Tensor v = heads(ref(x), 0, n, dim);
    Tensor c = ref(cos).index_select(0, ref(positions)).unsqueeze(1), s = ref(sin).index_select(0, ref(positions)).unsqueeze(1);
    if (inverse) s.neg_();
    Tensor lo = v.narrow(2, 0, dim / 2), hi = v.narrow(2, dim / 2, dim / 2), was = lo.clone();
    lo.mul_(c).sub_(hi * s);
    hi.mul_(c).add_(was.mul_(s));
  });
}

char *ssr_t_swiglu(void *gate_up, void *y) {
  return run([&] {
    const int64_t d = ref(y).size(1);
    at::mul_out(ref(y), at::silu(ref(gate_up).narrow(1, 0, d)), ref(gate_up).narrow(1, d, d));
  });
}

char *ssr_t_swiglu_backward(void *gate_up, void *dy) {
  return run([&] {
    const int64_t d = ref(dy).size(1);
    Tensor gate = ref(gate_up).narrow(1, 0, d), up = ref(gate_up).narrow(1, d, d), s = gate.sigmoid(), silu = gate * s;
    // silu' = s·(1 + gate - silu)
    Tensor dgate = (gate - silu).add_(1).mul_(s).mul_(up).mul_(ref(dy));
    at::mul_out(up, silu, ref(dy));
    gate.copy_(dgate);
  });
}

char *ssr_t_attention(ssr_heads h, void *qkv, const int32_t *offsets, int64_t sequences, void *out, void *lse) {
  return run([&] {
    Parts x = split(ref(qkv), h);
    Tensor o = heads(ref(out), 0, h.heads, h.dim);
    const int64_t most = longest(offsets, sequences);
    if (Flash::has(h, ref(qkv), most)) {
      return Flash(h, ref(qkv), offsets, sequences, most).forward(o, lse ? ref(lse) : Tensor());
    }
    for (int64_t i = 0; i < sequences; i++) {
      const int64_t lo = offsets[i], n = offsets[i + 1] - lo;
      if (fused(h, n)) {
        o.narrow(0, lo, n).copy_(fused_attention(h, {x.q.narrow(0, lo, n), x.k.narrow(0, lo, n), x.v.narrow(0, lo, n)}));
        continue;
      }
      attend(h, x.q.narrow(0, lo, n), x.k.narrow(0, lo, n), x.v.narrow(0, lo, n), 0, 0, o.narrow(0, lo, n),
             lse ? ref(lse).narrow(0, lo, n) : Tensor());
    }
  });
}

char *ssr_t_attention_backward(ssr_heads h, void *qkv, void *out, void *lse, void *dout, const int32_t *offsets,
                               int64_t sequences, void *dqkv) {
  return run([&] {
    Parts x = split(ref(qkv), h), d = split(ref(dqkv), h);
    Tensor o = heads(ref(out), 0, h.heads, h.dim), go = heads(ref(dout), 0, h.heads, h.dim);
    const int64_t most = longest(offsets, sequences);
    if (Flash::has(h, ref(qkv), most)) {
      Parts g = Flash(h, ref(qkv), offsets, sequences, most).backward(go, o, ref(lse));
      d.q.copy_(g.q);
      d.k.copy_(g.k);
      d.v.copy_(g.v);
      return;
    }
    for (int64_t i = 0; i < sequences; i++) {
      const int64_t lo = offsets[i], n = offsets[i + 1] - lo;
      auto of = [&](const Parts &p) { return Parts{p.q.narrow(0, lo, n), p.k.narrow(0, lo, n), p.v.narrow(0, lo, n)}; };
      if (fused(h, n)) {
        fused_backward(h, of(x), go.narrow(0, lo, n), of(d));
        continue;
      }
      attend_backward(h, of(x), o.narrow(0, lo, n), ref(lse).narrow(0, lo, n), go.narrow(0, lo, n), of(d));
    }
  });
}

char *ssr_t_logprob(void *logits, void *targets, void *logprob, void *entropy, void *lse) {
  return run([&] {
    const Tensor &x = ref(logits);
    Tensor l = x.logsumexp(1);
    ref(lse).copy_(l);
    ref(logprob).copy_(x.gather(1, ref(targets).unsqueeze(1)).squeeze(1).sub_(l));
    // A logit of -inf has weight 0 and no share in the entropy.
    Tensor p = (x - l.unsqueeze(1)).exp_();
    ref(entropy).copy_(l.sub_(p.mul_(x).nan_to_num_(0).sum(1)));
  });
}

char *ssr_t_logprob_backward(void *logits, void *targets, void *lse, void *g) {
  return run([&] {
    Tensor &x = ref(logits);
    Tensor by = ref(g).unsqueeze(1);
    x.sub_(ref(lse).unsqueeze(1)).exp_().mul_(by.neg());
    x.scatter_add_(1, ref(targets).unsqueeze(1), by);
  });
}

char *ssr_t_squares(void *t, double *sum) {
  return run([&] {
    double norm = at::linalg_vector_norm(ref(t), 2, at::OptionalIntArrayRef(), false, at::kDouble).item<double>();
    *sum = norm * norm;
  });
}

char *ssr_t_adamw(ssr_adamw o, void *p, void *g, void *m, void *v) {
  return run([&] {
    const int64_t n = ref(p).size(0);
    for (int64_t at = 0; at < n; at += kUpdate) {
      auto part = [&](void *t) { return ref(t).narrow(0, at, std::min(kUpdate, n - at)); };
      Tensor weight = part(p), mean = part(m), square = part(v), grad = part(g) * o.grad_scale;
      mean.lerp_(grad, 1 - o.beta1);
      square.mul_(o.beta2).addcmul_(grad, grad, 1 - o.beta2);
      Tensor root = square.sqrt().div_(std::sqrt(o.correct2)).add_(o.eps);
      weight.mul_(1 - o.lr * o.decay).addcdiv_(mean, root, -o.lr / o.correct1);
    }
  });
}

char *ssr_t_lerp(void *mean, void *x, double weight) {
  return run([&] { ref(mean).lerp_(ref(x), weight); });
}

char *ssr_t_cache_append(ssr_heads h, void *qkv, void *slots, void *cache, int64_t block) {
  return run([&] {
    Parts x = split(ref(qkv), h);
    Tensor page = at::floor_divide(ref(slots), block), place = at::remainder(ref(slots), block);
    Tensor pages = paged(ref(cache), h, block);
    // [blocks, block, K, D]
    auto rows = [&](int64_t which) { return pages.select(2, which).permute({0, 2, 1, 3}); };
    rows(0).index_put_({page, place}, x.k);
    rows(1).index_put_({page, place}, x.v);
  });
}

char *ssr_t_attention_extend(ssr_heads h, void *qkv, int64_t row, int64_t rows, int64_t past, void *pages, int64_t base,
                             void *cache, int64_t block, void *out) {
  return run([&] {
    Tensor kv = paged(ref(cache), h, block).index_select(0, ref(pages));
    auto of = [&](int64_t which) {
      return kv.select(2, which).permute({0, 2, 1, 3}).reshape({-1, h.kv_heads, h.dim}).narrow(0, 0, past + rows - base);
    };
    attend(h, heads(ref(qkv), 0, h.heads, h.dim).narrow(0, row, rows), of(0), of(1), past, base,
           heads(ref(out), 0, h.heads, h.dim).narrow(0, row, rows), Tensor());
  });
}

char *ssr_t_attention_decode(ssr_heads h, void *qkv, void *rows, void *pages, void *base, void *length, void *cache,
                             int64_t block, void *out) {
  return run([&] {
    const int64_t S = ref(rows).size(0), n = ref(pages).size(0) / S * block;
    Tensor q = ref(qkv).narrow(1, 0, h.heads * h.dim).index_select(0, ref(rows)).view({S, h.kv_heads, -1, h.dim});
    Tensor kv = paged(ref(cache), h, block).index_select(0, ref(pages)).view({S, -1, h.kv_heads, 2, block, h.dim});
    auto of = [&](int64_t which) { return kv.select(3, which).transpose(1, 2).reshape({S, h.kv_heads, n, h.dim}); };
    Tensor s = at::matmul(q, of(0).transpose(2, 3)).mul_(h.scale);
    Tensor at_k = ref(base).unsqueeze(1) + at::arange(n, ref(base).options()), end = ref(length).unsqueeze(1);
    Tensor hidden = at_k >= end;
    if (h.window > 0) hidden.logical_or_(at_k < end - h.window);
    s.masked_fill_(hidden.view({S, 1, 1, n}), -std::numeric_limits<double>::infinity());
    ref(out).index_copy_(0, ref(rows), at::matmul(s.softmax(-1), of(1)).reshape({S, -1}));
  });
}

// shape is [6, R] float64: temperature, top-k, top-p, min-p, the draw u, and whether
// the row is greedy.
char *ssr_t_sample(void *logits, void *shape, int filter, void *token, void *logprob, void *sampled) {
  return run([&] {
    const Tensor &x = ref(logits);
    const int64_t V = x.size(1);
    auto row = [&](int64_t i) { return ref(shape).select(0, i).unsqueeze(1); };
    Tensor best = x.argmax(1, true), most = x.gather(1, best);
    Tensor w = (x - most).mul_(row(0).reciprocal().to(x.scalar_type())).exp_();
    Tensor kept = w.to(at::kDouble);
    if (filter) {
      auto sorted = x.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
      const Tensor &order = std::get<1>(sorted);
      Tensor weight = kept.gather(1, order), rank = at::arange(V, row(1).options()).unsqueeze(0);
      weight.masked_fill_(rank >= row(1), 0);
      Tensor sum = weight.cumsum(1);
      // Kept are those before which the mass is not reached.
      Tensor dropped = (sum - weight >= row(2) * sum.narrow(1, V - 1, 1)).logical_or_(rank >= row(1));
      kept.masked_fill_(at::zeros_like(dropped).scatter_(1, order, dropped), 0);
      kept.masked_fill_(w < row(3), 0);
    }
    Tensor sum = kept.cumsum(1), total = sum.narrow(1, V - 1, 1).clone();
    Tensor drawn = (sum <= row(4) * total).sum(1, true);
    // The last token with weight, should rounding run past the end.
    Tensor last = V - 1 - (kept > 0).flip(1).to(at::kLong).argmax(1, true);
    drawn = at::where(row(5) > 0, best, at::minimum(drawn, last));
    Tensor lp = x.gather(1, drawn) - x.logsumexp(1, true);
    Tensor slp = kept.gather(1, drawn).div_(total).log_().masked_fill_(row(5) > 0, 0);
    ref(logprob).copy_(lp.squeeze(1));
    ref(sampled).copy_(slp.squeeze(1));
    ref(token).copy_(drawn.masked_fill_(lp.isfinite().logical_and_(most.isfinite()).logical_not_(), -1).squeeze(1));
  });
}
}
