package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/budget"
)

// trainingFigure is whole optimizer steps on Sequences of Length tokens, packed into one
// micro-batch.
type trainingFigure struct {
	Sequences int           `json:"sequences"`
	Length    int           `json:"length"`
	LoRARank  int           `json:"lora_rank,omitempty"`
	Recompute bool          `json:"recompute,omitempty"`
	Tokens    float64       `json:"tokens_per_second,omitempty"`
	Seconds   float64       `json:"seconds_per_step,omitempty"`
	Memory    *memoryFigure `json:"memory,omitempty"`
	outcome
}

func (b *benchRun) training(ctx context.Context) error {
	for i, n := range b.Train {
		f := &trainingFigure{Sequences: n, Length: b.Length[min(i, len(b.Length)-1)], LoRARank: b.LoRARank}
		if err := b.setting(ctx, &f.outcome, func() error { return b.trainingOne(ctx, f) }); err != nil {
			return err
		}
		b.result.Training = append(b.result.Training, f)
	}
	return nil
}

// trainingOne repeats whole optimizer steps.
func (b *benchRun) trainingOne(ctx context.Context, f *trainingFigure) error {
	plan, err := b.trainee(budget.Run{MicroBatch: f.Sequences * f.Length, Longest: f.Length})
	if err != nil {
		return err
	}
	f.Recompute = b.options.Recompute
	if err := b.resetPeak(); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(2, 2))
	tokens := b.tokens(r, f.Sequences*f.Length)
	offsets := make([]int, f.Sequences+1)
	for i := range offsets {
		offsets[i] = i * f.Length
	}
	grad := make([]float64, len(tokens))
	for i := range grad {
		grad[i] = -1 / float64(len(grad))
	}
	step := func() error {
		err := b.policy.Accumulate(ctx, tokens, offsets, func(_, _ []float64) ([]float64, error) { return grad, nil })
		if err == nil {
			_, err = b.policy.Step(model.AdamW{LR: 1e-6, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1)
		}
		return err
	}
	if err := step(); err != nil { // the first one allocates
		return err
	}
	began, cpu, n := time.Now(), cpuTime(), 0
	for ; n == 0 || time.Since(began) < b.Budget; n++ {
		if err := step(); err != nil {
			return err
		}
	}
	seconds := time.Since(began).Seconds()
	f.Tokens, f.Seconds = float64(n*len(tokens))/seconds, seconds/float64(n)
	if b.result.TrainingTokens == 0 {
		b.result.TrainingTokens = f.Tokens
		b.result.TrainingCPU = float64((cpuTime() - cpu).Microseconds()) / 1000 / float64(n*len(tokens))
	}
	f.Memory, err = b.used(byPurpose(plan))
	return err
}

// byPurpose is a plan as memory is counted.
func byPurpose(p budget.Plan) map[torch.Purpose]int64 {
	return map[torch.Purpose]int64{
		torch.Weights: p.Weights, torch.Gradients: p.Gradients, torch.Optimizer: p.Optimizer,
		torch.Activations: p.Activations + p.Sampling, torch.Cache: p.Cache,
	}
}

// trainee plans a run and opens a policy for it that nobody has trained: one that keeps
// its activations where there is memory for them, else one that computes them again.
func (b *benchRun) trainee(r budget.Run) (plan budget.Plan, err error) {
	r.Model, r.Options, r.Replicas, r.Device = b.policy.Config(), b.options, 1, b.room
	r.Options.Workers = b.policy.Workers().Size()
	if r.Longest > r.Model.MaxPositions {
		return plan, leftOut(b.tooLong(r.Longest, 0, 0))
	}
	for _, again := range []bool{false, true} {
		r.Options.Recompute = again
		if plan, err = budget.Make(r); !errors.Is(err, budget.ErrTooLarge) {
			break
		}
	}
	if errors.Is(err, budget.ErrTooLarge) {
		return plan, leftOut(err.Error())
	}
	if err == nil && (b.trained || b.options.Recompute != r.Options.Recompute) {
		err = b.open(r.Options.Recompute)
	}
	b.trained = true
	return plan, err
}
