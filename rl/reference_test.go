package rl

import (
	"fmt"
	"math"
	"slices"
	"strings"
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
				old, diff, ref, start := math.NaN(), math.Inf(1), math.Inf(-1), math.Inf(1)
				if trained {
					old = rapid.Float64Range(-8, -0.01).Draw(t, "old")
					diff = rapid.Float64Range(-spread, spread).Draw(t, "diff")
					ref = rapid.Float64Range(-8, -0.01).Draw(t, "ref")
					start = old + rapid.Float64Range(-spread, spread).Draw(t, "start")
				}
				b.RolloutLogprobs = append(b.RolloutLogprobs, old)
				b.Logprobs = append(b.Logprobs, old+diff)
				b.OldLogprobs = append(b.OldLogprobs, start)
				b.ReferenceLogprobs = append(b.ReferenceLogprobs, ref)
				b.Advantages = append(b.Advantages, advantage)
				b.Mask = append(b.Mask, trained)
			}
			b.Offsets = append(b.Offsets, len(b.Mask))
			b.Prompts = append(b.Prompts, rapid.SampledFrom([]string{"p", "q"}).Draw(t, "prompt"))
		}
		b.Totals = CountTotals(b.Mask, b.Offsets, b.Prompts)
		b.Totals.Tokens += rapid.IntRange(0, 5).Draw(t, "tokens elsewhere")
		b.Totals.Sequences += rapid.IntRange(0, 2).Draw(t, "sequences elsewhere")
		if b.Totals.Prompts != nil && rapid.Bool().Draw(t, "a prompt elsewhere") {
			b.Totals.Prompts["p"] += 2
			b.Totals.Prompts["r"]++
		}
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
// of every aggregation, correction and estimator of the divergence.
func allObjectives(t *testing.T) map[string]*graphObjective {
	t.Helper()
	all := map[string]*graphObjective{}
	make := func(label, name string, change func(s *Settings)) {
		s, err := Defaults(name)
		if err != nil {
			t.Fatal(err)
		}
		s.Length = 16
		switch name {
		case "gspo", "gspo_sequence":
			s.ClipLow, s.ClipHigh = 0.2, 0.3 // the default is too tight for a finite difference
		case "clip_cov", "kl_cov":
			s.CovShare, s.CovLow = 0.3, 0.01 // few tokens are drawn
		}
		change(&s)
		o, err := New(name, s)
		if err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		all[label] = o.(*graphObjective)
	}
	for _, name := range Names() {
		make(name, name, func(s *Settings) { s.KLCoef = 0 })
		make(name+"/kl", name, func(s *Settings) { s.KLCoef = 0.3 })
	}
	for _, agg := range Aggregations {
		make("dapo/"+string(agg), "dapo", func(s *Settings) { s.Aggregation, s.KLCoef = agg, 0.3 })
	}
	for _, k := range KLEstimators {
		for _, importance := range []bool{false, true} {
			make(fmt.Sprint("ppo/", k, "/", importance), "ppo", func(s *Settings) {
				s.KLCoef, s.KLEstimator, s.KLImportance = 0.3, k, importance
			})
		}
	}
	make("ppo/entropy", "ppo", func(s *Settings) { s.EntropyCoef = 0.1 })
	for _, c := range []Correction{Truncate, IcePop, Mask} {
		for _, level := range []CorrectionLevel{TokenLevel, SequenceLevel, GeometricLevel} {
			make(fmt.Sprint("decoupled_ppo/", c, "/", level), "decoupled_ppo", func(s *Settings) {
				s.Correction, s.CorrectionLevel, s.CorrectionLow, s.CorrectionHigh = c, level, 0.8, 1.3
			})
			make(fmt.Sprint("reinforce/", c, "/", level), "reinforce", func(s *Settings) {
				s.Correction, s.CorrectionLevel, s.CorrectionLow, s.CorrectionHigh = c, level, 0.8, 1.3
			})
		}
	}
	make("ppo/mask/negative", "ppo", func(s *Settings) {
		s.Correction, s.CorrectionLevel, s.CorrectionLow, s.CorrectionNegative = Mask, GeometricLevel, 0.9, true
	})
	return all
}

// differentiable says whether the gradient is that of the loss as it is. Others
// hold a factor constant that follows the policy, by their definition: their names
// begin with one of these.
func differentiable(label string) bool {
	for _, held := range []string{"cispo", "clip_cov", "kl_cov", "k1+", "k3+", "entropy", "reinforce/", "ppo/mask", "ipa"} {
		if strings.HasPrefix(label, held) || strings.Contains(label, "/"+held) {
			return label == "reinforce/kl"
		}
	}
	return true
}

// atKink checks g against the differences of a loss: f is the loss with a
// log-probability moved by x. At a kink any value between the one-sided
// derivatives is a gradient.
func atKink(t *rapid.T, what string, g float64, f func(x float64) float64) {
	const h = 1e-5
	here := f(0)
	left, right := (here-f(-h))/h, (f(h)-here)/h
	tol := 2e-3 * (1 + math.Abs(left))
	if g < min(left, right)-tol || g > max(left, right)+tol {
		t.Fatalf("gradient of %s is %g, differences %g and %g", what, g, left, right)
	}
	if central := (left + right) / 2; math.Abs(left-right) < 1e-3 && math.Abs(g-central) > 1e-6*(1+math.Abs(central)) {
		t.Fatalf("gradient of %s is %g, central difference %g", what, g, central)
	}
}

// TestFiniteDifferences holds every gradient against differences of the loss in
// which what is fed in stays as it was: the definition of a stop-gradient.
func TestFiniteDifferences(t *testing.T) {
	for name, o := range allObjectives(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b := batchGen(5, 0.7).Draw(t, "batch")
				if err := o.prepare(b); err != nil {
					t.Fatal(err)
				}
				var grad []float64
				loss := func() float64 {
					grad = grad[:0]
					l, err := o.eval.run(func(_ int, part, _ []float64) { grad = append(grad, part...) })
					if err != nil {
						t.Fatal(err)
					}
					return l
				}
				loss()
				for k, g := range slices.Clone(grad) {
					atKink(t, fmt.Sprint("trained token ", k), g, func(x float64) float64 {
						was := o.eval.tokens.Logprobs[k]
						defer func() { o.eval.tokens.Logprobs[k] = was }()
						o.eval.tokens.Logprobs[k] += x
						return loss()
					})
				}
			})
		})
	}
}

// TestGradientOfTheLoss holds the gradients of objectives without a held factor
// against differences of Evaluate itself, and with them those of sequences'
// ratios, whose tokens' gradients are shared out.
func TestGradientOfTheLoss(t *testing.T) {
	for name, o := range allObjectives(t) {
		if !differentiable(name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				b := batchGen(4, 0.7).Draw(t, "batch")
				res, err := o.Evaluate(b)
				if err != nil {
					t.Fatal(err)
				}
				for i, trained := range b.Mask {
					if !trained {
						if res.Grad[i] != 0 {
							t.Fatalf("masked token %d has gradient %g", i, res.Grad[i])
						}
						continue
					}
					atKink(t, fmt.Sprintf("token %d (if %s holds a factor constant by definition, name it in differentiable)", i, name), res.Grad[i], func(x float64) float64 {
						moved := b
						moved.Logprobs = slices.Clone(b.Logprobs)
						moved.Logprobs[i] += x
						r, err := o.Evaluate(moved)
						if err != nil {
							t.Fatal(err)
						}
						return r.Loss
					})
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
