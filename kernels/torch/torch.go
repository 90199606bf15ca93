package torch

// #cgo CXXFLAGS: -std=c++17
// #cgo LDFLAGS: -ltorch_cpu -lc10 -ldl
// #include "shim.h"
import "C"

import lib "github.com/sugarme/gotch/libtch"

func init() {
	// Parallelism is the caller's (one worker per core): libgomp's spinning
	// barriers cost a small model a factor of four, and a product split over
	// threads would not have the same bits on another machine.
	C.ssr_torch_threads(1)
}

var _ = lib.NewTensor

// Version is libtorch's, for instance "2.6.0".
func Version() string { return C.GoString(C.ssr_torch_version()) }
