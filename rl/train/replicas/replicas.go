// Package replicas trains one policy on several devices: each has a
// copy of the weights and a share of the micro-batches. Each sums one part of the
// gradient over all; it alone keeps the optimizer's state of that part and updates
// it (ZeRO stage 1, arXiv 1910.02054); then all copy the new weights.
//
// It is pure: a device is a Replica, what moves memory between devices a Reducer.
// A result depends on the number of replicas in the last bits of its sums, and on
// nothing else.
package replicas

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// Replica is one device's copy of the policy. B is a flat vector in its memory.
// Its methods are called by one goroutine at a time.
type Replica[B any] interface {
	// Version counts the updates that made the weights.
	Version() int64
	// Len is the number of trained weights, equal in all replicas. The replica keeps
	// the optimizer's state of those in [lo, hi), its shard, and of no others.
	Len() int
	Shard() (lo, hi int)
	// Accumulate, Logprobs and their errors are those of train.Learner and
	// train.Scorer.
	Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error
	Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error)
	// Gradient is all that was accumulated, flat, zeros where that is nothing. The
	// sum over all replicas is written into its shard.
	Gradient() (B, error)
	// Squares is Σ g² over the shard.
	Squares() (float64, error)
	// Update applies AdamW to the shard of the weights, from the gradient times scale.
	// Then it calls share with all weights, flat in the order of the gradient, which
	// fills in what is not the shard's, and raises the version.
	Update(opt train.AdamW, scale float64, share func(weights B) error) error
	// Clear drops the gradient.
	Clear()
}

// Reducer moves memory between the replicas. Rank r has the part
// [bounds[r], bounds[r+1]). All ranks make the same calls in the same order; where
// the context ends, calls that wait return its error.
type Reducer[B any] interface {
	// ReduceScatter leaves the sum over all ranks in each rank's part of its vector.
	ReduceScatter(ctx context.Context, rank int, vector B, bounds []int) error
	// AllGather copies each rank's part to all others.
	AllGather(ctx context.Context, rank int, vector B, bounds []int) error
}

// Group is replicas that train together. Its methods are those of train.Learner and
// train.Scorer.
type Group[B any] struct {
	replicas []Replica[B]
	reducer  Reducer[B]
	bounds   []int // of the shards
	broken   error // why the replicas may differ
}

// New joins replicas whose weights are equal and whose shards, in their order, make
// up the whole.
func New[B any](replicas []Replica[B], reducer Reducer[B]) (*Group[B], error) {
	if len(replicas) == 0 {
		return nil, errors.New("replicas: none")
	}
	g := &Group[B]{replicas: replicas, reducer: reducer, bounds: []int{0}}
	for i, r := range replicas {
		lo, hi := r.Shard()
		switch {
		case r.Len() != replicas[0].Len() || r.Len() == 0:
			return nil, fmt.Errorf("replicas: number %d has %d weights, number 0 has %d", i, r.Len(), replicas[0].Len())
		case lo != g.bounds[i] || hi < lo || i == len(replicas)-1 && hi != r.Len():
			return nil, fmt.Errorf("replicas: number %d of %d has the shard [%d, %d) of %d weights; those before it end at %d",
				i, len(replicas), lo, hi, r.Len(), g.bounds[i])
		}
		g.bounds = append(g.bounds, hi)
	}
	return g, nil
}

// Replicas is their number.
func (g *Group[B]) Replicas() int { return len(g.replicas) }

// Version counts the updates that made the weights.
func (g *Group[B]) Version() int64 { return g.replicas[0].Version() }

// Accumulate deals the micro-batches to the replicas, the longest first and each to
// the replica with the fewest tokens. After an error no gradient remains.
func (g *Group[B]) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	if g.broken != nil {
		return g.broken
	}
	err := g.share(ctx, batches, func(ctx context.Context, r Replica[B], own []rl.Packed, number []int) error {
		return r.Accumulate(ctx, own, func(i int, logprobs, entropies []float64) ([]float64, error) {
			return fn(number[i], logprobs, entropies)
		})
	})
	if err != nil {
		g.clear()
	}
	return err
}

// Logprobs deals the micro-batches as Accumulate does.
func (g *Group[B]) Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	out := make([][]float64, len(batches))
	err := g.share(ctx, batches, func(ctx context.Context, r Replica[B], own []rl.Packed, number []int) error {
		logprobs, err := r.Logprobs(ctx, own)
		for i := range logprobs {
			out[number[i]] = logprobs[i]
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// share runs f at once on all replicas that have a share of the batches; number are
// the places in batches of its own.
func (g *Group[B]) share(ctx context.Context, batches []rl.Packed,
	f func(ctx context.Context, r Replica[B], own []rl.Packed, number []int) error) error {
	dealt := deal(batches, len(g.replicas))
	return g.each(ctx, func(ctx context.Context, i int) error {
		if len(dealt[i]) == 0 {
			return nil
		}
		own := make([]rl.Packed, len(dealt[i]))
		for j, b := range dealt[i] {
			own[j] = batches[b]
		}
		return f(ctx, g.replicas[i], own, dealt[i])
	})
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

// Step sums the gradients, updates the weights everywhere, and clears the gradients.
// It returns the gradient's global norm before clipping; where that is not finite
// the weights stay as they are and the error wraps rl.ErrNonFinite. An error before
// the first update leaves the weights as they are, too; one after it leaves the
// replicas different from each other, and the group refuses to go on.
func (g *Group[B]) Step(ctx context.Context, opt train.AdamW) (gradNorm float64, err error) {
	if g.broken != nil {
		return 0, g.broken
	}
	defer g.clear()
	squares := make([]float64, len(g.replicas))
	err = g.each(ctx, func(ctx context.Context, i int) error {
		r := g.replicas[i]
		gradient, err := r.Gradient()
		if err != nil {
			return err
		}
		if err := g.reducer.ReduceScatter(ctx, i, gradient, g.bounds); err != nil {
			return err
		}
		squares[i], err = r.Squares()
		return err
	})
	if err != nil {
		return 0, err
	}
	total := 0.0
	for _, s := range squares {
		total += s
	}
	norm := math.Sqrt(total)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, fmt.Errorf("%w: the gradient's norm is %v; the weights were left as they are", rl.ErrNonFinite, norm)
	}
	scale := 1.0
	if opt.Clip > 0 && norm > opt.Clip {
		scale = opt.Clip / norm
	}
	err = g.each(context.WithoutCancel(ctx), func(ctx context.Context, i int) error {
		return g.replicas[i].Update(opt, scale, func(weights B) error {
			return g.reducer.AllGather(ctx, i, weights, g.bounds)
		})
	})
	if err != nil {
		g.broken = fmt.Errorf("an update broke off and the weights may differ between replicas; load a checkpoint: %w", err)
		return norm, g.broken
	}
	return norm, nil
}

func (g *Group[B]) clear() {
	for _, r := range g.replicas {
		r.Clear()
	}
}

// each runs f for every replica at once. The first that fails ends the context of
// the others, and its error is what each returns, with its number where there are
// several.
func (g *Group[B]) each(ctx context.Context, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for i := range g.replicas {
		wait.Go(func() {
			err := f(ctx, i)
			if err != nil && len(g.replicas) > 1 {
				err = fmt.Errorf("replica %d: %w", i, err)
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}
