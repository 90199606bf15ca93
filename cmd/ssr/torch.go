package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ssr-go/ssr/kernels/torch"
)

// probeLibtorch reports what this binary runs on: without libtorch it would not
// have started.
func probeLibtorch(context.Context) finding {
	return finding{Name: "libtorch", OK: true, Needed: true, Found: torch.Version()}
}

// probeCUDA looks for a GPU and for the driver that programs load.
func probeCUDA(ctx context.Context) finding {
	f := finding{Name: "CUDA", Found: "no driver", Advice: "optional: this build computes on the CPU"}
	libs, err := filepath.Glob("/usr/lib/*/libcuda.so.1")
	if err != nil || len(libs) == 0 {
		return f
	}
	f.Found = "driver at " + libs[0] + ", no GPU answers"
	out, err := exec.CommandContext(ctx, "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader").Output()
	if gpus := strings.TrimSpace(string(out)); err == nil && gpus != "" {
		f.OK, f.Found = true, strings.ReplaceAll(gpus, "\n", "; ")
	}
	return f
}
