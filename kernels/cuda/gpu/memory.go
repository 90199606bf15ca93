//go:build gpu

package gpu

// #include "memory.h"
import "C"

import "fmt"

// Peak is the most bytes that libtorch's tensors had of a device at a time, its own
// temporary ones included, since the last call. What its allocator keeps for later is
// not in it.
func Peak(device int) (bytes int64, err error) {
	if devices, why := Devices(); device >= len(devices) {
		return 0, fmt.Errorf("gpu: no GPU number %d: %s", device, why)
	}
	m := &Machine{device: device}
	var n C.longlong
	if err := m.told("peak of memory", C.ssr_cuda_peak(C.int(device), &n)); err != nil {
		return 0, err
	}
	return int64(n), nil
}
