package rl

import (
	"fmt"
	"slices"
)

// Aggregation says how the terms of tokens become one loss. Whatever it is, the
// loss is a weighted sum over trained tokens whose weights depend on the totals
// of the whole optimizer step, so that micro-batches add up.
type Aggregation string

const (
	// TokenMean divides every term by the number of trained tokens of the step.
	TokenMean Aggregation = "token_mean"
	// SequenceMean averages over each sequence's trained tokens, then over sequences.
	SequenceMean Aggregation = "sequence_mean"
	// SequenceSum sums over each sequence's tokens and averages over sequences.
	SequenceSum Aggregation = "sequence_sum"
	// Constant divides every term by one constant, Settings.Length (the context
	// window), times the number of sequences of the step: a long rollout's
	// tokens weigh as much as a short one's.
	Constant Aggregation = "constant"
	// ConstantSum divides by Settings.Length alone: a step of more sequences is a
	// longer step.
	ConstantSum Aggregation = "constant_sum"
	// PromptMean averages over all trained tokens of a prompt's sequences, then
	// over prompts.
	PromptMean Aggregation = "prompt_mean"
)

// Aggregations are all there are.
var Aggregations = []Aggregation{TokenMean, SequenceMean, SequenceSum, Constant, ConstantSum, PromptMean}

func (a Aggregation) check(length int) error {
	switch {
	case !slices.Contains(Aggregations, a):
		return fmt.Errorf("no aggregation %q; there are %v", a, Aggregations)
	case (a == Constant || a == ConstantSum) && length <= 0:
		return fmt.Errorf("length is %d; the aggregation %s divides by it: give the context window", length, a)
	}
	return nil
}

// weights fills w with the factor of each token's term, 0 where it is not trained on.
func (a Aggregation) weights(b Batch, length int, w []float64) error {
	clear(w)
	for s := range len(b.Offsets) - 1 {
		lo, hi := b.Offsets[s], b.Offsets[s+1]
		n := countTrue(b.Mask[lo:hi])
		if n == 0 {
			continue
		}
		var divisor float64
		switch a {
		case TokenMean:
			divisor = float64(b.Totals.Tokens)
		case SequenceMean:
			divisor = float64(n) * float64(b.Totals.Sequences)
		case SequenceSum:
			divisor = float64(b.Totals.Sequences)
		case Constant:
			divisor = float64(length) * float64(b.Totals.Sequences)
		case ConstantSum:
			divisor = float64(length)
		case PromptMean:
			if len(b.Prompts) != len(b.Offsets)-1 {
				return fmt.Errorf("rl: the aggregation %s needs the prompt of each of %d sequences, and has %d", a, len(b.Offsets)-1, len(b.Prompts))
			}
			tokens := b.Totals.Prompts[b.Prompts[s]]
			if tokens < n {
				return fmt.Errorf("rl: prompt %q trains on %d tokens of the step, but on %d of sequence %d", b.Prompts[s], tokens, n, s)
			}
			divisor = float64(tokens) * float64(len(b.Totals.Prompts))
		default:
			return a.check(length)
		}
		for i := lo; i < hi; i++ {
			if b.Mask[i] {
				w[i] = 1 / divisor
			}
		}
	}
	return nil
}

// CountTotals counts what sequences of tokens train on; prompts names each
// sequence's and may be nil.
func CountTotals(mask []bool, offsets []int, prompts []string) Totals {
	var t Totals
	for s := range len(offsets) - 1 {
		n := countTrue(mask[offsets[s]:offsets[s+1]])
		if n == 0 {
			continue
		}
		t.Tokens += n
		t.Sequences++
		if prompts != nil {
			if t.Prompts == nil {
				t.Prompts = map[string]int{}
			}
			t.Prompts[prompts[s]] += n
		}
	}
	return t
}

func countTrue(mask []bool) int {
	n := 0
	for _, m := range mask {
		if m {
			n++
		}
	}
	return n
}
