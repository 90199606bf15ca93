// Package gpu runs the kernels of kernels/cuda on GPUs: NVRTC compiles the sources
// for the device at hand, gorgonia.org/cu launches them, on libtorch's memory and
// its current stream, so that they are in order with libtorch's own.
//
// Without the build tag gpu it is a stand-in that says so. With it, the program
// needs neither a driver nor a GPU to start: see Devices.
package gpu

import "fmt"

// Info describes a device.
type Info struct {
	Name string
	// Major and Minor are the compute capability.
	Major, Minor int
	// Memory is its size in bytes.
	Memory int64
}

func (i Info) String() string {
	return fmt.Sprintf("%s, compute capability %d.%d, %.1f GiB", i.Name, i.Major, i.Minor, float64(i.Memory)/(1<<30))
}
