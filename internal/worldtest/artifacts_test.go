package worldtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/rollout/selfplay"
	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/local"
)

// TestArtifacts puts the hand-made artifacts through validation and verdicts in
// real sandboxes: valid ones are valid, each other one is refused by the check
// that its folder is named after, the solving patch solves and the wrong one
// does not.
func TestArtifacts(t *testing.T) {
	if testing.Short() {
		t.Skip("about a hundred sandboxes, ten seconds")
	}
	backend, err := local.New(local.Options{})
	if err != nil {
		t.Skipf("no sandboxes on this machine: %v", err)
	}
	t.Cleanup(func() {
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	for world, programs := range map[string][]string{"quill": {"python3"}, "pocket": {"python3", "make", "gcc"}} {
		t.Run(world, func(t *testing.T) {
			needs(t, programs...)
			testArtifacts(t, backend, world)
		})
	}
}

func testArtifacts(t *testing.T, backend sandbox.Backend, world string) {
	repo, err := selfplay.OpenRepo(t.Context(), build(t, world))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	v := selfplay.NewValidator(backend, repo, selfplay.Options{Timeout: 60 * time.Second, ReuseOriginal: true})
	folders, err := os.ReadDir(filepath.Join(Dir(world), "artifacts"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("artifacts of %s: %v, %v", world, folders, err)
	}
	for _, folder := range folders {
		t.Run(folder.Name(), func(t *testing.T) {
			dir := Artifact(world, folder.Name())
			a, err := selfplay.LoadArtifact(dir)
			if err != nil {
				t.Fatal(err)
			}
			report, err := v.Validate(t.Context(), a, selfplay.DefaultRequirements)
			if err != nil {
				t.Fatal(err)
			}
			if refused, ok := strings.CutPrefix(folder.Name(), "refused-"); ok {
				if got := report.Refusal(); report.Valid || string(got) != refused {
					t.Errorf("valid %v, refused by %q, want a refusal by %q: %+v", report.Valid, got, refused, report.Checks)
				}
				return
			}
			if !report.Valid {
				t.Fatalf("refused by %q: %+v", report.Refusal(), report.Checks)
			}
			for name, solves := range map[string]bool{"solve.diff": true, "wrong.diff": false} {
				patch, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				verdict, err := v.Verdict(t.Context(), a, report, patch, nil)
				if err != nil {
					t.Fatal(err)
				}
				if verdict.Solved != solves {
					t.Errorf("%s: solved %v, want %v: %s", name, verdict.Solved, solves, verdict.Reason)
				}
			}
		})
	}
}
