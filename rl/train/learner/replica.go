package learner

import (
	"context"
	"fmt"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// ring is a Reducer between GPUs.
type ring interface {
	replicas.Reducer[*torch.Tensor]
	Close()
}

// join makes policies of one process a group.
func (l *Learner) join(policies []*model.Policy) (group, error) {
	reducer, err := reducerOf(policies)
	if err != nil {
		return nil, err
	}
	l.ring, _ = reducer.(ring)
	all := make([]replicas.Replica[*torch.Tensor], len(policies))
	for i, p := range policies {
		all[i] = replica{p}
	}
	return newGroup(all, reducer)
}

// bucket is replicas.Group's. Tests have shorter ones.
var bucket = replicas.DefaultBucket

func newGroup(all []replicas.Replica[*torch.Tensor], reducer replicas.Reducer[*torch.Tensor]) (group, error) {
	g, err := replicas.New(all, reducer)
	if err != nil {
		return nil, err
	}
	g.Bucket = bucket
	return g, nil
}

// replica is a policy as one of a replicas.Group.
type replica struct{ policy *model.Policy }

func (r replica) Version() int64 { return r.policy.Version() }
func (r replica) Clear()         { r.policy.ClearGradient() }

func (r replica) Len() int {
	_, _, n := r.policy.Shard()
	return n
}

func (r replica) Shard() (lo, hi int) {
	lo, hi, _ = r.policy.Shard()
	return lo, hi
}

// Accumulate runs the micro-batches one after the other; the policy's workers
// share each. Only what is trained on is predicted: elsewhere logprobs and
// entropies are 0.
func (r replica) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(from int)) error {
	for i, b := range batches {
		last := final
		if i < len(batches)-1 {
			last = nil
		}
		err := r.policy.AccumulateLast(ctx, b.Tokens, b.Offsets, b.Mask, func(logprobs, entropies []float64) ([]float64, error) {
			return fn(i, logprobs, entropies)
		}, last)
		if err != nil {
			return fmt.Errorf("micro-batch %d of %d: %w", i+1, len(batches), err)
		}
	}
	return nil
}

// Logprobs scores batches under the weights as they are.
func (r replica) Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	return score(ctx, r.policy, batches)
}

func score(ctx context.Context, p *model.Policy, batches []rl.Packed) ([][]float64, error) {
	out := make([][]float64, len(batches))
	for i, b := range batches {
		var err error
		if out[i], err = p.Logprobs(ctx, b.Tokens, b.Offsets); err != nil {
			return nil, fmt.Errorf("micro-batch %d of %d: %w", i+1, len(batches), err)
		}
	}
	return out, nil
}

func (r replica) Prepare() error            { return r.policy.Prepare() }
func (r replica) Pieces() []int             { return r.policy.Pieces() }
func (r replica) Squares() (float64, error) { return r.policy.GradientSquares(), nil }

func (r replica) Reduce(_ context.Context, lo, hi int, sum func(*torch.Tensor) error) error {
	return r.policy.Reduce(lo, hi, sum)
}

func (r replica) Update(o train.AdamW, scale float64, share func(*torch.Tensor) error) error {
	return r.policy.Update(model.AdamW{LR: o.LR, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, WeightDecay: o.WeightDecay}, scale, share)
}
