package model

import (
	"math"

	"github.com/ssr-go/ssr/kernels/torch"
)

// A bfloat16 policy computes in float32 and rounds where the reference
// implementation stores a bfloat16 tensor. Its row operations store some in the
// middle, so they are written here step by step; speed is not their point.

func bf16(v float32) float32 { return math.Float32frombits(uint32(toBF16(v)) << 16) }

// rmsBF16 rounds the normalised row before the weight is applied. Rows are at a
// stride in x and y, 0 for dense. rstd [rows] may be nil.
func rmsBF16(x, w []float32, rows, stride int, eps float64, y, rstd []float32) {
	if stride == 0 {
		stride = len(w)
	}
	for row := range rows {
		src, dst := x[row*stride:][:len(w)], y[row*stride:][:len(w)]
		sum := float32(0)
		for _, v := range src {
			sum += v * v
		}
		r := float32(1 / math.Sqrt(float64(sum/float32(len(w)))+eps))
		if rstd != nil {
			rstd[row] = r
		}
		for i, v := range src {
			dst[i] = bf16(w[i] * bf16(v*r))
		}
	}
}

// swigluBF16 rounds silu(gate) before it is multiplied.
func swigluBF16(gateUp, act *torch.Tensor) {
	d := act.Shape()[1]
	src, dst := torch.Data[float32](gateUp), torch.Data[float32](act)
	for ; len(src) > 0; src, dst = src[2*d:], dst[d:] {
		for i := range d {
			g := src[i]
			dst[i] = bf16(bf16(g/(1+float32(math.Exp(float64(-g))))) * src[d+i])
		}
	}
}

// rotateBF16 rounds both products of a rotation and then their sum. heads are
// the first of each row of x.
func rotateBF16(x []float32, positions []int32, cos, sin []float32, heads, dim, width int) {
	half := dim / 2
	for row, pos := range positions {
		c, s := cos[int(pos)*half:][:half], sin[int(pos)*half:][:half]
		for h := range heads {
			v := x[row*width+h*dim:][:dim]
			for i := range half {
				a, b := v[i], v[half+i]
				v[i] = bf16(bf16(a*c[i]) + bf16(-b*s[i]))
				v[half+i] = bf16(bf16(b*c[i]) + bf16(a*s[i]))
			}
		}
	}
}
