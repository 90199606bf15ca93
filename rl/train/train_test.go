package train

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

// play trains a fresh table and returns it with the step metrics.
func play(t *testing.T, o Options, change func(*table, *puzzle)) (*table, []*Metrics, Summary, error) {
	t.Helper()
	p := &table{}
	g := &puzzle{policy: p}
	if change != nil {
		change(p, g)
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	var lines []*Metrics
	outer := o.OnEvent
	o.OnEvent = func(e Event) {
		if e.Metrics != nil {
			lines = append(lines, e.Metrics)
		}
		if outer != nil {
			outer(e)
		}
	}
	sum, err := Train(context.Background(), o, p, g)
	return p, lines, sum, err
}

func TestLearns(t *testing.T) {
	s := testSettings(60)
	s.Optimizer.LR, s.CheckpointEvery = 0.3, 10
	var phases []Phase
	p, lines, sum, err := play(t, Options{Settings: s, Seed: 1, OnEvent: func(e Event) {
		if len(phases) == 0 || phases[len(phases)-1] != e.Phase {
			phases = append(phases, e.Phase)
		}
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	rate := func(lines []*Metrics) float64 {
		var sum float64
		for _, m := range lines {
			sum += *m.SolveRate
		}
		return sum / float64(len(lines))
	}
	if first, last := rate(lines[:5]), rate(lines[50:]); first > 0.5 || last < 0.9 {
		t.Errorf("the solve rate went from %.2f to %.2f, want from under 0.5 to over 0.9", first, last)
	}
	if sum.Steps != 60 || sum.Version != p.N || sum.Checkpoint == "" {
		t.Errorf("summary %+v, version %d", sum, p.N)
	}
	want := []Phase{PhaseStep, PhaseCheckpoint, PhaseDone}
	if !slices.Equal(phases[:4], []Phase{PhasePlay, PhaseUpdate, PhaseStep, PhasePlay}) || !slices.Equal(phases[len(phases)-3:], want) {
		t.Errorf("phases %v", phases)
	}
	// On fresh data the policy is the one that sampled: what remains is the
	// rounding of the recorded log-probabilities to float32.
	for _, m := range lines {
		if m.LogprobGap != nil && *m.LogprobGap > 1e-6 {
			t.Errorf("step %d: log-probabilities differ by %g on fresh data", m.Step, *m.LogprobGap)
		}
	}
}

// TestSameSeedSameRun: the order in which groups end does not show.
func TestSameSeedSameRun(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		s := testSettings(5)
		s.Epochs, s.Minibatches = 2, 3
		if _, _, _, err := play(t, Options{Settings: s, Dir: dir, Seed: 3}, func(_ *table, g *puzzle) { g.pause = 3 * time.Millisecond }); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(metricsWithoutTimes(t, a), metricsWithoutTimes(t, b)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(finalWeights(t, a), finalWeights(t, b)); diff != "" {
		t.Error(diff)
	}
}

// TestMicroBatches: the token budget does not change what is learnt.
func TestMicroBatches(t *testing.T) {
	small, big := testSettings(4), testSettings(4)
	small.TokenBudget, big.TokenBudget = 4, 100000
	a, la, _, err := play(t, Options{Settings: small, Seed: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, lb, _, err := play(t, Options{Settings: big, Seed: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if la[0].MicroBatches < 5 || lb[0].MicroBatches != 1 {
		t.Fatalf("%d and %d micro-batches", la[0].MicroBatches, lb[0].MicroBatches)
	}
	for i := range a.W {
		for j := range a.W[i] {
			if math.Abs(a.W[i][j]-b.W[i][j]) > 1e-9 {
				t.Fatalf("weight %d, %d is %g in small and %g in one batch", i, j, a.W[i][j], b.W[i][j])
			}
		}
	}
	for k := range la {
		for name, v := range la[k].Objective {
			if math.Abs(v-lb[k].Objective[name]) > 1e-9 {
				t.Errorf("step %d: %s is %g and %g", k+1, name, v, lb[k].Objective[name])
			}
		}
		if la[k].Loss == nil {
			t.Fatalf("step %d made no update", k+1)
		}
		if math.Abs(*la[k].Loss-*lb[k].Loss) > 1e-9 || math.Abs(*la[k].GradNorm-*lb[k].GradNorm) > 1e-9 {
			t.Errorf("step %d: loss %g and %g, norm %g and %g", k+1, *la[k].Loss, *lb[k].Loss, *la[k].GradNorm, *lb[k].GradNorm)
		}
	}
}

// TestFailuresSurface: whatever breaks is the error of Train, and the run goes
// on after it to the same end as one where nothing broke.
// TestOldAnchor: on fresh data the policy that began the step is the one that
// sampled, so that decoupled PPO, in one update a step or in several, takes the
// run that PPO does, up to the sampler's float32.
func TestOldAnchor(t *testing.T) {
	for _, epochs := range []int{1, 2} {
		run := func(objective string, change func(*table, *puzzle)) (*table, error) {
			s := testSettings(4)
			s.Objective, s.Epochs, s.Minibatches = objective, epochs, epochs
			var err error
			if s.Loss, err = rl.Defaults(objective); err != nil {
				t.Fatal(err)
			}
			p, _, _, err := play(t, Options{Settings: s}, change)
			return p, err
		}
		want, err := run("ppo", nil)
		if err != nil {
			t.Fatal(err)
		}
		have, err := run("decoupled_ppo", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want.W {
			for j, w := range want.W[i] {
				if math.Abs(have.W[i][j]-w) > 1e-5 {
					t.Errorf("%d epochs: weight %d, %d is %g, with ppo %g", epochs, i, j, have.W[i][j], w)
				}
			}
		}
		boom := errors.New("boom")
		_, err = run("decoupled_ppo", func(p *table, _ *puzzle) {
			p.fail = func(call string) error {
				if call == "score" {
					return boom
				}
				return nil
			}
		})
		if scored := errors.Is(err, boom); scored != (epochs > 1) {
			t.Errorf("%d epochs: error %v", epochs, err)
		}
	}
	s := testSettings(1)
	s.Objective, s.Epochs = "icepop", 2
	s.Loss, _ = rl.Defaults("icepop")
	p := &table{}
	_, err := Train(context.Background(), Options{Settings: s, Dir: t.TempDir()}, struct{ Learner }{p}, &puzzle{policy: p})
	if err == nil || !strings.Contains(err.Error(), "a learner that scores") {
		t.Errorf("error %v", err)
	}
}

// TestRecordBatches: a recorded batch has the loss of its update.
func TestRecordBatches(t *testing.T) {
	s, dir := testSettings(4), t.TempDir()
	s.RecordBatches, s.TokenBudget = 2, 30
	_, lines, _, err := play(t, Options{Settings: s, Dir: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, batchesName))
	if err != nil || len(files) != 2 {
		t.Fatalf("%d batches, %v; want those of steps 2 and 4", len(files), err)
	}
	o, err := rl.New(s.Objective, s.Loss)
	if err != nil {
		t.Fatal(err)
	}
	for k, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, batchesName, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		r, err := rl.ParseRecorded(data)
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Batch(nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		if m := lines[2*k+1]; m.MicroBatches < 2 || math.Abs(res.Loss-*m.Loss) > 1e-12 {
			t.Errorf("%s: loss %g, the update's %d micro-batches had %g", f.Name(), res.Loss, m.MicroBatches, *m.Loss)
		}
	}
}

func TestFailuresSurface(t *testing.T) {
	s := testSettings(4)
	calm := t.TempDir()
	if _, _, _, err := play(t, Options{Settings: s, Dir: calm, Seed: 5}, nil); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("it broke")
	fails := func(call string, from int) func(*table, *puzzle) {
		return func(p *table, _ *puzzle) {
			n := 0
			p.fail = func(c string) error {
				if c == call {
					if n++; n >= from {
						return broken
					}
				}
				return nil
			}
		}
	}
	for name, change := range map[string]func(*table, *puzzle){
		"accumulate": fails("accumulate", 3),
		"step":       fails("step", 2),
		"save":       fails("save", 3),
		"play": func(_ *table, g *puzzle) {
			g.played = func(id string) error {
				if strings.HasPrefix(id, "003-solve") {
					return broken
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, _, _, err := play(t, Options{Settings: s, Dir: dir, Seed: 5}, change); !errors.Is(err, broken) {
				t.Fatalf("error %v", err)
			}
			if _, _, _, err := play(t, Options{Settings: s, Dir: dir, Seed: 5}, nil); err == nil || !strings.Contains(err.Error(), "resume") {
				t.Fatalf("a run was begun in the folder of another: %v", err)
			}
			if _, _, _, err := play(t, Options{Settings: s, Dir: dir, Seed: 5, Resume: true}, nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(metricsWithoutTimes(t, calm), metricsWithoutTimes(t, dir)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(finalWeights(t, calm), finalWeights(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestBaselinesSurvive: an estimator's moving averages go on after a resume, from
// the last checkpoint and the journal, as if nothing had happened.
func TestBaselinesSurvive(t *testing.T) {
	s := testSettings(5)
	s.Advantage, s.CheckpointEvery = "role_ema", 2
	calm, dir := t.TempDir(), t.TempDir()
	if _, _, _, err := play(t, Options{Settings: s, Dir: calm, Seed: 5}, nil); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("it broke")
	_, _, _, err := play(t, Options{Settings: s, Dir: dir, Seed: 5}, func(_ *table, g *puzzle) {
		g.played = func(id string) error {
			if strings.HasPrefix(id, "004") {
				return broken
			}
			return nil
		}
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if _, _, _, err := play(t, Options{Settings: s, Dir: dir, Seed: 5, Resume: true}, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(metricsWithoutTimes(t, calm), metricsWithoutTimes(t, dir)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(finalWeights(t, calm), finalWeights(t, dir)); diff != "" {
		t.Error(diff)
	}
	// Against no baseline at all the run is another one.
	s.AdvantageSettings = &rl.AdvantageSettings{}
	plain := t.TempDir()
	if _, _, _, err := play(t, Options{Settings: s, Dir: plain, Seed: 5}, nil); err != nil {
		t.Fatal(err)
	}
	if cmp.Equal(finalWeights(t, calm), finalWeights(t, plain)) {
		t.Error("the baselines made no difference")
	}
}

// TestOwnEstimator: an estimator of the caller's own is asked instead of the named
// one, and what it answers is trained on.
func TestOwnEstimator(t *testing.T) {
	none := rl.GroupEstimator(func(rewards []float64) []float64 { return make([]float64, len(rewards)) })
	p, lines, _, err := play(t, Options{Settings: testSettings(1), Estimator: none}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := lines[0].TrainedTokens; n != 0 || p.N != 0 {
		t.Errorf("without any advantage %d tokens are trained on, in %d updates", n, p.N)
	}
}

func TestCancel(t *testing.T) {
	s := testSettings(1000)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	reason := errors.New("enough")
	dir := t.TempDir()
	p := &table{}
	began := time.Now()
	_, err := Train(ctx, Options{Settings: s, Dir: dir, OnEvent: func(e Event) {
		if e.Step == 3 {
			cancel(reason)
		}
	}}, p, &puzzle{policy: p, pause: 2 * time.Millisecond})
	if !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %v to stop", d)
	}
	s.Steps = 5
	if _, _, sum, err := play(t, Options{Settings: s, Dir: dir, Resume: true}, nil); err != nil || sum.Steps != 5 {
		t.Errorf("resume: %+v, %v", sum, err)
	}
}

// cancelled is a game whose context ends while its only group is under way.
type cancelled struct {
	puzzle
	cancel func()
	seen   []Finished
}

func (c *cancelled) Play(_ context.Context, step int, done []Finished, finish func(Finished) error) error {
	c.seen = done
	c.cancel()
	g := &rollout.Group{ID: "half", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{{ID: "t", Role: rollout.Solver, Status: rollout.Cancelled}}}
	whole := &rollout.Group{ID: "whole", Role: rollout.Solver, Trajectories: []*rollout.Trajectory{{ID: "u", Role: rollout.Solver, Status: rollout.Failed}}}
	return errors.Join(finish(Finished{Group: g}), finish(Finished{Group: whole}))
}

// TestCancelledGroupsAreNotDone: a group that the end of the run cut short is
// played again, one that had ended is not.
func TestCancelledGroupsAreNotDone(t *testing.T) {
	dir := t.TempDir()
	for try := range 2 {
		ctx, cancel := context.WithCancel(context.Background())
		p := &table{}
		g := &cancelled{puzzle: puzzle{policy: p}, cancel: cancel}
		_, err := Train(ctx, Options{Settings: testSettings(1), Dir: dir, Resume: try > 0}, p, g)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
		if try == 1 && (len(g.seen) != 1 || g.seen[0].Group.ID != "whole") {
			t.Errorf("done groups: %+v", g.seen)
		}
	}
}

func TestNonFinite(t *testing.T) {
	s := testSettings(8)
	dir := t.TempDir()
	spoil := func(bad ...int) func(*table, *puzzle) {
		return func(p *table, _ *puzzle) {
			var mu sync.Mutex
			n := 0
			p.fail = func(c string) error {
				mu.Lock()
				defer mu.Unlock()
				if c == "logprobs" {
					if n++; slices.Contains(bad, n) {
						return errors.New("NaN")
					}
				}
				return nil
			}
		}
	}
	s.TokenBudget = 100000 // one micro-batch a step
	p, lines, sum, err := play(t, Options{Settings: s, Dir: dir}, spoil(2, 4, 5))
	if err != nil {
		t.Fatal(err)
	}
	if sum.Skipped != 3 || lines[7].Skipped != 3 || p.N != 5 || lines[1].Updates != 0 || lines[1].Loss != nil {
		t.Errorf("%d skipped, version %d, second step %+v", sum.Skipped, p.N, lines[1].UpdateMetrics)
	}
	_, _, sum, err = play(t, Options{Settings: s}, spoil(3, 4, 5, 6))
	if !errors.Is(err, rl.ErrNonFinite) || !strings.Contains(err.Error(), "3 updates in a row") || sum.Steps != 4 {
		t.Errorf("after step %d: %v", sum.Steps, err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := testSettings(1)
	var second error
	_, _, _, err := play(t, Options{Settings: s, Dir: dir, OnEvent: func(e Event) {
		if e.Phase == PhaseUpdate {
			_, _, _, second = play(t, Options{Settings: s, Dir: dir, Resume: true}, nil)
		}
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(second, ErrLocked) {
		t.Errorf("the second trainer's error is %v", second)
	}
}

func TestResumeUnderOtherRules(t *testing.T) {
	dir := t.TempDir()
	s := testSettings(2)
	if _, _, _, err := play(t, Options{Settings: s, Dir: dir}, nil); err != nil {
		t.Fatal(err)
	}
	changed := s
	changed.Loss.ClipHigh = 0.5
	_, _, _, err := play(t, Options{Settings: changed, Dir: dir, Resume: true}, nil)
	if err == nil || !strings.Contains(err.Error(), `loss was`) {
		t.Errorf("error %v", err)
	}
	s.Steps, s.CheckpointEvery = 3, 2 // these may change
	if _, _, sum, err := play(t, Options{Settings: s, Dir: dir, Resume: true}, nil); err != nil || sum.Steps != 3 {
		t.Errorf("%+v, %v", sum, err)
	}
}

func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(*Settings){
		"steps is 0":        func(s *Settings) { s.Steps = 0 },
		"token_budget is 0": func(s *Settings) { s.TokenBudget = 0 },
		"estimator":         func(s *Settings) { s.Advantage = "none" },
		"objective":         func(s *Settings) { s.Objective = "none" },
		"decay is 2":        func(s *Settings) { s.AdvantageSettings = &rl.AdvantageSettings{Baseline: rl.BaselineRole, Decay: 2} },
		"reference policy":  func(s *Settings) { s.Loss.KLCoef = 0.1 },
		"beta1":             func(s *Settings) { s.Optimizer.Beta1 = 1 },
		"schedule":          func(s *Settings) { s.Schedule.Kind = "steep" },
	} {
		s := testSettings(1)
		change(&s)
		if _, _, _, err := play(t, Options{Settings: s}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, trajectoriesName), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := play(t, Options{Settings: testSettings(1), Dir: dir}, nil); err == nil {
		t.Error("a folder with trajectories of an unknown run was accepted")
	}
}

func TestGuard(t *testing.T) {
	gibberish := func(_ *table, g *puzzle) {
		g.played = func(string) error { return nil }
	}
	s := testSettings(10)
	s.Guard = Guard{MaxEntropy: 0.5, Patience: 2}
	_, lines, sum, err := play(t, Options{Settings: s}, gibberish)
	if !errors.Is(err, ErrDegenerate) || !strings.Contains(err.Error(), "entropy") || sum.Steps != 2 || len(lines) != 2 {
		t.Errorf("after %d steps: %v", sum.Steps, err)
	}

	loop := &rollout.Trajectory{Turns: []rollout.Turn{{Text: "ab\n\x00\xff\u0007"}}}
	for i := range 20 {
		loop.Append([]int32{int32(i % 2)}, []float32{-1}, []int64{0})
	}
	h := measureHealth([]*rollout.Trajectory{loop})
	// Twenty tokens have 13 8-grams, two of them different; three of six characters are odd.
	if math.Abs(h.Repetition-11.0/13) > 1e-12 || math.Abs(h.NonPrintable-0.5) > 1e-12 {
		t.Errorf("health %+v", h)
	}
	m := &Metrics{PlayMetrics: &PlayMetrics{Health: h}}
	if c := (Guard{MaxRepetition: 0.5, MaxNonPrintable: 0.4}).complaint(m); !strings.Contains(c, "85% of 8-grams") || !strings.Contains(c, "50% of characters") {
		t.Errorf("complaint %q", c)
	}
	if c := (Guard{}).complaint(m); c != "" {
		t.Errorf("complaint %q of a guard that is off", c)
	}
}

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

func TestSchedule(t *testing.T) {
	for _, c := range []struct {
		s    Schedule
		want []float64 // after 0, 1, 2, … updates
	}{
		{Schedule{Kind: ConstantLR, Warmup: 4}, []float64{0.25, 0.5, 0.75, 1, 1, 1}},
		{Schedule{Kind: LinearLR, Warmup: 2, Total: 6, Floor: 0.2}, []float64{0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2}},
		{Schedule{Kind: CosineLR, Total: 4}, []float64{1, (1 + math.Sqrt2/2) / 2, 0.5, (1 - math.Sqrt2/2) / 2, 0, 0}},
	} {
		for n, want := range c.want {
			if got := c.s.Factor(n); math.Abs(got-want) > 1e-12 {
				t.Errorf("%+v after %d updates: %g, want %g", c.s, n, got, want)
			}
		}
	}
}

// several stands for a learner of so many replicas.
type several struct {
	table
	replicas int
}

func (s *several) Replicas() int { return s.replicas }

// TestPackForReplicas: an update has as much work for every replica, within the budget,
// in as few micro-batches as that takes.
func TestPackForReplicas(t *testing.T) {
	var seqs []rl.Sequence
	for i := range 12 {
		seqs = append(seqs, rl.Sequence{ID: string(rune('a' + i)), Tokens: make([]int32, 10), Trained: make([]bool, 10)})
	}
	for _, tc := range []struct {
		replicas, budget int
		want             []int
	}{
		{1, 1000, []int{120}}, {2, 1000, []int{60, 60}}, {4, 1000, []int{30, 30, 30, 30}},
		{4, 20, []int{20, 20, 20, 20, 10, 10, 10, 10}}, {50, 1000, slices.Repeat([]int{10}, 12)},
	} {
		u := &updater{learner: &several{replicas: tc.replicas}, updateSettings: updateSettings{budget: tc.budget}}
		packed, err := u.pack(seqs)
		var got []int
		for _, p := range packed {
			got = append(got, len(p.Tokens))
		}
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%d replicas, budget %d: micro-batches of %v, want %v (%v)", tc.replicas, tc.budget, got, tc.want, err)
		}
	}
}

// everything hides that an objective can do without some sequences.
type everything struct{ rl.Objective }

// TestIdleSequences: sequences without an advantage are not computed, and the update is
// that with them, bit for bit: what the loss is divided by counts them.
func TestIdleSequences(t *testing.T) {
	var seqs []rl.Sequence
	for i, advantage := range []float64{1, 0, -0.5, 0, 0, 2} {
		s := rl.Sequence{ID: string(rune('a' + i)), Group: string(rune('p' + i%2)), Advantage: advantage}
		for k := range 4 + i {
			s.Tokens, s.Trained, s.Logprobs = append(s.Tokens, int32((i+k*k)%vocabulary)), append(s.Trained, k > 0), append(s.Logprobs, -1.8)
		}
		seqs = append(seqs, s)
	}
	train := func(hide bool, seqs []rl.Sequence) (*table, UpdateMetrics) {
		loss, err := rl.Defaults("dapo")
		if err != nil {
			t.Fatal(err)
		}
		l := &table{}
		u, err := newUpdater(l, "dapo", loss, updateSettings{1, DefaultAdamW(), Schedule{Kind: ConstantLR}, 3}) // each alone
		if err != nil {
			t.Fatal(err)
		}
		if hide {
			u.objective = everything{u.objective}
		}
		m, err := u.run(t.Context(), &state{}, [][]rl.Sequence{seqs, seqs})
		if err != nil {
			t.Fatal(err)
		}
		return l, m
	}
	want, all := train(true, seqs)
	got, busy := train(false, seqs)
	if got.W != want.W || got.M != want.M || got.V != want.V || got.N != 2 || got.W == (table{}).W {
		t.Errorf("weights %v, with every sequence computed %v", got.W, want.W)
	}
	if busy.MicroBatches != 6 || all.MicroBatches != 12 || math.Abs(*busy.Loss-*all.Loss) > 1e-15 || *busy.GradNorm != *all.GradNorm {
		t.Errorf("%d micro-batches, loss %v and norm %v; with every sequence %d, %v and %v",
			busy.MicroBatches, *busy.Loss, *busy.GradNorm, all.MicroBatches, *all.Loss, *all.GradNorm)
	}
	_, alone := train(false, []rl.Sequence{seqs[0], seqs[2], seqs[5]})
	// Metrics are of what is computed: of the first update, of the policy that all begin with.
	if *alone.LogprobGap != *busy.LogprobGap {
		t.Errorf("the largest gap is %v, of the others alone %v", *busy.LogprobGap, *alone.LogprobGap)
	}
	if _, none := train(false, []rl.Sequence{seqs[1], seqs[3]}); none.MicroBatches != 0 || none.Updates != 2 || *none.GradNorm != 0 {
		t.Errorf("without any advantage: %+v", none)
	}
}
