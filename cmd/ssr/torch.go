package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
)

// probeLibtorch reports what this binary runs on: without libtorch it would not
// have started.
func probeLibtorch(context.Context) finding {
	return finding{Name: "libtorch", OK: true, Needed: true, Found: torch.Version()}
}

// probeCUDA says whether this program can use a GPU, and which.
func probeCUDA(context.Context) finding {
	f := finding{Name: "CUDA", Advice: "optional: without it policies compute on the CPU"}
	devices, why := gpu.Devices()
	if len(devices) == 0 {
		f.Found = why
		return f
	}
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.String()
	}
	f.OK, f.Found = true, strings.Join(names, "; ")
	f.Advice = "a policy computes on one with policy.device: cuda:0 (docs/cuda.md)"
	return f
}

// warnCPU tells once, in a program that was built for GPUs, that it computes on the
// CPU, and why.
var warnCPU = sync.OnceFunc(func() {
	if !gpu.Built {
		return
	}
	devices, why := gpu.Devices()
	if len(devices) > 0 {
		why = "for a GPU set policy.device: cuda:0 (docs/cuda.md)"
	}
	fmt.Fprintln(os.Stderr, "computing on the CPU: "+why)
})

// libtorchKernels is what policy.kernels says where CUDA kernels are not wanted.
const libtorchKernels = "libtorch"

// kernels are the CUDA kernels of a device, nil for libtorch's operations.
func (c policyConfig) kernels(d torch.Device) (cuda.Machine, error) {
	if c.Kernels == libtorchKernels {
		return nil, nil
	}
	return openKernels(d)
}

// openKernels compiles the CUDA kernels for a GPU; other devices have none.
func openKernels(d torch.Device) (cuda.Machine, error) {
	number, ok := d.GPU()
	if !ok {
		return nil, nil
	}
	m, err := gpu.Open(number)
	if err != nil {
		return nil, fmt.Errorf("%w (policy.kernels: %s does without)", err, libtorchKernels)
	}
	return m, nil
}

// openDevice reads the name of a device and says why there is none of that name.
func openDevice(name string) (torch.Device, error) {
	d, err := torch.ParseDevice(name)
	if err != nil {
		return d, err
	}
	number, ok := d.GPU()
	if !ok {
		return d, nil
	}
	devices, why := gpu.Devices()
	if number < len(devices) {
		return d, nil
	}
	if len(devices) > 0 {
		why = fmt.Sprintf("there are %d GPUs, which count from 0", len(devices))
	}
	return d, fmt.Errorf("no %v: %s", d, why)
}
