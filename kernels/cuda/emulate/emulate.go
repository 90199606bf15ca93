// Package emulate runs the CUDA kernels of kernels/cuda/src on the CPU, compiled as
// C++: a block's threads are fibers that take turns at barriers and shuffles. It is
// for tests, and slow. What it catches: wrong arithmetic and indices; access beyond
// the end of memory (the process ends, there is a guard page); memory read before
// it is written (filled with NaNs); threads that part at a barrier; a missing
// barrier, by running the same launch in several orders. What it cannot: limits of
// the hardware, and races between blocks. It needs x86-64.
package emulate

// #cgo CXXFLAGS: -std=c++17 -O2 -I${SRCDIR}/../src
// #include "emulate.h"
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// Order is the order in which a launch's blocks and a block's threads take turns.
// Any number from 2 on is a shuffle of its own.
type Order uint64

const (
	Ascending Order = iota
	Descending
)

// Machine is memory of this process; see cuda.Machine.
type Machine struct {
	order Order
	sizes map[cuda.Pointer]int
}

var _ cuda.Machine = (*Machine)(nil)

// New returns a machine that runs launches in the given order.
func New(order Order) *Machine { return &Machine{order: order, sizes: map[cuda.Pointer]int{}} }

// Kernels lists what the emulator was compiled with.
func Kernels() (names []string) {
	for i := 0; ; i++ {
		name := C.ssr_emulate_name(C.int(i))
		if name == nil {
			return names
		}
		names = append(names, C.GoString(name))
	}
}

// Alloc returns memory filled with 0xff, a NaN in every float type.
func (m *Machine) Alloc(bytes int) (cuda.Pointer, error) {
	if bytes <= 0 {
		return 0, fmt.Errorf("emulate: %d bytes asked for", bytes)
	}
	p := C.ssr_emulate_alloc(C.size_t(bytes))
	if p == nil {
		return 0, fmt.Errorf("emulate: no memory for %d bytes", bytes)
	}
	at := cuda.Pointer(uintptr(p))
	m.sizes[at] = bytes
	return at, nil
}

// Free gives memory of Alloc back; any other address is a broken invariant.
func (m *Machine) Free(p cuda.Pointer) {
	bytes, ok := m.sizes[p]
	if !ok {
		panic(fmt.Sprintf("emulate: %#x freed, which was not allocated", p))
	}
	delete(m.sizes, p)
	C.ssr_emulate_free(address(p), C.size_t(bytes))
}

// address turns a machine's address, which is never Go memory, into a pointer. Go
// 1.26.8 does not compile a copy into which it has inlined this.
//
//go:noinline
func address(p cuda.Pointer) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

func (m *Machine) Upload(to cuda.Pointer, from []byte) error {
	copy(unsafe.Slice((*byte)(address(to)), len(from)), from)
	return nil
}

func (m *Machine) Download(to []byte, from cuda.Pointer) error {
	copy(to, unsafe.Slice((*byte)(address(from)), len(to)))
	return nil
}

// Launch runs the kernel to its end.
func (m *Machine) Launch(l cuda.Launch) error {
	name := C.CString(l.Kernel)
	defer C.free(unsafe.Pointer(name))
	dims := [6]C.uint{C.uint(l.Grid[0]), C.uint(l.Grid[1]), C.uint(l.Grid[2]), C.uint(l.Threads), 1, 1}
	values, sizes, args := make([]uint64, len(l.Args)+1), make([]C.uchar, len(l.Args)+1), make([]unsafe.Pointer, len(l.Args)+1)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&values[0])
	for i, a := range l.Args {
		values[i], sizes[i], args[i] = a.Bits, C.uchar(a.Size), unsafe.Pointer(&values[i])
	}
	why := C.ssr_emulate(name, &dims[0], C.size_t(l.Shared), &args[0], &sizes[0], C.int(len(l.Args)), C.uint64_t(m.order))
	if why != nil {
		return errors.New("emulate: " + l.Kernel + ": " + C.GoString(why))
	}
	return nil
}
