package replicas

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// accumulate is what one replica does: its batches, and beside the backward pass of the
// last its part of the sums. No sum begins before answered is open: fn, which may refuse
// the update, has then been asked for all batches of all replicas.
func (g *Group[B]) accumulate(ctx context.Context, i int, own []rl.Packed, answered *gate, fn train.GradientFunc) error {
	vector, err := g.replicas[i].Gradient()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	buckets := g.buckets()
	ready, reduced := make(chan []int, len(buckets)), make(chan error, 1)
	go func() {
		err := g.reduce(ctx, i, vector, ready, answered)
		if err != nil {
			cancel(err)
		}
		reduced <- err
	}()
	final := func(from int) {
		for len(buckets) > 0 && buckets[0][0] >= from {
			ready <- buckets[0]
			buckets = buckets[1:]
		}
	}
	if len(own) == 0 {
		answered.arrive()
	} else {
		var asked atomic.Int64
		err = g.replicas[i].Accumulate(ctx, own, func(k int, logprobs, entropies []float64) ([]float64, error) {
			gradient, err := fn(k, logprobs, entropies)
			if err == nil && asked.Add(1) == int64(len(own)) {
				answered.arrive()
			}
			return gradient, err
		}, final)
	}
	if err != nil {
		cancel(err)
	} else {
		final(0)
		close(ready)
	}
	if failed := <-reduced; failed != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return failed
	}
	return err
}

// reduce sums buckets as they get ready.
func (g *Group[B]) reduce(ctx context.Context, i int, vector B, ready <-chan []int, answered *gate) error {
	select {
	case <-answered.opened:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		select {
		case bounds, ok := <-ready:
			if !ok {
				return nil
			}
			if err := g.reducer.ReduceScatter(ctx, i, vector, bounds); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// buckets cut the gradient, from its end, into pieces; each has the bounds of the
// shards' parts in it.
func (g *Group[B]) buckets() (all [][]int) {
	for hi := g.bounds[len(g.replicas)]; hi > 0; hi -= g.Bucket {
		bounds := make([]int, len(g.bounds))
		for r, at := range g.bounds {
			bounds[r] = min(max(at, hi-g.Bucket), hi)
		}
		all = append(all, bounds)
	}
	return all
}

// gate opens when n have arrived.
type gate struct {
	missing atomic.Int64
	opened  chan struct{}
}

func newGate(n int) *gate {
	g := &gate{opened: make(chan struct{})}
	g.missing.Store(int64(n))
	return g
}

func (g *gate) arrive() {
	if g.missing.Add(-1) == 0 {
		close(g.opened)
	}
}

func (g *gate) isOpen() bool { return g.missing.Load() <= 0 }

// pick are the batches of these numbers.
func pick(batches []rl.Packed, numbers []int) []rl.Packed {
	own := make([]rl.Packed, len(numbers))
	for k, b := range numbers {
		own[k] = batches[b]
	}
	return own
}

// deal gives each of n replicas batches, in ascending order.
func deal(batches []rl.Packed, n int) [][]int {
	order := make([]int, len(batches))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(batches[b].Tokens) - len(batches[a].Tokens) })
	out, load := make([][]int, n), make([]int, n)
	for _, b := range order {
		least := slices.Index(load, slices.Min(load))
		out[least] = append(out[least], b)
		load[least] += len(batches[b].Tokens)
	}
	for _, own := range out {
		slices.Sort(own)
	}
	return out
}
