//go:build gpu

package gpu

// #cgo CXXFLAGS: -std=c++17
// #include "stream.h"
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// Machine is one GPU: memory of libtorch's allocator, kernels on its current
// stream. It is used by one goroutine at a time; see cuda.Machine.
type Machine struct {
	device    int
	modules   []cu.Module
	functions map[string]cu.Function
	owned     map[cuda.Pointer]lib.Ctensor
}

var _ cuda.Machine = (*Machine)(nil)

// Open compiles the kernels for a device and loads them; the caller closes the machine.
func Open(device int) (*Machine, error) {
	devices, why := Devices()
	if device < 0 || device >= len(devices) {
		if why == "" {
			why = fmt.Sprintf("there are %d", len(devices))
		}
		return nil, fmt.Errorf("gpu: no GPU number %d: %s", device, why)
	}
	if info := devices[device]; info.Major < 8 {
		return nil, fmt.Errorf("gpu: device %d: the kernels need compute capability 8.0; this is %v. Leave them out with policy.kernels=libtorch", device, info)
	}
	programs, ptx, err := compiled(devices[device].Major, devices[device].Minor)
	if err != nil {
		return nil, fmt.Errorf("gpu: device %d: %w", device, err)
	}
	m := &Machine{device: device, functions: map[string]cu.Function{}, owned: map[cuda.Pointer]lib.Ctensor{}}
	err = m.on(func(cu.Stream) error {
		for i, p := range programs {
			module, err := cu.LoadData(ptx[i])
			if err != nil {
				return fmt.Errorf("%s: loading: %w", p.Name, err)
			}
			m.modules = append(m.modules, module)
			for _, name := range p.Kernels {
				if m.functions[name], err = module.Function(name); err != nil {
					return fmt.Errorf("%s: kernel %s: %w", p.Name, name, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("gpu: device %d: %w", device, err)
	}
	return m, nil
}

// Close unloads the kernels, after those that were launched. Memory stays the caller's to
// free.
func (m *Machine) Close() {
	_ = m.on(func(cu.Stream) error { // a device that fails here has failed before
		for _, module := range m.modules {
			_ = module.Unload()
		}
		return nil
	})
	m.modules, m.functions = nil, nil
}

// on runs f on a thread whose current device is the machine's, with libtorch's
// stream of that thread.
func (m *Machine) on(f func(cu.Stream) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var why *C.char
	stream := C.ssr_cuda_stream(C.int(m.device), &why)
	if why != nil {
		defer C.free(unsafe.Pointer(why))
		return errors.New(C.GoString(why))
	}
	// A cu.Stream is the driver's handle and nothing else, but cannot be made from one.
	return f(*(*cu.Stream)(unsafe.Pointer(&stream)))
}

const kByte = 0 // libtorch's code for uint8

// Alloc takes memory from libtorch's caching allocator, aligned to 512 bytes.
func (m *Machine) Alloc(bytes int) (p cuda.Pointer, err error) {
	if bytes <= 0 {
		return 0, fmt.Errorf("gpu: %d bytes asked for", bytes)
	}
	err = m.on(func(cu.Stream) error {
		var t lib.Ctensor
		lib.AtgEmpty(&t, []int64{int64(bytes)}, 1, kByte, int32(m.device))
		if msg := lib.GetAndResetLastErr(); msg != nil {
			defer C.free(unsafe.Pointer(msg))
			return errors.New(C.GoString((*C.char)(unsafe.Pointer(msg))))
		}
		p = cuda.Pointer(uintptr(lib.AtDataPtr(t)))
		m.owned[p] = t
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("gpu: device %d: %d bytes: %w", m.device, bytes, err)
	}
	return p, nil
}

// Free gives memory of Alloc back; any other address is a broken invariant.
func (m *Machine) Free(p cuda.Pointer) {
	t, ok := m.owned[p]
	if !ok {
		panic(fmt.Sprintf("gpu: %#x freed, which was not allocated", p))
	}
	delete(m.owned, p)
	lib.AtFree(t)
}

// Upload does not wait for the copy: from memory that is not page-locked, as Go's is not,
// the driver takes what it copies before it returns (CUDA Driver API, API synchronization
// behavior).
func (m *Machine) Upload(to cuda.Pointer, from []byte) error {
	if len(from) == 0 {
		return nil
	}
	return m.copied("upload", func(s cu.Stream) error {
		return cu.MemcpyHtoDAsync(cu.DevicePtr(to), unsafe.Pointer(&from[0]), int64(len(from)), s)
	})
}

func (m *Machine) Download(to []byte, from cuda.Pointer) error {
	if len(to) == 0 {
		return nil
	}
	return m.copied("download", func(s cu.Stream) error {
		if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&to[0]), cu.DevicePtr(from), int64(len(to)), s); err != nil {
			return err
		}
		return s.Synchronize()
	})
}

func (m *Machine) copied(what string, copy func(cu.Stream) error) error {
	if err := m.on(copy); err != nil {
		return fmt.Errorf("gpu: device %d: %s: %w", m.device, what, err)
	}
	return nil
}

// Launch queues the kernel on libtorch's current stream.
func (m *Machine) Launch(l cuda.Launch) error {
	f, ok := m.functions[l.Kernel]
	if !ok {
		return fmt.Errorf("gpu: no kernel %s", l.Kernel)
	}
	values, params := make([]uint64, len(l.Args)), make([]unsafe.Pointer, len(l.Args))
	for i, a := range l.Args {
		values[i], params[i] = a.Bits, unsafe.Pointer(&values[i])
	}
	err := m.on(func(s cu.Stream) error {
		return f.Launch(l.Grid[0], l.Grid[1], l.Grid[2], l.Threads, 1, 1, l.Shared, s, params)
	})
	if err != nil {
		return fmt.Errorf("gpu: device %d: %s on a grid of %v, blocks of %d: %w", m.device, l.Kernel, l.Grid, l.Threads, err)
	}
	return nil
}

// Memory is the device's free and whole memory in bytes, as the driver sees it:
// what libtorch's allocator keeps for itself is not free.
func (m *Machine) Memory() (free, total int64, err error) {
	err = m.on(func(cu.Stream) error {
		free, total, err = cu.MemInfo()
		return err
	})
	return free, total, err
}
