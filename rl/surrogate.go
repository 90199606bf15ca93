package rl

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"gorgonia.org/gorgonia"
)

// clipped is PPO's surrogate, max(−rA, −clip(r)A) (arXiv 1707.06347, eq. 7), with
// the dual clip (arXiv 1912.09729) where asked for: min(that, −cA) where A < 0.
func clipped(s Settings) (Expression, error) {
	clip := s.clipRange()
	return Expression{
		Scaled: true,
		Build:  func(in *Inputs) *gorgonia.Node { return s.clip(in, in.Ratio(), in.Advantage()) },
		Clipped: func(t Tokens) int {
			n := 0
			for i, a := range t.Advantages {
				if clip.clips(t.Logprobs[i]-t.Anchors[i], a) {
					n++
				}
			}
			return n
		},
	}, s.checkClip()
}

// sequenceClipped (GSPO, arXiv 2507.18071) is the same surrogate on the ratio of
// whole sequences, the geometric mean of their tokens' ratios, with the token's
// own advantage (the token form, section 4.3) or the sequence's. Where the
// advantage is constant over a sequence both are one.
func sequenceClipped(advantage func(in *Inputs) *gorgonia.Node) func(s Settings) (Expression, error) {
	return func(s Settings) (Expression, error) {
		clip := s.clipRange()
		return Expression{
			Scaled: true,
			Build:  func(in *Inputs) *gorgonia.Node { return s.clip(in, in.SequenceRatio(), advantage(in)) },
			Clipped: func(t Tokens) int {
				ratios := make([]float64, len(t.Logprobs))
				t.spread(ratios, func(i int) float64 { return t.Logprobs[i] - t.Anchors[i] })
				return t.count(func(i int) bool { return clip.clips(bound(ratios[i]), t.Advantages[i]) })
			},
		}, s.checkClip()
	}
}

// clip is the clipped surrogate of a ratio.
func (s Settings) clip(in *Inputs, ratio, advantage *gorgonia.Node) *gorgonia.Node {
	against := neg(advantage)
	loss := larger(mul(ratio, against), mul(in.Clamp(ratio, 1-s.ClipLow, 1+s.ClipHigh), against))
	if s.DualClip > 0 {
		loss = smaller(loss, in.Frozen("dual clip", func(t Tokens, out []float64) {
			for i, a := range t.Advantages {
				out[i] = math.MaxFloat64
				if a < 0 {
					out[i] = -s.DualClip * a
				}
			}
		}))
	}
	return loss
}

// clipRange are the log ratios between which the clipped surrogate has a gradient.
type clipRange struct{ low, high, dual float64 }

func (s Settings) clipRange() clipRange {
	c := clipRange{math.Log(1 - s.ClipLow), math.Log(1 + s.ClipHigh), math.Inf(1)}
	if s.DualClip > 0 {
		c.dual = math.Log(s.DualClip)
	}
	return c
}

// clips says whether there is none at a log ratio.
func (c clipRange) clips(logRatio, advantage float64) bool {
	return advantage > 0 && logRatio > c.high || advantage < 0 && (logRatio < c.low || logRatio > c.dual)
}

// cispo (arXiv 2506.13585, eq. 4) is −clip(r)·A·logprob with the clipped ratio as
// a constant weight: no token loses its gradient.
func cispo(s Settings) (Expression, error) {
	lo, hi := 1-s.ClipLow, 1+s.ClipHigh
	return Expression{
		Scaled: true,
		Build: func(in *Inputs) *gorgonia.Node {
			weight := in.Frozen("clipped ratio", func(t Tokens, out []float64) {
				for i := range out {
					out[i] = max(lo, min(hi, math.Exp(t.LogRatio(i))))
				}
			})
			return neg(mul(mul(weight, in.Advantage()), in.Logprob()))
		},
		Clipped: func(t Tokens) int {
			return t.count(func(i int) bool { r := math.Exp(t.LogRatio(i)); return r < lo || r > hi })
		},
	}, s.checkClip()
}

// sapo (arXiv 2511.20347) replaces the clip by a soft gate, −(4/τ)·σ(τ(r−1))·A,
// whose slope at r = 1 is that of the ratio itself.
func sapo(s Settings) (Expression, error) {
	var err error
	if !(s.TauPositive > 0) || !(s.TauNegative > 0) {
		err = fmt.Errorf("tau_positive is %g and tau_negative is %g; both must be positive", s.TauPositive, s.TauNegative)
	}
	return Expression{
		Scaled: true,
		Build: func(in *Inputs) *gorgonia.Node {
			tau := in.Frozen("temperature", func(t Tokens, out []float64) {
				for i, a := range t.Advantages {
					out[i] = s.TauNegative
					if a > 0 {
						out[i] = s.TauPositive
					}
				}
			})
			// Written out, since Gorgonia's sigmoid is exactly 1 above 19.
			gate := div(in.Const(4), mul(tau, add(in.Const(1), exp(mul(tau, sub(in.Const(1), in.Ratio()))))))
			return neg(mul(gate, in.Advantage()))
		},
	}, err
}

// gmpo (arXiv 2507.20673) is −A times the geometric mean of a sequence's ratios,
// whose logarithms are clipped one by one on the side that the advantage's sign
// pulls to.
func gmpo(s Settings) (Expression, error) {
	var err error
	if !(s.ClipLow > 0) || !(s.ClipHigh > 0) {
		err = fmt.Errorf("clip_low is %g and clip_high is %g; both must be positive: they bound the log ratio", s.ClipLow, s.ClipHigh)
	}
	bounds := func(advantage float64) (lo, hi float64) {
		lo, hi = -maxLogRatio, maxLogRatio
		if advantage > 0 {
			hi = min(hi, s.ClipHigh)
		}
		if advantage < 0 {
			lo = max(lo, -s.ClipLow)
		}
		return lo, hi
	}
	kept := func(t Tokens, i int) float64 {
		lo, hi := bounds(t.Advantages[i])
		return max(lo, min(hi, t.LogRatio(i)))
	}
	return Expression{
		Scaled: true,
		Build: func(in *Inputs) *gorgonia.Node {
			low := in.Frozen("lower bound", func(t Tokens, out []float64) {
				for i, a := range t.Advantages {
					out[i], _ = bounds(a)
				}
			})
			high := in.Frozen("upper bound", func(t Tokens, out []float64) {
				for i, a := range t.Advantages {
					_, out[i] = bounds(a)
				}
			})
			rest := in.Frozen("rest of the sequence's clipped log ratio", func(t Tokens, out []float64) {
				t.spread(out, func(i int) float64 { return kept(t, i) })
				for i := range out {
					out[i] -= kept(t, i)
				}
			})
			own := larger(smaller(in.LogRatio(), high), low)
			return neg(mul(exp(add(own, rest)), in.SequenceAdvantage()))
		},
		Clipped: func(t Tokens) int { return t.count(func(i int) bool { return kept(t, i) != t.LogRatio(i) }) },
	}, err
}

// dppo (arXiv 2602.04879, eq. 13) is −rA, dropped where the token's probability
// has already moved further than allowed to where the advantage pulls it: a bound
// on the total variation, of which the sampled token gives a lower bound.
func dppo(s Settings) (Expression, error) {
	var err error
	if !(s.ClipLow > 0) || !(s.ClipHigh > 0) {
		err = fmt.Errorf("clip_low is %g and clip_high is %g; both must be positive: they bound the change of a probability", s.ClipLow, s.ClipHigh)
	}
	outside := func(t Tokens, i int) bool {
		moved := math.Exp(t.Logprobs[i]) - math.Exp(t.Anchors[i])
		return t.Advantages[i] > 0 && moved > s.ClipHigh || t.Advantages[i] < 0 && moved < -s.ClipLow
	}
	return Expression{
		Scaled: true,
		Build: func(in *Inputs) *gorgonia.Node {
			kept := in.Frozen("within the total variation", keeping(outside))
			return neg(mul(mul(in.Ratio(), in.Advantage()), kept))
		},
		Clipped: func(t Tokens) int { return t.count(func(i int) bool { return outside(t, i) }) },
	}, err
}

// clipCov (arXiv 2505.22617, section 4.2) is PPO's surrogate without the gradient
// of a few of the tokens whose covariance of advantage and log-probability lies
// between two bounds. The published code draws them at random; here a hash of the
// token's own figures draws, so that neither the order of sequences nor a run's
// history changes the choice. Covariances are taken over the micro-batch.
func clipCov(s Settings) (Expression, error) {
	err := s.checkClip()
	if err == nil {
		err = s.checkCov()
	}
	if err == nil && !(s.CovLow < s.CovHigh) {
		err = fmt.Errorf("cov_low is %g and cov_high is %g; want low < high", s.CovLow, s.CovHigh)
	}
	clip := s.clipRange()
	drop := func(t Tokens) map[int]bool {
		cov := t.covariances()
		var band []int
		for i, c := range cov {
			if c > s.CovLow && c < s.CovHigh && !clip.clips(t.LogRatio(i), t.Advantages[i]) {
				band = append(band, i)
			}
		}
		slices.SortFunc(band, func(a, b int) int { return cmp.Compare(t.hash(a), t.hash(b)) })
		return setOf(band[:min(len(band), s.covCount(len(cov)))])
	}
	return Expression{
		Build: func(in *Inputs) *gorgonia.Node {
			kept := in.Frozen("not selected by covariance", func(t Tokens, out []float64) {
				dropped := drop(t)
				keeping(func(_ Tokens, i int) bool { return dropped[i] })(t, out)
			})
			return mul(s.clip(in, in.Ratio(), in.Advantage()), kept)
		},
		Clipped: func(t Tokens) int {
			dropped := drop(t)
			return t.count(func(i int) bool { return dropped[i] || clip.clips(t.LogRatio(i), t.Advantages[i]) })
		},
	}, err
}

// klCov (arXiv 2505.22617, section 4.3) is −rA, plus a penalty on |log ratio| for
// the tokens of the highest covariance of advantage and log-probability. As in
// the published code, covariances are taken over the micro-batch.
func klCov(s Settings) (Expression, error) {
	err := s.checkCov()
	if err == nil && !(s.CovKLCoef >= 0) {
		err = fmt.Errorf("cov_kl_coef is %g; it must not be negative", s.CovKLCoef)
	}
	return Expression{
		Build: func(in *Inputs) *gorgonia.Node {
			// The slope of |log ratio|, which is none at 0, where fresh data is.
			slope := in.Frozen("slope of the selected", func(t Tokens, out []float64) {
				cov := t.covariances()
				order := make([]int, len(cov))
				for i := range order {
					order[i] = i
				}
				slices.SortFunc(order, func(a, b int) int {
					return cmp.Or(cmp.Compare(cov[b], cov[a]), cmp.Compare(t.hash(a), t.hash(b)))
				})
				clear(out)
				for _, i := range order[:min(len(order), s.covCount(len(cov)))] {
					out[i] = s.CovKLCoef * float64(cmp.Compare(t.LogRatio(i), 0))
				}
			})
			return sub(mul(slope, in.LogRatio()), mul(in.Ratio(), in.Advantage()))
		},
	}, err
}

// reinforce is −A·logprob: it trusts that the batch is on-policy, or is corrected.
func reinforce(Settings) (Expression, error) {
	return Expression{Scaled: true, Build: func(in *Inputs) *gorgonia.Node {
		return neg(mul(in.Advantage(), in.Logprob()))
	}}, nil
}

// supervised is the cross-entropy.
func supervised(Settings) (Expression, error) {
	return Expression{Build: func(in *Inputs) *gorgonia.Node { return neg(in.Logprob()) }}, nil
}

// count counts the tokens for which is holds.
func (t Tokens) count(is func(i int) bool) int {
	n := 0
	for i := range t.Logprobs {
		if is(i) {
			n++
		}
	}
	return n
}

// keeping is 0 for the tokens to drop and 1 for the others.
func keeping(drop func(t Tokens, i int) bool) func(t Tokens, out []float64) {
	return func(t Tokens, out []float64) {
		for i := range out {
			out[i] = 1
			if drop(t, i) {
				out[i] = 0
			}
		}
	}
}

// covariances are (A − mean A)(logprob − mean logprob) of each token.
func (t Tokens) covariances() []float64 {
	cov := make([]float64, len(t.Logprobs))
	if len(cov) == 0 {
		return cov
	}
	a, l := mean(t.Advantages), mean(t.Logprobs)
	for i := range cov {
		cov[i] = (t.Advantages[i] - a) * (t.Logprobs[i] - l)
	}
	return cov
}

// covCount is how many of n tokens are selected.
func (s Settings) covCount(n int) int { return max(1, int(s.CovShare*float64(n))) }

// hash orders tokens as if at random, by their figures alone.
func (t Tokens) hash(i int) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, x := range []float64{t.Logprobs[i], t.Anchors[i], t.Advantages[i]} {
		h ^= math.Float64bits(x)
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9 // the mixing of SplitMix64
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

func setOf(places []int) map[int]bool {
	m := make(map[int]bool, len(places))
	for _, i := range places {
		m[i] = true
	}
	return m
}
