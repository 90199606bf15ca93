package model

import (
	"context"
	"fmt"
	"math"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// AdamW are the constants of one optimizer step. Weight decay is decoupled and
// applies to matrices only, not to biases and norms.
type AdamW struct {
	LR, Beta1, Beta2, Eps, WeightDecay float64
}

// moments are the running means of the gradient and of its square, for all
// that is trained, and the number of steps in them.
type moments struct {
	mean, square *torch.Tensor
	steps        int64
}

func (p *Policy) newMoments() *moments {
	return &moments{
		mean:   torch.New(torch.Optimizer, p.flat.DType(), p.live.Len()),
		square: torch.New(torch.Optimizer, p.flat.DType(), p.live.Len()),
	}
}

func (m *moments) free() {
	m.mean.Free()
	m.square.Free()
}

// Step updates the weights in place from the accumulated gradient, clears it,
// and counts the version up. A gradient whose norm exceeds clipNorm (0: no
// limit) is scaled down to it. gradNorm is the norm before that. With a norm
// that is not finite nothing changes but that the gradient is cleared.
func (p *Policy) Step(o AdamW, clipNorm float64) (gradNorm float64, err error) {
	p.training.Lock()
	defer p.training.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lanes[0].grad == nil {
		return 0, fmt.Errorf("model: Step without a gradient; call Accumulate first")
	}
	defer torch.Catch(&err)
	if p.flat.DType() == torch.Float64 {
		return step[float64](p, o, clipNorm)
	}
	return step[float32](p, o, clipNorm)
}

// ClearGradient drops what Accumulate has added since the last Step.
func (p *Policy) ClearGradient() {
	p.training.Lock()
	defer p.training.Unlock()
	p.clearGradient()
}

func (p *Policy) clearGradient() {
	for _, l := range p.lanes {
		if l.grad != nil {
			l.grad.Zero()
		}
	}
}

func step[F float](p *Policy, o AdamW, clipNorm float64) (float64, error) {
	defer p.clearGradient()
	grad := torch.Data[F](sumLanes(p))
	total := 0.0
	for _, param := range p.trained {
		total += native.SumSquares(grad[param.offset:][:param.len()])
	}
	norm := math.Sqrt(total)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, fmt.Errorf("model: the gradient's norm is %v; the weights were left as they are", norm)
	}
	p.needOptimizer()
	p.moments.steps++
	update := native.AdamW{LR: o.LR, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, GradScale: 1, Step: int(p.moments.steps)}
	if clipNorm > 0 && norm > clipNorm {
		update.GradScale = clipNorm / norm
	}
	live, exact := torch.Data[F](p.live), torch.Data[F](p.exact())
	mean, square := torch.Data[F](p.moments.mean), torch.Data[F](p.moments.square)
	err := p.pool.Each(context.Background(), func(worker int) error {
		for i, param := range p.trained {
			if i%p.pool.Size() != worker {
				continue
			}
			u := update
			if param.Decay {
				u.WeightDecay = o.WeightDecay
			}
			lo, hi := param.offset, param.offset+param.len()
			native.Update(u, exact[lo:hi], grad[lo:hi], mean[lo:hi], square[lo:hi])
			if p.mean != nil {
				follow(torch.Data[F](p.mean)[lo:hi], exact[lo:hi], p.options.EMA)
			}
			if p.master != nil {
				copy(live[lo:hi], exact[lo:hi])
				roundBF16(any(live[lo:hi]).([]float32))
			}
		}
		return nil
	})
	if err != nil {
		return norm, err
	}
	if err := p.refresh(); err != nil {
		return norm, err
	}
	p.version.Add(1)
	return norm, nil
}

// exact is what the optimizer changes: the trained weights, before they are
// rounded where they are.
func (p *Policy) exact() *torch.Tensor {
	if p.master != nil {
		return p.master
	}
	return p.live
}

// needOptimizer allocates what Step keeps from one to the next. Unless they were
// loaded, the exact weights and their mean begin as the weights.
func (p *Policy) needOptimizer() {
	if p.moments == nil {
		p.moments = p.newMoments()
	}
	begin := func(t **torch.Tensor, from *torch.Tensor) {
		if *t == nil {
			*t = torch.New(torch.Optimizer, p.flat.DType(), p.live.Len())
			torch.Copy(*t, from)
		}
	}
	if p.options.DType == torch.BFloat16 {
		begin(&p.master, p.live)
	}
	if p.options.EMA > 0 {
		begin(&p.mean, p.exact())
	}
}

// dropFollowers forgets what follows from weights that have been replaced.
func (p *Policy) dropFollowers() {
	for _, t := range []**torch.Tensor{&p.master, &p.mean} {
		if *t != nil {
			(*t).Free()
			*t = nil
		}
	}
}

// follow moves a running mean towards x.
func follow[F float](mean, x []F, decay float64) {
	d, step := F(decay), F(1-decay)
	for i, v := range x {
		mean[i] = d*mean[i] + step*v
	}
}

// sumLanes adds the lanes' gradients, in their order, into the first.
func sumLanes(p *Policy) *torch.Tensor {
	sum := p.lanes[0].grad
	for _, l := range p.lanes[1:] {
		sum.Add(l.grad)
	}
	return sum
}
