package native

// #include "api.h"
import "C"

import "fmt"

// RMSNorm computes y = w∘x/sqrt(mean(x²)+eps) for R rows of width D at strides
// ldx and ldy (0 for dense), and rstd[R] for the backward pass (nil to skip).
func RMSNorm[F Float](x, w []F, rows, ldx, ldy int, eps float64, y, rstd []F) {
	const op = "RMSNorm"
	d := len(w)
	ldx, ldy = stridden(ldx, d), stridden(ldy, d)
	need(op, "x", x, rows, ldx, d)
	need(op, "y", y, rows, ldy, d)
	if rstd != nil {
		need(op, "rstd", rstd, rows, 1, 1)
	}
	r, D, lx, ly := C.long(rows), C.long(d), C.long(ldx), C.long(ldy)
	if single[F]() {
		C.ssr_rmsnorm_float(f32(x), f32(w), r, D, lx, ly, C.double(eps), f32(y), f32(rstd))
	} else {
		C.ssr_rmsnorm_double(f64(x), f64(w), r, D, lx, ly, C.double(eps), f64(y), f64(rstd))
	}
}

// RMSNormBackward overwrites dx (stride of x) and adds to dw[D]. dx may be dy
// when their strides are the same.
func RMSNormBackward[F Float](x, w, rstd, dy []F, rows, ldx, ldy int, dx, dw []F) {
	const op = "RMSNormBackward"
	d := len(w)
	ldx, ldy = stridden(ldx, d), stridden(ldy, d)
	need(op, "x", x, rows, ldx, d)
	need(op, "dx", dx, rows, ldx, d)
	need(op, "dy", dy, rows, ldy, d)
	need(op, "dw", dw, 1, d, d)
	need(op, "rstd", rstd, rows, 1, 1)
	r, D, lx, ly := C.long(rows), C.long(d), C.long(ldx), C.long(ldy)
	if single[F]() {
		C.ssr_rmsnorm_backward_float(f32(x), f32(w), f32(rstd), f32(dy), r, D, lx, ly, f32(dx), f32(dw))
	} else {
		C.ssr_rmsnorm_backward_double(f64(x), f64(w), f64(rstd), f64(dy), r, D, lx, ly, f64(dx), f64(dw))
	}
}

// Rope rotates x [R, heads, D] (row stride ldx, 0 for dense) in place by the
// angles of each row's position, halves convention of Hugging Face: element i
// pairs with i + D/2. cos and sin are [positions, D/2].
func Rope[F Float](x []F, positions []int32, cos, sin []F, heads, dim, ldx int) {
	rope(x, positions, cos, sin, heads, dim, ldx, 1)
}

// RopeInverse undoes Rope; it is also its gradient.
func RopeInverse[F Float](x []F, positions []int32, cos, sin []F, heads, dim, ldx int) {
	rope(x, positions, cos, sin, heads, dim, ldx, -1)
}

func rope[F Float](x []F, positions []int32, cos, sin []F, heads, dim, ldx int, sign float64) {
	const op = "Rope"
	if dim <= 0 || dim%2 != 0 || len(cos) != len(sin) {
		panic(fmt.Sprintf("native.Rope: dimension %d, %d cosines, %d sines", dim, len(cos), len(sin)))
	}
	ldx = stridden(ldx, heads*dim)
	need(op, "x", x, len(positions), ldx, heads*dim)
	needIDs(op, "positions", positions, len(positions), len(cos)/(dim/2))
	r, h, d, l := C.long(len(positions)), C.long(heads), C.long(dim), C.long(ldx)
	if single[F]() {
		C.ssr_rope_float(f32(x), i32(positions), f32(cos), f32(sin), r, h, d, l, C.double(sign))
	} else {
		C.ssr_rope_double(f64(x), i32(positions), f64(cos), f64(sin), r, h, d, l, C.double(sign))
	}
}

// SwiGLU computes y = silu(gate)∘up for rows of width d. gate and up share the
// stride ldg, so they may be halves of one fused projection; 0 means dense.
func SwiGLU[F Float](gate, up []F, rows, d, ldg, ldy int, y []F) {
	const op = "SwiGLU"
	ldg, ldy = stridden(ldg, d), stridden(ldy, d)
	need(op, "gate", gate, rows, ldg, d)
	need(op, "up", up, rows, ldg, d)
	need(op, "y", y, rows, ldy, d)
	r, D, lg, ly := C.long(rows), C.long(d), C.long(ldg), C.long(ldy)
	if single[F]() {
		C.ssr_swiglu_float(f32(gate), f32(up), r, D, lg, ly, f32(y))
	} else {
		C.ssr_swiglu_double(f64(gate), f64(up), r, D, lg, ly, f64(y))
	}
}

// SwiGLUBackward overwrites dgate and dup (stride ldg); they may be gate and up.
func SwiGLUBackward[F Float](gate, up, dy []F, rows, d, ldg, ldy int, dgate, dup []F) {
	const op = "SwiGLUBackward"
	ldg, ldy = stridden(ldg, d), stridden(ldy, d)
	need(op, "gate", gate, rows, ldg, d)
	need(op, "up", up, rows, ldg, d)
	need(op, "dgate", dgate, rows, ldg, d)
	need(op, "dup", dup, rows, ldg, d)
	need(op, "dy", dy, rows, ldy, d)
	r, D, lg, ly := C.long(rows), C.long(d), C.long(ldg), C.long(ldy)
	if single[F]() {
		C.ssr_swiglu_backward_float(f32(gate), f32(up), f32(dy), r, D, lg, ly, f32(dgate), f32(dup))
	} else {
		C.ssr_swiglu_backward_double(f64(gate), f64(up), f64(dy), r, D, lg, ly, f64(dgate), f64(dup))
	}
}

// Logprob gives, for each row of logits [R, V] (dense), the natural log of the
// softmax probability of its target, and the entropy in nats and the logsumexp
// where those are not nil.
func Logprob[F Float](logits []F, targets []int32, vocab int, logprob, entropy, lse []F) {
	const op = "Logprob"
	n := len(targets)
	need(op, "logits", logits, n, vocab, vocab)
	needIDs(op, "targets", targets, n, vocab)
	need(op, "logprob", logprob, n, 1, 1)
	if entropy != nil {
		need(op, "entropy", entropy, n, 1, 1)
	}
	if lse != nil {
		need(op, "lse", lse, n, 1, 1)
	}
	r, v := C.long(n), C.long(vocab)
	if single[F]() {
		C.ssr_logprob_float(f32(logits), i32(targets), r, v, v, f32(logprob), f32(entropy), f32(lse))
	} else {
		C.ssr_logprob_double(f64(logits), i32(targets), r, v, v, f64(logprob), f64(entropy), f64(lse))
	}
}

// LogprobBackward replaces the logits by their gradient
// g·(onehot(target) - softmax), given lse from Logprob and g = dLoss/dLogprob [R].
func LogprobBackward[F Float](logits []F, targets []int32, vocab int, lse, g []F) {
	const op = "LogprobBackward"
	n := len(targets)
	need(op, "logits", logits, n, vocab, vocab)
	needIDs(op, "targets", targets, n, vocab)
	need(op, "lse", lse, n, 1, 1)
	need(op, "g", g, n, 1, 1)
	r, v := C.long(n), C.long(vocab)
	if single[F]() {
		C.ssr_logprob_backward_float(f32(logits), i32(targets), f32(lse), f32(g), r, v, v)
	} else {
		C.ssr_logprob_backward_double(f64(logits), i32(targets), f64(lse), f64(g), r, v, v)
	}
}

// Sampling shapes the distribution of Sample, as gen.Sampling does.
type Sampling struct {
	Temperature, TopP, MinP float64
	TopK                    int
}

// Sample draws from one row of logits by the inverse of the cumulative
// distribution in ascending id order at u in [0, 1). logprob is under the
// softmax of the logits as they are (the bits that Logprob gives), sampled under
// the distribution drawn from. token is -1 when the row holds a NaN or has
// no finite maximum.
func Sample(logits []float32, s Sampling, u float64) (token int32, logprob, sampled float32) {
	if len(logits) == 0 {
		panic("native.Sample: no logits")
	}
	var lp, slp C.float
	token = int32(C.ssr_sample(f32(logits), C.long(len(logits)), C.double(s.Temperature), C.long(s.TopK), C.double(s.TopP),
		C.double(s.MinP), C.double(u), &lp, &slp))
	return token, float32(lp), float32(slp)
}
