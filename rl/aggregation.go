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

// weight is the factor of the terms of sequence s, of which n tokens are trained.
func (a Aggregation) weight(b Batch, s, n, length int) (float64, error) {
	switch a {
	case TokenMean:
		return 1 / float64(b.Totals.Tokens), nil
	case SequenceMean:
		return 1 / (float64(n) * float64(b.Totals.Sequences)), nil
	case SequenceSum:
		return 1 / float64(b.Totals.Sequences), nil
	case Constant:
		return 1 / (float64(length) * float64(b.Totals.Sequences)), nil
	case ConstantSum:
		return 1 / float64(length), nil
	case PromptMean:
		if len(b.Prompts) != len(b.Offsets)-1 {
			return 0, fmt.Errorf("rl: the aggregation %s needs the prompt of each of %d sequences, and has %d", a, len(b.Offsets)-1, len(b.Prompts))
		}
		tokens := b.Totals.Prompts[b.Prompts[s]]
		if tokens < n {
			return 0, fmt.Errorf("rl: prompt %q trains on %d tokens of the step, but on %d of sequence %d", b.Prompts[s], tokens, n, s)
		}
		return 1 / (float64(tokens) * float64(len(b.Totals.Prompts))), nil
	default:
		return 0, a.check(length)
	}
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
