package rl

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"gorgonia.org/gorgonia"
)

// Family is a named objective: its default settings, and how to make its
// expression from checked settings.
type Family struct {
	Defaults Settings
	Build    func(s Settings) (Expression, error)
}

var (
	familiesMu sync.RWMutex
	families   = map[string]Family{
		// clip is the game's default (paper section 3, after the code world
		// model): asymmetric clip, constant length, no KL.
		"clip":  {Settings{ClipLow: 0.2, ClipHigh: 0.25, Aggregation: Constant, Length: 131072}, clipped},
		"grpo":  {Settings{ClipLow: 0.2, ClipHigh: 0.2, KLCoef: 0.04, Aggregation: SequenceMean}, clipped},
		"dapo":  {Settings{ClipLow: 0.2, ClipHigh: 0.28, DualClip: 3, Aggregation: TokenMean}, clipped},
		"gspo":  {Settings{ClipLow: 3e-4, ClipHigh: 4e-4, Aggregation: SequenceMean}, sequenceClipped},
		"cispo": {Settings{ClipLow: 1, ClipHigh: 4, Aggregation: TokenMean}, cispo},
		"sapo":  {Settings{TauPositive: 1, TauNegative: 1.05, Aggregation: SequenceMean}, sapo},
		// reinforce trusts that the batch is on-policy: no ratio.
		"reinforce": {Settings{Aggregation: TokenMean}, reinforce},
		// sft is the cross-entropy of the trained tokens; it reads neither
		// advantages nor rollout log-probabilities.
		"sft": {Settings{Aggregation: TokenMean}, supervised},
	}
)

// Register adds a family under a new name, or replaces one.
func Register(name string, f Family) {
	familiesMu.Lock()
	defer familiesMu.Unlock()
	families[name] = f
}

// Names lists the registered objectives.
func Names() []string {
	familiesMu.RLock()
	defer familiesMu.RUnlock()
	return slices.Sorted(maps.Keys(families))
}

// Defaults returns the default settings of an objective, to be changed and given to New.
func Defaults(name string) (Settings, error) {
	f, err := family(name)
	return f.Defaults, err
}

// New returns the named objective. Settings are taken as they are: start from Defaults.
func New(name string, s Settings) (Objective, error) {
	f, err := family(name)
	if err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("rl: objective %s: %w", name, err)
	}
	e, err := f.Build(s)
	if err != nil {
		return nil, fmt.Errorf("rl: objective %s: %w", name, err)
	}
	return newGraphObjective(e, s)
}

func family(name string) (Family, error) {
	familiesMu.RLock()
	defer familiesMu.RUnlock()
	f, ok := families[name]
	if !ok {
		return f, fmt.Errorf("rl: no objective %q; there are %v", name, slices.Sorted(maps.Keys(families)))
	}
	return f, nil
}

// check refuses what no objective can use.
func (s Settings) check() error {
	switch {
	case s.Aggregation == Constant && s.Length <= 0:
		return fmt.Errorf("length is %d; the aggregation constant divides by it: give the context window", s.Length)
	case s.Aggregation != Constant && s.Aggregation != TokenMean && s.Aggregation != SequenceMean:
		return fmt.Errorf("no aggregation %q; there are %s, %s, %s", s.Aggregation, TokenMean, SequenceMean, Constant)
	case s.DualClip != 0 && !(s.DualClip > 1):
		return fmt.Errorf("dual_clip is %g; it must exceed 1, or be 0 for none", s.DualClip)
	case !(s.KLCoef >= 0) || math.IsInf(s.KLCoef, 0):
		return fmt.Errorf("kl_coef is %g; it must be finite and not negative", s.KLCoef)
	}
	return nil
}

func (s Settings) checkClip() error {
	if !(s.ClipLow > 0) || !(s.ClipHigh > 0) || s.ClipLow > 1 {
		return fmt.Errorf("clip_low is %g and clip_high is %g; want 0 < clip_low ≤ 1 and clip_high > 0", s.ClipLow, s.ClipHigh)
	}
	return nil
}

// clipped is PPO's surrogate, max(−rA, −clip(r)A), with the dual clip of DAPO's
// implementations where asked for: min(that, −cA) where A < 0.
func clipped(s Settings) (Expression, error) {
	e := Expression{
		Build: func(in *Inputs) *gorgonia.Node {
			against := neg(in.Advantage())
			kept := mul(in.Clamp(in.Ratio(), 1-s.ClipLow, 1+s.ClipHigh), against)
			loss := larger(mul(in.Ratio(), against), kept)
			if s.DualClip > 0 {
				loss = smaller(loss, in.Frozen())
			}
			return loss
		},
		Clipped: func(ratio, advantage float64) bool {
			return advantage > 0 && ratio > 1+s.ClipHigh || advantage < 0 &&
				(ratio < 1-s.ClipLow || s.DualClip > 0 && ratio > s.DualClip)
		},
	}
	if s.DualClip > 0 {
		e.Frozen = func(_, advantage float64) float64 {
			if advantage < 0 {
				return -s.DualClip * advantage
			}
			return math.MaxFloat64
		}
	}
	return e, s.checkClip()
}

// sequenceClipped (GSPO) is the same surrogate on the ratio of whole sequences,
// the geometric mean of their tokens' ratios.
func sequenceClipped(s Settings) (Expression, error) {
	e, err := clipped(s)
	e.Pooled = true
	return e, err
}

// cispo is −clip(r)·A·logprob with the clipped ratio as a constant weight: no
// token loses its gradient.
func cispo(s Settings) (Expression, error) {
	lo, hi := 1-s.ClipLow, 1+s.ClipHigh
	return Expression{
		Build: func(in *Inputs) *gorgonia.Node {
			return neg(mul(mul(in.Frozen(), in.Advantage()), in.Logprob()))
		},
		Frozen:  func(ratio, _ float64) float64 { return max(lo, min(hi, ratio)) },
		Clipped: func(ratio, _ float64) bool { return ratio < lo || ratio > hi },
	}, s.checkClip()
}

// sapo replaces the clip by a soft gate, −(4/τ)·σ(τ(r−1))·A, whose slope at
// r = 1 is that of the ratio itself.
func sapo(s Settings) (Expression, error) {
	var err error
	if !(s.TauPositive > 0) || !(s.TauNegative > 0) {
		err = fmt.Errorf("tau_positive is %g and tau_negative is %g; both must be positive", s.TauPositive, s.TauNegative)
	}
	return Expression{
		Build: func(in *Inputs) *gorgonia.Node {
			tau := in.Frozen()
			gate := gorgonia.Must(gorgonia.Sigmoid(mul(tau, sub(in.Ratio(), in.Const(1)))))
			slope := gorgonia.Must(gorgonia.HadamardDiv(in.Const(4), tau))
			return neg(mul(mul(slope, gate), in.Advantage()))
		},
		Frozen: func(_, advantage float64) float64 {
			if advantage > 0 {
				return s.TauPositive
			}
			return s.TauNegative
		},
	}, err
}

func reinforce(Settings) (Expression, error) {
	return Expression{Build: func(in *Inputs) *gorgonia.Node {
		return neg(mul(in.Advantage(), in.Logprob()))
	}}, nil
}

func supervised(Settings) (Expression, error) {
	return Expression{Build: func(in *Inputs) *gorgonia.Node { return neg(in.Logprob()) }}, nil
}

// k3 is the divergence estimate exp(ref − logprob) − (ref − logprob) − 1, where
// the log ratio is taken against the reference. It is never negative.
func k3() Expression {
	return Expression{Build: func(in *Inputs) *gorgonia.Node {
		d := neg(in.LogRatio())
		return sub(sub(gorgonia.Must(gorgonia.Exp(d)), d), in.Const(1))
	}}
}
