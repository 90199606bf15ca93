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

// PanelColumns is the number of columns that PackedLen rounds up to. The columns of
// a packed operand from a multiple of it on are its elements from that many times k on,
// and packed as they would be alone.
const PanelColumns = 16

// PackedLen is the length of a packed operand with n columns of k terms.
func PackedLen(k, n int) int { return (n + PanelColumns - 1) / PanelColumns * PanelColumns * k }

// Pack lays W [out, in] out for Linear; packed has PackedLen(in, out) elements.
func Pack[F Float](w []F, out, in int, packed []F) {
	needPacked("Pack", len(w), len(packed), out, in)
	rs, cs, k, n := C.long(1), C.long(in), C.long(in), C.long(out)
	if single[F]() {
		C.ssr_pack_float(f32(w), rs, cs, k, n, f32(packed))
	} else {
		C.ssr_pack_double(f64(w), rs, cs, k, n, f64(packed))
	}
}

// PackBFloat16 is Pack for LinearBFloat16: weights are rounded to bfloat16, whose bits
// packed has.
func PackBFloat16(w []float32, out, in int, packed []uint16) {
	needPacked("PackBFloat16", len(w), len(packed), out, in)
	C.ssr_pack_bfloat16(f32(w), C.long(1), C.long(in), C.long(in), C.long(out), u16(packed))
}

func needPacked(op string, weights, packed, out, in int) {
	if in <= 0 || out <= 0 || weights < in*out || packed < PackedLen(in, out) {
		panic(fmt.Sprintf("native.%s: %d weights for %d×%d, %d packed, want %d", op, weights, out, in, packed, PackedLen(in, out)))
	}
}

// Linear computes y[R, n] = x[R, k]·Wᵀ + bias for a packed W [n, k]; bias may be
// nil; with add it adds to y instead. Strides of 0 mean dense rows.
func Linear[F Float](x, packed, bias []F, rows, k, n, ldx, ldy int, y []F, add bool) {
	lx, ly, a := needLinear("Linear", x, bias, len(packed), rows, k, n, ldx, ldy, y, add)
	M, N, K := C.long(rows), C.long(n), C.long(k)
	if single[F]() {
		C.ssr_linear_float(f32(x), lx, f32(packed), f32(bias), M, N, K, f32(y), ly, a)
	} else {
		C.ssr_linear_double(f64(x), lx, f64(packed), f64(bias), M, N, K, f64(y), ly, a)
	}
}

// LinearBFloat16 is Linear with the weights of PackBFloat16: half the memory is read,
// and the bits are those that Linear gives with weights so rounded.
func LinearBFloat16(x []float32, packed []uint16, bias []float32, rows, k, n, ldx, ldy int, y []float32, add bool) {
	lx, ly, a := needLinear("LinearBFloat16", x, bias, len(packed), rows, k, n, ldx, ldy, y, add)
	C.ssr_linear_bfloat16(f32(x), lx, u16(packed), f32(bias), C.long(rows), C.long(n), C.long(k), f32(y), ly, a)
}

// needLinear checks a product's operands and gives the strides and the flag as C has them.
func needLinear[F Float](op string, x, bias []F, packed, rows, k, n, ldx, ldy int, y []F, add bool) (lx, ly C.long, a C.int) {
	ldx, ldy = stridden(ldx, k), stridden(ldy, n)
	need(op, "x", x, rows, ldx, k)
	need(op, "y", y, rows, ldy, n)
	if packed < PackedLen(k, n) {
		panic(fmt.Sprintf("native.%s: packed has %d elements, want %d", op, packed, PackedLen(k, n)))
	}
	if bias != nil {
		need(op, "bias", bias, 1, n, n)
	}
	if add {
		a = 1
	}
	return C.long(ldx), C.long(ldy), a
}
