package rl

import (
	"fmt"
	"math"
)

// Settings are the parameters of the objectives; each reads those that concern
// it. Start from Defaults: a zero here means zero, not "the default".
type Settings struct {
	// ClipLow and ClipHigh bound the ratio to [1 − ClipLow, 1 + ClipHigh].
	ClipLow  float64 `json:"clip_low" yaml:"clip_low"`
	ClipHigh float64 `json:"clip_high" yaml:"clip_high"`
	// DualClip (> 1) bounds the loss of tokens with a negative advantage by
	// −DualClip·A; 0 leaves it unbounded.
	DualClip float64 `json:"dual_clip" yaml:"dual_clip"`
	// KLCoef weighs the k3 estimate of the divergence from the reference; 0 needs none.
	KLCoef float64 `json:"kl_coef" yaml:"kl_coef"`
	// TauPositive and TauNegative are SAPO's temperatures by the advantage's sign.
	TauPositive float64 `json:"tau_positive" yaml:"tau_positive"`
	TauNegative float64 `json:"tau_negative" yaml:"tau_negative"`
	// Aggregation makes one loss of the tokens' terms.
	Aggregation Aggregation `json:"aggregation" yaml:"aggregation"`
	// Length is the divisor of the aggregation "constant": the context window in tokens.
	Length int `json:"length" yaml:"length"`
}

// graphObjective evaluates an Expression, and beside it, where kl is not nil, a
// penalty on the divergence from the reference.
type graphObjective struct {
	settings Settings
	loss     *evaluator
	kl       *evaluator
}

func newGraphObjective(e Expression, s Settings) (Objective, error) {
	loss, err := newEvaluator(e)
	if err != nil {
		return nil, err
	}
	o := &graphObjective{settings: s, loss: loss}
	if s.KLCoef > 0 {
		if o.kl, err = newEvaluator(k3()); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// Evaluate implements Objective. Its metrics are shares of the whole step's
// totals, so those of micro-batches merge with MergeMetrics.
func (o *graphObjective) Evaluate(b Batch) (Result, error) {
	if err := o.check(b); err != nil {
		return Result{}, err
	}
	n := len(b.Logprobs)
	res := Result{Grad: make([]float64, n), Metrics: map[string]float64{}}
	weights, err := o.settings.Aggregation.weights(b, o.settings.Length)
	if err != nil {
		return Result{}, err
	}
	u, err := o.loss.add(b, weights, 1, &res)
	if err != nil {
		return Result{}, err
	}
	if o.kl != nil {
		against := b
		against.RolloutLogprobs = b.ReferenceLogprobs
		before := res.Loss
		if _, err := o.kl.add(against, weights, o.settings.KLCoef, &res); err != nil {
			return Result{}, err
		}
		res.Metrics["kl"] = (res.Loss - before) / o.settings.KLCoef
	}
	if b.RolloutLogprobs != nil {
		o.describe(b, u, &res)
	}
	if !finite(res.Loss) {
		return Result{}, fmt.Errorf("rl: the loss is %v: %w", res.Loss, ErrNonFinite)
	}
	for i, g := range res.Grad {
		if !finite(g) {
			return Result{}, fmt.Errorf("rl: the gradient of token %d is %v: %w", i, g, ErrNonFinite)
		}
	}
	return res, nil
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
	for _, v := range []struct {
		name   string
		data   []float64
		needed bool
	}{
		{"rollout logprobs", b.RolloutLogprobs, o.loss.usesOld},
		{"advantages", b.Advantages, o.loss.usesAdvantage},
		{"reference logprobs", b.ReferenceLogprobs, o.kl != nil},
	} {
		if v.data == nil && v.needed && n > 0 {
			return fmt.Errorf("rl: this objective needs %s", v.name)
		}
		if v.data != nil && len(v.data) != n {
			return fmt.Errorf("rl: batch of %d tokens has %d %s", n, len(v.data), v.name)
		}
		for i, x := range v.data {
			if b.Mask[i] && !finite(x) {
				return fmt.Errorf("rl: %s of token %d is %v: %w", v.name, i, x, ErrNonFinite)
			}
		}
	}
	for i, x := range b.Logprobs {
		if b.Mask[i] && !finite(x) {
			return fmt.Errorf("rl: logprob of token %d is %v: %w", i, x, ErrNonFinite)
		}
	}
	own := countTotals(b.Mask, b.Offsets)
	if own.Tokens > b.Totals.Tokens || own.Sequences > b.Totals.Sequences {
		return fmt.Errorf("rl: the batch trains on %+v, more than the step's totals %+v", own, b.Totals)
	}
	return nil
}

// describe adds the metrics that compare the policy now with the one that
// sampled: ratio_mean, approx_kl (k3), clip_fraction as shares of the step's
// trained tokens; ratio_max, ratio_min and logprob_gap_max as extremes.
func (o *graphObjective) describe(b Batch, u *units, res *Result) {
	if len(u.logprob) == 0 {
		return
	}
	n := float64(b.Totals.Tokens)
	var ratios, kl, rmax, gap float64
	rmin := math.Inf(1)
	for i, trained := range b.Mask {
		if !trained {
			continue
		}
		d := b.Logprobs[i] - b.RolloutLogprobs[i]
		r := math.Exp(bound(d))
		ratios += r
		kl += r - 1 - bound(d)
		rmax, rmin, gap = max(rmax, r), min(rmin, r), max(gap, math.Abs(d))
	}
	res.Metrics["ratio_mean"] = ratios / n
	res.Metrics["approx_kl"] = kl / n
	res.Metrics["ratio_max"] = rmax
	res.Metrics["ratio_min"] = rmin
	res.Metrics["logprob_gap_max"] = gap
	if clips := o.loss.expression.Clipped; clips != nil {
		var clipped float64
		for k, l := range u.logprob {
			if clips(math.Exp(bound(l-u.old[k])), u.advantage[k]) {
				clipped++
			}
		}
		res.Metrics["clip_fraction"] = clipped / n
	}
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

func bound(logRatio float64) float64 {
	return max(-maxLogRatio, min(maxLogRatio, logRatio))
}
