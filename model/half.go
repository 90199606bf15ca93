package model

import (
	"math"
	"unsafe"

	"github.com/ssr-go/ssr/kernels/torch"
)

// halves is the memory of a dense bfloat16 tensor, as bits.
func halves(t *torch.Tensor) []uint16 {
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(t.Bytes()))), t.Len())
}

// roundBF16 rounds each element to the nearest bfloat16, ties to even.
func roundBF16(x []float32) {
	for i, v := range x {
		x[i] = math.Float32frombits(uint32(toBF16(v)) << 16)
	}
}

// toBF16 gives the bits of the nearest bfloat16.
func toBF16(v float32) uint16 {
	b := math.Float32bits(v)
	if v != v {
		return uint16(b>>16) | 0x40 // a NaN stays one
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// fromFloat16 decodes an IEEE half.
func fromFloat16(b uint16) float64 {
	exponent, fraction := int(b>>10&31), float64(b&1023)
	var v float64
	switch exponent {
	case 0:
		v = math.Ldexp(fraction, -24)
	case 31:
		v = math.Inf(1)
		if fraction != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(1024+fraction, exponent-25)
	}
	if b>>15 != 0 {
		v = -v
	}
	return v
}
