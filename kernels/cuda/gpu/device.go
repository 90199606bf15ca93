//go:build gpu

package gpu

// #cgo LDFLAGS: -ldl
// #include "driver.h"
import "C"

import (
	"fmt"

	"gorgonia.org/cu"
)

// Built says whether this program can use GPUs.
const Built = true

// Devices lists the GPUs; where there are none, why says so.
func Devices() (devices []Info, why string) {
	if C.ssr_has_driver() == 0 {
		return nil, "no NVIDIA driver: libcuda.so.1 was not found"
	}
	if status := C.ssr_driver_status(); status != 0 {
		return nil, fmt.Sprintf("the NVIDIA driver found no usable GPU (CUresult %d)", status)
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, fmt.Sprintf("the NVIDIA driver does not count its GPUs: %v", err)
	}
	for i := range n {
		info, err := describe(i)
		if err != nil {
			return nil, fmt.Sprintf("GPU %d does not answer: %v", i, err)
		}
		devices = append(devices, info)
	}
	if n == 0 {
		why = "the NVIDIA driver found no GPU"
	}
	return devices, why
}

// Free is the bytes that nobody has taken of a device's memory. It makes libtorch's
// context there, which takes some itself.
func Free(device int) (bytes int64, err error) {
	if devices, why := Devices(); device >= len(devices) {
		return 0, fmt.Errorf("gpu: no GPU number %d: %s", device, why)
	}
	err = (&Machine{device: device}).on(func(cu.Stream) (err error) {
		bytes, _, err = cu.MemInfo()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("gpu: device %d: its free memory: %w", device, err)
	}
	return bytes, nil
}

func describe(ordinal int) (info Info, err error) {
	d, err := cu.GetDevice(ordinal)
	if err != nil {
		return info, err
	}
	if info.Name, err = d.Name(); err != nil {
		return info, err
	}
	if info.Major, err = d.Attribute(cu.ComputeCapabilityMajor); err != nil {
		return info, err
	}
	if info.Minor, err = d.Attribute(cu.ComputeCapabilityMinor); err != nil {
		return info, err
	}
	info.Memory, err = d.TotalMem()
	return info, err
}
