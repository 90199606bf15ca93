package rl

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// part is a batch of some of a batch's sequences, in the order given, of the
// same step.
func part(b Batch, sequences ...int) Batch {
	out := Batch{Offsets: []int{0}, Totals: b.Totals}
	for _, s := range sequences {
		lo, hi := b.Offsets[s], b.Offsets[s+1]
		for _, v := range []struct {
			to   *[]float64
			from []float64
		}{
			{&out.Logprobs, b.Logprobs}, {&out.RolloutLogprobs, b.RolloutLogprobs}, {&out.OldLogprobs, b.OldLogprobs},
			{&out.ReferenceLogprobs, b.ReferenceLogprobs}, {&out.Advantages, b.Advantages},
		} {
			*v.to = append(*v.to, v.from[lo:hi]...)
		}
		out.Mask = append(out.Mask, b.Mask[lo:hi]...)
		out.Offsets = append(out.Offsets, len(out.Mask))
		out.Prompts = append(out.Prompts, b.Prompts[s])
	}
	return out
}

func close(a, b, tolerance float64) bool { return math.Abs(a-b) <= tolerance*(1+math.Abs(b)) }

// TestMicroBatchesAddUp: loss, gradient and metrics of a step do not depend on
// how its sequences are spread over micro-batches, or over workers. The two
// objectives that compare the tokens of a micro-batch with one another are what
// they are (see clipCov).
func TestMicroBatchesAddUp(t *testing.T) {
	for name, o := range allObjectives(t) {
		if strings.HasPrefix(name, "clip_cov") || strings.HasPrefix(name, "kl_cov") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b := batchGen(6, 1).Draw(t, "batch")
				whole, err := o.Evaluate(b)
				if err != nil {
					t.Fatal(err)
				}
				var loss float64
				metrics := map[string]float64{}
				for s := range len(b.Offsets) - 1 {
					one, err := o.Evaluate(part(b, s))
					if err != nil {
						t.Fatal(err)
					}
					loss += one.Loss
					MergeMetrics(metrics, one.Metrics)
					for i, g := range one.Grad {
						if want := whole.Grad[b.Offsets[s]+i]; !close(g, want, 1e-13) {
							t.Fatalf("gradient of token %d is %g in its part, %g in the whole", b.Offsets[s]+i, g, want)
						}
					}
				}
				if !close(loss, whole.Loss, 1e-12) {
					t.Fatalf("parts add up to %g, the whole is %g", loss, whole.Loss)
				}
				for k, v := range whole.Metrics {
					if !close(metrics[k], v, 1e-12) {
						t.Fatalf("%s: parts merge to %g, the whole is %g", k, metrics[k], v)
					}
				}
			})
		})
	}
}

// TestOrderAndPadding: the loss and each token's gradient do not depend on the
// order of the sequences, nor on masked tokens at their ends and on sequences of
// nothing else.
func TestOrderAndPadding(t *testing.T) {
	for name, o := range allObjectives(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b := batchGen(6, 1).Draw(t, "batch")
				whole, err := o.Evaluate(b)
				if err != nil {
					t.Fatal(err)
				}
				order := rapid.Permutation(upTo(len(b.Offsets)-1)).Draw(t, "order")
				mixed := part(b, order...)
				padded := Batch{Offsets: []int{0}, Totals: b.Totals}
				for k := range order {
					padded = pad(padded, part(mixed, k), rapid.IntRange(0, 3).Draw(t, "padding"))
				}
				for what, c := range map[string]Batch{"mixed": mixed, "padded": padded} {
					res, err := o.Evaluate(c)
					if err != nil {
						t.Fatal(err)
					}
					if !close(res.Loss, whole.Loss, 1e-12) {
						t.Fatalf("%s: loss %g, was %g", what, res.Loss, whole.Loss)
					}
					at := 0
					for _, s := range order {
						for i := b.Offsets[s]; i < b.Offsets[s+1]; i++ {
							for at < len(c.Mask) && c.Mask[at] != b.Mask[i] {
								at++
							}
							if b.Mask[i] && !close(res.Grad[at], whole.Grad[i], 1e-12) {
								t.Fatalf("%s: gradient of token %d is %g, was %g", what, i, res.Grad[at], whole.Grad[i])
							}
							if b.Mask[i] {
								at++
							}
						}
					}
				}
			})
		})
	}
}

// pad appends a sequence and n masked tokens of it, and then a masked sequence.
func pad(b, one Batch, n int) Batch {
	nan := math.NaN()
	extend := func(v, with []float64) []float64 {
		v = append(v, with...)
		for range n + 1 {
			v = append(v, nan)
		}
		return v
	}
	b.Logprobs = extend(b.Logprobs, one.Logprobs)
	b.RolloutLogprobs = extend(b.RolloutLogprobs, one.RolloutLogprobs)
	b.OldLogprobs = extend(b.OldLogprobs, one.OldLogprobs)
	b.ReferenceLogprobs = extend(b.ReferenceLogprobs, one.ReferenceLogprobs)
	b.Advantages = extend(b.Advantages, one.Advantages)
	b.Mask = append(append(b.Mask, one.Mask...), make([]bool, n+1)...)
	b.Offsets = append(b.Offsets, len(b.Mask)-1, len(b.Mask))
	b.Prompts = append(b.Prompts, one.Prompts[0], "padding")
	return b
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// TestEvaluateTwice: an objective keeps nothing of the batches before.
func TestEvaluateTwice(t *testing.T) {
	for name, o := range allObjectives(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				a, b := batchGen(6, 1).Draw(t, "a"), batchGen(6, 1).Draw(t, "b")
				first, err := o.Evaluate(a)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := o.Evaluate(b); err != nil {
					t.Fatal(err)
				}
				again, err := o.Evaluate(a)
				if err != nil {
					t.Fatal(err)
				}
				if again.Loss != first.Loss || !slices.Equal(again.Grad, first.Grad) {
					t.Fatalf("loss %g and gradient %v, were %g and %v", again.Loss, again.Grad, first.Loss, first.Grad)
				}
			})
		})
	}
}
