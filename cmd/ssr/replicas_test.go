package main

import (
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rl/train"
)

// TestReplicas plays a run with two replicas: killed in every phase and resumed it is
// the calm run, byte for byte. Taken up with one replica after its second step it plays
// the same episodes, and its last update is the same but for rounding.
func TestReplicas(t *testing.T) {
	s := newStage(t)
	two := []string{"--set", "policy.replicas=2", "--set", "policy.workers=1"}
	began := time.Now()
	s.play(t, "two", two...)
	calm := time.Since(began)
	want := s.decided(t, "two")
	s.survive(t, "killed", calm, map[int][]phase{
		-1: {startUp}, 0: {playing, updating, saving}, 1: {playing, updating, saving}, 2: {updating},
	}, 6, two...)
	if diff := cmp.Diff(want, s.decided(t, "killed")); diff != "" {
		t.Errorf("the run differs from a calm one: %s", diff)
	}
	if diff := cmp.Diff(s.episodes(t, "two"), s.episodes(t, "killed")); diff != "" {
		t.Errorf("episodes differ from those of a calm run: %s", diff)
	}

	if err := os.CopyFS(s.path("mixed"), os.DirFS(s.path("two"))); err != nil {
		t.Fatal(err)
	}
	for _, last := range []string{"checkpoints/step-000003", "trajectories/step-000003.jsonl.zst"} {
		if err := os.RemoveAll(filepath.Join(s.path("mixed"), last)); err != nil {
			t.Fatal(err)
		}
	}
	s.play(t, "mixed", "--set", "policy.replicas=1")
	mixed := s.decided(t, "mixed")
	for name := range maps.Keys(want) {
		if !strings.Contains(name, "step-000003/weights") && !strings.HasPrefix(name, "metrics 3") && mixed[name] != want[name] {
			t.Errorf("%s differs from the run with two replicas throughout", name)
		}
	}
	if diff := cmp.Diff(s.episodes(t, "two"), s.episodes(t, "mixed")); diff != "" {
		t.Errorf("episodes differ from the run with two replicas throughout: %s", diff)
	}
	a, b := s.lastStep(t, "two"), s.lastStep(t, "mixed")
	if s.learns && (a.Loss == nil || a.MicroBatches < 2 || b.MicroBatches != 1) {
		t.Errorf("%d and %d micro-batches in step 3", a.MicroBatches, b.MicroBatches)
	}
	for name, pair := range map[string][2]*float64{"loss": {a.Loss, b.Loss}, "norm": {a.GradNorm, b.GradNorm}} {
		if x, y := pair[0], pair[1]; (x == nil) != (y == nil) || x != nil && math.Abs(*x-*y) > 1e-4*math.Abs(*x) {
			t.Errorf("%s of step 3: %v of two replicas, %v of one", name, x, y)
		}
	}
}

func (s *stage) lastStep(t *testing.T, run string) (m train.Metrics) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.path(run), "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &m); err != nil {
		t.Fatal(err)
	}
	return m
}
