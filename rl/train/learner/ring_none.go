//go:build !gpu

package learner

import (
	"errors"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

var errNoCUDA = errors.New("this program was built without CUDA; build it with make CUDA=1")

func newRing([]int) (replicas.Reducer[*torch.Tensor], error) { return nil, errNoCUDA }
func newRingID() ([]byte, error)                             { return nil, errNoCUDA }

func joinRing([]byte, int, int, int) (replicas.Reducer[*torch.Tensor], error) { return nil, errNoCUDA }
