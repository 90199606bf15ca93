//go:build gpu

package torch

import "unsafe"

// Address is where element i of a dense vector is, in the memory of its device; it is
// for libraries that work on that memory, such as NCCL.
func (t *Tensor) Address(i int) unsafe.Pointer {
	if len(t.shape) != 1 || !t.Dense() || i < 0 || i >= t.shape[0] {
		failf("Address", "element %d of %v with strides %v", i, t, t.stride)
	}
	return unsafe.Add(t.data, i*t.dtype.Size())
}
