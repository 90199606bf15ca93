// Package torch is the project's only binding to libtorch's tensors: a small Tensor
// over gotch's libtch, with the few operations that the policy needs, memory that is
// freed by scope, and bytes counted by purpose.
//
// Tensors here are dense float matrices and vectors on a Device. Nothing builds
// an autograd graph: the model writes its own backward pass. What libtorch does
// not have, or does not promise enough about, is for the CPU in kernels/native, which
// works on the same memory (see Data). On other devices everything is an operation of
// this package: those of a transformer are in transformer.go.
//
// Wrong shapes and failures of libtorch panic with *Error. A caller that faces
// users turns them into an error with Catch.
//
// An operation runs on the calling thread, uses that one thread, and is safe
// for concurrent use on disjoint outputs.
package torch

// #cgo CXXFLAGS: -std=c++17
// #cgo LDFLAGS: -ltorch_cpu -lc10 -ldl
// #include "shim.h"
// #include <stdlib.h>
import "C"

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

func init() {
	// Parallelism is the caller's (one worker per core): libgomp's spinning
	// barriers cost a small model a factor of four, and a product split over
	// threads would not have the same bits on another machine.
	C.ssr_torch_threads(1)
}

// Version is libtorch's, for instance "2.6.0".
func Version() string { return C.GoString(C.ssr_torch_version()) }

// lacks names what gotch calls and this libtorch does not have as gotch calls it.
func lacks() []string { return strings.Fields(C.GoString(C.ssr_torch_lacks())) }

// threads is how many threads libtorch spreads an operation over.
func threads() int { return int(C.ssr_torch_get_threads()) }

// Error is a failed operation.
type Error struct {
	Op     string
	Detail string
}

func (e *Error) Error() string { return "torch: " + e.Op + ": " + e.Detail }

// Catch, deferred, turns a panic with *Error into *err; other panics go on.
func Catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case *Error:
		*err = r
	default:
		panic(r)
	}
}

func failf(op, format string, args ...any) {
	panic(&Error{Op: op, Detail: fmt.Sprintf(format, args...)})
}

// call runs one libtch function and checks its error at once. The last error is
// thread-local, so the goroutine must not move in between.
func call(op string, f func(out *lib.Ctensor)) lib.Ctensor {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out lib.Ctensor
	f(&out)
	check(op)
	return out
}

// check panics with the error that the last libtch call on this thread left.
func check(op string) {
	if msg := lib.GetAndResetLastErr(); msg != nil {
		detail := C.GoString((*C.char)(unsafe.Pointer(msg)))
		C.free(unsafe.Pointer(msg))
		failf(op, "%s", detail)
	}
}

// inPlace runs an operation that writes into one of its operands and returns
// another handle to it, which is dropped.
func inPlace(op string, f func(out *lib.Ctensor)) { lib.AtFree(call(op, f)) }

// locked is call for a function that returns nothing.
func locked(op string, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
	check(op)
}
