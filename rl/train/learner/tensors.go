package learner

import (
	"fmt"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// reducerOf moves memory between the policies of one process: with NCCL where they are
// on GPUs, and with libtorch's operations where they share the memory of the process.
func reducerOf(policies []*model.Policy) (replicas.Reducer[*torch.Tensor], error) {
	var numbers []int
	for i, p := range policies {
		number, gpu := p.Device().GPU()
		if gpu {
			numbers = append(numbers, number)
		}
		if first := policies[0].Device(); p.Device() != first && (!gpu || len(numbers) <= i) {
			return nil, fmt.Errorf("replica %d is on %v and replica 0 on %v; put all on GPUs or none", i, p.Device(), first)
		}
	}
	if len(numbers) > 1 {
		return newRing(numbers)
	}
	return collective.NewLocal(len(policies), tensors{}), nil
}

// tensors is the collective.Memory of flat tensors of one device.
type tensors struct{}

// stretch is how many elements Sum adds at a time: its memory beside the terms.
const stretch = 1 << 16

func (tensors) Sum(to *torch.Tensor, terms []*torch.Tensor, lo, hi int) (err error) {
	defer torch.Catch(&err)
	if lo >= hi {
		return nil
	}
	memory := to.Device().New(torch.Activations, to.DType(), min(stretch, hi-lo))
	defer memory.Free()
	for ; lo < hi; lo += stretch {
		end := min(lo+stretch, hi)
		rows(memory, 0, end-lo, func(sum *torch.Tensor) {
			rows(terms[0], lo, end, func(t *torch.Tensor) { torch.Copy(sum, t) })
			for _, t := range terms[1:] {
				rows(t, lo, end, sum.Add)
			}
			rows(to, lo, end, func(t *torch.Tensor) { torch.Copy(t, sum) })
		})
	}
	return nil
}

func (tensors) Copy(to, from *torch.Tensor, lo, hi int) (err error) {
	defer torch.Catch(&err)
	rows(to, lo, hi, func(to *torch.Tensor) {
		rows(from, lo, hi, func(from *torch.Tensor) { torch.Copy(to, from) })
	})
	return nil
}

// rows gives f elements [lo, hi) of a vector.
func rows(t *torch.Tensor, lo, hi int, f func(part *torch.Tensor)) {
	part := t.Rows(lo, hi)
	defer part.Free()
	f(part)
}
