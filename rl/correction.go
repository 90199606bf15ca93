package rl

import (
	"errors"
	"fmt"
	"math"

	"gorgonia.org/gorgonia"
)

// Correction is what is done about the sampler's probabilities not being the
// trainer's. It multiplies the surrogate's terms and takes no gradient.
type Correction string

const (
	// Truncate weighs by the ratio, bounded: truncated importance sampling.
	Truncate Correction = "truncate"
	// IcePop weighs by the ratio within the bounds and drops what is outside
	// (arXiv 2510.18855).
	IcePop Correction = "icepop"
	// Mask keeps what is within the bounds as it is and drops the rest.
	Mask Correction = "mask"
)

// CorrectionLevel says whose ratio a token is corrected by.
type CorrectionLevel string

const (
	// TokenLevel, like an empty level, is the token's own.
	TokenLevel CorrectionLevel = "token"
	// SequenceLevel is the product over the sequence's trained tokens.
	SequenceLevel CorrectionLevel = "sequence"
	// GeometricLevel is their geometric mean, which does not shrink with length.
	GeometricLevel CorrectionLevel = "geometric"
	// TurnLevel is the geometric mean over the token's turn: a run of trained
	// tokens between two observations (the chunks of IPA, arXiv 2512.24873, eq. 8).
	TurnLevel CorrectionLevel = "turn"
)

func (s Settings) checkCorrection() error {
	bounded := s.CorrectionLow > 0 || s.CorrectionHigh > 0
	switch s.Correction {
	case "":
		if s.CorrectionLevel != "" || bounded || s.CorrectionNegative {
			return fmt.Errorf("there are settings of a correction, but none is named: set correction to %s, %s or %s", Truncate, IcePop, Mask)
		}
		return nil
	case Truncate:
	case IcePop, Mask:
		if !bounded {
			return fmt.Errorf("the correction %s drops what is outside correction_low and correction_high; give one of them", s.Correction)
		}
	default:
		return fmt.Errorf("no correction %q; there are %s, %s, %s", s.Correction, Truncate, IcePop, Mask)
	}
	switch s.CorrectionLevel {
	case "", TokenLevel, TurnLevel, SequenceLevel, GeometricLevel:
	default:
		return fmt.Errorf("no correction_level %q; there are %s, %s, %s, %s", s.CorrectionLevel, TokenLevel, TurnLevel, SequenceLevel, GeometricLevel)
	}
	if !(s.CorrectionLow >= 0) || !(s.CorrectionHigh == 0 || s.CorrectionHigh > s.CorrectionLow) {
		return fmt.Errorf("correction_low is %g and correction_high is %g; want 0 ≤ low < high, or no high", s.CorrectionLow, s.CorrectionHigh)
	}
	return nil
}

// errTwice refuses to weigh by a ratio that the surrogate already has in it.
var errTwice = errors.New("the surrogate's ratio already corrects for the sampler, so weighing by it again counts it twice: set anchor to old, or correction to mask")

// corrected is term times the correction's weight.
func (s Settings) corrected(in *Inputs, term *gorgonia.Node) *gorgonia.Node {
	if s.Correction == "" {
		return term
	}
	in.needsRollouts = true
	if s.Anchor == AnchorOld {
		in.anchored = true
	}
	return mul(term, in.computed("correction", s.correctionWeights))
}

// correctionWeights fills out with the weight of each token.
func (s Settings) correctionWeights(t Tokens, out []float64) {
	trainer := t.Logprobs
	if s.Anchor == AnchorOld {
		trainer = t.Anchors
	}
	gap := func(i int) float64 { return trainer[i] - t.Rollouts[i] }
	switch s.CorrectionLevel {
	case SequenceLevel, GeometricLevel:
		t.spread(out, gap)
		if s.CorrectionLevel == SequenceLevel {
			t.sequences(func(lo, hi int) {
				for i := lo; i < hi; i++ {
					out[i] *= float64(hi - lo)
				}
			})
		}
	case TurnLevel:
		t.spreadTurns(out, gap)
	default:
		for i := range out {
			out[i] = gap(i)
		}
	}
	high := s.CorrectionHigh
	if high == 0 {
		high = math.Inf(1)
	}
	for i, logRatio := range out {
		ratio := math.Exp(bound(logRatio))
		within := ratio >= s.CorrectionLow && ratio <= high
		switch {
		case s.CorrectionNegative && !(t.Advantages[i] < 0):
			out[i] = 1
		case s.Correction == Truncate:
			out[i] = max(s.CorrectionLow, min(high, ratio))
		case !within:
			out[i] = 0
		case s.Correction == IcePop:
			out[i] = ratio
		default:
			out[i] = 1
		}
	}
}
