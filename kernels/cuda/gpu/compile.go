//go:build gpu

package gpu

// #include "driver.h"
import "C"

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"gorgonia.org/cu/nvrtc"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// errArchitecture is what Compile wraps where NVRTC is older than the architecture.
var errArchitecture = errors.New("this NVRTC does not know the architecture")

// compiled are all programs for a compute capability. They are compiled side by side, and
// once in a process.
func compiled(major, minor int) ([]cuda.Program, []string, error) {
	once, _ := ptxOf.LoadOrStore([2]int{major, minor}, sync.OnceValues(func() ([]string, error) {
		programs := cuda.Programs()
		ptx := make([]string, len(programs))
		var g errgroup.Group
		for i, p := range programs {
			g.Go(func() (err error) {
				ptx[i], err = Compile(p, major, minor)
				return err
			})
		}
		return ptx, g.Wait()
	}))
	ptx, err := once.(func() ([]string, error))()
	return cuda.Programs(), ptx, err
}

var ptxOf sync.Map // by compute capability

// Compile turns a program into PTX for a compute capability, such as 8.0. It needs
// no GPU.
func Compile(p cuda.Program, major, minor int) (ptx string, err error) {
	if C.ssr_has_nvrtc() == 0 {
		return "", errors.New("gpu: libnvrtc was not found; it comes with a CUDA toolkit, and with PyTorch's wheels")
	}
	program, err := nvrtc.CreateProgram(p.Source, p.Name, nvrtc.Include{Source: cuda.Header(), Name: cuda.HeaderName})
	if err != nil {
		return "", fmt.Errorf("gpu: %s: %w", p.Name, err)
	}
	defer program.Destroy()
	architecture := fmt.Sprintf("--gpu-architecture=compute_%d%d", major, minor)
	if err := program.Compile(architecture, "--std=c++17"); err != nil {
		log, _ := program.GetLog()
		if strings.Contains(log, "gpu-architecture") {
			err = fmt.Errorf("%w: %s", errArchitecture, architecture)
		}
		return "", fmt.Errorf("gpu: %s: %w\n%s", p.Name, err, strings.Trim(log, "\n\x00"))
	}
	ptx, err = program.GetPTX()
	return strings.TrimRight(ptx, "\x00"), err
}
