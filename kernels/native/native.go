// Package native holds the CPU kernels that libtorch lacks or does not promise
// enough about: causal attention over packed sequences and over a KV cache,
// the row-wise operations of a transformer, AdamW and token sampling. It is
// plain C++ with no dependency, compiled for several instruction sets, of which
// the best one that the processor has is chosen at start.
//
// The contract of every kernel is batch invariance: the arithmetic of a row is
// the same sequence of operations however many rows are computed together, so
// that a token scored alone, in a batch, packed, or through the cache has the
// same bits. "avx512" and "avx2" have the same bits, too: an element of a product
// adds its terms in ascending order with one fused multiply-add each, and a sum over
// a row has the partial sums of avx2's eight lanes (four of float64) and joins them
// in its order. "base" has no fused multiply-add and differs in the last bits.
//
// Kernels run on the calling thread and are safe for concurrent use on disjoint
// outputs; parallelism is the caller's. Slices may be Go memory or memory of
// libtorch (unsafe.Slice). Wrong lengths panic.
//
// Legend: N tokens, R rows, H query heads, K key heads, D head dimension,
// V vocabulary.
package native

// #cgo CXXFLAGS: -std=gnu++17 -O3 -Wno-psabi
// #include "api.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// Float is an element type that every kernel is compiled for.
type Float interface{ float32 | float64 }

// ISA names the instruction set in use: "avx512" (F, BW, DQ, VL), "avx2" (with FMA)
// or "base".
func ISA() string { return C.GoString(C.ssr_isa()) }

func forceISA(name string) bool {
	c := append([]byte(name), 0)
	return C.ssr_force_isa((*C.char)(unsafe.Pointer(&c[0]))) != 0
}

func f32[F Float](s []F) *C.float   { return (*C.float)(unsafe.Pointer(unsafe.SliceData(s))) }
func f64[F Float](s []F) *C.double  { return (*C.double)(unsafe.Pointer(unsafe.SliceData(s))) }
func i32(s []int32) *C.int32_t      { return (*C.int32_t)(unsafe.Pointer(unsafe.SliceData(s))) }
func u16(s []uint16) *C.uint16_t    { return (*C.uint16_t)(unsafe.Pointer(unsafe.SliceData(s))) }
func single[F Float]() bool         { return unsafe.Sizeof(*new(F)) == 4 }
func pick(stride, dense int) C.long { return C.long(stridden(stride, dense)) }

func stridden(stride, dense int) int {
	if stride == 0 {
		return dense
	}
	return stride
}

// need panics unless a slice holds rows of width w at the given stride.
func need[F Float](op, name string, s []F, rows, stride, w int) {
	if rows < 0 || stride < w {
		panic(fmt.Sprintf("native.%s: %s: %d rows of width %d at stride %d", op, name, rows, w, stride))
	}
	if rows > 0 && len(s) < (rows-1)*stride+w {
		panic(fmt.Sprintf("native.%s: %s has %d elements, want %d rows of width %d at stride %d", op, name, len(s), rows, w, stride))
	}
}

func needIDs(op, name string, s []int32, n, limit int) {
	if len(s) < n {
		panic(fmt.Sprintf("native.%s: %s has %d entries, want %d", op, name, len(s), n))
	}
	for i, id := range s[:n] {
		if id < 0 || int(id) >= limit {
			panic(fmt.Sprintf("native.%s: %s[%d] = %d is outside [0, %d)", op, name, i, id, limit))
		}
	}
}
