package replicas

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// Accumulate deals the micro-batches to the replicas, the longest first and each to
// the replica with the fewest tokens, and sums the gradients: it is called once for
// each Step. After an error no gradient remains.
func (g *Group[B]) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	switch {
	case g.broken != nil:
		return g.broken
	case g.reduced:
		return errors.New("replicas: the gradients are summed already; take the step")
	}
	dealt := deal(batches, len(g.replicas))
	rounds := g.rounds(ctx, dealt)
	defer rounds[0].stop(nil)
	var wait sync.WaitGroup
	for i := range g.replicas {
		wait.Go(func() { g.accumulate(i, dealt[i], rounds, batches, fn) })
	}
	wait.Wait()
	for _, r := range rounds {
		if err := context.Cause(r.ctx); err != nil {
			g.clear()
			if r.isOpen() {
				err = fmt.Errorf("%w: %w", ErrReducing, err)
			}
			return err
		}
	}
	g.reduced = true
	return nil
}

// round is micro-batches of all replicas that are computed before gradients are summed:
// all of them, or where replicas keep a shard of the gradient one of each.
//
// No sum of a round begins before fn, which may refuse the update, has been asked for all
// of its micro-batches. Whatever goes wrong in a round ends it and those after it, and
// none before it: those complete their sums. So an update that is refused, in whatever
// round, leaves no member of a Reducer in the middle of an operation.
type round struct {
	ctx     context.Context // its sums and all else
	stop    context.CancelCauseFunc
	missing atomic.Int64 // replicas for whose micro-batches fn has not been asked
	opened  chan struct{}
	size    int // micro-batches of a replica at most
}

// rounds are as many as the replica with most micro-batches needs; at least one.
func (g *Group[B]) rounds(ctx context.Context, dealt [][]int) (all []*round) {
	most := 0
	for _, own := range dealt {
		most = max(most, len(own))
	}
	n, size := 1, most
	if g.pieces != nil {
		n, size = max(1, most), 1
	}
	for range n {
		r := &round{opened: make(chan struct{}), size: size}
		r.ctx, r.stop = context.WithCancelCause(ctx)
		r.missing.Store(int64(len(g.replicas)))
		all, ctx = append(all, r), r.ctx
	}
	return all
}

func (r *round) arrive() {
	if r.missing.Add(-1) == 0 {
		close(r.opened)
	}
}

func (r *round) isOpen() bool { return r.missing.Load() <= 0 }

// accumulate is what one replica does: its micro-batches, of these numbers, and beside
// the backward passes its part of the sums. An error ends its round.
func (g *Group[B]) accumulate(i int, own []int, rounds []*round, batches []rl.Packed, fn train.GradientFunc) {
	if err := g.replicas[i].Prepare(); err != nil {
		rounds[0].stop(g.of(i, err))
		return
	}
	buckets := g.buckets()
	ready := make(chan struct{}, len(rounds)*len(buckets))
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		for _, r := range rounds {
			if err := g.reduce(r, i, buckets, ready); err != nil {
				r.stop(g.of(i, err))
				return
			}
		}
	})
	for _, r := range rounds {
		now := own[:min(r.size, len(own))]
		own = own[len(now):]
		left := buckets
		final := func(from int) {
			for len(left) > 0 && left[0].lo >= from {
				ready <- struct{}{}
				left = left[1:]
			}
		}
		if len(now) == 0 {
			r.arrive()
		} else {
			var asked atomic.Int64
			err := g.replicas[i].Accumulate(r.ctx, pick(batches, now), func(k int, logprobs, entropies []float64) ([]float64, error) {
				gradient, err := fn(now[k], logprobs, entropies)
				if err == nil && asked.Add(1) == int64(len(now)) {
					r.arrive()
				}
				return gradient, err
			}, final)
			if err != nil {
				r.stop(g.of(i, err))
				return
			}
		}
		final(0)
	}
}

// reduce sums a round's buckets as they get ready.
func (g *Group[B]) reduce(r *round, i int, buckets []bucket, ready <-chan struct{}) error {
	select {
	case <-r.opened:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	for _, b := range buckets {
		select {
		case <-ready:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
		err := g.replicas[i].Reduce(r.ctx, b.lo, b.hi, func(part B) error {
			return g.reducer.ReduceScatter(r.ctx, i, part, Within(g.bounds, b.lo, b.hi))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket is a stretch of the gradient that is summed at a time.
type bucket struct{ lo, hi int }

// buckets cut the gradient, from its end, within its pieces.
func (g *Group[B]) buckets() (all []bucket) {
	hi := g.replicas[0].Len()
	for i := len(g.pieces); i >= 0; i-- {
		begin := 0
		if i > 0 {
			begin = g.pieces[i-1]
		}
		for ; hi > begin; hi = max(hi-g.Bucket, begin) {
			all = append(all, bucket{max(hi-g.Bucket, begin), hi})
		}
	}
	return all
}

// Within are the bounds of the shards' parts in elements [lo, hi), counted from lo.
func Within(bounds []int, lo, hi int) []int {
	within := make([]int, len(bounds))
	for r, at := range bounds {
		within[r] = min(max(at, lo), hi) - lo
	}
	return within
}

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
