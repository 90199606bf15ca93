package rl

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// Slow references: objectives written out from their papers' formulas, value and
// gradient, sequence by sequence, without a line in common with what they check.

// sequenceReference returns a sequence's loss and its gradient for each of its
// trained tokens: d are the log ratios to the anchor, l the log-probabilities.
type sequenceReference func(d, l, advantages []float64) (float64, []float64)

// reference sums a sequence's loss over the trained tokens of each sequence, and
// divides it by what divisor says of the sequence's trained tokens.
func reference(b Batch, anchors []float64, f sequenceReference, divisor func(n int) float64) (float64, []float64) {
	var loss float64
	grad := make([]float64, len(b.Mask))
	for s := range len(b.Offsets) - 1 {
		var at []int
		var d, l, a []float64
		for i := b.Offsets[s]; i < b.Offsets[s+1]; i++ {
			if b.Mask[i] {
				at = append(at, i)
				l = append(l, b.Logprobs[i])
				d = append(d, b.Logprobs[i]-anchors[i])
				a = append(a, b.Advantages[i])
			}
		}
		if at == nil {
			continue
		}
		value, slopes := f(d, l, a)
		loss += value / divisor(len(at))
		for k, i := range at {
			grad[i] = slopes[k] / divisor(len(at))
		}
	}
	return loss, grad
}

// each makes the reference of a sequence from that of a token.
func each(f func(r, l, a float64) (value, slope float64)) sequenceReference {
	return func(d, l, a []float64) (float64, []float64) {
		var sum float64
		slopes := make([]float64, len(d))
		for k := range d {
			var v float64
			v, slopes[k] = f(math.Exp(d[k]), l[k], a[k])
			sum += v
		}
		return sum, slopes
	}
}

func clampTo(x, lo, hi float64) float64 { return math.Max(lo, math.Min(hi, x)) }

func TestAgainstHandwritten(t *testing.T) {
	const low, high = 0.2, 0.3
	tokens := func(b Batch) func(int) float64 {
		return func(int) float64 { return float64(b.Totals.Tokens) }
	}
	sequenceMeans := func(b Batch) func(int) float64 {
		return func(n int) float64 { return float64(n * b.Totals.Sequences) }
	}
	sequenceSums := func(b Batch) func(int) float64 {
		return func(int) float64 { return float64(b.Totals.Sequences) }
	}
	// ppo is the objective of arXiv 1707.06347, eq. 7, with dual clip 3 of arXiv
	// 1912.09729, eq. 5: J = max(min(rA, clip(r)A), 3A) where A < 0.
	ppo := each(func(r, _, a float64) (float64, float64) {
		j, slope := r*a, r*a
		if kept := clampTo(r, 1-low, 1+high) * a; kept < j {
			j, slope = kept, 0
		}
		if a < 0 && 3*a > j {
			j, slope = 3*a, 0
		}
		return -j, -slope
	})
	for _, c := range []struct {
		name    string
		set     Settings
		divisor func(b Batch) func(n int) float64
		loss    sequenceReference
	}{
		{"dapo", Settings{ClipLow: low, ClipHigh: high, DualClip: 3, Aggregation: TokenMean}, tokens, ppo},
		{"dapo", Settings{ClipLow: low, ClipHigh: high, DualClip: 3, Aggregation: SequenceSum}, sequenceSums, ppo},
		// arXiv 2506.13585, eq. 4: sg(clip(r))·A·log π.
		{"cispo", Settings{ClipLow: low, ClipHigh: high, Aggregation: TokenMean}, tokens, each(func(r, l, a float64) (float64, float64) {
			w := clampTo(r, 1-low, 1+high)
			return -w * a * l, -w * a
		})},
		// arXiv 2511.20347: f(r) = σ(τ(r−1))·4/τ, whose derivative by log π is 4p(1−p)·r.
		{"sapo", Settings{TauPositive: 1, TauNegative: 1.05, Aggregation: SequenceMean}, sequenceMeans, each(func(r, _, a float64) (float64, float64) {
			tau := 1.05
			if a > 0 {
				tau = 1
			}
			p := 1 / (1 + math.Exp(-tau*(r-1)))
			return -p * 4 / tau * a, -4 * p * (1 - p) * r * a
		})},
		// arXiv 2507.18071, eq. 5 to 7: s = (π/π_old)^(1/|y|), min(sA, clip(s)A).
		{"gspo", Settings{ClipLow: low, ClipHigh: high, Aggregation: SequenceMean}, sequenceSums, gspoReference(low, high)},
		{"gspo_sequence", Settings{ClipLow: low, ClipHigh: high, Aggregation: SequenceMean}, sequenceSums, gspoReference(low, high)},
		// arXiv 2507.20673, algorithm 1.
		{"gmpo", Settings{ClipLow: low, ClipHigh: high, Aggregation: SequenceMean}, sequenceSums, func(d, _, a []float64) (float64, []float64) {
			n := float64(len(d))
			var sum float64
			slopes := make([]float64, len(d))
			for k, x := range d {
				switch {
				case a[0] > 0 && x > high:
					x = high
				case a[0] < 0 && x < -low:
					x = -low
				default:
					slopes[k] = 1
				}
				sum += x
			}
			value := -a[0] * math.Exp(sum/n)
			for k := range slopes {
				slopes[k] *= value / n
			}
			return value, slopes
		}},
		// arXiv 2602.04879, eq. 13, by the token's own probability.
		{"dppo", Settings{ClipLow: low, ClipHigh: high, Aggregation: TokenMean}, tokens, each(func(r, l, a float64) (float64, float64) {
			now := math.Exp(l)
			before := now / r
			if a > 0 && now-before > high || a < 0 && before-now > low {
				return 0, 0
			}
			return -r * a, -r * a
		})},
	} {
		t.Run(c.name+"/"+string(c.set.Aggregation), func(t *testing.T) {
			o, err := New(c.name, c.set)
			if err != nil {
				t.Fatal(err)
			}
			for _, spread := range []float64{0.01, 0.5, 4} {
				rapid.Check(t, func(t *rapid.T) {
					b := batchGen(12, spread).Draw(t, "batch")
					loss, grad := reference(b, b.RolloutLogprobs, c.loss, c.divisor(b))
					compare(t, o, b, loss, grad)
				})
			}
		})
	}
}

// gspoReference is GSPO where the advantage is constant over a sequence.
func gspoReference(low, high float64) sequenceReference {
	return func(d, _, a []float64) (float64, []float64) {
		var sum float64
		for _, x := range d {
			sum += x
		}
		n := float64(len(d))
		s := math.Exp(sum / n)
		value, slope := -s*a[0], -s*a[0]/n
		if kept := -clampTo(s, 1-low, 1+high) * a[0]; kept > value {
			value, slope = kept, 0
		}
		slopes := make([]float64, len(d))
		for k := range slopes {
			slopes[k] = slope
		}
		return value, slopes
	}
}

// TestSequenceForm tells GSPO's two forms apart: two tokens of log ratios x and y
// and advantages 1 and 3 have the ratio s = e^((x+y)/2); the token form weighs
// each token's gradient by its own advantage, the sequence form by their mean.
func TestSequenceForm(t *testing.T) {
	b := Batch{
		Logprobs: []float64{0, -1, -2}, RolloutLogprobs: []float64{0, -1.02, -2.04}, Advantages: []float64{0, 1, 3},
		Mask: []bool{false, true, true}, Offsets: []int{0, 3}, Totals: Totals{Tokens: 2, Sequences: 1},
	}
	s := math.Exp(0.03)
	for name, want := range map[string][3]float64{"gspo": {-2 * s, -s / 2, -3 * s / 2}, "gspo_sequence": {-2 * s, -s, -s}} {
		o, err := New(name, Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: SequenceMean})
		if err != nil {
			t.Fatal(err)
		}
		res, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		for i, have := range []float64{res.Loss, res.Grad[1], res.Grad[2]} {
			near(t, name, have, want[i], 1e-12)
		}
	}
}

// TestCorrections: the surrogate is −r A with r against the policy that began
// the step, times the weight of slime's vanilla_tis and icepop functions, or of
// verl's rejection by sequences, on figures worked out by hand.
func TestCorrections(t *testing.T) {
	gap := []float64{math.Log(1.5), math.Log(0.5), 0}  // the step's beginning against the sampler
	product, root := 1.5*0.5, math.Pow(1.5*0.5, 1.0/3) // of the sequence
	outside := Settings{CorrectionLow: 0.8, CorrectionHigh: 1.2}
	inside := Settings{CorrectionLow: 0.7, CorrectionHigh: 1.2}
	for _, c := range []struct {
		correction Correction
		level      CorrectionLevel
		bounds     Settings
		negative   bool
		want       [3]float64
	}{
		{Truncate, TokenLevel, Settings{}, false, [3]float64{1.5, 0.5, 1}},
		{Truncate, "", outside, false, [3]float64{1.2, 0.8, 1}},
		{IcePop, TokenLevel, Settings{CorrectionLow: 0.6, CorrectionHigh: 2}, false, [3]float64{1.5, 0, 1}},
		{Mask, TokenLevel, outside, false, [3]float64{0, 0, 1}},
		{Truncate, SequenceLevel, Settings{}, false, [3]float64{product, product, product}},
		{Mask, SequenceLevel, outside, false, [3]float64{0, 0, 0}},
		{Mask, SequenceLevel, inside, false, [3]float64{1, 1, 1}},
		{IcePop, SequenceLevel, inside, false, [3]float64{product, product, product}},
		{Truncate, GeometricLevel, Settings{}, false, [3]float64{root, root, root}},
		{Mask, GeometricLevel, outside, false, [3]float64{1, 1, 1}},
		{Mask, TokenLevel, outside, true, [3]float64{0, 1, 1}},
	} {
		s := c.bounds
		s.ClipLow, s.ClipHigh, s.Anchor, s.Aggregation = 0.9, 9, AnchorOld, SequenceSum
		s.Correction, s.CorrectionLevel, s.CorrectionNegative = c.correction, c.level, c.negative
		o, err := New("ppo", s)
		if err != nil {
			t.Fatal(err)
		}
		ratios, advantages := []float64{1.1, 0.9, 1}, []float64{-2, 1, 0.5}
		b := Batch{Logprobs: []float64{0}, RolloutLogprobs: []float64{0}, OldLogprobs: []float64{0}, Advantages: []float64{0},
			Mask: []bool{false, true, true, true}, Offsets: []int{0, 4}, Totals: Totals{Tokens: 3, Sequences: 1}}
		var loss, sum float64
		for k, g := range gap {
			b.RolloutLogprobs = append(b.RolloutLogprobs, -2)
			b.OldLogprobs = append(b.OldLogprobs, -2+g)
			b.Logprobs = append(b.Logprobs, -2+g+math.Log(ratios[k]))
			b.Advantages = append(b.Advantages, advantages[k])
			loss -= c.want[k] * ratios[k] * advantages[k]
			sum += c.want[k]
		}
		res, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		what := string(c.correction) + " of " + string(c.level)
		near(t, what+": loss", res.Loss, loss, 1e-12)
		near(t, what+": correction_mean", res.Metrics["correction_mean"], sum/3, 1e-12)
		for k, w := range c.want {
			near(t, what+": gradient", res.Grad[k+1], -w*ratios[k]*advantages[k], 1e-12)
		}
	}
}

// TestKLEstimators on one token of log ratio d to the reference, by hand; see
// KLEstimator for the formulas.
func TestKLEstimators(t *testing.T) {
	const d, r = 0.7, 1.1 // d to the reference, r to the sampler
	k3, slope3 := math.Exp(-d)+d-1, 1-math.Exp(-d)
	for k, want := range map[KLEstimator][2]float64{
		K1: {d, 1}, K2: {d * d / 2, d}, K3: {k3, slope3}, "": {k3, slope3}, K1StraightK2: {d, d}, K3StraightK2: {k3, d},
	} {
		for _, importance := range []bool{false, true} {
			value, slope := want[0], want[1]
			if importance {
				value, slope = r*want[0], r*want[1]+r*want[0]
			}
			o, err := New("reinforce", Settings{KLCoef: 0.5, KLEstimator: k, KLImportance: importance, Aggregation: TokenMean})
			if err != nil {
				t.Fatal(err)
			}
			res, err := o.Evaluate(Batch{
				Logprobs: []float64{0, -1}, RolloutLogprobs: []float64{0, -1 - math.Log(r)}, ReferenceLogprobs: []float64{0, -1 - d},
				Advantages: []float64{0, 0}, Mask: []bool{false, true}, Offsets: []int{0, 2}, Totals: Totals{Tokens: 1, Sequences: 1},
			})
			if err != nil {
				t.Fatal(err)
			}
			near(t, string(k)+": loss", res.Loss, 0.5*value, 1e-12)
			near(t, string(k)+": gradient", res.Grad[1], 0.5*slope, 1e-12)
			near(t, string(k)+": kl", res.Metrics["kl"], want[0], 1e-12)
		}
	}
}

// TestEntropyBonus: over all tokens of a distribution, weighted by their
// probabilities, the bonus' gradient is that of the entropy. With the logits z of
// a softmax, dH/dz_j = −p_j(log p_j + H).
func TestEntropyBonus(t *testing.T) {
	p := []float64{0.5, 0.2, 0.2, 0.1}
	o, err := New("reinforce", Settings{EntropyCoef: 1, Aggregation: TokenMean})
	if err != nil {
		t.Fatal(err)
	}
	var h, loss float64
	sampled := make([]float64, len(p)) // the estimate of dH/dz
	for _, q := range p {
		h -= q * math.Log(q)
	}
	for v, q := range p {
		res, err := o.Evaluate(Batch{
			Logprobs: []float64{0, math.Log(q)}, Advantages: []float64{0, 0}, Mask: []bool{false, true}, Offsets: []int{0, 2},
			Totals: Totals{Tokens: 1, Sequences: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "entropy", res.Metrics["entropy"], -math.Log(q), 1e-12)
		loss += q * res.Loss
		for j, pj := range p {
			jacobian := -pj
			if j == v {
				jacobian++
			}
			sampled[j] -= q * res.Grad[1] * jacobian
		}
	}
	near(t, "loss", loss, -h, 1e-12)
	for j, q := range p {
		near(t, "gradient by a logit", sampled[j], -q*(math.Log(q)+h), 1e-12)
	}
}

// TestCovarianceSelection on four tokens whose covariances are 9, 1, 1 and 9
// (advantages ±3 and ±1 around 0, log-probabilities likewise around −4).
func TestCovarianceSelection(t *testing.T) {
	b := Batch{
		Logprobs: []float64{0, -1, -3, -5, -7}, RolloutLogprobs: []float64{0, -1.1, -3, -5, -7.1}, Advantages: []float64{0, 3, 1, -1, -3},
		Mask: []bool{false, true, true, true, true}, Offsets: []int{0, 5}, Totals: Totals{Tokens: 4, Sequences: 1},
	}
	r := math.Exp(0.1)
	// Half of four tokens are penalised, those of covariance 9.
	o, err := New("kl_cov", Settings{CovShare: 0.5, CovKLCoef: 2, Aggregation: SequenceSum})
	if err != nil {
		t.Fatal(err)
	}
	res, err := o.Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "kl_cov", res.Loss, -3*r-1+1+3*r+2*2*0.1, 1e-12)
	for i, want := range []float64{0, -3*r + 2, -1, 1, 3*r + 2} {
		near(t, "kl_cov: gradient", res.Grad[i], want, 1e-12)
	}
	// On fresh data |log ratio| has no slope, and the penalty no gradient.
	fresh := b
	fresh.RolloutLogprobs = b.Logprobs
	if res, err = o.Evaluate(fresh); err != nil {
		t.Fatal(err)
	}
	for i, a := range b.Advantages {
		near(t, "kl_cov: gradient on fresh data", res.Grad[i], -a, 1e-12)
	}
	// Of the two in the band (0.5, 5), covariance 1, one is dropped; 9 is outside.
	o, err = New("clip_cov", Settings{ClipLow: 0.2, ClipHigh: 0.2, CovShare: 0.25, CovLow: 0.5, CovHigh: 5, Aggregation: SequenceSum})
	if err != nil {
		t.Fatal(err)
	}
	if res, err = o.Evaluate(b); err != nil {
		t.Fatal(err)
	}
	near(t, "clip_cov: outside the band", res.Grad[1], -3*r, 1e-12)
	near(t, "clip_cov: outside the band", res.Grad[4], 3*r, 1e-12)
	if (res.Grad[2] == 0) == (res.Grad[3] == 0) {
		t.Errorf("clip_cov: gradients in the band are %g and %g, want one of them dropped", res.Grad[2], res.Grad[3])
	}
	near(t, "clip_cov: clip_fraction", res.Metrics["clip_fraction"], 0.25, 0)
}

func compare(t *rapid.T, o Objective, b Batch, loss float64, grad []float64) {
	res, err := o.Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	if !close(res.Loss, loss, 1e-12) {
		t.Fatalf("loss %g, want %g", res.Loss, loss)
	}
	for i := range grad {
		if !close(res.Grad[i], grad[i], 1e-12) {
			t.Fatalf("gradient of token %d is %g, want %g", i, res.Grad[i], grad[i])
		}
	}
}

// TestAggregations packs three sequences of two prompts into two micro-batches
// of one step; REINFORCE at log-probability −1 has the advantage as its term.
func TestAggregations(t *testing.T) {
	sequence := func(id, group string, advantage float64, trained int) Sequence {
		n := trained + 1
		s := Sequence{ID: id, Group: group, Advantage: advantage, Tokens: make([]int32, n), Trained: make([]bool, n), Logprobs: make([]float32, n)}
		for i := range trained {
			s.Trained[i+1] = true
		}
		return s
	}
	seqs := []Sequence{sequence("a", "p", 3, 1), sequence("b", "p", 6, 3), sequence("c", "q", -2, 4)}
	packed, err := Pack(seqs, 6)
	if err != nil {
		t.Fatal(err)
	}
	if len(packed) != 2 {
		t.Fatalf("%d micro-batches, want 2", len(packed))
	}
	const a, b, c = 3 * 1, 6 * 3, -2 * 4 // sums over the tokens
	for aggregation, want := range map[Aggregation]float64{
		TokenMean:    (a + b + c) / 8.0,
		SequenceMean: (3 + 6 - 2) / 3.0,
		SequenceSum:  (a + b + c) / 3.0,
		Constant:     (a + b + c) / 30.0,
		ConstantSum:  (a + b + c) / 10.0,
		PromptMean:   ((a+b)/4.0 + c/4.0) / 2,
	} {
		o, err := New("reinforce", Settings{Aggregation: aggregation, Length: 10})
		if err != nil {
			t.Fatal(err)
		}
		var loss float64
		for _, p := range packed {
			logprobs := make([]float64, len(p.Tokens))
			for i := range logprobs {
				logprobs[i] = -1
			}
			res, err := o.Evaluate(p.Batch(logprobs, TotalsOf(seqs)))
			if err != nil {
				t.Fatal(err)
			}
			loss += res.Loss
		}
		near(t, string(aggregation), loss, want, 1e-12)
	}
}
