package rl

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/ssr-go/ssr/rollout"
)

func presetOf(t *testing.T, name string) AdvantageSettings {
	t.Helper()
	p, err := LookupAdvantage(name)
	if err != nil {
		t.Fatal(err)
	}
	return p.Defaults
}

func estimatorOf(t *testing.T, name string) Estimator {
	t.Helper()
	e, err := NewEstimator(name)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// estimate is the advantages of one group of one role, of a token each.
func estimate(t *testing.T, s AdvantageSettings, rewards []float64) []float64 {
	t.Helper()
	e, err := s.Estimator()
	if err != nil {
		t.Fatal(err)
	}
	group := make([]Episode, len(rewards))
	for i, r := range rewards {
		group[i] = Episode{Role: "solver", Reward: r, Length: 1}
	}
	return e.Estimate([][]Episode{group})[0]
}

func TestEstimators(t *testing.T) {
	groupBased := []string{"group_mean", "leave_one_out", "rloo", "grpo", "maxrl", "opo", "passk_best"}
	rapid.Check(t, func(rt *rapid.T) {
		rewards := rapid.SliceOfN(rapid.Float64Range(-1, 1), 1, 8).Draw(rt, "rewards")
		for _, name := range AdvantageNames() {
			adv := estimate(t, presetOf(t, name), rewards)
			var sum float64
			for i, a := range adv {
				sum += a
				for k := range adv {
					if rewards[i] > rewards[k] && a < adv[k] && name != "role_ema" {
						rt.Fatalf("%s: reward %g has advantage %g, reward %g has %g", name, rewards[i], a, rewards[k], adv[k])
					}
				}
			}
			if math.IsNaN(sum) || math.IsInf(sum, 0) || (name == "group_mean" && math.Abs(sum) > 1e-12) {
				rt.Fatalf("%s: advantages %v", name, adv)
			}
		}
	})
	for _, name := range groupBased {
		for _, rewards := range [][]float64{{0.1, 0.1, 0.1}, {0.7}, {}} {
			for _, a := range estimate(t, presetOf(t, name), rewards) {
				if a != 0 {
					t.Errorf("%s: advantage %g of %v", name, a, rewards)
				}
			}
		}
	}
	// −1/+1 rewards give MaxRL the same advantages as 0/1.
	maxrl := presetOf(t, "maxrl")
	if diff := gocmp.Diff(estimate(t, maxrl, []float64{1, 0, 0, 0}), estimate(t, maxrl, []float64{1, -1, -1, -1})); diff != "" {
		t.Error(diff)
	}
	if _, err := NewEstimator("nonesuch"); err == nil {
		t.Error("an unknown estimator was accepted")
	}
}

// TestScaleInvariance: without an epsilon the deviation takes out the scale of
// the rewards, as the mean takes out a shift.
func TestScaleInvariance(t *testing.T) {
	for _, d := range []Deviation{"", "sample", PopulationDeviation, OthersDeviation} {
		for _, scale := range []Scale{ScaleStd, ScaleStep} {
			s := AdvantageSettings{Baseline: BaselineGroupMean, Scale: scale, Deviation: d}
			rapid.Check(t, func(rt *rapid.T) {
				rewards := rapid.SliceOfNDistinct(rapid.IntRange(-9, 9), 3, 8, rapid.ID).Draw(rt, "rewards")
				factor := rapid.Float64Range(0.1, 10).Draw(rt, "factor")
				var plain, scaled []float64
				for _, r := range rewards {
					plain, scaled = append(plain, float64(r)), append(scaled, factor*float64(r)+3)
				}
				want, have := estimate(t, s, plain), estimate(t, s, scaled)
				for i := range want {
					if !close(have[i], want[i], 1e-9) {
						rt.Fatalf("advantage %d is %g, of scaled rewards %g", i, want[i], have[i])
					}
				}
			})
		}
	}
}

// TestDeviations on rewards worked out by hand: 1, 3, 5 have mean 3, sample
// deviation 2 and population deviation √(8/3); the others of 1 are 3 and 5, of
// deviation √2, and so on.
func TestDeviations(t *testing.T) {
	rewards := []float64{1, 3, 5}
	for d, want := range map[Deviation][]float64{
		"sample":            {-1, 0, 1},
		PopulationDeviation: {-2 / math.Sqrt(8.0/3), 0, 2 / math.Sqrt(8.0/3)},
		OthersDeviation:     {-math.Sqrt2, 0, math.Sqrt2},
	} {
		for i, a := range estimate(t, AdvantageSettings{Baseline: BaselineGroupMean, Scale: ScaleStd, Deviation: d}, rewards) {
			near(t, string(d), a, want[i], 1e-12)
		}
	}
	// The sample deviation of 1, −1 is √2.
	near(t, "grpo", estimate(t, presetOf(t, "grpo"), []float64{1, -1})[0], 1/(math.Sqrt2+1e-6), 1e-12)
	near(t, "epsilon", estimate(t, AdvantageSettings{Baseline: BaselineGroupMean, Scale: ScaleStd, Epsilon: 1}, rewards)[2], 2.0/3, 1e-12)
}

// TestWholeStep checks the estimators that look beyond a group, on two groups of
// solvers and one of injectors; lengths weigh in opo and in whitening.
func TestWholeStep(t *testing.T) {
	groups := [][]Episode{
		{{"solver", 1, 3}, {"solver", 0, 1}},
		{{"solver", 4, 2}, {"solver", 4, 2}},
		{{"injector", -7, 5}, {"injector", 5, 5}},
	}
	// Solvers' rewards are 1, 0, 4, 4.
	std := math.Sqrt((math.Pow(1-2.25, 2) + math.Pow(0-2.25, 2) + 2*math.Pow(4-2.25, 2)) / 3)
	white := func(sumOf map[float64]float64) func(float64) float64 { // tokens by value
		var n, sum, ss float64
		for v, k := range sumOf {
			n, sum = n+k, sum+k*v
		}
		for v, k := range sumOf {
			ss += k * (v - sum/n) * (v - sum/n)
		}
		return func(v float64) float64 { return (v - sum/n) / math.Sqrt(ss/(n-1)+1e-8) }
	}
	all := white(map[float64]float64{1: 3, 0: 1, 4: 4})
	based := white(map[float64]float64{0.5: 3, -0.5: 1, 0: 4})
	inj := 6 / math.Sqrt(10*36.0/9+1e-8)
	for name, want := range map[string][][]float64{
		"opo":                   {{0.25, -0.75}, {0, 0}, {-6, 6}},
		"grpo_step_std":         {{0.5 / (std + 1e-4), -0.5 / (std + 1e-4)}, {0, 0}, {-6 / (math.Sqrt(72) + 1e-4), 6 / (math.Sqrt(72) + 1e-4)}},
		"reinforce_pp":          {{all(1), all(0)}, {all(4), all(4)}, {-inj, inj}},
		"reinforce_pp_baseline": {{based(0.5), based(-0.5)}, {based(0), based(0)}, {-inj, inj}},
		// b = 0, 0.05·1, then 0.95·0.05 + 0, …
		"role_ema":   {{1, -0.05}, {4 - 0.0475, 4 - (0.95*0.0475 + 0.2)}, {-7, 5 + 0.35}},
		"passk_best": {{1 / (math.Sqrt(0.5) + 1e-6), 0}, {0, 0}, {0, 12 / (math.Sqrt(72) + 1e-6)}},
	} {
		have := estimatorOf(t, name).Estimate(groups)
		for g := range want {
			for i := range want[g] {
				near(t, name, have[g][i], want[g][i], 1e-9)
			}
		}
	}
}

// TestRoleEstimatorGoesOn from its state as if it had not stopped.
func TestRoleEstimatorGoesOn(t *testing.T) {
	step := [][]Episode{{{"x", 1, 1}, {"o", -1, 1}}, {{"x", 0, 1}}}
	through := estimatorOf(t, "role_ema")
	through.Estimate(step)
	resumed := estimatorOf(t, "role_ema")
	resumed.(Stateful).Restore(through.(Stateful).State())
	if diff := gocmp.Diff(through.Estimate(step), resumed.Estimate(step)); diff != "" {
		t.Error(diff)
	}
	if _, ok := estimatorOf(t, "grpo").(Stateful); ok {
		t.Error("grpo claims to have a state")
	}
}

// TestPassKIsTheGradient: over every outcome of n draws of a policy that succeeds
// with probability p = σ(θ), the mean of A·d log π/dθ is the derivative of pass@k,
// k(1−p)^(k−1)·p(1−p).
func TestPassKIsTheGradient(t *testing.T) {
	for n := 1; n <= 6; n++ {
		for k := 1; k <= n; k++ {
			for _, p := range []float64{0.1, 0.5, 0.8} {
				var have float64
				for outcome := range 1 << n {
					rewards, probability := make([]float64, n), 1.0
					for i := range rewards {
						rewards[i] = -1
						if outcome>>i&1 == 1 {
							rewards[i] = 1
							probability *= p
						} else {
							probability *= 1 - p
						}
					}
					for i, a := range PassK(rewards, k) {
						slope := -p // of log(1 − p)
						if rewards[i] > 0 {
							slope = 1 - p // of log p
						}
						have += probability * a * slope / float64(n)
					}
				}
				near(t, "gradient of pass@k", have, float64(k)*math.Pow(1-p, float64(k-1))*p*(1-p), 1e-12)
			}
		}
	}
	if a := PassK([]float64{1, 0}, 5); a[0] != 0 {
		t.Errorf("k beyond the group: %v", a)
	}
}

func TestKeepSingle(t *testing.T) {
	s := presetOf(t, "grpo")
	s.KeepSingle = true
	if a := estimate(t, s, []float64{0.7}); a[0] != 0.7 {
		t.Errorf("advantage %v, want the reward", a)
	}
}

// TestOverlong: DAPO's penalty with a limit of 100 and a buffer of 20, as in the
// example of TRL's get_soft_overlong_punishment: 90 tokens cost half.
func TestOverlong(t *testing.T) {
	o := Overlong{Max: 100, Buffer: 20, Factor: 1}
	for length, want := range map[int]float64{10: 1, 80: 1, 90: 0.5, 100: 0, 140: 0} {
		near(t, "clamped", o.Shape(1, length), want, 1e-12)
	}
	o.Unclamped = true
	near(t, "unclamped", o.Shape(1, 140), -2, 1e-12)
	e, err := AdvantageSettings{Baseline: BaselineGroupMean, Overlong: o}.Estimator()
	if err != nil {
		t.Fatal(err)
	}
	// Rewards without spread that the penalty tells apart: 1 and 0.5.
	near(t, "advantage", e.Estimate([][]Episode{{{"solver", 1, 10}, {"solver", 1, 90}}})[0][0], 0.25, 1e-12)
}

// TestGAE against its definition, the sum of discounted residuals.
func TestGAE(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 6).Draw(rt, "steps")
		rewards := rapid.SliceOfN(rapid.Float64Range(-1, 1), n, n).Draw(rt, "rewards")
		values := rapid.SliceOfN(rapid.Float64Range(-1, 1), n, n).Draw(rt, "values")
		gamma, lambda := rapid.Float64Range(0, 1).Draw(rt, "gamma"), rapid.Float64Range(0, 1).Draw(rt, "lambda")
		adv, returns, err := GAE(rewards, values, gamma, lambda)
		if err != nil {
			rt.Fatal(err)
		}
		for i := range rewards {
			var want float64
			for l := i; l < n; l++ {
				residual := rewards[l] - values[l]
				if l+1 < n {
					residual += gamma * values[l+1]
				}
				want += math.Pow(gamma*lambda, float64(l-i)) * residual
			}
			if !close(adv[i], want, 1e-12) || !close(returns[i], want+values[i], 1e-12) {
				rt.Fatalf("step %d: %g and %g, want %g and %g", i, adv[i], returns[i], want, want+values[i])
			}
		}
	})
	if _, _, err := GAE([]float64{1}, nil, 1, 1); err == nil {
		t.Error("rewards without values were accepted")
	}
}

// TestTurns: returns backwards by hand, centred by role over all of its turns.
func TestTurns(t *testing.T) {
	if diff := gocmp.Diff([]float64{0.25, 2.5, 1}, TurnReturns([]float64{-1, 2, 1}, 0.5)); diff != "" {
		t.Error(diff)
	}
	have, err := TurnAdvantages([][]float64{{1, 3}, {10}, {5}}, []string{"x", "o", "x"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([][]float64{{-2, 0}, {0}, {2}}, have); diff != "" {
		t.Error(diff)
	}
	if _, err := TurnAdvantages([][]float64{{1}}, nil); err == nil {
		t.Error("an episode without a role was accepted")
	}
}

// TestTurnDiscount: three turns of a trajectory, the advantage of each half of
// the next's, down to the packed tokens.
func TestTurnDiscount(t *testing.T) {
	tr := trajectory("a", 1, 0, 0)
	for range 3 {
		start := len(tr.Tokens)
		tr.Append([]int32{7, 8}, []float32{-1, -1}, []int64{0, 0})
		tr.Turns = append(tr.Turns, rollout.Turn{Start: start, End: len(tr.Tokens)})
		tr.Append([]int32{9}, nil, nil)
	}
	group := &rollout.Group{ID: "g", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{tr, trajectory("b", -1, 0, 2)}}
	sel, err := Select([]*rollout.Group{group}, 0, Selection{Advantage: GroupEstimator(GroupMean), TurnCredit: TurnCredit{TurnDiscount: 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := Pack(sel.Sequences, 100)
	if err != nil {
		t.Fatal(err)
	}
	var have []float64
	for i, trained := range packed[0].Mask {
		if trained {
			have = append(have, packed[0].Advantages[i])
		}
	}
	if diff := gocmp.Diff([]float64{0.25, 0.25, 0.5, 0.5, 1, 1, -1, -1}, have); diff != "" {
		t.Error(diff)
	}
}

func TestAdvantageSettingsAreChecked(t *testing.T) {
	for want, s := range map[string]AdvantageSettings{
		"no baseline":    {Baseline: "median"},
		"decay":          {Baseline: BaselineRole, Decay: 1},
		"no scale":       {Scale: "std"},
		"no deviation":   {Deviation: "biased"},
		"epsilon":        {Epsilon: math.NaN()},
		"pass_k is -1":   {PassK: -1},
		"in their place": {PassK: 2, Baseline: BaselineGroupMean},
		"turn_discount":  {TurnCredit: TurnCredit{TurnDiscount: 2}},
		"turn_entropy":   {TurnCredit: TurnCredit{TurnEntropy: 1.5}},
		"overlong":       {Overlong: Overlong{Max: 10, Buffer: 20}},
	} {
		if _, err := s.Estimator(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
	if !slices.Contains(AdvantageNames(), "role_ema") {
		t.Error("role_ema is not listed")
	}
}

// TestOwnBaseline: a registered baseline sees shaped rewards, and is scaled and whitened.
func TestOwnBaseline(t *testing.T) {
	RegisterBaseline("highest", func(group []Episode) []float64 {
		highest := slices.MaxFunc(group, func(a, b Episode) int { return cmp.Compare(a.Reward, b.Reward) }).Reward
		adv := make([]float64, len(group))
		for i, ep := range group {
			adv[i] = ep.Reward - highest
		}
		return adv
	})
	RegisterAdvantage("highest", AdvantagePreset{Defaults: AdvantageSettings{Baseline: "highest", Scale: ScaleStd, Deviation: PopulationDeviation}})
	defer func() {
		advantagesMu.Lock()
		defer advantagesMu.Unlock()
		delete(advantages, "highest")
		delete(baselines, "highest")
	}()
	if !slices.Contains(AdvantageNames(), "highest") {
		t.Error("highest is not listed")
	}
	s := presetOf(t, "highest")
	if got := estimate(t, s, []float64{1, -1}); !slices.Equal(got, []float64{0, -2}) {
		t.Errorf("advantages %v, want 0 and −2 over a deviation of 1", got)
	}
	// The second episode is 2 tokens beyond the 8 that are free of 12: 2/4 off its reward.
	s.Scale, s.Overlong = NoScale, Overlong{Max: 12, Buffer: 4, Factor: 1}
	e, err := s.Estimator()
	if err != nil {
		t.Fatal(err)
	}
	got := e.Estimate([][]Episode{{{Reward: 1, Length: 8}, {Reward: 1, Length: 10}}, {}})
	if diff := gocmp.Diff([][]float64{{0, -0.5}, {}}, got, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}
