package ui

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

func p(v float64) *float64 { return &v }

// step is a step's metrics with n solver episodes, of which a share was solved.
func step(n int, solved float64) train.Metrics {
	return train.Metrics{
		Step: n,
		UpdateMetrics: train.UpdateMetrics{Updates: 1, Loss: p(0.25), GradNorm: p(0.5), Entropy: p(1), LogprobGap: p(0),
			TrainedTokens: 1000, Objective: map[string]float64{"clip_fraction": 0.01}},
		PlayMetrics: &train.PlayMetrics{
			SolveRate: &solved, ValidRate: p(0.5), SampledTokens: 4000, Refusals: map[string]int{"bug": 2, "scope": n},
			Roles: map[rollout.Role]*train.RoleMetrics{
				rollout.Solver:   {Episodes: 8, RewardMean: 2*solved - 1, LengthMean: 300, TurnsMean: 4},
				rollout.Injector: {Episodes: 2, RewardMean: -0.1, LengthMean: 500, TurnsMean: 6},
			},
			Failures: map[string]int{"sandbox": 1}, Counts: map[string]float64{"sandboxes": 1500},
		},
		Seconds: train.Seconds{Play: 8, Update: 2},
	}
}

// clock is moved by hand.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func TestPlainLines(t *testing.T) {
	var out bytes.Buffer
	c := &clock{time.Unix(0, 0)}
	v := newProgress(&out, func() int { return 3 }, c.now)
	v.OnEvent(train.Event{Phase: train.PhasePlay, Step: 1, Steps: 3})
	c.t = c.t.Add(noticeEvery / 2)
	v.refresh()
	c.t = c.t.Add(noticeEvery / 2)
	v.OnEvent(train.Event{Phase: train.PhasePlay, Step: 1, Steps: 3, Groups: 2, Episodes: 10, Tokens: 60000})
	v.refresh()
	v.refresh()
	m := step(1, 0.25)
	v.OnEvent(train.Event{Phase: train.PhaseStep, Step: 1, Steps: 3, Metrics: &m})
	v.OnEvent(train.Event{Phase: train.PhaseDone, Step: 1, Steps: 3})
	c.t = c.t.Add(noticeEvery)
	v.refresh() // what follows the last step is not a part of it
	want := "step 1/3 playing, 30s: 10 episodes in 2 groups finished, 3 in flight, 2,000 tokens/s\n" +
		"step 1/3  solved 25%  valid 50%  reward injector -0.10, solver -0.50  loss 0.25 grad 0.5 entropy 1 |Δlogprob| 0  500 tokens/s  10s  left 20s\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	if strings.ContainsRune(out.String(), '\x1b') {
		t.Error("an escape sequence in a pipe")
	}
}

// A measurement ahead of a step or after the last is neither playing nor done.
func TestMeasuringIsSaid(t *testing.T) {
	var out bytes.Buffer
	c := &clock{time.Unix(0, 0)}
	v := newProgress(&out, func() int { return 2 }, c.now)
	wait := func() {
		c.t = c.t.Add(noticeEvery)
		v.refresh()
	}
	v.OnEvent(train.Event{Phase: train.PhasePlay, Step: 1, Steps: 1})
	v.Measuring(true)
	wait()
	if got := v.state.view(c.now(), 2)[1]; got != "  now         measuring, 30s, 2 in flight" {
		t.Errorf("on a terminal: %q", got)
	}
	v.Measuring(false)
	wait()
	v.OnEvent(train.Event{Phase: train.PhaseDone, Step: 1, Steps: 1})
	v.Measuring(true)
	wait()
	v.Measuring(false)
	wait()
	want := "step 1/1 measuring, 30s, 2 in flight\n" +
		"step 1/1 playing, 30s: 0 episodes in 0 groups finished, 2 in flight\n" +
		"step 1/1 measuring, 30s, 2 in flight\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

func TestView(t *testing.T) {
	c := &clock{time.Unix(0, 0)}
	v := newProgress(&bytes.Buffer{}, nil, c.now)
	if got := v.state.view(c.now(), 0); len(got) != 1 || !strings.HasPrefix(got[0], "starting") {
		t.Errorf("before the first event: %q", got)
	}
	v.Resume([]train.Metrics{step(1, 0), step(2, 1)})
	v.OnEvent(train.Event{Phase: train.PhaseUpdate, Step: 3, Steps: 4})
	c.t = c.t.Add(90 * time.Second)
	got := strings.Join(v.state.view(c.now(), 0), "\n")
	want := `step 3/4 ━━━━━━━━━━━━━━────────────── 50%  elapsed 1m30s  left 20s
  now         learning, 1m30s
  solve rate   50%  ▁█
  valid bugs   50%  ▅▅
  reward      injector -0.10, solver +1.00
  update      loss 0.25 grad 0.5 entropy 1 |Δlogprob| 0`
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestProgressEnds(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := NewProgress(f, nil)
	v.Println("hello")
	v.Close()
	if data, _ := os.ReadFile(f.Name()); string(data) != "hello\n" {
		t.Errorf("printed %q", data)
	}
}

func TestSummary(t *testing.T) {
	var all []train.Metrics
	for n := 1; n <= 8; n++ {
		all = append(all, step(n, float64(n)/8))
	}
	var b bytes.Buffer
	Summary(&b, all)
	got := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"steps 1–2 steps 7–8 all",
		"solve rate 19% 94% 56%",
		"solver reward -0.625 +0.875 +0.125",
		"seconds, play 8.0 8.0 8.0",
		"8 steps in 1m20s, 8,000 tokens trained on, 80 episodes, 32,000 tokens sampled, 12,000 sandboxes",
		"bugs refused by: scope 36, bug 16",
		"episodes lost to: sandbox 8",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	Summary(&b, nil)
	if b.String() != "no step was completed\n" {
		t.Errorf("of nothing: %q", b.String())
	}
}

func TestReadMetricsLeavesOutATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	if err := os.WriteFile(path, []byte("{\"step\":1,\"solve_rate\":0.5}\n{\"step\":2}\n{\"ste"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadMetrics(path)
	if err != nil || len(got) != 2 || got[0].PlayMetrics == nil || *got[0].SolveRate != 0.5 || got[1].Step != 2 {
		t.Errorf("%+v %v", got, err)
	}
	if err := os.WriteFile(path, []byte("{}\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadMetrics(path); err == nil || !strings.Contains(err.Error(), "metrics.jsonl:2") {
		t.Errorf("a broken line: %v", err)
	}
}

func TestCurvesLeaveOutEmptyPanels(t *testing.T) {
	var b bytes.Buffer
	if err := Curves(&b, "run", []train.Metrics{step(1, 0.2), step(2, 0.4)}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "Rates") || !strings.Contains(b.String(), "Clipped tokens") {
		t.Error("panels are missing")
	}
	b.Reset()
	if err := Curves(&b, "sft", []train.Metrics{{Step: 1, UpdateMetrics: train.UpdateMetrics{Updates: 1, Loss: p(1)}}}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "Rates") || !strings.Contains(b.String(), "Loss") {
		t.Error("supervised training shows the wrong panels")
	}
}

func TestTranscript(t *testing.T) {
	tr := &rollout.Trajectory{
		ID: "s1/g/0", Group: "s1/g", Role: rollout.Solver, Step: 1,
		Tokens: make([]int32, 10), Trained: []bool{false, true, true, false, true, false, false, false, false, false},
		Messages: []rollout.Message{{Role: "user", Content: "Fix it."}},
		Turns: []rollout.Turn{
			{Start: 1, End: 3, Text: "<tool: bash>\nls\n</tool>", Tool: "bash", Observation: "a.py\x1b[2J\u202e\n", Seconds: 0.25},
			{Start: 4, End: 5, Text: "?"},
		},
		Status: rollout.Scored, Reward: -1, Outcome: "unsolved", Detail: map[string]any{"solved": false},
	}
	var b bytes.Buffer
	if err := Transcript(&b, tr, false); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{"── s1/g/0  solver  step 1", "user:\n  Fix it.", "turn 1  bash  2 tokens  0.2 s", "  <tool: bash>\n  ls\n  </tool>",
		"a.py␛[2J\ufffd\n", "turn 2  no valid call", "reward   -1.000", "10, 3 of them sampled, in 2 turns", `"solved": false`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.ContainsRune(got, '\x1b') {
		t.Error("the sandbox's output reaches the terminal")
	}
	b.Reset()
	if err := Transcript(&b, tr, true); err != nil || !strings.Contains(b.String(), bold+"<tool: bash>"+reset) {
		t.Errorf("%v, no colour in\n%s", err, b.String())
	}
}

func TestWords(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", 123456: "123,456"} {
		if got := Thousands(n); got != want {
			t.Errorf("%d is written %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{1234 * time.Millisecond: "1.2s", 61 * time.Second: "1m1s", 61*time.Minute + 40*time.Second: "1h02m"} {
		if got := duration(d); got != want {
			t.Errorf("%v is written %s, want %s", d, got, want)
		}
	}
}
