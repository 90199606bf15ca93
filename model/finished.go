package model

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/ssr-go/ssr/kernels/torch"
)

// finished follows, through the backward pass of a batch, how much of the gradient all
// workers are done with. Nothing follows where it is nil.
type finished struct {
	p    *Policy
	tell func(from int)
	pass int64
	mu   sync.Mutex
	from []int // by worker: it is done with all elements from there on
	told int
}

// following tells, where tell is not nil.
func (p *Policy) following(tell func(from int)) *finished {
	if tell == nil {
		return nil
	}
	n := p.live.Len()
	p.slots.passes++
	return &finished{p: p, tell: tell, pass: p.slots.passes, from: slices.Repeat([]int{n}, len(p.lanes)), told: n}
}

// begin waits until there is memory for the gradient of the tensors that names begin
// the names of.
func (f *finished) begin(ctx context.Context, names ...string) error {
	if f == nil || !f.p.options.ShardGradient {
		return nil
	}
	for _, name := range names {
		if at, ok := f.p.begins(name); ok {
			u := f.p.unitAt(at)
			if err := f.p.slots.take(ctx, u.slot, holder{f.pass, u.lo}); err != nil {
				return err
			}
		}
	}
	return nil
}

// reach says that a worker is done with the tensors that name begins the names of, and
// all after them; end, with all.
func (f *finished) reach(worker int, name string) {
	if f == nil {
		return
	}
	if from, ok := f.p.begins(name); ok {
		f.done(worker, from)
	}
}

func (f *finished) end(worker int) {
	if f != nil {
		f.done(worker, 0)
	}
}

func (f *finished) done(worker, from int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.from[worker] = from
	if from := slices.Max(f.from); from < f.told {
		f.p.sumLanes(from, f.told)
		f.told = from
		f.tell(from)
	}
}

// begins is where the gradient of the tensors begins that name begins the names of; of
// a tensor that is not trained there is none.
func (p *Policy) begins(name string) (offset int, ok bool) {
	i := slices.IndexFunc(p.trained, func(t Parameter) bool { return strings.HasPrefix(t.Name, name) })
	if i < 0 {
		return 0, false
	}
	return p.trained[i].offset, true
}

// sumLanes moves elements [lo, hi) of the lanes' gradients, in their order, into the
// first.
func (p *Policy) sumLanes(lo, hi int) {
	for _, u := range p.units {
		lo, hi := max(lo, u.lo)-u.lo, min(hi, u.hi)-u.lo
		for i := 1; i < len(p.lanes) && lo < hi; i++ {
			sum, part := p.lanes[0].grad[u.slot].Rows(lo, hi), p.lanes[i].grad[u.slot].Rows(lo, hi)
			sum.Add(part)
			part.Zero()
			sum.Free()
			part.Free()
		}
	}
}

// Reduce calls sum with elements [lo, hi) of the gradient, of which AccumulateLast has
// told, to leave there their sum over the replicas where they are of the shard [hi-lo].
// With Options.ShardGradient it takes what is within one of the Pieces, in order from the
// end, adds the sum to the shard's gradient and gives the memory to the backward pass
// again; those of a batch that the policy has not, which come after all others, are zeros.
func (p *Policy) Reduce(lo, hi int, sum func(part *torch.Tensor) error) (err error) {
	defer torch.Catch(&err)
	u := p.unitAt(lo)
	part := p.lanes[0].grad[u.slot].Rows(lo-u.lo, hi-u.lo)
	defer part.Free()
	if err := sum(part); err != nil || !p.options.ShardGradient {
		return err
	}
	first, last, _ := p.Shard()
	if from, to := max(lo, first), min(hi, last); from < to {
		total, own := p.sum.Rows(from-first, to-first), part.Rows(from-lo, to-lo)
		total.Add(own)
		total.Free()
		own.Free()
	}
	part.Zero()
	if lo == u.lo {
		p.slots.free(u.slot)
	}
	return nil
}
