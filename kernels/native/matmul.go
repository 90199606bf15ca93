package native

// #include "api.h"
import "C"

import "fmt"

// A linear layer is y[R, Out] = x[R, In]·Wᵀ + b with W [Out, In], as Hugging Face
// stores it. Its weight is packed into panels once after every change (3 ms for
// 2 million), and the products then run at 90-99 GFLOP/s a core where OpenBLAS
// reaches 77, from four rows on.
//
// They also keep the contract of batch invariance, which OpenBLAS does not: there
// the rows of x·Wᵀ that are left over from a multiple of 12 go through another
// kernel, so that a third of their elements differ from those of a larger batch.
// Unpacked weights, as dot products in vector lanes, were tried: 50 GFLOP/s.

// panel is the number of columns that PackedLen rounds up to.
const panel = 16

// PackedLen is the length of a packed operand with n columns of k terms.
func PackedLen(k, n int) int { return (n + panel - 1) / panel * panel * k }

// Pack lays W [out, in] out for Linear computing x·Wᵀ; packed has
// PackedLen(in, out) elements.
func Pack[F Float](w []F, out, in int, packed []F) {
	doPack("Pack", w, 1, in, in, out, packed)
}

// PackTransposed lays W [out, in] out for Linear computing dy·W, the gradient of
// x; packed has PackedLen(out, in) elements.
func PackTransposed[F Float](w []F, out, in int, packed []F) {
	doPack("PackTransposed", w, in, 1, out, in, packed)
}

func doPack[F Float](op string, w []F, rs, cs, k, n int, packed []F) {
	if k <= 0 || n <= 0 || len(w) < k*n || len(packed) < PackedLen(k, n) {
		panic(fmt.Sprintf("native.%s: %d weights for %d×%d, %d packed, want %d", op, len(w), k, n, len(packed), PackedLen(k, n)))
	}
	if single[F]() {
		C.ssr_pack_float(f32(w), C.long(rs), C.long(cs), C.long(k), C.long(n), f32(packed))
	} else {
		C.ssr_pack_double(f64(w), C.long(rs), C.long(cs), C.long(k), C.long(n), f64(packed))
	}
}

// Linear computes y[R, n] = x[R, k]·B + bias for a packed B [k, n]; bias may be
// nil; with add it adds to y instead. Strides of 0 mean dense rows.
func Linear[F Float](x, packed, bias []F, rows, k, n, ldx, ldy int, y []F, add bool) {
	const op = "Linear"
	ldx, ldy = stridden(ldx, k), stridden(ldy, n)
	need(op, "x", x, rows, ldx, k)
	need(op, "y", y, rows, ldy, n)
	need(op, "packed", packed, 1, PackedLen(k, n), PackedLen(k, n))
	if bias != nil {
		need(op, "bias", bias, 1, n, n)
	}
	var a C.int
	if add {
		a = 1
	}
	M, N, K, lx, ly := C.long(rows), C.long(n), C.long(k), C.long(ldx), C.long(ldy)
	if single[F]() {
		C.ssr_linear_float(f32(x), lx, f32(packed), f32(bias), M, N, K, f32(y), ly, a)
	} else {
		C.ssr_linear_double(f64(x), lx, f64(packed), f64(bias), M, N, K, f64(y), ly, a)
	}
}

// WeightGradient adds dyᵀ·x to dw [out, in], for dy [R, out] and x [R, in] with
// row strides lddy and ldx (0 for dense). The order of addition is that of the rows.
func WeightGradient[F Float](dy, x []F, rows, out, in, lddy, ldx int, dw []F) {
	const op = "WeightGradient"
	lddy, ldx = stridden(lddy, out), stridden(ldx, in)
	need(op, "dy", dy, rows, lddy, out)
	need(op, "x", x, rows, ldx, in)
	need(op, "dw", dw, out, in, in)
	R, M, N, la, lb := C.long(rows), C.long(out), C.long(in), C.long(lddy), C.long(ldx)
	if single[F]() {
		C.ssr_outer_float(f32(dy), la, f32(x), lb, R, M, N, f32(dw), N)
	} else {
		C.ssr_outer_double(f64(dy), la, f64(x), lb, R, M, N, f64(dw), N)
	}
}
