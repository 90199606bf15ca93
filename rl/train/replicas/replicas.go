// Package replicas trains one policy on several devices: each has a
// copy of the weights and a share of the micro-batches. Each sums one part of the
// gradient over all, in buckets, while the backward pass is still at work on what
// comes before them; it alone keeps the optimizer's state of that part and updates
// it (ZeRO stage 1, arXiv 1910.02054); then all copy the new weights. Replicas that keep
// of the gradient, too, that part alone (stage 2) sum it after each micro-batch in the
// place of the last.
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
// Its methods are called by one goroutine at a time, but Reduce beside Accumulate.
type Replica[B any] interface {
	// Version counts the updates that made the weights.
	Version() int64
	// Len is the number of trained weights, equal in all replicas. The replica keeps
	// the optimizer's state of those in [lo, hi), its shard, and of no others.
	Len() int
	Shard() (lo, hi int)
	// Accumulate, Logprobs and their errors are those of train.Learner and
	// train.Scorer. In the last of its batches Accumulate calls final, again and again,
	// when elements [from, Len) of the gradient have got their last: it does not touch
	// them any more, and they may be summed over the replicas meanwhile. A replica that
	// keeps its shard of the gradient alone is given one batch at a time, and may wait
	// for Reduce, as long as ctx does not end.
	Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(from int)) error
	Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error)
	// Prepare takes the memory that the rest of a step needs.
	Prepare() error
	// Pieces are where the pieces of the gradient begin that a replica has in memory one
	// after the other, if it keeps its shard alone; nil where it keeps the whole. They
	// are equal in all replicas.
	Pieces() []int
	// Reduce calls sum with elements [lo, hi) of the gradient, all within a piece, to
	// write into those of the shard the sum over all replicas. After each call of
	// Accumulate it is called for all of them, from the end, beside the next call; after
	// the last also for batches that other replicas have, and gives zeros for them.
	Reduce(ctx context.Context, lo, hi int, sum func(part B) error) error
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
	// ReduceScatter leaves the sum over all ranks in each rank's part of its vector;
	// bounds count from the vector's beginning.
	ReduceScatter(ctx context.Context, rank int, vector B, bounds []int) error
	// AllGather copies each rank's part to all others.
	AllGather(ctx context.Context, rank int, vector B, bounds []int) error
}

// Group is replicas that train together. Its methods are those of train.Learner and
// train.Scorer.
type Group[B any] struct {
	// Bucket is how many elements of the gradient are summed at a time. Results do not
	// depend on it where a Reducer's sums do not.
	Bucket int

	replicas []Replica[B]
	reducer  Reducer[B]
	bounds   []int // of the shards
	pieces   []int // of the gradient; nil: it is whole
	reduced  bool  // the gradients have been summed
	broken   error // why the replicas may differ
}

// DefaultBucket is 16 MB of float32.
const DefaultBucket = 4 << 20

// ErrReducing is wrapped by errors that came when gradients were perhaps being summed:
// members of a Reducer may be in the middle of an operation.
var ErrReducing = errors.New("while gradients are summed")

// New joins replicas whose weights are equal and whose shards, in their order, make
// up the whole.
func New[B any](replicas []Replica[B], reducer Reducer[B]) (*Group[B], error) {
	if len(replicas) == 0 {
		return nil, errors.New("replicas: none")
	}
	g := &Group[B]{Bucket: DefaultBucket, replicas: replicas, reducer: reducer, bounds: []int{0}, pieces: replicas[0].Pieces()}
	for i, r := range replicas {
		lo, hi := r.Shard()
		switch {
		case r.Len() != replicas[0].Len() || r.Len() == 0:
			return nil, fmt.Errorf("replicas: number %d has %d weights, number 0 has %d", i, r.Len(), replicas[0].Len())
		case lo != g.bounds[i] || hi < lo || i == len(replicas)-1 && hi != r.Len():
			return nil, fmt.Errorf("replicas: number %d of %d has the shard [%d, %d) of %d weights; those before it end at %d",
				i, len(replicas), lo, hi, r.Len(), g.bounds[i])
		case (r.Pieces() == nil) != (g.pieces == nil) || !slices.Equal(r.Pieces(), g.pieces):
			return nil, fmt.Errorf("replicas: number %d keeps the gradient in pieces from %v, number 0 from %v; let all shard it or none",
				i, r.Pieces(), g.pieces)
		}
		g.bounds = append(g.bounds, hi)
	}
	return g, nil
}

// Replicas is their number.
func (g *Group[B]) Replicas() int { return len(g.replicas) }

// Version counts the updates that made the weights.
func (g *Group[B]) Version() int64 { return g.replicas[0].Version() }

// Logprobs deals the micro-batches as Accumulate does.
func (g *Group[B]) Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	out, dealt := make([][]float64, len(batches)), deal(batches, len(g.replicas))
	err := g.each(ctx, func(ctx context.Context, i int) error {
		if len(dealt[i]) == 0 {
			return nil
		}
		logprobs, err := g.replicas[i].Logprobs(ctx, pick(batches, dealt[i]))
		for k := range logprobs {
			out[dealt[i][k]] = logprobs[k]
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Step updates the weights everywhere from the summed gradients, and clears these.
// It returns the gradient's global norm before clipping; where that is not finite
// the weights stay as they are and the error wraps rl.ErrNonFinite. An error before
// the first update leaves the weights as they are, too; one after it leaves the
// replicas different from each other, and the group refuses to go on.
func (g *Group[B]) Step(ctx context.Context, opt train.AdamW) (gradNorm float64, err error) {
	if g.broken != nil {
		return 0, g.broken
	}
	if !g.reduced { // nothing was accumulated
		if err := g.Accumulate(ctx, nil, nil); err != nil {
			return 0, err
		}
	}
	defer g.clear()
	squares := make([]float64, len(g.replicas))
	err = g.each(ctx, func(_ context.Context, i int) (err error) {
		squares[i], err = g.replicas[i].Squares()
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
	g.reduced = false
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
			if err := f(ctx, i); err != nil {
				cancel(g.of(i, err))
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}

// of names the replica that an error is of, where there are several.
func (g *Group[B]) of(i int, err error) error {
	if len(g.replicas) == 1 {
		return err
	}
	return fmt.Errorf("replica %d: %w", i, err)
}
