// Package replicas trains one policy on several devices in one process: each has a
// copy of the weights and a share of the micro-batches. Gradients are summed to the
// owner of their part of the vector, bucket by bucket; the owner alone keeps the
// optimizer's state of that part and updates it (ZeRO stage 1, arXiv 1910.02054);
// then the others copy the new weights.
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
	"sync"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// Replica is one device's copy of the policy. B is a flat vector in its memory.
// Its methods are called by one goroutine at a time.
type Replica[B any] interface {
	// Len is the number of weights, equal in all replicas.
	Len() int
	// Weights and Gradient are flat, in an order that all replicas share. Gradient
	// is all that was accumulated, summed over whatever the replica has inside.
	Weights() B
	Gradient() (B, error)
	// Accumulate and its errors are those of train.Learner.
	Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error
	// Squares is Σ g² over [lo, hi) of the gradient.
	Squares(lo, hi int) (float64, error)
	// Update applies AdamW to the weights in [lo, hi), from the gradient times scale.
	// The replica keeps the optimizer's state of what it is asked to update and of
	// nothing else; step counts from 1.
	Update(opt train.AdamW, scale float64, step int64, lo, hi int) error
	// Clear drops the gradient. Changed follows a change of the weights.
	Clear()
	Changed() error
}

// Reducer moves memory between the replicas. All ranks make the same calls in the
// same order; where the context ends, calls that wait return its error.
type Reducer[B any] interface {
	// Reduce leaves the sum over all ranks in [lo, hi) of the owner's vector.
	Reduce(ctx context.Context, rank int, vector B, lo, hi, owner int) error
	// Broadcast copies [lo, hi) of the owner's vector to the others.
	Broadcast(ctx context.Context, rank int, vector B, lo, hi, owner int) error
	// Sum adds a number of each rank.
	Sum(ctx context.Context, rank int, x float64) (float64, error)
}

// bucket is how many elements are moved at a time: 16 MB of float32, long enough
// to be bound by the bandwidth between devices and not by their latency.
const bucket = 4 << 20

// Group is replicas that train together. Its Version, Accumulate and Step are those
// of train.Learner.
type Group[B any] struct {
	replicas []Replica[B]
	reducer  Reducer[B]
	version  int64
	steps    int64
	broken   error // why the replicas may differ
}

// New joins replicas whose weights are equal. steps is how many updates the
// optimizer's state has in it, and version that of the weights.
func New[B any](replicas []Replica[B], reducer Reducer[B], steps, version int64) (*Group[B], error) {
	if len(replicas) == 0 {
		return nil, errors.New("replicas: none")
	}
	for i, r := range replicas {
		if r.Len() != replicas[0].Len() || r.Len() == 0 {
			return nil, fmt.Errorf("replicas: number %d has %d weights, number 0 has %d", i, r.Len(), replicas[0].Len())
		}
	}
	return &Group[B]{replicas: replicas, reducer: reducer, steps: steps, version: version}, nil
}

// Version counts the updates that made the weights.
func (g *Group[B]) Version() int64 { return g.version }

// Shard is the part of the flat vector whose optimizer state replica i holds.
func (g *Group[B]) Shard(i int) (lo, hi int) {
	n, total := len(g.replicas), g.replicas[0].Len()
	return total * i / n, total * (i + 1) / n
}

// Accumulate deals the micro-batches to the replicas, the longest first and each to
// the replica with the fewest tokens. After an error no gradient remains.
func (g *Group[B]) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	if g.broken != nil {
		return g.broken
	}
	dealt := deal(batches, len(g.replicas))
	err := g.each(ctx, func(ctx context.Context, i int) error {
		if len(dealt[i]) == 0 {
			return nil
		}
		own := make([]rl.Packed, len(dealt[i]))
		for j, b := range dealt[i] {
			own[j] = batches[b]
		}
		return g.replicas[i].Accumulate(ctx, own, func(j int, logprobs, entropies []float64) ([]float64, error) {
			return fn(dealt[i][j], logprobs, entropies)
		})
	})
	if err != nil {
		g.clear()
	}
	return err
}

// deal gives each of n replicas batches, in ascending order.
func deal(batches []rl.Packed, n int) [][]int {
	out, load, taken := make([][]int, n), make([]int, n), make([]int, len(batches))
	for range batches {
		longest := -1
		for i, b := range batches {
			if taken[i] == 0 && (longest < 0 || len(b.Tokens) > len(batches[longest].Tokens)) {
				longest = i
			}
		}
		least := 0
		for i := range load {
			if load[i] < load[least] {
				least = i
			}
		}
		taken[longest] = least + 1
		load[least] += len(batches[longest].Tokens)
	}
	for i, t := range taken {
		out[t-1] = append(out[t-1], i)
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
	norms := make([]float64, len(g.replicas))
	err = g.each(ctx, func(ctx context.Context, i int) error {
		r := g.replicas[i]
		gradient, err := r.Gradient()
		if err != nil {
			return err
		}
		err = g.buckets(func(lo, hi, owner int) error { return g.reducer.Reduce(ctx, i, gradient, lo, hi, owner) })
		if err != nil {
			return err
		}
		squares, err := r.Squares(g.Shard(i))
		if err != nil {
			return err
		}
		total, err := g.reducer.Sum(ctx, i, squares)
		norms[i] = math.Sqrt(total)
		return err
	})
	if err != nil {
		return 0, err
	}
	norm := norms[0]
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, fmt.Errorf("%w: the gradient's norm over %d replicas is %v; the weights were left as they are", rl.ErrNonFinite, len(g.replicas), norm)
	}
	scale := 1.0
	if opt.Clip > 0 && norm > opt.Clip {
		scale = opt.Clip / norm
	}
	err = g.each(context.WithoutCancel(ctx), func(ctx context.Context, i int) error {
		r := g.replicas[i]
		lo, hi := g.Shard(i)
		if err := r.Update(opt, scale, g.steps+1, lo, hi); err != nil {
			return err
		}
		err := g.buckets(func(lo, hi, owner int) error { return g.reducer.Broadcast(ctx, i, r.Weights(), lo, hi, owner) })
		if err != nil {
			return err
		}
		return r.Changed()
	})
	if err != nil {
		g.broken = fmt.Errorf("replicas: an update broke off and the weights differ between devices; load a checkpoint: %w", err)
		return norm, g.broken
	}
	g.steps++
	g.version++
	return norm, nil
}

// buckets calls f for every stretch of at most bucket elements with its owner.
func (g *Group[B]) buckets(f func(lo, hi, owner int) error) error {
	for owner := range g.replicas {
		lo, end := g.Shard(owner)
		for ; lo < end; lo += bucket {
			if err := f(lo, min(lo+bucket, end), owner); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *Group[B]) clear() {
	for _, r := range g.replicas {
		r.Clear()
	}
}

// each runs f for every replica at once. The first that fails ends the context of
// the others, and its error is what each returns.
func (g *Group[B]) each(ctx context.Context, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for i := range g.replicas {
		wait.Go(func() {
			if err := f(ctx, i); err != nil {
				cancel(fmt.Errorf("replica %d: %w", i, err))
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}
