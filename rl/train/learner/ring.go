//go:build gpu

package learner

import (
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// newRing reduces between the GPUs of these numbers.
func newRing(numbers []int) (replicas.Reducer[*torch.Tensor], error) { return gpu.NewRing(numbers) }

func newRingID() ([]byte, error) { return gpu.NewRingID() }

// joinRing is newRing for several processes, of which this is one.
func joinRing(id []byte, number, rank, world int) (replicas.Reducer[*torch.Tensor], error) {
	return gpu.JoinRing(id, number, rank, world)
}
