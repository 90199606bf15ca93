// Package safetensors reads and writes the safetensors file format: eight bytes
// of header length (little endian), a JSON header, and the tensors' bytes.
//
// A file is memory-mapped and validated in full when it is opened: everything
// the header claims about a tensor holds afterwards. Data is row-major and
// little endian.
package safetensors

import (
	"fmt"
	"math/bits"
)

// DType is an element type, by its name in the header.
type DType string

const (
	F64  DType = "F64"
	F32  DType = "F32"
	F16  DType = "F16"
	BF16 DType = "BF16"
	I64  DType = "I64"
	I32  DType = "I32"
	U8   DType = "U8"
)

// dtypes lists the supported types in the order in which a writer lays out
// tensors (the reference implementation's: the strictest alignment first).
var dtypes = []struct {
	name DType
	size uint64
}{{I64, 8}, {F64, 8}, {F32, 4}, {I32, 4}, {BF16, 2}, {F16, 2}, {U8, 1}}

// Size is the number of bytes of an element, 0 for a type that is not supported.
func (d DType) Size() int {
	for _, t := range dtypes {
		if t.name == d {
			return int(t.size)
		}
	}
	return 0
}

func (d DType) rank() int {
	for i, t := range dtypes {
		if t.name == d {
			return i
		}
	}
	return len(dtypes)
}

// Tensor is a named array. Data has exactly the bytes that DType and Shape ask
// for; an empty Shape is a scalar.
type Tensor struct {
	Name  string
	DType DType
	Shape []int64
	Data  []byte
}

// byteLen returns the size of a tensor, refusing what does not fit.
func byteLen(d DType, shape []int64) (uint64, error) {
	n := uint64(d.Size())
	if n == 0 {
		return 0, fmt.Errorf("dtype %q is not supported (F64, F32, F16, BF16, I64, I32, U8 are); store it as one that is", d)
	}
	zero := false
	for _, dim := range shape {
		if dim < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", shape)
		}
		if dim == 0 {
			zero = true
			continue
		}
		hi, lo := bits.Mul64(n, uint64(dim))
		if hi != 0 || lo > 1<<62 {
			return 0, fmt.Errorf("shape %v of %s overflows", shape, d)
		}
		n = lo
	}
	if zero {
		return 0, nil
	}
	return n, nil
}
