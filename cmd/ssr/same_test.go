package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/internal/worldtest"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/sandbox/local"
)

// smallSelfPlay is the demo's game at a tenth of its size. With this seed the
// bundled policy learns something in each of its steps.
const smallSelfPlay = `
seed: 3
game:
  injector_groups: 1
  injectors_per_prompt: 3
  solvers_per_bug: 3
  max_solver_groups: 2
  seeding: true
  script_timeout: 20s
episodes:
  prompts: brief
  in_flight: 6
  limits: {turns: 12, context: 1536, turn_tokens: 320, observation_tokens: 512}
  command_timeout: 20s
train:
  steps: 3
  loss: {length: 256}
  token_budget: 6144
  optimizer: {lr: 1.0e-4, weight_decay: 0, clip: 1}
  schedule: {kind: constant, warmup: 3}
  guard: {patience: 0}
  keep_checkpoints: 4
`

// stage is where the binary plays smallSelfPlay: the bundled repository and
// policy, and folders for runs, temporary files and sandboxes that it shares
// with nobody.
type stage struct {
	dir, tmp, state string
	// learns: the policy can do enough for a step to have something to learn from.
	learns bool
}

func newStage(t *testing.T) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("whole runs in real sandboxes take a minute")
	}
	b, err := local.New(local.Options{})
	if err == nil {
		_, err = b.Probe(t.Context())
		b.Close()
	}
	if err != nil {
		t.Skipf("no sandbox on this machine: %v", err)
	}
	dir, err := os.MkdirTemp("", "ssr-stage-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("SSR_TEST_KEEP") != "" { // to look at with ssr trajectory show
			t.Logf("kept: %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &stage{dir: dir, tmp: filepath.Join(dir, "tmp"), state: filepath.Join(dir, "state")}
	if err := os.Chmod(dir, 0o755); err != nil { // sandboxes have uids of their own
		t.Fatal(err)
	}
	if err := os.Mkdir(s.tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := worldtest.Make(t.Context(), s.path("quill"), "quill"); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(worldtest.Root(), "testdata", "policy")
	s.learns = exists(filepath.Join(policy, "model.safetensors"))
	if !s.learns {
		policy = s.path("model")
		if err := makeModel(policy); err != nil {
			t.Fatal(err)
		}
	}
	config := "repo: " + s.path("quill") + "\nmodel: " + policy + "\nsandbox: {state_dir: " + s.state + "}" + smallSelfPlay
	if err := os.WriteFile(s.path("small.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// command trains in the folder called run, or goes on there.
func (s *stage) command(t *testing.T, run string, args ...string) *exec.Cmd {
	if exists(filepath.Join(s.path(run), configName)) {
		args = append([]string{"train", "--resume", s.path(run)}, args...)
	} else {
		args = append([]string{"train", "--config", s.path("small.yaml"), "--run", s.path(run)}, args...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "ssr", args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp)
	return cmd
}

// play trains to the end, undisturbed.
func (s *stage) play(t *testing.T, run string, args ...string) {
	t.Helper()
	cmd := s.command(t, run, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("run %s: %v\n%s", run, err, out)
	}
	t.Logf("run %s:\n%s", run, out)
}

// decided is all of a run that its seed decides: the lines of its metrics
// without their times, and every file of its checkpoints and bugs as a hash.
func (s *stage) decided(t *testing.T, run string) map[string]string {
	t.Helper()
	all := map[string]string{}
	data, err := os.ReadFile(filepath.Join(s.path(run), "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	trained := false
	for line := range bytes.Lines(data) {
		figures, _, ok := bytes.Cut(line, []byte(`,"seconds":{`))
		var m train.Metrics
		if err := json.Unmarshal(line, &m); err != nil || !ok {
			t.Fatalf("a line without times, %v: %s", err, line)
		}
		all["metrics "+string(rune('0'+m.Step))] = string(figures)
		trained = trained || m.Version > 0 && m.TrainedTokens > 0
	}
	if s.learns && !trained {
		t.Errorf("run %s updated no weights:\n%s", run, data)
	}
	for _, folder := range []string{"checkpoints", bugsDir} {
		root := filepath.Join(s.path(run), folder)
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			sum := sha256.Sum256(content)
			all[strings.TrimPrefix(path, s.path(run)+"/")] = hex.EncodeToString(sum[:])
			if filepath.Base(path) == "state.json" {
				all[strings.TrimPrefix(path, s.path(run)+"/")] = string(content)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := all["checkpoints/step-000003/weights/model.safetensors"]; !ok {
		t.Fatalf("run %s has no last checkpoint", run)
	}
	return all
}

// TestSameSeedSameRun plays a run three times, once with another number of
// episodes side by side, which changes what ends first and what shares a batch.
func TestSameSeedSameRun(t *testing.T) {
	s := newStage(t)
	s.play(t, "first")
	want := s.decided(t, "first")
	for run, args := range map[string][]string{"again": nil, "two in flight": {"--set", "episodes.in_flight=2"}} {
		s.play(t, run, args...)
		if diff := cmp.Diff(want, s.decided(t, run)); diff != "" {
			t.Errorf("run %q differs from the first: %s", run, diff)
		}
	}
	s.play(t, "other", "--seed", "5", "--steps", "1")
	if data, err := os.ReadFile(filepath.Join(s.path("other"), "metrics.jsonl")); err != nil || strings.HasPrefix(string(data), want["metrics 1"]) {
		t.Errorf("another seed gave the same step: %v\n%s", err, data)
	}
}
