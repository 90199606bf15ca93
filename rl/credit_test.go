package rl

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rollout"
)

// turns is a trajectory of turns of two tokens, each with a log-probability of
// its own and a time.
func turns(id string, reward float64, logprobs []float32, seconds ...float64) *rollout.Trajectory {
	t := trajectory(id, reward, 0, 0)
	for k, l := range logprobs {
		start := len(t.Tokens)
		t.Append([]int32{7, 8}, []float32{l, l}, []int64{0, 0})
		t.Turns = append(t.Turns, rollout.Turn{Start: start, End: len(t.Tokens), Seconds: seconds[k]})
		t.Append([]int32{9}, nil, nil)
	}
	return t
}

// selected are the advantages of the tokens that a selection trains on, by place.
func selected(t *testing.T, credit TurnCredit, ts ...*rollout.Trajectory) ([]float64, Selected) {
	t.Helper()
	group := &rollout.Group{ID: "g", Role: rollout.Solver, Trajectories: ts}
	sel, err := Select([]*rollout.Group{group}, 0, Selection{Advantage: GroupEstimator(GroupMean), TurnCredit: credit})
	if err != nil {
		t.Fatal(err)
	}
	var have []float64
	for _, q := range sel.Sequences {
		for i, trained := range q.Trained {
			if a := q.Advantage; trained {
				if q.Advantages != nil {
					a = q.Advantages[i]
				}
				have = append(have, a)
			}
		}
	}
	return have, sel
}

// TestTurnDuration: turns of 1, 3, 2 and 2 seconds, 2 on average; with a discount on top.
func TestTurnDuration(t *testing.T) {
	a, b := turns("a", 1, []float32{-1, -1}, 1, 3), turns("b", -1, []float32{-1, -1}, 2, 2)
	have, _ := selected(t, TurnCredit{TurnDuration: true}, a, b)
	if diff := cmp.Diff([]float64{0.5, 0.5, 1.5, 1.5, -1, -1, -1, -1}, have); diff != "" {
		t.Error(diff)
	}
	have, _ = selected(t, TurnCredit{TurnDuration: true, TurnDiscount: 0.5}, a, b)
	if diff := cmp.Diff([]float64{0.25, 0.25, 1.5, 1.5, -0.5, -0.5, -1, -1}, have); diff != "" {
		t.Error(diff)
	}
}

// TestTurnEntropy: of a group's five turns the 60% of the highest surprisal are
// trained on, which are the second of a and both of b; c has none and is left out.
func TestTurnEntropy(t *testing.T) {
	a := turns("a", 1, []float32{-0.1, -2}, 1, 1)
	b := turns("b", -1, []float32{-0.7, -0.8}, 1, 1)
	c := turns("c", 0, []float32{-0.2}, 1)
	have, sel := selected(t, TurnCredit{TurnEntropy: 0.6}, a, b, c)
	if diff := cmp.Diff([]float64{1, 1, -1, -1, -1, -1}, have); diff != "" {
		t.Error(diff)
	}
	if len(sel.Sequences) != 2 || sel.Masked != 1 {
		t.Errorf("%d sequences and %d masked ones, want 2 and 1", len(sel.Sequences), sel.Masked)
	}
	if !a.Trained[2] {
		t.Error("the trajectory itself was changed")
	}
}

// TestIPA: −A·logprob for A > 0; for A < 0 the same times min(ρ, 1), with ρ the
// geometric mean of the ratios of the turn, not of the sequence (arXiv 2512.24873,
// eq. 8 and 9). Two sequences of two turns each, of two tokens and one.
func TestIPA(t *testing.T) {
	s, err := Defaults("ipa")
	if err != nil {
		t.Fatal(err)
	}
	s.Aggregation = SequenceSum
	o, err := New("ipa", s)
	if err != nil {
		t.Fatal(err)
	}
	gaps := []float64{0, -0.5, 0.1, 0, 0.3, 0, 0.4, -1, 0, 0.2} // now − sampler
	b := Batch{
		Mask:       []bool{false, true, true, false, true, false, true, true, false, true},
		Advantages: []float64{0, 2, 2, 0, 2, 0, -1, -1, 0, -1}, Offsets: []int{0, 5, 10},
		Totals: Totals{Tokens: 6, Sequences: 2},
	}
	for _, g := range gaps {
		b.Logprobs, b.RolloutLogprobs = append(b.Logprobs, -1), append(b.RolloutLogprobs, -1-g)
	}
	down := math.Exp((0.4 - 1) / 2) // of the second sequence's first turn; its second is held at 1
	have, err := o.Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	want := []float64{0, -1, -1, 0, -1, 0, down / 2, down / 2, 0, 0.5}
	var loss float64
	for i, g := range want {
		near(t, "gradient", have.Grad[i], g, 1e-12)
		loss -= g // every log-probability is −1
	}
	near(t, "loss", have.Loss, loss, 1e-12)
}
