package rl

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// clipReference is the default objective written by hand, as slowly and plainly
// as its formula: Σ max(−rA, −clip(r)A) / (length × sequences).
func clipReference(b Batch, s Settings) (float64, []float64) {
	grad := make([]float64, len(b.Logprobs))
	var loss float64
	for i, trained := range b.Mask {
		if !trained {
			continue
		}
		d := b.Logprobs[i] - b.RolloutLogprobs[i]
		slope := 1.0
		if d > 20 || d < -20 {
			d, slope = math.Copysign(20, d), 0
		}
		r, a := math.Exp(d), b.Advantages[i]
		w := 1 / float64(s.Length*b.Totals.Sequences)
		free, kept := -r*a, -math.Max(math.Min(r, 1+s.ClipHigh), 1-s.ClipLow)*a
		if free >= kept {
			loss += w * free
			grad[i] = w * -r * a * slope
		} else {
			loss += w * kept
		}
	}
	return loss, grad
}

// batchGen draws a batch of several sequences; the advantage is constant over a
// sequence, as outcome rewards make it. Masked places hold garbage.
func batchGen(maxTokens int, spread float64) *rapid.Generator[Batch] {
	return rapid.Custom(func(t *rapid.T) Batch {
		b := Batch{Offsets: []int{0}}
		for range rapid.IntRange(1, 4).Draw(t, "sequences") {
			advantage := rapid.Float64Range(-2, 2).Draw(t, "advantage")
			for i := range rapid.IntRange(0, maxTokens).Draw(t, "length") {
				trained := i > 0 && rapid.Bool().Draw(t, "trained")
				old, diff, ref := math.NaN(), math.Inf(1), math.Inf(-1)
				if trained {
					old = rapid.Float64Range(-8, -0.01).Draw(t, "old")
					diff = rapid.Float64Range(-spread, spread).Draw(t, "diff")
					ref = rapid.Float64Range(-8, -0.01).Draw(t, "ref")
				}
				b.RolloutLogprobs = append(b.RolloutLogprobs, old)
				b.Logprobs = append(b.Logprobs, old+diff)
				b.ReferenceLogprobs = append(b.ReferenceLogprobs, ref)
				b.Advantages = append(b.Advantages, advantage)
				b.Mask = append(b.Mask, trained)
			}
			b.Offsets = append(b.Offsets, len(b.Mask))
		}
		b.Totals = countTotals(b.Mask, b.Offsets)
		b.Totals.Tokens += rapid.IntRange(0, 5).Draw(t, "tokens elsewhere")
		b.Totals.Sequences += rapid.IntRange(0, 2).Draw(t, "sequences elsewhere")
		return b
	})
}

func TestClipMatchesReference(t *testing.T) {
	s := Settings{ClipLow: 0.2, ClipHigh: 0.25, Aggregation: Constant, Length: 100}
	o, err := New("clip", s)
	if err != nil {
		t.Fatal(err)
	}
	for _, spread := range []float64{0.01, 0.5, 60} {
		rapid.Check(t, func(t *rapid.T) {
			b := batchGen(12, spread).Draw(t, "batch")
			res, err := o.Evaluate(b)
			if err != nil {
				t.Fatal(err)
			}
			loss, grad := clipReference(b, s)
			if math.Abs(res.Loss-loss) > 1e-12*(1+math.Abs(loss)) {
				t.Fatalf("loss %g, want %g", res.Loss, loss)
			}
			for i := range grad {
				if math.Abs(res.Grad[i]-grad[i]) > 1e-12*(1+math.Abs(grad[i])) {
					t.Fatalf("gradient of token %d is %g, want %g", i, res.Grad[i], grad[i])
				}
			}
		})
	}
}

// TestMachineSizes crosses the borders between the compiled shapes.
func TestMachineSizes(t *testing.T) {
	s := Settings{ClipLow: 0.2, ClipHigh: 0.25, Aggregation: Constant, Length: 100}
	o, err := New("clip", s)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{9000, 1, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 2} {
		b := bigBatch(n + 1)
		res, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		loss, grad := clipReference(b, s)
		near(t, "loss", res.Loss, loss, 1e-10*(1+math.Abs(loss)))
		for i := range grad {
			if math.Abs(res.Grad[i]-grad[i]) > 1e-14 {
				t.Fatalf("%d tokens: gradient of token %d is %g, want %g", n, i, res.Grad[i], grad[i])
			}
		}
	}
	if n := len(o.(*graphObjective).loss.machines); n != len(machineSizes) {
		t.Errorf("%d machines for %d shapes", n, len(machineSizes))
	}
}

// bigBatch is one sequence of n tokens with ratios on both sides of the clip.
func bigBatch(n int) Batch {
	b := Batch{Offsets: []int{0, n}, Totals: Totals{Tokens: n - 1, Sequences: 1}}
	for i := range n {
		b.RolloutLogprobs = append(b.RolloutLogprobs, -1-math.Abs(math.Sin(float64(i))))
		b.Logprobs = append(b.Logprobs, b.RolloutLogprobs[i]+0.4*math.Sin(1.7*float64(i)))
		b.Advantages = append(b.Advantages, math.Cos(0.3*float64(i)))
		b.Mask = append(b.Mask, i > 0)
	}
	return b
}

// allObjectives are configurations of every family with and without a penalty,
// and of every aggregation.
func allObjectives(t *testing.T) map[string]Objective {
	t.Helper()
	all := map[string]Objective{}
	for _, name := range Names() {
		for _, kl := range []float64{0, 0.3} {
			for _, agg := range []Aggregation{TokenMean, SequenceMean, Constant} {
				s, err := Defaults(name)
				if err != nil {
					t.Fatal(err)
				}
				if name != "dapo" && agg != s.Aggregation {
					continue
				}
				s.KLCoef, s.Aggregation, s.Length = kl, agg, 16
				if name == "gspo" {
					s.ClipLow, s.ClipHigh = 0.2, 0.3 // the default is too tight for a finite difference
				}
				o, err := New(name, s)
				if err != nil {
					t.Fatal(err)
				}
				label := name + "/" + string(agg)
				if kl > 0 {
					label += "/kl"
				}
				all[label] = o
			}
		}
	}
	return all
}

// TestFiniteDifferences holds every gradient against central differences. At a
// kink any value between the one-sided derivatives is a gradient. CISPO's
// weight is a constant by definition, so it is left out and has its own test.
func TestFiniteDifferences(t *testing.T) {
	for name, o := range allObjectives(t) {
		if name[:5] == "cispo" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b := batchGen(5, 0.7).Draw(t, "batch")
				res, err := o.Evaluate(b)
				if err != nil {
					t.Fatal(err)
				}
				at := func(i int, x float64) float64 {
					moved := b
					moved.Logprobs = append([]float64(nil), b.Logprobs...)
					moved.Logprobs[i] += x
					r, err := o.Evaluate(moved)
					if err != nil {
						t.Fatal(err)
					}
					return r.Loss
				}
				const h = 1e-5
				for i, trained := range b.Mask {
					if !trained {
						if res.Grad[i] != 0 {
							t.Fatalf("masked token %d has gradient %g", i, res.Grad[i])
						}
						continue
					}
					left, right := (res.Loss-at(i, -h))/h, (at(i, h)-res.Loss)/h
					tol := 2e-3 * (1 + math.Abs(left))
					if g := res.Grad[i]; g < min(left, right)-tol || g > max(left, right)+tol {
						t.Fatalf("gradient of token %d is %g, differences %g and %g", i, g, left, right)
					}
					if central := (left + right) / 2; math.Abs(left-right) < 1e-3 && math.Abs(res.Grad[i]-central) > 1e-6*(1+math.Abs(central)) {
						t.Fatalf("gradient of token %d is %g, central difference %g", i, res.Grad[i], central)
					}
				}
			})
		})
	}
}

// TestCISPOGradient: −clip(r)·A·w for every token, clipped ones included.
func TestCISPOGradient(t *testing.T) {
	o, err := New("cispo", Settings{ClipLow: 0.5, ClipHigh: 0.5, Aggregation: TokenMean})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := batchGen(8, 3).Draw(t, "batch")
		res, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		for i, trained := range b.Mask {
			want := 0.0
			if trained {
				r := math.Exp(b.Logprobs[i] - b.RolloutLogprobs[i])
				want = -math.Min(1.5, math.Max(0.5, r)) * b.Advantages[i] / float64(b.Totals.Tokens)
			}
			if math.Abs(res.Grad[i]-want) > 1e-12 {
				t.Fatalf("gradient of token %d is %g, want %g", i, res.Grad[i], want)
			}
		}
	})
}

// TestMicroBatchesAddUp: loss, gradient and metrics of a step do not depend on
// how its sequences are spread over micro-batches.
func TestMicroBatchesAddUp(t *testing.T) {
	for name, o := range allObjectives(t) {
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
					lo, hi := b.Offsets[s], b.Offsets[s+1]
					part, err := o.Evaluate(Batch{
						Logprobs: b.Logprobs[lo:hi], RolloutLogprobs: b.RolloutLogprobs[lo:hi], ReferenceLogprobs: b.ReferenceLogprobs[lo:hi],
						Advantages: b.Advantages[lo:hi], Mask: b.Mask[lo:hi], Offsets: []int{0, hi - lo}, Totals: b.Totals,
					})
					if err != nil {
						t.Fatal(err)
					}
					loss += part.Loss
					MergeMetrics(metrics, part.Metrics)
					for i, g := range part.Grad {
						if math.Abs(g-whole.Grad[lo+i]) > 1e-13*(1+math.Abs(g)) {
							t.Fatalf("gradient of token %d is %g in its part, %g in the whole", lo+i, g, whole.Grad[lo+i])
						}
					}
				}
				if math.Abs(loss-whole.Loss) > 1e-12*(1+math.Abs(loss)) {
					t.Fatalf("parts add up to %g, the whole is %g", loss, whole.Loss)
				}
				for k, v := range whole.Metrics {
					if math.Abs(metrics[k]-v) > 1e-12*(1+math.Abs(v)) {
						t.Fatalf("%s: parts merge to %g, the whole is %g", k, metrics[k], v)
					}
				}
			})
		})
	}
}

func BenchmarkClip1M(b *testing.B) {
	s, err := Defaults("clip")
	if err != nil {
		b.Fatal(err)
	}
	o, err := New("clip", s)
	if err != nil {
		b.Fatal(err)
	}
	batch := bigBatch(1_000_000)
	for b.Loop() {
		if _, err := o.Evaluate(batch); err != nil {
			b.Fatal(err)
		}
	}
}
