// Package learner lets the training loop train a model.Policy, in place, on the
// tensors that generate.
package learner

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// What is beside the weights of a checkpoint: the optimizer's state, the adapters of
// a policy that has some, and the mean of the weights of one that keeps one.
const (
	optimizerFile = "optimizer.safetensors"
	adapterDir    = "adapter"
	meanDir       = "ema"
)

// Learner is a train.Learner over a policy. What it saves is a whole model in
// Hugging Face layout, tokenizer included, and the optimizer's state. Adapters are
// merged into that model, and saved apart in PEFT's layout, from which they are
// loaded again over the policy's own weights.
type Learner struct {
	policy    *model.Policy
	tokenizer *token.Tokenizer
	// Base names, for the readers of a saved adapter, the model it belongs to.
	Base string
}

var (
	_ train.Learner = (*Learner)(nil)
	_ train.Scorer  = (*Learner)(nil)
)

// New returns a learner of a float32 or float64 policy, which stays the
// caller's to close.
func New(p *model.Policy, t *token.Tokenizer) *Learner { return &Learner{policy: p, tokenizer: t} }

// Version counts the updates of the weights.
func (l *Learner) Version() int64 { return l.policy.Version() }

// Accumulate runs the micro-batches one after the other; the policy's workers
// share each. Only what is trained on is predicted: elsewhere logprobs and
// entropies are 0.
func (l *Learner) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	for i, b := range batches {
		err := l.policy.AccumulateMasked(ctx, b.Tokens, b.Offsets, b.Mask, func(logprobs, entropies []float64) ([]float64, error) {
			return fn(i, logprobs, entropies)
		})
		if err != nil {
			l.policy.ClearGradient()
			return fmt.Errorf("micro-batch %d of %d: %w", i+1, len(batches), err)
		}
	}
	return nil
}

// Logprobs scores batches under the weights as they are.
func (l *Learner) Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	return score(ctx, l.policy, batches)
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

// Step updates the weights.
func (l *Learner) Step(_ context.Context, o train.AdamW) (float64, error) {
	norm, err := l.policy.Step(model.AdamW{LR: o.LR, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, WeightDecay: o.WeightDecay}, o.Clip)
	if err != nil && (math.IsNaN(norm) || math.IsInf(norm, 0)) {
		err = fmt.Errorf("%w: %w", rl.ErrNonFinite, err)
	}
	return norm, err
}

// Save writes the model and the optimizer's state into dir.
func (l *Learner) Save(dir string) error {
	err := errors.Join(
		l.policy.Save(dir, torch.Float32),
		l.tokenizer.Save(dir),
		l.policy.SaveOptimizer(filepath.Join(dir, optimizerFile)))
	if l.policy.LoRA() != nil {
		err = errors.Join(err, l.policy.SaveAdapter(filepath.Join(dir, adapterDir), l.Base))
	}
	mean := filepath.Join(dir, meanDir)
	switch meanErr := l.policy.SaveMean(mean, torch.Float32, l.Base); {
	case errors.Is(meanErr, model.ErrNoMean):
	case meanErr != nil:
		err = errors.Join(err, meanErr)
	case l.policy.LoRA() == nil:
		err = errors.Join(err, l.tokenizer.Save(mean))
	}
	return err
}

// Load reads back what Save wrote, into the same tensors.
func (l *Learner) Load(dir string) error {
	var err error
	if l.policy.LoRA() != nil {
		err = l.policy.LoadAdapter(filepath.Join(dir, adapterDir))
	} else {
		err = l.policy.LoadWeights(dir)
	}
	if err != nil {
		return err
	}
	return l.policy.LoadOptimizer(filepath.Join(dir, optimizerFile))
}

// WithReference is a Learner that can also score under a frozen policy, which
// objectives with a KL coefficient need.
type WithReference struct {
	*Learner
	Frozen *model.Policy
}

var _ train.Reference = WithReference{}

// ReferenceLogprobs scores batches under the frozen policy.
func (l WithReference) ReferenceLogprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	out, err := score(ctx, l.Frozen, batches)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	return out, nil
}
