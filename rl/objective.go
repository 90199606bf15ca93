package rl

import (
	"fmt"
	"math"
	"slices"
)

// graphObjective evaluates a whole expression: surrogate, correction and penalties.
type graphObjective struct {
	settings Settings
	eval     *evaluator
}

// Evaluate implements Objective. Its metrics are shares of what the whole step's
// batches train on, so those of micro-batches merge with MergeMetrics: ratio_mean and
// approx_kl (k3) of the policy now against the sampler's, clip_fraction,
// correction_mean, kl (of the reference) and entropy (estimated from the sampled
// tokens); ratio_max, ratio_min and logprob_gap_max are extremes.
func (o *graphObjective) Evaluate(b Batch) (Result, error) {
	if err := o.prepare(b); err != nil {
		return Result{}, err
	}
	res := Result{Grad: make([]float64, len(b.Logprobs)), Metrics: map[string]float64{}}
	place, done := 0, 0 // the span that the next gradient belongs to, and how much of it is there
	bad := -1           // the first token whose gradient is not finite
	g := newGap()
	var err error
	res.Loss, err = o.eval.run(func(lo int, gradient, ratio []float64) {
		if b.RolloutLogprobs != nil {
			if o.settings.Anchor == AnchorOld {
				ratio = nil
			}
			hi := lo + len(gradient)
			g.add(o.eval.tokens.Logprobs[lo:hi], o.eval.tokens.Rollouts[lo:hi], ratio)
		}
		for len(gradient) > 0 {
			s := o.eval.spans[place]
			n := min(s.hi-s.lo-done, len(gradient))
			if i := copyFinite(res.Grad[s.lo+done:], gradient[:n]); i < n && bad < 0 {
				bad = s.lo + done + i
				res.Grad[bad] = gradient[i]
			}
			gradient = gradient[n:]
			if done += n; s.lo+done == s.hi {
				place, done = place+1, 0
			}
		}
	})
	if err != nil {
		return Result{}, err
	}
	if !finite(res.Loss) {
		return Result{}, fmt.Errorf("rl: the loss is %v: %w", res.Loss, ErrNonFinite)
	}
	if bad >= 0 {
		return Result{}, fmt.Errorf("rl: the gradient of token %d is %v: %w", bad, res.Grad[bad], ErrNonFinite)
	}
	o.describe(b, g, res.Metrics)
	return res, nil
}

// Idle says whether a sequence can be left out of its batch: it has no advantage, and
// the objective no other term. See Totals.Idle.
func (o *graphObjective) Idle(s Sequence) bool {
	advantages := s.Advantages
	if advantages == nil {
		advantages = []float64{s.Advantage}
	}
	return o.eval.expression.Scaled && !slices.ContainsFunc(advantages, func(a float64) bool { return a != 0 })
}

// NeedsReference implements Referring.
func (o *graphObjective) NeedsReference() bool { return o.eval.first.in.needsReferences }

// prepare checks b and loads it.
func (o *graphObjective) prepare(b Batch) error {
	if err := o.check(b); err != nil {
		return err
	}
	return o.eval.load(b, o.settings.Anchor == AnchorOld, o.settings.Aggregation, o.settings.Length)
}

func (o *graphObjective) check(b Batch) error {
	n := len(b.Logprobs)
	if len(b.Mask) != n {
		return fmt.Errorf("rl: batch of %d tokens has a mask of %d", n, len(b.Mask))
	}
	if len(b.Offsets) == 0 || b.Offsets[0] != 0 || b.Offsets[len(b.Offsets)-1] != n {
		return fmt.Errorf("rl: batch of %d tokens has offsets %v, want them from 0 to %d", n, b.Offsets, n)
	}
	for s := range len(b.Offsets) - 1 {
		if b.Offsets[s] > b.Offsets[s+1] {
			return fmt.Errorf("rl: offsets %v decrease", b.Offsets)
		}
		if b.Offsets[s] < b.Offsets[s+1] && b.Mask[b.Offsets[s]] {
			return fmt.Errorf("rl: the first token of sequence %d is masked in, but nothing predicts it", s)
		}
	}
	o.eval.find(b)
	needs, old := o.eval.first.in, o.settings.Anchor == AnchorOld
	for _, v := range []struct {
		name   string
		data   []float64
		needed bool
	}{
		{"rollout logprobs", b.RolloutLogprobs, needs.needsRollouts || needs.anchored && !old},
		{"old logprobs", b.OldLogprobs, needs.anchored && old},
		{"advantages", b.Advantages, needs.needsAdvantages},
		{"reference logprobs", b.ReferenceLogprobs, needs.needsReferences},
		{"logprobs", b.Logprobs, true},
	} {
		if v.data == nil && v.needed && n > 0 {
			return fmt.Errorf("rl: this objective needs %s", v.name)
		}
		if v.data != nil && len(v.data) != n {
			return fmt.Errorf("rl: batch of %d tokens has %d %s", n, len(v.data), v.name)
		}
	}
	var own Totals
	o.eval.tokens.sequences(func(lo, hi int) {
		own.Tokens += hi - lo
		own.Sequences++
	})
	if own.Tokens > b.Totals.Tokens || own.Sequences > b.Totals.Sequences {
		return fmt.Errorf("rl: the batch trains on %d tokens of %d sequences, more than the step's total of %d of %d",
			own.Tokens, own.Sequences, b.Totals.Tokens, b.Totals.Sequences)
	}
	return nil
}

// gap sums up how far the policy is from the sampler.
type gap struct{ ratios, kl, least, most float64 } // least and most are log ratios

func newGap() gap { return gap{least: math.Inf(1), most: math.Inf(-1)} }

// add counts tokens, whose ratios may be known.
func (g *gap) add(logprobs, rollouts, ratios []float64) {
	sum := *g // of its own, which the loop can keep in registers
	rollouts = rollouts[:len(logprobs)]
	for k, l := range logprobs {
		d := l - rollouts[k]
		if d > sum.most {
			sum.most = d
		}
		if d < sum.least {
			sum.least = d
		}
		d = bound(d)
		var r float64
		if ratios != nil {
			r = ratios[k]
		} else {
			r = math.Exp(d)
		}
		sum.ratios += r
		sum.kl += r - 1 - d
	}
	*g = sum
}

// describe adds the metrics of what was loaded.
func (o *graphObjective) describe(b Batch, g gap, metrics map[string]float64) {
	t := o.eval.tokens
	if len(t.Logprobs) == 0 {
		return
	}
	n := float64(b.Totals.Tokens - b.Totals.Idle)
	if o.settings.KLCoef > 0 {
		for k, l := range t.Logprobs {
			metrics["kl"] += o.eval.weight[k] * o.settings.KLEstimator.value(l-t.References[k])
		}
	}
	if o.settings.EntropyCoef != 0 {
		for _, l := range t.Logprobs {
			metrics["entropy"] -= l / n
		}
	}
	if o.settings.Correction != "" {
		weights := make([]float64, len(t.Logprobs))
		o.settings.correctionWeights(t, weights)
		for _, w := range weights {
			metrics["correction_mean"] += w / n
		}
	}
	if b.RolloutLogprobs == nil {
		return
	}
	metrics["ratio_mean"] = g.ratios / n
	metrics["approx_kl"] = g.kl / n
	metrics["ratio_max"] = math.Exp(bound(g.most))
	metrics["ratio_min"] = math.Exp(bound(g.least))
	metrics["logprob_gap_max"] = max(g.most, -g.least)
	if clipped := o.eval.expression.Clipped; clipped != nil {
		metrics["clip_fraction"] = float64(clipped(t)) / n
	}
}
