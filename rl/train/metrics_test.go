package train

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

// TestPlayMetrics checks the figures of two small groups against values worked out by hand.
func TestPlayMetrics(t *testing.T) {
	episode := func(id string, role rollout.Role, reward float64, outcome string, tokens int) *rollout.Trajectory {
		tr := &rollout.Trajectory{ID: id, Role: role, Status: rollout.Scored, Reward: reward, Outcome: outcome, Turns: make([]rollout.Turn, 2)}
		tr.Append(make([]int32, 3), nil, nil)
		tr.Append(make([]int32, tokens), make([]float32, tokens), make([]int64, tokens))
		return tr
	}
	unpaid := episode("i4", rollout.Injector, 0, "valid", 9)
	unpaid.Status, unpaid.Failure = rollout.Failed, "unplayed: no solvers"
	lost := &rollout.Trajectory{ID: "s3", Role: rollout.Solver, Status: rollout.Failed, Failure: "sandbox: gone"}
	finished := []Finished{
		{Group: &rollout.Group{ID: "s", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{
			episode("s1", rollout.Solver, 1, "solved", 4), episode("s2", rollout.Solver, -1, "turns", 6), lost,
		}}, Counts: map[string]float64{"sandboxes": 4}},
		{Group: &rollout.Group{ID: "i", Role: rollout.Injector, Trajectories: []*rollout.Trajectory{
			episode("i1", rollout.Injector, -1, "refused:bug", 1), episode("i2", rollout.Injector, 0.1, "valid", 1), episode("i3", rollout.Injector, -1, "no_submit", 1), unpaid,
		}}, Counts: map[string]float64{"sandboxes": 9}},
	}
	m := describePlay(finished, rl.Selected{NoSpread: 1, Failed: 1})
	got, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	rate, valid := 0.5, 0.5
	want := &PlayMetrics{
		SolveRate: &rate, ValidRate: &valid,
		Refusals: map[string]int{"bug": 1},
		Roles: map[rollout.Role]*RoleMetrics{
			rollout.Solver: {Groups: 1, Episodes: 2, RewardMean: 0, RewardStd: 1, GroupStd: 1, LengthMean: 8, LengthMax: 9, TurnsMean: 2, Outcomes: map[string]int{"solved": 1, "turns": 1}},
			rollout.Injector: {Groups: 1, Episodes: 3, RewardMean: -1.9 / 3, RewardStd: math.Sqrt(2) * 1.1 / 3, GroupStd: math.Sqrt(2) * 1.1 / 3, LengthMean: 4, LengthMax: 4, TurnsMean: 2,
				Outcomes: map[string]int{"refused:bug": 1, "valid": 1, "no_submit": 1}},
		},
		Dropped: Dropped{NoSpreadGroups: 1, Failed: 1}, Failures: map[string]int{"sandbox": 1, "unplayed": 1},
		SampledTokens: 13, ObservedTokens: 15, Counts: map[string]float64{"sandboxes": 13},
	}
	var back PlayMetrics
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	near := cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-12 })
	if diff := cmp.Diff(want, &back, near); diff != "" {
		t.Error(diff)
	}
}

// What a run does ahead of its steps, such as measuring, is no part of their times:
// in virtual time a step takes what its groups take, injectors first.
func TestSecondsWithoutBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []int
		o := Options{Settings: testSettings(3), Before: func(_ context.Context, step int) error {
			steps = append(steps, step)
			time.Sleep(time.Hour)
			return nil
		}}
		_, lines, _, err := play(t, o, func(_ *table, g *puzzle) {
			g.played = func(string) error { time.Sleep(2 * time.Second); return nil }
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(steps, []int{1, 2, 3}) {
			t.Errorf("called ahead of steps %v", steps)
		}
		for _, m := range lines {
			if want := (Seconds{Play: 4}); m.Seconds != want {
				t.Errorf("step %d took %+v, want %+v", m.Step, m.Seconds, want)
			}
		}
	})
}
