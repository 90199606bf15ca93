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
