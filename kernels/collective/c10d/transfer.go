package c10d

// #include "c10d.h"
import "C"

import "unsafe"

// transfer is one operation in C's memory, which outlives it where the operation does.
type transfer struct {
	c  unsafe.Pointer
	to [][]byte // what came from each rank, once done
}

func newTransfer(send [][]byte, recv []int) (*transfer, error) {
	counts := make([]C.long, 2*len(send))
	for r := range send {
		counts[r], counts[len(send)+r] = C.long(len(send[r])), C.long(recv[r])
	}
	var from, to, why *C.char
	x := &transfer{c: C.ssr_exchange_new(C.int(len(send)), &counts[0], &counts[len(send)], &from, &to, &why)}
	if err := take(why); err != nil {
		return nil, err
	}
	cut := func(memory *C.char, n int) ([]byte, *C.char) {
		return unsafe.Slice((*byte)(unsafe.Pointer(memory)), n), (*C.char)(unsafe.Add(unsafe.Pointer(memory), n))
	}
	for r := range send {
		var piece []byte
		piece, from = cut(from, len(send[r]))
		copy(piece, send[r])
		piece, to = cut(to, recv[r])
		x.to = append(x.to, piece)
	}
	return x, nil
}

func (x *transfer) start(process unsafe.Pointer) error {
	var why *C.char
	C.ssr_exchange_start(x.c, process, &why)
	return take(why)
}

func (x *transfer) done() (bool, error) {
	var why *C.char
	done := C.ssr_exchange_done(x.c, &why)
	return done != 0, take(why)
}

func (x *transfer) free() { C.ssr_exchange_free(x.c) }
