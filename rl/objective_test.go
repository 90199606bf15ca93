package rl

import (
	"errors"
	"math"
	"strings"
	"testing"

	"gorgonia.org/gorgonia"
)

func TestDegenerateBatches(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	empty := Batch{Offsets: []int{0}}
	masked := Batch{
		Logprobs: []float64{nan, inf, -inf}, RolloutLogprobs: []float64{nan, -inf, inf}, ReferenceLogprobs: []float64{nan, nan, inf}, OldLogprobs: []float64{inf, nan, nan},
		Advantages: []float64{nan, inf, -inf}, Mask: []bool{false, false, false}, Offsets: []int{0, 0, 3, 3},
		Prompts: []string{"p", "p", "q"},
	}
	extreme := Batch{
		Logprobs: []float64{0, -1e-9, -1000, -0.1, -800}, RolloutLogprobs: []float64{0, -900, -1e-9, -700, -0.1}, ReferenceLogprobs: []float64{0, -1, -2, -900, -0.1}, OldLogprobs: []float64{0, -0.1, -900, -0.1, -700},
		Advantages: []float64{0, 1, 1, -1, -1}, Mask: []bool{false, true, true, true, true}, Offsets: []int{0, 5},
		Prompts: []string{"p"}, Totals: Totals{Tokens: 4, Sequences: 1, Prompts: map[string]int{"p": 4}},
	}
	for name, o := range allObjectives(t) {
		t.Run(name, func(t *testing.T) {
			for what, b := range map[string]Batch{"empty": empty, "masked": masked} {
				res, err := o.Evaluate(b)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if res.Loss != 0 || len(res.Grad) != len(b.Mask) {
					t.Errorf("%s: loss %g, %d gradients", what, res.Loss, len(res.Grad))
				}
				for i, g := range res.Grad {
					if g != 0 {
						t.Errorf("%s: gradient of token %d is %g", what, i, g)
					}
				}
			}
			res, err := o.Evaluate(extreme)
			if err != nil {
				t.Fatal(err)
			}
			for i, g := range append(res.Grad, res.Loss) {
				if math.IsNaN(g) || math.IsInf(g, 0) {
					t.Errorf("extreme ratios: value %d is %g", i, g)
				}
			}
			for _, bad := range []float64{nan, inf, -inf} {
				b := extreme
				b.Logprobs = append([]float64(nil), extreme.Logprobs...)
				b.Logprobs[2] = bad
				if _, err := o.Evaluate(b); !errors.Is(err, ErrNonFinite) {
					t.Errorf("logprob %g in a trained place: error %v", bad, err)
				}
			}
			if again, err := o.Evaluate(extreme); err != nil || again.Loss != res.Loss {
				t.Errorf("after a failure: loss %g, error %v; it was %g", again.Loss, err, res.Loss)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	s, _ := Defaults("clip")
	o, err := New("clip", s)
	if err != nil {
		t.Fatal(err)
	}
	ratios := []float64{1, 1.3, 1.2, 0.7, 0.7}
	b := Batch{Logprobs: []float64{0}, RolloutLogprobs: []float64{0}, Advantages: []float64{0, 1, 1, 1, 1, -1}, Mask: []bool{false, true, true, true, true, true}, Offsets: []int{0, 6}, Totals: Totals{Tokens: 10, Sequences: 2}}
	for _, r := range ratios {
		b.RolloutLogprobs = append(b.RolloutLogprobs, -2)
		b.Logprobs = append(b.Logprobs, -2+math.Log(r))
	}
	res, err := o.Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	// Half of the step's ten tokens are here; of these 1.3 at A = 1 and 0.7 at A = −1 are clipped.
	near(t, "clip_fraction", res.Metrics["clip_fraction"], 0.2, 1e-12)
	near(t, "ratio_mean", res.Metrics["ratio_mean"], 0.49, 1e-12)
	near(t, "ratio_max", res.Metrics["ratio_max"], 1.3, 1e-12)
	near(t, "ratio_min", res.Metrics["ratio_min"], 0.7, 1e-12)
	near(t, "logprob_gap_max", res.Metrics["logprob_gap_max"], -math.Log(0.7), 1e-12)
	kl := 0.0
	for _, r := range ratios {
		kl += (r - 1 - math.Log(r)) / 10
	}
	near(t, "approx_kl", res.Metrics["approx_kl"], kl, 1e-12)
}

func TestBatchIsChecked(t *testing.T) {
	good := func() Batch {
		return Batch{Logprobs: []float64{0, -1}, RolloutLogprobs: []float64{0, -1}, Advantages: []float64{1, 1}, Mask: []bool{false, true}, Offsets: []int{0, 2}, Totals: Totals{Tokens: 1, Sequences: 1}}
	}
	s, _ := Defaults("clip")
	o, err := New("clip", s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Evaluate(good()); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Batch){
		"mask of":                    func(b *Batch) { b.Mask = b.Mask[:1] },
		"offsets":                    func(b *Batch) { b.Offsets = []int{0, 1} },
		"decrease":                   func(b *Batch) { b.Offsets = []int{0, 2, 1, 2} },
		"first token":                func(b *Batch) { b.Mask[0] = true },
		"needs advantages":           func(b *Batch) { b.Advantages = nil },
		"needs rollout logprobs":     func(b *Batch) { b.RolloutLogprobs = nil },
		"has 1 old logprobs":         func(b *Batch) { b.OldLogprobs = []float64{-1} },
		"has 1 advantages":           func(b *Batch) { b.Advantages = b.Advantages[:1] },
		"more than the step's total": func(b *Batch) { b.Totals = Totals{} },
	} {
		b := good()
		spoil(&b)
		if _, err := o.Evaluate(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Settings)
		want   string
	}{
		{"clip", func(s *Settings) { *s = Settings{} }, "aggregation"},
		{"clip", func(s *Settings) { s.Length = 0 }, "length"},
		{"clip", func(s *Settings) { s.ClipHigh = 0 }, "clip_high"},
		{"dapo", func(s *Settings) { s.DualClip = 0.5 }, "dual_clip"},
		{"grpo", func(s *Settings) { s.KLCoef = math.NaN() }, "kl_coef"},
		{"sapo", func(s *Settings) { s.TauNegative = 0 }, "tau_negative"},
		{"gmpo", func(s *Settings) { s.ClipHigh = 0 }, "clip_high"},
		{"dppo", func(s *Settings) { s.ClipLow = math.NaN() }, "clip_low"},
		{"clip_cov", func(s *Settings) { s.CovLow = 5 }, "cov_low"},
		{"kl_cov", func(s *Settings) { s.CovShare = 0 }, "cov_share"},
		{"kl_cov", func(s *Settings) { s.CovKLCoef = -1 }, "cov_kl_coef"},
		{"ppo", func(s *Settings) { s.Aggregation = "mean" }, "prompt_mean"},
		{"ppo", func(s *Settings) { s.Aggregation = ConstantSum }, "length"},
		{"ppo", func(s *Settings) { s.Anchor = "new" }, "old"},
		{"ppo", func(s *Settings) { s.KLEstimator = "k4" }, "k3+"},
		{"ppo", func(s *Settings) { s.EntropyCoef = math.Inf(1) }, "entropy_coef"},
		{"ppo", func(s *Settings) { s.CorrectionHigh = 2 }, "set correction"},
		{"ppo", func(s *Settings) { s.Correction = "tis" }, "truncate"},
		{"ppo", func(s *Settings) { s.Correction = Mask }, "correction_high"},
		{"icepop", func(s *Settings) { s.CorrectionHigh = 0.1 }, "low < high"},
		{"icepop", func(s *Settings) { s.CorrectionLevel = "word" }, "geometric"},
		{"icepop", func(s *Settings) { s.Anchor = AnchorRollout }, "twice"},
		{"cispo", func(s *Settings) { s.Correction = Truncate }, "twice"},
		{"nonesuch", func(*Settings) {}, "dapo"},
	} {
		s, _ := Defaults(c.name)
		c.change(&s)
		if _, err := New(c.name, s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want an error with %q, have %v", c.name, c.want, err)
		}
	}
}

func TestOwnObjective(t *testing.T) {
	own := Settings{Params: map[string]float64{"factor": 1}, Aggregation: TokenMean}
	Register("squared", Family{Defaults: own, Build: func(s Settings) (Expression, error) {
		return Expression{Build: func(in *Inputs) *gorgonia.Node { return mul(in.Const(s.Params["factor"]), square(in.Logprob())) }}, nil
	}})
	Register("broken", Family{Build: func(Settings) (Expression, error) {
		return Expression{Build: func(in *Inputs) *gorgonia.Node { return gorgonia.Must(gorgonia.Sum(in.Advantage())) }}, nil
	}})
	defer func() {
		familiesMu.Lock()
		defer familiesMu.Unlock()
		delete(families, "squared")
		delete(families, "broken")
	}()
	s, _ := Defaults("squared")
	s.Params["factor"] = 2
	if again, _ := Defaults("squared"); again.Params["factor"] != 1 {
		t.Error("settings that were changed changed the defaults")
	}
	o, err := New("squared", s)
	if err != nil {
		t.Fatal(err)
	}
	res, err := o.Evaluate(Batch{Logprobs: []float64{0, -3}, Mask: []bool{false, true}, Offsets: []int{0, 2}, Totals: Totals{Tokens: 1, Sequences: 1}})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "loss", res.Loss, 18, 0)
	near(t, "gradient", res.Grad[1], -12, 0)
	s.Params = map[string]float64{"factro": 2}
	if _, err := New("squared", s); err == nil || !strings.Contains(err.Error(), `no parameter "factro"; it has [factor]`) {
		t.Errorf("a parameter that it does not have: %v", err)
	}
	if _, err := New("broken", Settings{Aggregation: TokenMean}); err == nil {
		t.Error("an expression that is no vector was accepted")
	}
}
