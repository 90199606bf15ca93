//go:build !gpu

package gpu

// Built says whether this program can use GPUs.
const Built = false

// Devices lists the GPUs; where there are none, why says so.
func Devices() (devices []Info, why string) {
	return nil, "this program was built without CUDA; build it with make CUDA=1"
}
