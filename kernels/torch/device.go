package torch

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	lib "github.com/sugarme/gotch/libtch"
)

// Device is where tensors have their elements.
type Device int32

const (
	// CPU is memory of this process, which Data gives to Go and to kernels/native.
	CPU Device = iota
	// Generic is memory of this process too, but treated like that of a GPU: Data
	// refuses it, only libtorch's operations reach it. It proves on any machine what
	// runs on CUDA devices.
	Generic
	firstCUDA
)

// CUDA is the GPU of that number.
func CUDA(number int) Device { return firstCUDA + Device(number) }

// ParseDevice reads "cpu" (or ""), "generic", "cuda" or "cuda:1".
func ParseDevice(name string) (Device, error) {
	switch name {
	case "", "cpu":
		return CPU, nil
	case "generic":
		return Generic, nil
	case "cuda":
		return CUDA(0), nil
	}
	if number, ok := strings.CutPrefix(name, "cuda:"); ok {
		if n, err := strconv.ParseUint(number, 10, 8); err == nil {
			return CUDA(int(n)), nil
		}
	}
	return CPU, fmt.Errorf("no device %q; there are cpu, generic and cuda:0, cuda:1, …", name)
}

// GPU is the number of a CUDA device; ok is false for the others.
func (d Device) GPU() (number int, ok bool) { return int(d - firstCUDA), d >= firstCUDA }

func (d Device) String() string {
	switch {
	case d == CPU:
		return "cpu"
	case d == Generic:
		return "generic"
	}
	return fmt.Sprintf("cuda:%d", d-firstCUDA)
}

// index is libtorch's number of the device.
func (d Device) index() int32 {
	if n, ok := d.GPU(); ok {
		return int32(n)
	}
	return -1
}

// New is the package's New, on the device.
func (d Device) New(purpose Purpose, dtype DType, shape ...int) *Tensor {
	t := d.alloc(purpose, dtype, shape)
	t.Zero()
	return t
}

// Empty is New of undefined content.
func (d Device) Empty(purpose Purpose, dtype DType, shape ...int) *Tensor {
	return d.alloc(purpose, dtype, shape)
}

// NewArena is the package's NewArena, of memory on the device.
func (d Device) NewArena(purpose Purpose, dtype DType) *Arena {
	return &Arena{books: Meter{dtype: dtype}, device: d, purpose: purpose}
}

// Indices copies whole numbers to the device, as a vector for operations that take
// indices. The caller frees it.
func (d Device) Indices(of []int32) *Tensor {
	t := d.alloc(Activations, Int64, []int{len(of)})
	if len(of) == 0 {
		return t
	}
	host := CPU.alloc(Activations, Int64, []int{len(of)})
	defer host.Free()
	at := hostInts(host)
	for i, v := range of {
		at[i] = int64(v)
	}
	Copy(t, host)
	return t
}

// OnCPU is the tensor where Data can read it: a copy, dense, that the caller frees.
func (t *Tensor) OnCPU() *Tensor {
	host := CPU.alloc(Activations, t.dtype, t.shape)
	Copy(host, t)
	return host
}

func (d Device) alloc(purpose Purpose, dtype DType, shape []int) *Tensor {
	sizes, n := int64s(shape), elements("New", shape)
	c := call("empty", func(out *lib.Ctensor) { lib.AtgEmpty(out, sizes, len(sizes), int32(dtype), d.index()) })
	t := &Tensor{
		c: c, data: lib.AtDataPtr(c), dtype: dtype, device: d, shape: slices.Clone(shape), stride: dense(shape),
		owned: newAccount(purpose, int64(n)*int64(dtype.Size())),
	}
	if _, gpu := d.GPU(); !gpu {
		largePages(t.data, uintptr(t.owned.bytes))
	}
	return t
}
