package rl

import (
	"fmt"
	"math"
)

// Settings are the parameters of the objectives: which surrogate, times which
// correction, aggregated how, plus which penalties. Each objective reads those
// that concern it. Start from Defaults: a zero here means zero, not "the default".
type Settings struct {
	// ClipLow and ClipHigh bound the ratio to [1 − ClipLow, 1 + ClipHigh]; in gmpo
	// the log ratio to [−ClipLow, ClipHigh], in dppo the change of the token's
	// probability likewise.
	ClipLow  float64 `json:"clip_low" yaml:"clip_low"`
	ClipHigh float64 `json:"clip_high" yaml:"clip_high"`
	// DualClip (> 1) bounds the loss of tokens with a negative advantage by
	// −DualClip·A; 0 leaves it unbounded.
	DualClip float64 `json:"dual_clip" yaml:"dual_clip"`
	// TauPositive and TauNegative are SAPO's temperatures by the advantage's sign.
	TauPositive float64 `json:"tau_positive" yaml:"tau_positive"`
	TauNegative float64 `json:"tau_negative" yaml:"tau_negative"`
	// CovShare is the share of tokens that clip_cov and kl_cov select by the
	// covariance of advantage and log-probability, one token at least; clip_cov
	// looks between CovLow and CovHigh. CovKLCoef is what kl_cov weighs the
	// selected tokens' |log ratio| with.
	CovShare  float64 `json:"cov_share,omitempty" yaml:"cov_share"`
	CovLow    float64 `json:"cov_low,omitempty" yaml:"cov_low"`
	CovHigh   float64 `json:"cov_high,omitempty" yaml:"cov_high"`
	CovKLCoef float64 `json:"cov_kl_coef,omitempty" yaml:"cov_kl_coef"`

	// Anchor is the policy that ratios are taken against.
	Anchor Anchor `json:"anchor,omitempty" yaml:"anchor"`
	// Correction weighs or masks tokens by the ratio of the trainer's probability
	// (the anchor "old", or the policy now) to the sampler's, CorrectionLevel says
	// whose ratio, CorrectionLow and CorrectionHigh (0: none) bound it, and
	// CorrectionNegative spares tokens whose advantage is not negative.
	Correction         Correction      `json:"correction,omitempty" yaml:"correction"`
	CorrectionLevel    CorrectionLevel `json:"correction_level,omitempty" yaml:"correction_level"`
	CorrectionLow      float64         `json:"correction_low,omitempty" yaml:"correction_low"`
	CorrectionHigh     float64         `json:"correction_high,omitempty" yaml:"correction_high"`
	CorrectionNegative bool            `json:"correction_negative,omitempty" yaml:"correction_negative"`

	// KLCoef weighs the divergence from the reference; 0 needs none. KLEstimator
	// estimates it, times the ratio where KLImportance is set.
	KLCoef       float64     `json:"kl_coef" yaml:"kl_coef"`
	KLEstimator  KLEstimator `json:"kl_estimator,omitempty" yaml:"kl_estimator"`
	KLImportance bool        `json:"kl_importance,omitempty" yaml:"kl_importance"`
	// EntropyCoef weighs a bonus for entropy, estimated from the sampled tokens.
	EntropyCoef float64 `json:"entropy_coef,omitempty" yaml:"entropy_coef"`

	// Params are parameters by name of an objective registered from outside that
	// has others than the fields above: those of its Family.Defaults, no others.
	Params map[string]float64 `json:"params,omitempty" yaml:"params,omitempty"`

	// Aggregation makes one loss of the tokens' terms.
	Aggregation Aggregation `json:"aggregation" yaml:"aggregation"`
	// Length is the divisor of the constant aggregations: the context window in tokens.
	Length int `json:"length" yaml:"length"`
}

// Anchor names the policy that ratios are taken against.
type Anchor string

const (
	// AnchorRollout, like an empty Anchor, is the policy that sampled.
	AnchorRollout Anchor = "rollout"
	// AnchorOld is the trainer's own policy when the step began (the proximal
	// policy of decoupled PPO, arXiv 2110.00641), as in Batch.OldLogprobs.
	AnchorOld Anchor = "old"
)

// check refuses what no objective can use.
func (s Settings) check() error {
	if err := s.Aggregation.check(s.Length); err != nil {
		return err
	}
	switch {
	case s.Anchor != "" && s.Anchor != AnchorRollout && s.Anchor != AnchorOld:
		return fmt.Errorf("no anchor %q; there are %s and %s", s.Anchor, AnchorRollout, AnchorOld)
	case s.DualClip != 0 && !(s.DualClip > 1):
		return fmt.Errorf("dual_clip is %g; it must exceed 1, or be 0 for none", s.DualClip)
	case !(s.KLCoef >= 0) || math.IsInf(s.KLCoef, 0):
		return fmt.Errorf("kl_coef is %g; it must be finite and not negative", s.KLCoef)
	case !finite(s.EntropyCoef):
		return fmt.Errorf("entropy_coef is %g; it must be finite", s.EntropyCoef)
	}
	if err := s.KLEstimator.check(); err != nil {
		return err
	}
	return s.checkCorrection()
}

func (s Settings) checkClip() error {
	if !(s.ClipLow > 0) || !(s.ClipHigh > 0) || s.ClipLow > 1 {
		return fmt.Errorf("clip_low is %g and clip_high is %g; want 0 < clip_low ≤ 1 and clip_high > 0", s.ClipLow, s.ClipHigh)
	}
	return nil
}

func (s Settings) checkCov() error {
	if !(s.CovShare > 0 && s.CovShare <= 1) {
		return fmt.Errorf("cov_share is %g; it must lie in (0, 1]", s.CovShare)
	}
	return nil
}

// finite is false for NaN and the infinities.
func finite(x float64) bool { return x-x == 0 }
