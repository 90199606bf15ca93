package torch

import (
	"fmt"
	"slices"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// DType is an element type; the values are libtorch's own codes.
type DType int32

const (
	Float32  DType = 6
	Float64  DType = 7
	BFloat16 DType = 15
	// Int64 is of indices alone; see Device.Indices.
	Int64 DType = 4
)

// Size is the bytes of one element.
func (d DType) Size() int {
	switch d {
	case Float32:
		return 4
	case Float64, Int64:
		return 8
	case BFloat16:
		return 2
	}
	panic(fmt.Sprintf("torch: unknown dtype %d", d))
}

func (d DType) String() string {
	switch d {
	case Float32:
		return "float32"
	case Float64:
		return "float64"
	case BFloat16:
		return "bfloat16"
	case Int64:
		return "int64"
	}
	return fmt.Sprintf("dtype(%d)", int32(d))
}

// Tensor is a handle to elements in memory: one that owns them (New), or a view
// of another's. Memory lives until its last handle is freed.
type Tensor struct {
	c      lib.Ctensor
	data   unsafe.Pointer
	dtype  DType
	device Device
	shape  []int
	stride []int
	offset int      // of the first element in the storage
	owned  *account // nil for a view
}

// New allocates a tensor of zeros on the CPU, counted under purpose until Free.
func New(purpose Purpose, dtype DType, shape ...int) *Tensor {
	return CPU.New(purpose, dtype, shape...)
}

// Free drops the handle; a second call is a broken invariant and panics.
func (t *Tensor) Free() {
	if t.c == nil {
		panic("torch: tensor freed twice")
	}
	lib.AtFree(t.c)
	t.owned.close()
	t.c, t.data = nil, nil
}

func (t *Tensor) DType() DType   { return t.dtype }
func (t *Tensor) Device() Device { return t.device }

// Shape must not be modified.
func (t *Tensor) Shape() []int { return t.shape }

// Len is the number of elements.
func (t *Tensor) Len() int { return elements("Len", t.shape) }

// Dense says whether the elements are contiguous in row-major order.
func (t *Tensor) Dense() bool { return slices.Equal(t.stride, dense(t.shape)) }

// Same says whether two tensors begin at the same place of one device's memory.
func (t *Tensor) Same(other *Tensor) bool { return t.device == other.device && t.data == other.data }

func (t *Tensor) String() string {
	if t.device != CPU {
		return fmt.Sprintf("%v%v on %v", t.dtype, t.shape, t.device)
	}
	return fmt.Sprintf("%v%v", t.dtype, t.shape)
}

// View is the tensor's memory from element offset on, in another shape with
// dense rows. The tensor must be dense.
func (t *Tensor) View(offset int, shape ...int) *Tensor {
	n := elements("View", shape)
	if !t.Dense() || offset < 0 || offset+n > t.Len() {
		failf("View", "%v at %d of %v with strides %v", shape, offset, t, t.stride)
	}
	return t.strided(offset, shape, dense(shape))
}

// Rows is the view of rows [lo, hi) of a matrix, or of elements of a vector.
func (t *Tensor) Rows(lo, hi int) *Tensor {
	if lo < 0 || hi < lo || hi > t.shape[0] {
		failf("Rows", "[%d, %d) of %v", lo, hi, t)
	}
	shape := append([]int{hi - lo}, t.shape[1:]...)
	return t.strided(lo*t.stride[0], shape, t.stride)
}

// Columns is the view of columns [lo, hi) of a matrix.
func (t *Tensor) Columns(lo, hi int) *Tensor {
	if len(t.shape) != 2 || lo < 0 || hi < lo || hi > t.shape[1] {
		failf("Columns", "[%d, %d) of %v", lo, hi, t)
	}
	return t.strided(lo*t.stride[1], []int{t.shape[0], hi - lo}, t.stride)
}

// T is the transposed view of a matrix.
func (t *Tensor) T() *Tensor {
	if len(t.shape) != 2 {
		failf("T", "%v is not a matrix", t)
	}
	return t.strided(0, []int{t.shape[1], t.shape[0]}, []int{t.stride[1], t.stride[0]})
}

// strided views the storage at an offset in elements from t's first.
func (t *Tensor) strided(offset int, shape, stride []int) *Tensor {
	sizes, strides := int64s(shape), int64s(stride)
	c := call("as_strided", func(out *lib.Ctensor) {
		lib.AtgAsStrided(out, t.c, sizes, len(sizes), strides, len(strides), int64(t.offset+offset), 0)
	})
	return &Tensor{
		c: c, data: unsafe.Add(t.data, offset*t.dtype.Size()), dtype: t.dtype, device: t.device,
		shape: slices.Clone(shape), stride: slices.Clone(stride), offset: t.offset + offset,
	}
}

// as views a dense vector's memory as one of smaller elements.
func (t *Tensor) as(dtype DType) *Tensor {
	c := call("view", func(out *lib.Ctensor) { lib.AtgViewDtype(out, t.c, int32(dtype)) })
	by := t.dtype.Size() / dtype.Size()
	return &Tensor{c: c, data: t.data, dtype: dtype, device: t.device, shape: []int{t.Len() * by}, stride: []int{1}, offset: t.offset * by}
}

// Data is the memory of a dense tensor as a slice, for kernels/native and for
// Go. It is valid until the last handle to the memory is freed, and must not be
// kept beyond that.
func Data[F float32 | float64](t *Tensor) []F {
	if !t.Dense() {
		failf("Data", "%v has strides %v", t, t.stride)
	}
	return Memory[F](t)
}

// Memory is as Data for a tensor of any strides: the slice begins at its first
// element and reaches to its last, whatever lies between.
func Memory[F float32 | float64](t *Tensor) []F {
	t.needCPU("Data")
	if int(unsafe.Sizeof(*new(F))) != t.dtype.Size() {
		failf("Data", "%v read as elements of %d bytes", t, unsafe.Sizeof(*new(F)))
	}
	n := 1
	for i, s := range t.shape {
		if s == 0 {
			return nil
		}
		n += (s - 1) * t.stride[i]
	}
	return unsafe.Slice((*F)(t.data), n)
}

// Bytes is the memory of a dense tensor of any dtype, little-endian.
func (t *Tensor) Bytes() []byte {
	t.needCPU("Bytes")
	if !t.Dense() {
		failf("Bytes", "%v has strides %v", t, t.stride)
	}
	return unsafe.Slice((*byte)(t.data), t.Len()*t.dtype.Size())
}

// Pointer is the address of the first element in its device's memory, for kernels/cuda.
func (t *Tensor) Pointer() uintptr { return uintptr(t.data) }

// hostInts is Data of indices.
func hostInts(t *Tensor) []int64 {
	t.needCPU("Data")
	return unsafe.Slice((*int64)(t.data), t.Len())
}

func (t *Tensor) needCPU(op string) {
	if t.device != CPU {
		failf(op, "%v is not in memory that Go may read; copy it first", t)
	}
}

func int64s(s []int) []int64 {
	out := make([]int64, len(s))
	for i, v := range s {
		out[i] = int64(v)
	}
	return out
}

func dense(shape []int) []int {
	stride := make([]int, len(shape))
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		stride[i] = n
		n *= max(shape[i], 1)
	}
	return stride
}

func elements(op string, shape []int) int {
	if len(shape) == 0 {
		failf(op, "a tensor needs at least one dimension")
	}
	n := 1
	for _, s := range shape {
		if s < 0 {
			failf(op, "negative size in %v", shape)
		}
		n *= s
	}
	return n
}
