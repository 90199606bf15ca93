package rl

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ssr-go/ssr/rollout"
)

func trajectory(id string, reward float64, version int64, n int) *rollout.Trajectory {
	t := &rollout.Trajectory{ID: id, Role: rollout.Solver, Status: rollout.Scored, Reward: reward, Outcome: "unsolved"}
	t.Append([]int32{1, 2}, nil, nil)
	for i := range n {
		t.Append([]int32{int32(i)}, []float32{-1}, []int64{version})
	}
	return t
}

func TestSelect(t *testing.T) {
	failed, cancelled := trajectory("a3", 9, 10, 2), trajectory("a4", 9, 10, 2)
	failed.Status, cancelled.Status = rollout.Failed, rollout.Cancelled
	masked := trajectory("a6", 1, 10, 2)
	masked.Outcome = rollout.OutcomeContext
	groups := []*rollout.Group{
		{ID: "b", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{trajectory("b1", 1, 10, 2), trajectory("b2", 1, 10, 2)}},
		{ID: "a", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{
			trajectory("a2", 1, 2, 2), trajectory("a1", -1, 10, 3), failed, cancelled,
			trajectory("a5", 1, 1, 2), // nine versions old
			masked, trajectory("a7", -1, 10, 0),
		}},
		{ID: "c", Role: rollout.Solver, Trajectories: nil},
	}
	got, err := Select(groups, 10, Selection{Advantage: GroupEstimator(GroupMean), MaxLag: 8, MaskOutcomes: []string{rollout.OutcomeContext}})
	if err != nil {
		t.Fatal(err)
	}
	// The baseline is the mean of 1, −1, 1 (masked) and −1 (empty).
	ids := map[string]float64{}
	for _, s := range got.Sequences {
		ids[s.ID] = s.Advantage
	}
	if diff := cmp.Diff(map[string]float64{"a1": -1, "a2": 1}, ids); diff != "" {
		t.Error(diff)
	}
	got.Sequences = nil
	if diff := cmp.Diff(Selected{Groups: 1, NoSpread: 2, Failed: 1, Cancelled: 1, Stale: 1, Masked: 1, Empty: 1}, got); diff != "" {
		t.Error(diff)
	}

	twice := []*rollout.Group{groups[1], groups[1]}
	if _, err := Select(twice, 10, Selection{Advantage: GroupEstimator(GroupMean), MaxLag: 8}); err == nil {
		t.Error("a trajectory was accepted twice")
	}
	groups[0].Role = rollout.Injector
	if _, err := Select(groups, 10, Selection{Advantage: GroupEstimator(GroupMean), MaxLag: -1}); err == nil {
		t.Error("a group of mixed roles was accepted")
	}
}

// TestSelectChecksTheEstimator: one that forgets episodes must not drop them in silence.
func TestSelectChecksTheEstimator(t *testing.T) {
	groups := []*rollout.Group{{ID: "a", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{trajectory("a1", 1, 0, 2), trajectory("a2", -1, 0, 2)}}}
	for want, e := range map[string]Estimator{
		"1 advantages for the 2 episodes of group a": GroupEstimator(func([]float64) []float64 { return []float64{1} }),
		"3 advantages for the 2 episodes of group a": GroupEstimator(func([]float64) []float64 { return []float64{1, 2, 3} }),
		"a2, of reward -1, the advantage NaN":        GroupEstimator(func([]float64) []float64 { return []float64{1, math.NaN()} }),
		"answered for 0 groups of 1":                 forgetful{},
	} {
		if _, err := Select(groups, 0, Selection{Advantage: e, MaxLag: -1}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
}

type forgetful struct{}

func (forgetful) Estimate([][]Episode) [][]float64 { return nil }

// TestSelectIgnoresOrder: however episodes and groups come in, the update is the same.
func TestSelectIgnoresOrder(t *testing.T) {
	build := func(seed uint64) Selected {
		r := rand.New(rand.NewPCG(seed, 0))
		var groups []*rollout.Group
		for g := range 5 {
			group := &rollout.Group{ID: fmt.Sprint("g", g), Role: rollout.Solver}
			for k := range 4 {
				group.Trajectories = append(group.Trajectories, trajectory(fmt.Sprint("g", g, "-", k), 0.1*float64((g*7+k*3)%5), 0, 3+k))
			}
			r.Shuffle(4, func(i, j int) {
				group.Trajectories[i], group.Trajectories[j] = group.Trajectories[j], group.Trajectories[i]
			})
			groups = append(groups, group)
		}
		r.Shuffle(5, func(i, j int) { groups[i], groups[j] = groups[j], groups[i] })
		s, err := Select(groups, 0, Selection{Advantage: estimatorOf(t, "grpo")})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := build(1)
	for seed := range uint64(20) {
		if diff := cmp.Diff(first, build(seed)); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestPack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		budget := rapid.IntRange(4, 40).Draw(t, "budget")
		var seqs []Sequence
		for k := range rapid.IntRange(0, 12).Draw(t, "sequences") {
			n := rapid.IntRange(1, 50).Draw(t, "length")
			s := Sequence{ID: fmt.Sprintf("%02d", k), Advantage: float64(k), Trained: make([]bool, n), Logprobs: make([]float32, n), Tokens: make([]int32, n)}
			for i := range n {
				s.Tokens[i], s.Trained[i], s.Logprobs[i] = int32(100*k+i), i%3 == 0, -float32(i)
			}
			seqs = append(seqs, s)
		}
		packed, err := Pack(seqs, budget)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		mixed := slices.Clone(seqs)
		r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		again, err := Pack(mixed, budget)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(packed, again); diff != "" {
			t.Fatalf("depends on the order: %s", diff)
		}
		seen := map[string]bool{}
		for _, p := range packed {
			if len(p.Tokens) > budget && len(p.IDs) > 1 {
				t.Fatalf("%d tokens of %d sequences exceed %d", len(p.Tokens), len(p.IDs), budget)
			}
			for k, id := range p.IDs {
				if seen[id] {
					t.Fatalf("%s twice", id)
				}
				seen[id] = true
				s := seqs[slices.IndexFunc(seqs, func(s Sequence) bool { return s.ID == id })]
				lo, hi := p.Offsets[k], p.Offsets[k+1]
				if !slices.Equal(p.Tokens[lo:hi], s.Tokens) || p.Mask[lo] || !slices.Equal(p.Mask[lo+1:hi], s.Trained[1:]) {
					t.Fatalf("sequence %s was changed", id)
				}
				if p.Advantages[hi-1] != s.Advantage || p.RolloutLogprobs[hi-1] != float64(s.Logprobs[hi-lo-1]) {
					t.Fatalf("sequence %s has another's figures", id)
				}
			}
		}
		if len(seen) != len(seqs) {
			t.Fatalf("%d of %d sequences were packed", len(seen), len(seqs))
		}
	})
	if _, err := Pack(nil, 0); err == nil {
		t.Error("a budget of nothing was accepted")
	}
}
