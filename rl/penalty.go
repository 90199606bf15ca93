package rl

import (
	"fmt"
	"math"
	"slices"

	"gorgonia.org/gorgonia"
)

// KLEstimator estimates the divergence of the policy from the reference from the
// sampled tokens. With d = logprob − reference, within ±20: k1 is d, k2 is d²/2,
// k3 is exp(−d) + d − 1 (Schulman 2020, "Approximating KL divergence"). Only the
// gradient of k2 is on average that of the divergence; k1+ and k3+ therefore have
// the value of k1 and k3 and the gradient of k2.
type KLEstimator string

const (
	K1           KLEstimator = "k1"
	K2           KLEstimator = "k2"
	K3           KLEstimator = "k3" // also what an empty estimator is
	K1StraightK2 KLEstimator = "k1+"
	K3StraightK2 KLEstimator = "k3+"
)

// KLEstimators are all there are.
var KLEstimators = []KLEstimator{K1, K2, K3, K1StraightK2, K3StraightK2}

func (k KLEstimator) check() error {
	if k == "" || slices.Contains(KLEstimators, k) {
		return nil
	}
	return fmt.Errorf("no kl_estimator %q; there are %v", k, KLEstimators)
}

// value is the estimate for one token of log ratio d.
func (k KLEstimator) value(d float64) float64 {
	d = bound(d)
	switch k {
	case K1, K1StraightK2:
		return d
	case K2:
		return d * d / 2
	default:
		return math.Exp(-d) + d - 1
	}
}

// node is the estimate as an expression.
func (k KLEstimator) node(in *Inputs) *gorgonia.Node {
	d := in.Clamp(sub(in.Logprob(), in.Reference()), -maxLogRatio, maxLogRatio)
	switch k {
	case K1:
		return d
	case K2:
		return mul(in.Const(0.5), square(d))
	case K1StraightK2, K3StraightK2:
		rest := in.computed("rest of "+string(k), func(t Tokens, out []float64) {
			for i := range out {
				d := t.Logprobs[i] - t.References[i]
				out[i] = k.value(d) - K2.value(d)
			}
		})
		return add(mul(in.Const(0.5), square(d)), rest)
	default:
		return sub(add(exp(neg(d)), d), in.Const(1))
	}
}

// penalized adds the penalties to term.
func (s Settings) penalized(in *Inputs, term *gorgonia.Node) *gorgonia.Node {
	if s.KLCoef > 0 {
		kl := s.KLEstimator.node(in)
		if s.KLImportance {
			kl = mul(in.Ratio(), kl)
		}
		term = add(term, mul(in.Const(s.KLCoef), kl))
	}
	if s.EntropyCoef != 0 {
		term = add(term, mul(in.Const(s.EntropyCoef), negativeEntropy(in)))
	}
	return term
}

// negativeEntropy has the value of the log-probability, whose mean over sampled
// tokens is minus the entropy, and the gradient log-probability: since the mean
// of ∇ log π is zero, ∇H = −E[log π ∇ log π]. It is an estimate on fresh data
// only: nothing weighs for tokens that another policy sampled, and a filter of
// the sampled tokens biases it.
func negativeEntropy(in *Inputs) *gorgonia.Node {
	rest := in.computed("rest of the entropy", func(t Tokens, out []float64) {
		for i, l := range t.Logprobs {
			out[i] = l - l*l/2
		}
	})
	return add(mul(in.Const(0.5), square(in.Logprob())), rest)
}
