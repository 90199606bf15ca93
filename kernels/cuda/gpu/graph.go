//go:build gpu

package gpu

// #include "graph.h"
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/cuda"
)

var _ cuda.Recorder = (*Machine)(nil)

// graph is a CUDA graph of libtorch's.
type graph struct {
	m *Machine
	c unsafe.Pointer
}

// Record runs f, and records it again, on a stream that is for recording.
func (m *Machine) Record(f func() error) (r cuda.Recording, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := &graph{m: m}
	if err := m.told("graph", C.ssr_graph_open(C.int(m.device), &g.c)); err != nil {
		return nil, err
	}
	defer func() { // f may panic
		err = errors.Join(err, m.told("graph", C.ssr_graph_end(g.c)))
		if r == nil || err != nil {
			g.Free()
			r = nil
		}
	}()
	if err := f(); err != nil {
		return nil, err
	}
	if err := m.told("graph", C.ssr_graph_begin(g.c)); err != nil {
		return nil, err
	}
	if err := f(); err != nil {
		return nil, err
	}
	return g, nil
}

// Replay queues the graph on libtorch's current stream.
func (g *graph) Replay() error {
	return g.m.on(func(cu.Stream) error { return g.m.told("graph", C.ssr_graph_replay(g.c)) })
}

func (g *graph) Free() { C.ssr_graph_free(g.c) }

// told is the error that C tells of, nil for none.
func (m *Machine) told(what string, why *C.char) error {
	if why == nil {
		return nil
	}
	defer C.free(unsafe.Pointer(why))
	return fmt.Errorf("gpu: device %d: %s: %s", m.device, what, C.GoString(why))
}
