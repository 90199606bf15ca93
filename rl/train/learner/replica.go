package learner

import (
	"context"
	"fmt"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// newGroup joins policies that compute in F, in host memory.
func newGroup[F float32 | float64](policies []*model.Policy) (group, error) {
	return join(policies, torch.Data[F], collective.NewLocal[F](len(policies)))
}

// newAlone is the group of one policy, wherever it computes.
func newAlone(p *model.Policy) (group, error) {
	return join([]*model.Policy{p}, func(t *torch.Tensor) *torch.Tensor { return t }, alone{})
}

// join gives the reducer the memory of the policies' tensors.
func join[B any](policies []*model.Policy, memory func(*torch.Tensor) B, reducer replicas.Reducer[B]) (group, error) {
	all := make([]replicas.Replica[B], len(policies))
	for i, p := range policies {
		all[i] = replica[B]{p, memory}
	}
	return replicas.New(all, reducer)
}

// alone is the reducer of one replica, whose part is the whole.
type alone struct{}

func (alone) ReduceScatter(context.Context, int, *torch.Tensor, []int) error { return nil }
func (alone) AllGather(context.Context, int, *torch.Tensor, []int) error     { return nil }
func (alone) Sum(_ context.Context, _ int, x float64) (float64, error)       { return x, nil }

// replica is a policy as one of a replicas.Group.
type replica[B any] struct {
	policy *model.Policy
	memory func(*torch.Tensor) B
}

func (r replica[B]) Version() int64 { return r.policy.Version() }
func (r replica[B]) Clear()         { r.policy.ClearGradient() }

func (r replica[B]) Len() int {
	_, _, n := r.policy.Shard()
	return n
}

func (r replica[B]) Shard() (lo, hi int) {
	lo, hi, _ = r.policy.Shard()
	return lo, hi
}

// Accumulate runs the micro-batches one after the other; the policy's workers
// share each. Only what is trained on is predicted: elsewhere logprobs and
// entropies are 0.
func (r replica[B]) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	for i, b := range batches {
		err := r.policy.AccumulateMasked(ctx, b.Tokens, b.Offsets, b.Mask, func(logprobs, entropies []float64) ([]float64, error) {
			return fn(i, logprobs, entropies)
		})
		if err != nil {
			r.policy.ClearGradient()
			return fmt.Errorf("micro-batch %d of %d: %w", i+1, len(batches), err)
		}
	}
	return nil
}

// Logprobs scores batches under the weights as they are.
func (r replica[B]) Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
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

func (r replica[B]) Gradient() (g B, err error) {
	t, err := r.policy.Gradient()
	if err != nil {
		return g, err
	}
	return r.memory(t), nil
}

func (r replica[B]) Squares() (float64, error) { return r.policy.GradientSquares(), nil }

func (r replica[B]) Update(o train.AdamW, scale float64, share func(B) error) error {
	return r.policy.Update(model.AdamW{LR: o.LR, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, WeightDecay: o.WeightDecay}, scale,
		func(trained *torch.Tensor) error { return share(r.memory(trained)) })
}
