//go:build !gpu

package learner

import (
	"fmt"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

func newRing(numbers []int) (replicas.Reducer[*torch.Tensor], error) {
	return nil, fmt.Errorf("%d GPUs: this program was built without CUDA; build it with make CUDA=1", len(numbers))
}
