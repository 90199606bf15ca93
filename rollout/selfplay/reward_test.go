package selfplay

import (
	"math"
	"testing"
)

// The figures are the paper's for a group of 8 and alpha 0.8.
func TestInjectorRewardOfAGroupOfEight(t *testing.T) {
	want := []float64{-0.8, 0.775, 0.55, 0.325, 0.10, -0.125, -0.35, -0.575, -0.8}
	for k, w := range want {
		if got := InjectorReward(Alpha, float64(k)/8); math.Abs(got-w) > 1e-12 {
			t.Errorf("%d of 8 solved: reward %v, want %v", k, got, w)
		}
	}
}

// The expected reward over a binomial group peaks at a solve rate of 0.257.
func TestInjectorRewardPeaksAtTheStatedSolveRate(t *testing.T) {
	expected := func(p float64) float64 {
		var sum float64
		choose := 1.0
		for k := 0; k <= 8; k++ {
			sum += choose * math.Pow(p, float64(k)) * math.Pow(1-p, float64(8-k)) * InjectorReward(Alpha, float64(k)/8)
			choose = choose * float64(8-k) / float64(k+1)
		}
		return sum
	}
	best, at := math.Inf(-1), 0.0
	for p := 0.0; p <= 1; p += 1e-4 {
		if e := expected(p); e > best {
			best, at = e, p
		}
	}
	if math.Abs(at-0.257) > 0.0005 {
		t.Errorf("expected reward peaks at %.4f, want 0.257", at)
	}
}

func TestSolverReward(t *testing.T) {
	if SolverReward(true) != 1 || SolverReward(false) != -1 {
		t.Errorf("rewards %v and %v, want 1 and -1", SolverReward(true), SolverReward(false))
	}
}
