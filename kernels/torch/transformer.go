package torch

// #include "transformer.h"
// #include <stdlib.h>
import "C"

import (
	"math"
	"slices"
	"unsafe"
)

// The operations below are those of a transformer, composed of libtorch's, for
// tensors on any device. Indices are tensors of Int64 (see Device.Indices), and what
// one names must exist: on a GPU nothing else would say so. They take memory beside
// their operands for as long as they run, which is not counted in Allocated.
//
// Legend: T tokens, R rows, C width, H query heads, K key heads, D head dimension,
// V vocabulary, S sequences.

// Heads is the shape of grouped-query causal attention. A row of qkv is a token's
// queries [H, D], keys [K, D] and values [K, D].
type Heads struct {
	Heads, KVHeads, Dim int
	// Window is how many tokens a query sees, itself the last; 0 means all before it.
	Window int
	// Scale multiplies the scores.
	Scale float64
	// Scores is how many of them may exist at a time, at least a row; 0 means Scores.
	Scores int
	// Fused is libtorch's own attention, of bfloat16, for Attention and AttentionBackward:
	// no scores exist. On a GPU it is FlashAttention (arXiv 2307.08691), over all sequences
	// at once; where that lacks the shape, and on a CPU, scaled_dot_product_attention for
	// each that the window hides nothing of, whose lse is not computed. The gradient may
	// differ in the last bits from run to run.
	Fused bool
}

// Scores is the most attention scores that exist at a time, of which there are up to
// four copies, and Updated the most elements that one pass of AdamWStep works on, with
// up to three.
const (
	Scores  = 8 << 20
	Updated = 16 << 20
)

func (h Heads) c() C.ssr_heads {
	scores := h.Scores
	if scores == 0 {
		scores = Scores
	}
	flag := map[bool]C.int{true: 1}
	return C.ssr_heads{
		fused: flag[h.Fused],
		heads: C.int64_t(h.Heads), kv_heads: C.int64_t(h.KVHeads), dim: C.int64_t(h.Dim), window: C.int64_t(h.Window),
		scale: C.double(h.Scale), scores: C.int64_t(scores),
	}
}

// handle is what the C functions take.
func (t *Tensor) handle() unsafe.Pointer {
	if t == nil {
		return nil
	}
	return unsafe.Pointer(t.c)
}

func try(op string, why *C.char) {
	if why != nil {
		defer C.free(unsafe.Pointer(why))
		failf(op, "%s", C.GoString(why))
	}
}

// Gather computes out[i] = from[rows[i]].
func Gather(out, from, rows *Tensor) {
	try("Gather", C.ssr_t_gather(out.handle(), from.handle(), rows.handle()))
}

// Scatter computes to[rows[i]] = from[i]; no row may be named twice.
func Scatter(to, from, rows *Tensor) {
	try("Scatter", C.ssr_t_scatter(to.handle(), from.handle(), rows.handle()))
}

// ScatterAdd computes to[rows[i]] += from[i], in the same order every time.
func ScatterAdd(to, from, rows *Tensor) {
	try("ScatterAdd", C.ssr_t_scatter_add(to.handle(), from.handle(), rows.handle()))
}

// AddColumns adds all rows of m [R, C] to sum [C].
func AddColumns(sum, m *Tensor) { try("AddColumns", C.ssr_t_add_columns(sum.handle(), m.handle())) }

// Scaled computes out = in · by.
func Scaled(out, in *Tensor, by float64) {
	try("Scaled", C.ssr_t_scaled(out.handle(), in.handle(), C.double(by)))
}

// Product computes out = a @ b + bias, or adds that to out; bias may be nil. With
// half the product is one of bfloat16, whatever the operands are.
func Product(out, a, b, bias *Tensor, add, half bool) {
	flag := map[bool]C.int{true: 1}
	try("Product", C.ssr_t_product(out.handle(), a.handle(), b.handle(), bias.handle(), flag[add], flag[half]))
}

// RMSNorm computes y = w∘x/sqrt(mean(x²)+eps) for each of n heads, as wide as w, from
// head first on of the rows of x [T, …]; the whole row is a head too. rstd [n, T], or
// [T] for one, receives 1/sqrt(…), unless it is nil. y may be x.
func RMSNorm(x, y *Tensor, first, n int, w, rstd *Tensor, eps float64) {
	try("RMSNorm", C.ssr_t_rms(x.handle(), y.handle(), C.int64_t(first), C.int64_t(n), w.handle(), rstd.handle(), C.double(eps)))
}

// RMSNormBackward writes those heads of dx, and adds to dw [D] unless it is nil; dx
// may be dy.
func RMSNormBackward(x, w, rstd, dy, dx, dw *Tensor, first, n int) {
	try("RMSNormBackward", C.ssr_t_rms_backward(x.handle(), w.handle(), rstd.handle(), dy.handle(), dx.handle(), dw.handle(),
		C.int64_t(first), C.int64_t(n)))
}

// Rope rotates the first n heads of the rows of x in place, or back, as
// native.Rope does; cos and sin are [positions, D/2].
func Rope(x *Tensor, n, dim int, positions, cos, sin *Tensor, inverse bool) {
	flag := map[bool]C.int{true: 1}
	try("Rope", C.ssr_t_rope(x.handle(), C.int64_t(n), C.int64_t(dim), positions.handle(), cos.handle(), sin.handle(), flag[inverse]))
}

// SwiGLU computes y [R, C] = silu(gate)∘up of rows [gate | up].
func SwiGLU(gateUp, y *Tensor) { try("SwiGLU", C.ssr_t_swiglu(gateUp.handle(), y.handle())) }

// SwiGLUBackward replaces rows [gate | up] by their gradient, given dy [R, C].
func SwiGLUBackward(gateUp, dy *Tensor) {
	try("SwiGLUBackward", C.ssr_t_swiglu_backward(gateUp.handle(), dy.handle()))
}

// Attention computes out [T, H·D] of packed sequences, of which number i is tokens
// [offsets[i], offsets[i+1]) of qkv, and lse [T, H], the log of the softmax's
// denominators, unless it is nil.
func Attention(h Heads, qkv *Tensor, offsets []int32, out, lse *Tensor) {
	try("Attention", C.ssr_t_attention(h.c(), qkv.handle(), (*C.int32_t)(&offsets[0]), C.int64_t(len(offsets)-1), out.handle(), lse.handle()))
}

// AttentionBackward overwrites dqkv, given what Attention took and gave, and dout.
func AttentionBackward(h Heads, qkv, out, lse, dout *Tensor, offsets []int32, dqkv *Tensor) {
	try("AttentionBackward", C.ssr_t_attention_backward(h.c(), qkv.handle(), out.handle(), lse.handle(), dout.handle(),
		(*C.int32_t)(&offsets[0]), C.int64_t(len(offsets)-1), dqkv.handle()))
}

// Logprob gives, for each row of logits [R, V], the natural log of the softmax
// probability of its target, the entropy in nats and the logsumexp, [R] each.
func Logprob(logits, targets, logprob, entropy, lse *Tensor) {
	try("Logprob", C.ssr_t_logprob(logits.handle(), targets.handle(), logprob.handle(), entropy.handle(), lse.handle()))
}

// LogprobBackward replaces the logits by their gradient g·(onehot(target) - softmax).
func LogprobBackward(logits, targets, lse, g *Tensor) {
	try("LogprobBackward", C.ssr_t_logprob_backward(logits.handle(), targets.handle(), lse.handle(), g.handle()))
}

// SumSquares is Σ t² in double precision. It waits for the device.
func SumSquares(t *Tensor) float64 {
	var sum C.double
	try("SumSquares", C.ssr_t_squares(t.handle(), &sum))
	return float64(sum)
}

// AdamW are the constants of one step, as native.AdamW has them.
type AdamW struct {
	LR, Beta1, Beta2, Eps, WeightDecay, GradScale float64
	Step                                          int
}

// AdamWStep updates weights p with gradients g and moments m and v, vectors of one length.
func AdamWStep(o AdamW, p, g, m, v *Tensor) {
	try("AdamW", C.ssr_t_adamw(C.ssr_adamw{
		grad_scale: C.double(o.GradScale), lr: C.double(o.LR), beta1: C.double(o.Beta1), beta2: C.double(o.Beta2), eps: C.double(o.Eps),
		decay:    C.double(o.WeightDecay),
		correct1: C.double(1 - math.Pow(o.Beta1, float64(o.Step))), correct2: C.double(1 - math.Pow(o.Beta2, float64(o.Step))),
	}, p.handle(), g.handle(), m.handle(), v.handle()))
}

// Lerp moves mean towards x by the given part of the way.
func Lerp(mean, x *Tensor, weight float64) {
	try("Lerp", C.ssr_t_lerp(mean.handle(), x.handle(), C.double(weight)))
}

// A cache is a vector of blocks [K, 2, block, D] of keys and values, the layout that
// kernels/cuda has too.

// CacheAppend writes the keys and values of the rows of qkv to their slots [T]:
// number of the block · block + place in it.
func CacheAppend(h Heads, qkv, slots, cache *Tensor, block int) {
	try("CacheAppend", C.ssr_t_cache_append(h.c(), qkv.handle(), slots.handle(), cache.handle(), C.int64_t(block)))
}

// AttentionExtend computes the given rows of out, new tokens of one sequence of which
// past are in the cache beside them. pages [n] are the blocks that hold its tokens from
// base on, as far as any of the rows sees.
func AttentionExtend(h Heads, qkv *Tensor, row, rows, past int, pages *Tensor, base int, cache *Tensor, block int, out *Tensor) {
	try("AttentionExtend", C.ssr_t_attention_extend(h.c(), qkv.handle(), C.int64_t(row), C.int64_t(rows), C.int64_t(past), pages.handle(),
		C.int64_t(base), cache.handle(), C.int64_t(block), out.handle()))
}

// AttentionDecode computes the rows [S] of out, one new token of each sequence. pages
// [S·n] are n blocks of each, which hold its tokens from base [S] on; blocks beyond its
// length [S] may be any.
func AttentionDecode(h Heads, qkv, rows, pages, base, length, cache *Tensor, block int, out *Tensor) {
	try("AttentionDecode", C.ssr_t_attention_decode(h.c(), qkv.handle(), rows.handle(), pages.handle(), base.handle(), length.handle(),
		cache.handle(), C.int64_t(block), out.handle()))
}

// Draw is how one row is sampled, as native.Sampling says, at U in [0, 1).
type Draw struct {
	Temperature, TopP, MinP float64
	TopK                    int
	U                       float64
}

// Sample draws a token for each row of logits [R, V] as native.Sample does: the same
// one, unless a sum falls within rounding of a boundary. token is -1 for a row with a
// NaN or no finite maximum. It waits for the device.
func Sample(logits *Tensor, draws []Draw) (token []int32, logprob, sampled []float32) {
	n, vocab := len(draws), float64(logits.shape[1])
	host := CPU.alloc(Activations, Float64, []int{6, n})
	defer host.Free()
	at := Data[float64](host)
	filter := C.int(0)
	for i, d := range draws {
		column := [6]float64{d.Temperature, vocab, math.Inf(1), d.MinP, d.U, 0}
		if d.Temperature == 0 {
			column = [6]float64{1, vocab, math.Inf(1), 0, 0, 1}
		} else {
			if d.TopK > 0 && float64(d.TopK) < vocab {
				column[1] = float64(d.TopK)
			}
			if d.TopP > 0 && d.TopP < 1 {
				column[2] = d.TopP
			}
			if column[1] < vocab || column[2] < 1 || d.MinP > 0 {
				filter = 1
			}
		}
		for j, v := range column {
			at[j*n+i] = v
		}
	}
	shape := logits.device.alloc(Activations, Float64, []int{6, n})
	defer shape.Free()
	Copy(shape, host)
	out := logits.device.alloc(Activations, Float32, []int{2, n})
	defer out.Free()
	lp, slp := out.View(0, n), out.View(n, n)
	defer lp.Free()
	defer slp.Free()
	ids := logits.device.alloc(Activations, Int64, []int{n})
	defer ids.Free()
	try("Sample", C.ssr_t_sample(logits.handle(), shape.handle(), filter, ids.handle(), lp.handle(), slp.handle()))
	both, drawn := out.OnCPU(), ids.OnCPU()
	defer both.Free()
	defer drawn.Free()
	token = make([]int32, n)
	for i, id := range hostInts(drawn) {
		token[i] = int32(id)
	}
	values := slices.Clone(Data[float32](both))
	return token, values[:n], values[n:]
}
