//go:build gpu

package learner

import "github.com/ssr-go/ssr/kernels/cuda/gpu"

// newRing reduces between the GPUs of these numbers.
func newRing(numbers []int) (ring, error) { return gpu.NewRing(numbers) }

func newRingID() ([]byte, error) { return gpu.NewRingID() }

// joinRing is newRing for several processes, of which this is one.
func joinRing(id []byte, number, rank, world int) (ring, error) {
	return gpu.JoinRing(id, number, rank, world)
}
