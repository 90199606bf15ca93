package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/ssr-go/ssr/kernels/torch"
)

// Logprobs scores packed sequences: sequence s is tokens [offsets[s],
// offsets[s+1]), and no sequence sees another. Entry i is the natural log of the
// probability of token i given what precedes it in its sequence; 0 for the
// first token of each.
func (p *Policy) Logprobs(ctx context.Context, tokens []int32, offsets []int) ([]float64, error) {
	if err := p.checkPacked(tokens, offsets); err != nil {
		return nil, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := make([]float64, len(tokens))
	dealt := segments(tokens, offsets, p.pool.Size(), p.options.segmentTokens())
	err := p.each(ctx, func(worker int) error {
		for _, seg := range dealt[worker] {
			if err := ctx.Err(); err != nil {
				return err
			}
			scoreSegment(p, p.lanes[worker].scratch, seg, out)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("model: logprobs: %w", err)
	}
	return out, nil
}

// scoreSegment fills in a segment's part of the batch's log-probabilities.
func scoreSegment(p *Policy, scratch *torch.Arena, seg segment, out []float64) {
	s := scratch.Scope()
	defer s.Close()
	hidden := Forward(p, s, seg.tokens, seg.positions, attendWithin(p, seg, nil))
	rows, targets := seg.predicted(nil)
	sc := score(p, s, hidden, p.ops.indices(s, rows), p.ops.indices(s, targets), nil)
	for i, lp := range read(sc.logprobs) {
		out[seg.first+int(rows[i])+1] = lp
	}
}

// Accumulate is the seam between the policy and an objective. It runs a packed
// batch (see Logprobs) forward, calls fn once with the log-probability and the
// entropy (nats) of every token, runs backward from the gradient of the loss
// with respect to the log-probabilities that fn returns, and adds the gradient
// of the parameters to what earlier calls left. Step uses it up.
//
// The first token of a sequence is not predicted: its entries are 0 and its
// gradient is ignored. An error of fn is returned, and nothing is added. The
// activations of the whole batch are held in memory meanwhile: it is the
// micro-batch. The workers share it by sequences.
func (p *Policy) Accumulate(ctx context.Context, tokens []int32, offsets []int,
	fn func(logprobs, entropies []float64) (grad []float64, err error)) error {
	return p.AccumulateMasked(ctx, tokens, offsets, nil, fn)
}

// AccumulateMasked is Accumulate where only the tokens that mask admits are
// predicted: the head, a good part of a small model's work, is not computed for
// the others, whose log-probabilities and entropies are 0. A nil mask admits all.
func (p *Policy) AccumulateMasked(ctx context.Context, tokens []int32, offsets []int, mask []bool,
	fn func(logprobs, entropies []float64) (grad []float64, err error)) error {
	return p.AccumulateLast(ctx, tokens, offsets, mask, fn, nil)
}

// AccumulateLast is AccumulateMasked for a batch after which replicas sum their
// gradients: the last of an update, or with Options.ShardGradient each. Where final is not
// nil, it is called again and again, one call at a time, when elements [from, n) of the
// gradient are what all batches since the last sum have added up to: from on, they belong
// to the caller, who calls Reduce. The last call has a from of 0. It must not wait for
// the policy. With Options.ShardGradient the backward pass waits for Reduce, as
// long as ctx does not end.
func (p *Policy) AccumulateLast(ctx context.Context, tokens []int32, offsets []int, mask []bool,
	fn func(logprobs, entropies []float64) (grad []float64, err error), final func(from int)) error {
	if err := p.checkPacked(tokens, offsets); err != nil {
		return err
	}
	if mask != nil && len(mask) != len(tokens) {
		return fmt.Errorf("model: a mask of %d for %d tokens", len(mask), len(tokens))
	}
	if p.options.ShardGradient && final == nil {
		return errors.New("model: a policy that keeps a shard of the gradient sums that of each batch; use AccumulateLast and Reduce")
	}
	p.training.Lock()
	defer p.training.Unlock()
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.needGradients(); err != nil {
		return err
	}
	return accumulate(ctx, p, tokens, offsets, mask, fn, p.following(final))
}

func accumulate(ctx context.Context, p *Policy, tokens []int32, offsets []int, mask []bool,
	fn func(logprobs, entropies []float64) ([]float64, error), done *finished) (err error) {
	dealt := segments(tokens, offsets, p.pool.Size(), p.options.segmentTokens())
	tapes := make([][]*tape, p.pool.Size())
	for _, l := range p.lanes {
		// Closes, on every way out, the scopes of the tapes too.
		defer l.training.Scope().Close()
	}
	logprobs, entropies := make([]float64, len(tokens)), make([]float64, len(tokens))
	err = p.each(ctx, func(worker int) error {
		for _, seg := range dealt[worker] {
			if err := ctx.Err(); err != nil {
				return err
			}
			scope := p.lanes[worker].training.Scope()
			t := record(p, scope, seg, mask)
			tapes[worker] = append(tapes[worker], t)
			lp, entropy := read(t.scores.logprobs), read(t.scores.entropies)
			for i, r := range t.rows.host {
				logprobs[seg.first+int(r)+1] = lp[i]
				entropies[seg.first+int(r)+1] = entropy[i]
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("model: forward: %w", err)
	}
	grad, err := fn(logprobs, entropies)
	if err != nil {
		return err
	}
	if len(grad) != len(tokens) {
		return fmt.Errorf("model: the objective's gradient has %d entries for %d tokens", len(grad), len(tokens))
	}
	for i, g := range grad {
		if math.IsNaN(g) || math.IsInf(g, 0) {
			return fmt.Errorf("model: the objective's gradient at token %d is %v (log-probability %v)", i, g, logprobs[i])
		}
	}
	// Once begun, the backward pass runs to its end, unless it has to wait for others:
	// half a gradient is worse than a late answer.
	waiting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	err = p.each(context.WithoutCancel(ctx), func(worker int) error {
		broken := true
		defer func() {
			if broken { // or panics: the other workers do not wait for this one
				giveUp()
			}
		}()
		var busy []*tape
		for _, t := range slices.Backward(tapes[worker]) {
			for _, r := range t.rows.host {
				t.dlogprobs = append(t.dlogprobs, grad[t.seg.first+int(r)+1])
			}
			if slices.ContainsFunc(t.dlogprobs, func(g float64) bool { return g != 0 }) {
				busy = append(busy, t)
			}
		}
		err := backward(waiting, p, worker, busy, done)
		broken = err != nil
		return err
	})
	if err != nil {
		return fmt.Errorf("model: backward: %w", err)
	}
	return nil
}
