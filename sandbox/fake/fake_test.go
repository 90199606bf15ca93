package fake

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/sandboxtest"
)

func TestScriptChangesAreHarvested(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"keep": "k", "gone": "g", "edit": "old"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b := New(func(_ context.Context, s *Sandbox, cmd sandbox.Cmd) (sandbox.Result, error) {
		s.Put("edit", File{Mode: 0o644, Data: []byte("new")})
		s.Put(".git/config", File{Mode: 0o644, Data: []byte("x")})
		s.Remove("gone")
		return sandbox.Result{Stdout: []byte(cmd.Args[0])}, nil
	})
	s, err := b.Start(t.Context(), sandbox.Spec{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"go"}}); err != nil || string(r.Stdout) != "go" {
		t.Fatal(r, err)
	}
	got, err := s.Harvest(t.Context())
	if err != nil || len(got) != 2 || got[0].Path != "edit" || string(got[0].Data) != "new" || !got[1].Deleted || got[1].Path != "gone" {
		t.Fatalf("%+v %v", got, err)
	}
	if b.Live() != 1 || s.Close() != nil || s.Close() != nil || b.Live() != 0 {
		t.Error("Close does not end the sandbox once")
	}
	if _, err := s.Exec(t.Context(), sandbox.Cmd{}); !errors.Is(err, sandbox.ErrClosed) {
		t.Error("Exec after Close:", err)
	}
}

// What needs no command is as in every backend.
func TestTrees(t *testing.T) {
	sandboxtest.RunTrees(t, sandboxtest.Config{New: func(testing.TB) sandbox.Backend { return New(nil) }})
}

func TestFaultsStrikeTheCallTheyName(t *testing.T) {
	b := New(nil)
	b.Inject(Fault{Op: Exec, Nth: 2, Err: ErrLost})
	b.Inject(Fault{Op: Exec, Nth: 3, Hang: true})
	b.Inject(Fault{Op: Exec, Nth: 4, Result: &sandbox.Result{Exit: -1, DiskFull: true}})
	b.Inject(Fault{Op: Harvest, Owner: "other", Err: ErrLost})
	s, err := b.Start(t.Context(), sandbox.Spec{Owner: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	exec := func() (sandbox.Result, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return s.Exec(ctx, sandbox.Cmd{})
	}
	if r, err := exec(); err != nil || !r.OK() {
		t.Error("first:", r, err)
	}
	if _, err := exec(); !errors.Is(err, sandbox.ErrInfrastructure) {
		t.Error("second:", err)
	}
	if _, err := exec(); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("third:", err)
	}
	if r, err := exec(); err != nil || !r.DiskFull {
		t.Error("fourth:", r, err)
	}
	if _, err := s.Harvest(t.Context()); err != nil {
		t.Error("another owner's fault struck:", err)
	}
	for _, name := range []string{"../x", "/etc/passwd", ".", "a/../../x"} {
		if err := s.WriteFile(t.Context(), name, nil, 0o644); err == nil {
			t.Errorf("WriteFile(%q) accepted", name)
		}
	}
}
