package rl

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Packed is one micro-batch: sequences laid end to end without padding. The
// per-token slices have one entry per token; see Batch for Mask and Offsets.
// RolloutLogprobs is nil where the sequences have none (supervised examples).
type Packed struct {
	IDs             []string
	Tokens          []int32
	Offsets         []int
	Mask            []bool
	RolloutLogprobs []float64
	// OldLogprobs are the trainer's when the step began; nil where they were not taken.
	OldLogprobs []float64
	Advantages  []float64
	// Prompts are the groups of the sequences.
	Prompts []string
	// ReferenceLogprobs is filled in by the training loop where an objective needs it.
	ReferenceLogprobs []float64
}

// Pack lays sequences into micro-batches of at most budget tokens by first fit,
// longest first and then by ID, so the result depends on nothing but the set. A
// sequence longer than the budget has a micro-batch to itself.
func Pack(seqs []Sequence, budget int) ([]Packed, error) {
	if err := checkBudget(budget); err != nil {
		return nil, err
	}
	var bins []Packed
	for _, s := range longestFirst(seqs) {
		i := slices.IndexFunc(bins, func(p Packed) bool { return len(p.Tokens)+len(s.Tokens) <= budget })
		if i < 0 {
			bins = append(bins, Packed{Offsets: []int{0}})
			i = len(bins) - 1
		}
		bins[i].add(s)
	}
	return bins, nil
}

// PackEvenly is Pack for n replicas, which begin and end together: it makes a multiple
// of n micro-batches, the fewest into which the sequences fit, longest first and each
// into the one with the fewest tokens. Of fewer sequences each has one to itself.
func PackEvenly(seqs []Sequence, budget, n int) ([]Packed, error) {
	if n == 1 {
		return Pack(seqs, budget)
	}
	if err := checkBudget(budget); err != nil {
		return nil, err
	}
	order, total := longestFirst(seqs), 0
	for _, s := range seqs {
		total += len(s.Tokens)
	}
	for count := n * max(1, (total+n*budget-1)/(n*budget)); ; count += n {
		bins, fits := level(order, min(count, len(order)), budget)
		if fits || count >= len(order) {
			return bins, nil
		}
	}
}

// level deals sequences, the longest first, into so many micro-batches. It fits where
// none of several sequences is beyond the budget.
func level(order []Sequence, count, budget int) (bins []Packed, fits bool) {
	bins, load := make([]Packed, count), make([]int, count)
	for i := range bins {
		bins[i].Offsets = []int{0}
	}
	for _, s := range order {
		least := slices.Index(load, slices.Min(load))
		bins[least].add(s)
		load[least] += len(s.Tokens)
		if load[least] > budget && len(bins[least].IDs) > 1 {
			return nil, false
		}
	}
	return bins, true
}

func checkBudget(budget int) error {
	if budget <= 0 {
		return fmt.Errorf("rl: the token budget of a micro-batch is %d; it must be positive", budget)
	}
	return nil
}

// longestFirst orders sequences by length and then by ID.
func longestFirst(seqs []Sequence) []Sequence {
	order := slices.Clone(seqs)
	slices.SortFunc(order, func(a, b Sequence) int {
		return cmp.Or(cmp.Compare(len(b.Tokens), len(a.Tokens)), cmp.Compare(a.ID, b.ID))
	})
	return order
}

func (p *Packed) add(s Sequence) {
	p.IDs = append(p.IDs, s.ID)
	p.Prompts = append(p.Prompts, s.Group)
	p.Tokens = append(p.Tokens, s.Tokens...)
	for i := range s.Tokens {
		p.Mask = append(p.Mask, s.Trained[i] && i > 0)
		if s.Advantages != nil {
			p.Advantages = append(p.Advantages, s.Advantages[i])
		} else {
			p.Advantages = append(p.Advantages, s.Advantage)
		}
	}
	for _, l := range s.Logprobs {
		p.RolloutLogprobs = append(p.RolloutLogprobs, float64(l))
	}
	p.OldLogprobs = append(p.OldLogprobs, s.OldLogprobs...)
	p.Offsets = append(p.Offsets, len(p.Tokens))
}

// Batch joins the micro-batch with the log-probabilities under the policy now.
func (p *Packed) Batch(logprobs []float64, totals Totals) Batch {
	return Batch{
		Logprobs:          logprobs,
		RolloutLogprobs:   p.RolloutLogprobs,
		OldLogprobs:       p.OldLogprobs,
		ReferenceLogprobs: p.ReferenceLogprobs,
		Advantages:        p.Advantages,
		Mask:              p.Mask,
		Offsets:           p.Offsets,
		Prompts:           p.Prompts,
		Totals:            totals,
	}
}

// TotalsOf adds up what the sequences of one optimizer step train on.
func TotalsOf(seqs []Sequence) Totals {
	t := Totals{Prompts: map[string]int{}}
	for _, s := range seqs {
		if n := countTrue(s.Trained[1:]); n > 0 { // nothing predicts the first
			t.Tokens += n
			t.Sequences++
			t.Prompts[s.Group] += n
		}
	}
	return t
}

// Divide parts the sequences that the objective needs from those that it does not.
func Divide(o Objective, seqs []Sequence) (busy, idle []Sequence) {
	selective, ok := o.(Selective)
	for _, s := range seqs {
		if ok && selective.Idle(s) {
			idle = append(idle, s)
		} else {
			busy = append(busy, s)
		}
	}
	return busy, idle
}

// MergeMetrics adds the metrics of one micro-batch to those of a step: extremes
// stay extremes, all others are shares that add up.
func MergeMetrics(into, from map[string]float64) {
	for name, v := range from {
		old, ok := into[name]
		switch {
		case !ok:
			into[name] = v
		case strings.HasSuffix(name, "_max"):
			into[name] = max(old, v)
		case strings.HasSuffix(name, "_min"):
			into[name] = min(old, v)
		default:
			into[name] = old + v
		}
	}
}

// IsExtreme says whether a metric of that name is an extreme: names that end in
// _max or _min are.
func IsExtreme(name string) bool {
	return strings.HasSuffix(name, "_max") || strings.HasSuffix(name, "_min")
}
