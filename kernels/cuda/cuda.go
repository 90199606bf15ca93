// Package cuda holds the project's CUDA kernels: their sources (src), and for each
// a Go function that lays out its launch. It is pure Go. What runs a launch is a
// Machine: kernels/cuda/gpu compiles the sources with NVRTC and runs them on a GPU,
// on libtorch's stream and memory; kernels/cuda/emulate compiles the same sources
// as C++ and runs them on the CPU, slowly, to prove them where there is no GPU.
// kernels/cuda/cudatest is the suite that both pass, with a plain reference in Go
// for every kernel. The CPU's own kernels, which do this work where there is no
// GPU, are in kernels/native.
//
// Every kernel is deterministic and batch invariant: a row has the same bits
// whatever else is in the launch.
//
// Legend: T tokens, R rows, D width or head dimension, H query heads, K key heads,
// V vocabulary. Matrices are dense, row by row.
package cuda

import (
	"fmt"
	"math"
)

// Pointer is an address in a Machine's memory; 0 is none.
type Pointer uint64

// At is the address n elements of the given size further on.
func (p Pointer) At(n, size int) Pointer { return p + Pointer(n*size) }

// Machine runs kernels. It is used by one goroutine at a time.
type Machine interface {
	// Alloc returns memory of undefined content, aligned for any kernel.
	Alloc(bytes int) (Pointer, error)
	Free(Pointer)
	// Upload and Download copy between host and machine, in order with launches,
	// and return when the host's memory can be used again.
	Upload(to Pointer, from []byte) error
	Download(to []byte, from Pointer) error
	// Launch queues a kernel; it runs after what was queued before.
	Launch(Launch) error
}

// Launch is a kernel, its grid of blocks, and its arguments.
type Launch struct {
	Kernel string
	// Grid counts blocks; a block is Threads in a row, whole warps of 32.
	Grid    [3]int
	Threads int
	// Shared is bytes of dynamic shared memory for each block.
	Shared int
	Args   []Arg
}

// Arg is one parameter of a kernel: its bytes, little-endian, and how many.
type Arg struct {
	Bits uint64
	Size uint8
}

func ptr(p Pointer) Arg { return Arg{uint64(p), 8} }
func i32(v int) Arg     { return Arg{uint64(uint32(int32(v))), 4} }
func f32(v float64) Arg { return Arg{uint64(math.Float32bits(float32(v))), 4} }
func f64(v float64) Arg { return Arg{math.Float64bits(v), 8} }
func ceil(a, b int) int { return (a + b - 1) / b }
func warps(n int) int   { return min(max(ceil(n, 32)*32, 32), maxThreads) }

// maxThreads is the largest block used: enough to hide latency, and every GPU
// since compute capability 7.0 holds several.
const maxThreads = 256

// DType is the type of a kernel's elements; sums are float32 or wider.
type DType int

const (
	F32 DType = iota
	BF16
)

func (d DType) String() string { return [...]string{"f32", "bf16"}[d] }

// to is in the name of a kernel whose result is of another type.
func (d DType) to(out DType) string {
	if out == d {
		return d.String()
	}
	return d.String() + "_" + out.String()
}

// Size is the bytes of an element.
func (d DType) Size() int { return [...]int{4, 2}[d] }

// check panics where a launch would not make sense: a broken invariant.
func check(kernel string, ok bool, format string, args ...any) {
	if !ok {
		panic("cuda." + kernel + ": " + fmt.Sprintf(format, args...))
	}
}
