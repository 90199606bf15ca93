package torch

// #include "shim.h"
import "C"

import lib "github.com/sugarme/gotch/libtch"

// MatMul computes out = a @ b; a is [m, k], b [k, n], out [m, n]. Any of them
// may be a view with strides.
func MatMul(out, a, b *Tensor) {
	needProduct("MatMul", out, a, b)
	inPlace("mm", func(c *lib.Ctensor) { lib.AtgMmOut(c, out.c, a.c, b.c) })
}

// AddMatMul computes out += a @ b, with the shapes of MatMul.
func AddMatMul(out, a, b *Tensor) {
	needProduct("AddMatMul", out, a, b)
	inPlace("addmm", func(c *lib.Ctensor) { lib.AtgAddmmOut(c, out.c, out.c, a.c, b.c) })
}

func needProduct(op string, out, a, b *Tensor) {
	ok := len(out.shape) == 2 && len(a.shape) == 2 && len(b.shape) == 2 &&
		a.shape[1] == b.shape[0] && out.shape[0] == a.shape[0] && out.shape[1] == b.shape[1] &&
		a.dtype == b.dtype && out.dtype == a.dtype
	if !ok {
		failf(op, "%v = %v @ %v", out, a, b)
	}
}

// Copy converts src into dst, element by element; the shapes are equal, the
// dtypes may differ.
func Copy(dst, src *Tensor) {
	needSame("Copy", dst, src)
	locked("copy_", func() { lib.AtCopy_(dst.c, src.c) })
}

// Add computes t += other.
func (t *Tensor) Add(other *Tensor) {
	needSame("Add", t, other)
	inPlace("add_", func(c *lib.Ctensor) { lib.AtgAdd_(c, t.c, other.c) })
}

// Zero sets every element to 0.
func (t *Tensor) Zero() {
	inPlace("zero_", func(c *lib.Ctensor) { lib.AtgZero_(c, t.c) })
}

// Normal draws every element from a normal distribution around 0, by libtorch's
// generator of the tensor's device, begun with the seed, of which a CPU's takes the low
// half. Another device or libtorch may draw other values.
func (t *Tensor) Normal(std float64, seed uint64) {
	try("Normal", C.ssr_torch_normal(t.handle(), C.double(std), C.ulonglong(seed)))
}

func needSame(op string, a, b *Tensor) {
	if len(a.shape) != len(b.shape) {
		failf(op, "%v with %v", a, b)
	}
	for i := range a.shape {
		if a.shape[i] != b.shape[i] {
			failf(op, "%v with %v", a, b)
		}
	}
}
