package model

import (
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

// Shard is the part of a policy that is number Index of Of replicas: it keeps the
// optimizer's state of that part of what is trained, and updates it alone. The zero
// value is all of it.
type Shard struct{ Index, Of int }

// bounds are those of the shard in a buffer of n elements; parts begin on a cache line.
func (s Shard) bounds(n int) (lo, hi int) {
	of := max(s.Of, 1)
	at := func(i int) int {
		if i == of {
			return n
		}
		return n / 16 * i / of * 16
	}
	return at(s.Index), at(s.Index + 1)
}

// moments are the running means of the gradient and of its square, for the shard
// of what is trained, and the number of steps in them.
type moments struct {
	mean, square *torch.Tensor
	steps        int64
}

func (m *moments) free() {
	m.mean.Free()
	m.square.Free()
}

// Step updates the weights in place from the accumulated gradient, clears it,
// and counts the version up. A gradient whose norm exceeds clipNorm (0: no
// limit) is scaled down to it. gradNorm is the norm before that. With a norm
// that is not finite nothing changes but that the gradient is cleared. A policy
// that is one of several replicas takes the parts of a step instead, each with the
// others: Prepare, Reduce, GradientSquares, Update and ClearGradient.
func (p *Policy) Step(o AdamW, clipNorm float64) (gradNorm float64, err error) {
	p.training.Lock()
	defer p.training.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.options.Shard.Of > 1 || p.options.ShardGradient:
		return 0, fmt.Errorf("model: Step of one of %d replicas; they take it together", max(p.options.Shard.Of, 1))
	case p.lanes[0].grad == nil:
		return 0, fmt.Errorf("model: Step without a gradient; call Accumulate first")
	}
	defer torch.Catch(&err)
	defer p.clearGradient()
	p.all(func(worker int) { p.sumLanes(Shard{worker, len(p.lanes)}.bounds(p.live.Len())) })
	norm := math.Sqrt(p.squares())
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, fmt.Errorf("model: the gradient's norm is %v; the weights were left as they are", norm)
	}
	scale := 1.0
	if clipNorm > 0 && norm > clipNorm {
		scale = clipNorm / norm
	}
	return norm, p.update(o, scale, func(*torch.Tensor) error { return nil })
}

// Shard is the part [lo, hi) of what is trained whose optimizer state the policy
// keeps, out of n elements.
func (p *Policy) Shard() (lo, hi, n int) {
	n = p.live.Len()
	lo, hi = p.options.Shard.bounds(n)
	return lo, hi, n
}

// Prepare takes the memory of gradients and what an update needs, so that Update takes
// none.
func (p *Policy) Prepare() (err error) {
	p.training.Lock()
	defer p.training.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer torch.Catch(&err)
	if err := p.needGradients(); err != nil {
		return err
	}
	p.needOptimizer()
	return nil
}

// GradientSquares is Σ g² over the shard.
func (p *Policy) GradientSquares() float64 {
	p.training.Lock()
	defer p.training.Unlock()
	return p.squares()
}

// Update applies AdamW to the shard, from its gradient times scale. Then it
// calls share with what is trained [n], to be filled in beyond the shard with what
// the other replicas have, and counts the version up. Readers wait meanwhile. After
// an error the weights are not to be used.
func (p *Policy) Update(o AdamW, scale float64, share func(trained *torch.Tensor) error) (err error) {
	p.training.Lock()
	defer p.training.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lanes[0].grad == nil {
		return fmt.Errorf("model: Update without a gradient; call Prepare first")
	}
	defer torch.Catch(&err)
	return p.update(o, scale, share)
}

// ClearGradient drops what Accumulate has added since the last update.
func (p *Policy) ClearGradient() {
	p.training.Lock()
	defer p.training.Unlock()
	p.clearGradient()
}

// owned is the part [lo, hi) of a trained parameter, counted from the beginning of
// the shard, that lies in the shard; empty where hi <= lo.
func (p *Policy) owned(param Parameter) (lo, hi int) {
	first, last, _ := p.Shard()
	return max(param.offset, first) - first, min(param.offset+param.len(), last) - first
}

// stepper is what operations are that update the whole shard at once, and the copies
// that products take with it.
type stepper interface {
	shardSquares() float64
	updateShard(u native.AdamW, decay float64)
}

func (p *Policy) squares() (total float64) {
	if o, ok := p.ops.(stepper); ok {
		return o.shardSquares()
	}
	grad := p.shardGradient()
	defer grad.Free()
	of := make([]float64, len(p.trained))
	p.dealTrained(func(i, lo, hi int) {
		part := grad.Rows(lo, hi)
		of[i] = p.ops.squares(part)
		part.Free()
	})
	for _, s := range of {
		total += s
	}
	return total
}

// dealTrained calls f, on all workers, with the parts [lo, hi) of the shard that the
// trained parameters have, and their numbers.
func (p *Policy) dealTrained(f func(i, lo, hi int)) {
	work := make([]int, len(p.trained))
	for i, param := range p.trained {
		lo, hi := p.owned(param)
		work[i] = max(0, hi-lo)
	}
	dealt := deal(work, p.pool.Size())
	p.all(func(worker int) {
		for _, i := range dealt[worker] {
			if lo, hi := p.owned(p.trained[i]); lo < hi {
				f(i, lo, hi)
			}
		}
	})
}

func (p *Policy) update(o AdamW, scale float64, share func(*torch.Tensor) error) (err error) {
	p.needOptimizer()
	p.moments.steps++
	u := native.AdamW{LR: o.LR, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, GradScale: scale, Step: int(p.moments.steps)}
	p.updateShard(u, o.WeightDecay)
	err = share(p.live)
	// What a stepper updated needs no more, but for what others did and adapters.
	if _, ok := p.ops.(stepper); err == nil && (!ok || p.options.Shard.Of > 1 || p.options.LoRA != nil) {
		err = p.refresh()
	}
	if err != nil {
		return err
	}
	p.version.Add(1)
	return nil
}

func (p *Policy) updateShard(update native.AdamW, decay float64) {
	first, last, _ := p.Shard()
	live, grad := p.live.Rows(first, last), p.shardGradient()
	defer live.Free()
	defer grad.Free()
	if o, ok := p.ops.(stepper); ok {
		o.updateShard(update, decay)
		if p.mean != nil {
			p.ops.follow(p.mean, live, p.options.EMA, 0, last-first)
		}
		return
	}
	exact := live
	if p.master != nil {
		exact = p.master
	}
	p.dealTrained(func(i, lo, hi int) {
		u := update
		if p.trained[i].Decay {
			u.WeightDecay = decay
		}
		p.ops.adamw(u, exact, grad, p.moments.mean, p.moments.square, lo, hi)
		if p.mean != nil {
			p.ops.follow(p.mean, exact, p.options.EMA, lo, hi)
		}
		if p.master != nil {
			rounded := torch.Data[float32](live)[lo:hi]
			copy(rounded, torch.Data[float32](p.master)[lo:hi])
			roundBF16(rounded)
		}
	})
}

// needOptimizer allocates what is kept from one update to the next. Unless they were
// loaded, the exact weights and their mean begin as the weights.
func (p *Policy) needOptimizer() {
	lo, hi, _ := p.Shard()
	empty := func() *torch.Tensor { return p.options.Device.New(torch.Optimizer, p.flat.DType(), hi-lo) }
	if p.moments == nil {
		p.moments = &moments{mean: empty(), square: empty()}
	}
	weights := p.live.Rows(lo, hi)
	defer weights.Free()
	begin := func(t **torch.Tensor, from *torch.Tensor) {
		if *t == nil {
			*t = empty()
			torch.Copy(*t, from)
		}
	}
	exact := weights
	if p.options.roundsTrained() {
		begin(&p.master, weights)
		exact = p.master
	}
	if p.options.EMA > 0 {
		begin(&p.mean, exact)
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
