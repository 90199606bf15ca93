package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

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
	f := finding{Name: "CUDA", Advice: "optional: policies compute on the CPU"}
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
	f.Advice = "the kernels run on these; policies still compute on the CPU (docs/cuda.md)"
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
		why = "policies do not use GPUs yet (docs/cuda.md)"
	}
	fmt.Fprintln(os.Stderr, "computing on the CPU: "+why)
})
