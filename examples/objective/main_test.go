package main

import (
	"math"
	"testing"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// TestGradient holds the graph against the loss and its derivative written out:
// r(−A + |A|(r−1)/ε) by the log-probability now.
func TestGradient(t *testing.T) {
	s, err := rl.Defaults("spo")
	if err != nil {
		t.Fatal(err)
	}
	s.Params["epsilon"] = 0.3
	spo, err := rl.New("spo", s)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing predicts the first token.
	now, sampled := []float64{0, -1, -0.5, -2, -3}, []float64{0, -1, -1.2, -1.5, -3.1}
	advantages, mask, offsets := []float64{0, 1, 0.7, -1, -0.4}, []bool{false, true, true, true, true}, []int{0, 5}
	have, err := spo.Evaluate(rl.Batch{
		Logprobs: now, RolloutLogprobs: sampled, Advantages: advantages,
		Mask: mask, Offsets: offsets, Totals: rl.CountTotals(mask, offsets, nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	var loss float64
	for i := 1; i < len(now); i++ {
		r, a := math.Exp(now[i]-sampled[i]), advantages[i]
		loss += (-r*a + math.Abs(a)*(r-1)*(r-1)/(2*0.3)) / 4
		if want := r * (-a + math.Abs(a)*(r-1)/0.3) / 4; math.Abs(have.Grad[i]-want) > 1e-12 {
			t.Errorf("gradient of token %d is %v, want %v", i, have.Grad[i], want)
		}
	}
	if math.Abs(have.Loss-loss) > 1e-12 {
		t.Errorf("loss is %v, want %v", have.Loss, loss)
	}

	s.Params = map[string]float64{"epsilom": 0.3}
	if _, err := rl.New("spo", s); err == nil {
		t.Error("a parameter that SPO does not have is taken")
	}
}

// TestLearns: the table begins at chance, one in nine, and learns to add.
func TestLearns(t *testing.T) {
	var rates []float64
	err := learn(t.TempDir(), "spo", func(e train.Event) {
		if e.Metrics != nil {
			rates = append(rates, *e.Metrics.SolveRate)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("solved by step: %.3f", rates)
	if first, last := rates[0], rates[len(rates)-1]; first > 0.2 || last < 0.9 {
		t.Errorf("%.3f solved in the first step and %.3f in the last; want chance, and at least 0.9", first, last)
	}
}
