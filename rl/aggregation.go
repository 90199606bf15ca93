package rl

import "fmt"

// Aggregation says how the terms of tokens become one loss. Whatever it is, the
// loss is a weighted sum over trained tokens whose weights depend on the totals
// of the whole optimizer step, so that micro-batches add up.
type Aggregation string

const (
	// TokenMean divides every term by the number of trained tokens of the step.
	TokenMean Aggregation = "token_mean"
	// SequenceMean averages over each sequence's trained tokens, then over sequences.
	SequenceMean Aggregation = "sequence_mean"
	// Constant divides every term by one constant, Settings.Length (the context
	// window), times the number of sequences of the step: a long rollout's
	// tokens weigh as much as a short one's.
	Constant Aggregation = "constant"
)

// weights returns the factor of each token's term, 0 where it is not trained on.
func (a Aggregation) weights(b Batch, length int) ([]float64, error) {
	w := make([]float64, len(b.Mask))
	for s := range len(b.Offsets) - 1 {
		lo, hi := b.Offsets[s], b.Offsets[s+1]
		n := 0
		for i := lo; i < hi; i++ {
			if b.Mask[i] {
				n++
			}
		}
		var each float64
		switch a {
		case TokenMean:
			each = 1 / float64(b.Totals.Tokens)
		case SequenceMean:
			each = 1 / (float64(n) * float64(b.Totals.Sequences))
		case Constant:
			each = 1 / (float64(length) * float64(b.Totals.Sequences))
		default:
			return nil, fmt.Errorf("rl: no aggregation %q; there are token_mean, sequence_mean, constant", a)
		}
		for i := lo; i < hi; i++ {
			if b.Mask[i] {
				w[i] = each
			}
		}
	}
	return w, nil
}

func countTotals(mask []bool, offsets []int) Totals {
	var t Totals
	for s := range len(offsets) - 1 {
		n := 0
		for _, m := range mask[offsets[s]:offsets[s+1]] {
			if m {
				n++
			}
		}
		t.Tokens += n
		if n > 0 {
			t.Sequences++
		}
	}
	return t
}
