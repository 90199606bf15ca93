package train

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

// TestFailuresSurface: whatever breaks is the error of Train, and the run goes
// on after it to the same end as one where nothing broke.
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
			sameRuns(t, calm, dir)
		})
	}
}

// A run's folder may have any name, also one that is a pattern.
func TestFolderNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run [1]*")
	if _, _, _, err := play(t, Options{Settings: testSettings(2), Dir: dir}, nil); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, checkpointsName, asidePrefix+"step-000003")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := play(t, Options{Settings: testSettings(3), Dir: dir, Resume: true}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unfinished checkpoint is left: %v", err)
	}
	steps := map[int]bool{}
	err := Trajectories(dir, func(step int, _ Finished) error { steps[step] = true; return nil })
	if err != nil || len(steps) != 3 {
		t.Errorf("trajectories of steps %v, %v", steps, err)
	}
}

func TestCancel(t *testing.T) {
	s := testSettings(1000)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	reason := errors.New("enough")
	dir := t.TempDir()
	p := &table{}
	_, err := Train(ctx, Options{Settings: s, Dir: dir, OnEvent: func(e Event) {
		if e.Step == 3 {
			cancel(reason)
		}
	}}, p, &puzzle{policy: p, pause: 2 * time.Millisecond})
	if !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
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
		"record_batches":    func(s *Settings) { s.RecordBatches = -1 },
		"guard":             func(s *Settings) { s.Guard.MaxRepetition = -0.1 },
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
