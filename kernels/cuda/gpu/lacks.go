//go:build gpu

package gpu

// #include "driver.h"
import "C"

import "strings"

// version is CUDA_VERSION of the header that this was built with: 12040 for 12.4.
func version() int { return int(C.ssr_cuda_version()) }

// lacks names what gorgonia.org/cu calls and that version does not have as cu calls it.
func lacks() []string { return strings.Fields(C.GoString(C.ssr_cuda_lacks())) }

// librariesLack names what cu calls and the driver or the NVRTC at hand does not have.
func librariesLack() []string { return strings.Fields(C.GoString(C.ssr_driver_lacks())) }
