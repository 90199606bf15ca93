package train

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rl"
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
	begun := 0 // steps that are said to be played before anything has finished
	p, lines, sum, err := play(t, Options{Settings: s, Seed: 1, OnEvent: func(e Event) {
		if e.Phase == PhasePlay && e.Groups == 0 && e.Step == begun+1 && e.Steps == 60 {
			begun++
		}
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
	if begun != 60 {
		t.Errorf("%d steps were said to begin", begun)
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
	sameRuns(t, a, b)
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
	sameRuns(t, calm, dir)
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
