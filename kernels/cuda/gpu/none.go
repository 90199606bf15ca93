//go:build !gpu

package gpu

import (
	"errors"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// Built says whether this program can use GPUs.
const Built = false

// Devices lists the GPUs; where there are none, why says so.
func Devices() (devices []Info, why string) {
	return nil, without
}

// Free is the bytes that nobody has taken of a device's memory.
func Free(int) (bytes int64, err error) { return 0, errors.New(without) }

// Peak is the most bytes that libtorch's tensors had of a device at a time.
func Peak(int) (bytes int64, err error) { return 0, errors.New(without) }

const without = "this program was built without CUDA; build it with make CUDA=1"

// Machine is one GPU.
type Machine struct{ cuda.Recorder }

// Close unloads the kernels.
func (*Machine) Close() {}

// Open compiles the kernels for a device and loads them; the caller closes the machine.
func Open(int) (*Machine, error) { return nil, errors.New(without) }
