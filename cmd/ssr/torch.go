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
	"github.com/ssr-go/ssr/model"
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
	f.Advice = "a policy computes on one with policy.device: cuda:0, or --device (docs/cuda.md)"
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
		why = "for a GPU set policy.device: cuda:0, or --device (docs/cuda.md)"
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

// computeFlags choose what computes, for commands without a configuration.
type computeFlags struct {
	Device  string `default:"cpu" help:"What computes: cpu, cuda:0 and so on, or generic, a GPU's operations on the CPU."`
	DType   string `name:"dtype" default:"float32" enum:"float32,float64,bfloat16" help:"Arithmetic: float32, bfloat16, or, for checks that generate nothing, float64."`
	Workers int    `help:"CPU workers; 0 means one per core."`
}

// apply opens the device and sets what of a policy's options they choose.
func (f computeFlags) apply(o *model.Options) (err error) {
	if o.DType, err = dtype(f.DType); err != nil {
		return err
	}
	if o.Device, err = openDevice(f.Device); err != nil {
		return fmt.Errorf("--device: %w", err)
	}
	o.Workers = f.Workers
	o.Kernels, err = openKernels(o.Device)
	return err
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
