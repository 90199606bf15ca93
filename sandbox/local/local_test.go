//go:build linux

package local

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ssr-go/ssr/sandbox"
)

func newBackend(t testing.TB) *Backend { return newBackendWith(t, Options{}) }

func newBackendWith(t testing.TB, opts Options) *Backend {
	t.Helper()
	// Not t.TempDir: its parent is closed to the sandboxes' uids.
	state, err := os.MkdirTemp(stateParent(), "ssr-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(state, 0o711); err != nil {
		t.Fatal(err)
	}
	opts.StateDir = filepath.Join(state, "sandboxes")
	b, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(state)
	})
	return b
}

func start(t testing.TB, files map[string]string) sandbox.Sandbox {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x, err := newBackend(t).Start(t.Context(), sandbox.Spec{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func TestShellKeepsItsState(t *testing.T) {
	x := start(t, map[string]string{"a.txt": "hello\n"})
	sh := sandbox.NewShell(x)
	for _, step := range []struct {
		command, want string
		exit          int
	}{
		{"mkdir -p 'sub dir/x'; cd 'sub dir/x'; export GREETING=$'two\\nlines'; local_only=1", "", 0},
		{`pwd; echo "$GREETING" "$local_only"`, "/workspace/sub dir/x\ntwo\nlines \n", 0},
		{"echo out; echo err >&2; exit 7", "out\nerr\n", 7},
		{"set -eu; false; echo unreached", "", 1},
		{"echo ${unset_variable}ok", "ok\n", 0},
		{"cd ..; exit 3", "", 3},
		{"pwd", "/workspace/sub dir\n", 0},
		{"echo 'unterminated", "", 2},
		{"cd /tmp; kill -9 $$", "", -1},
		{"pwd", "/workspace/sub dir\n", 0},
		{"trap 'echo bye' EXIT; cd /workspace", "bye\n", 0},
		{"pwd; cat a.txt; cat", "/workspace\nhello\n", 0},
		{"exec echo replaced", "replaced\n", 0},
		{"mkdir gone; cd gone; rmdir ../gone", "", 0},
		{"pwd", "shell: the folder is gone, back in /workspace\n/workspace\n", 0},
		{"echo 'declare -x PATH=/nowhere' > /tmp/.shell.forged; echo '# saved'; PATH=/nowhere", "# saved\n", 0},
		{"nosuchcommand", "bash: line 1: nosuchcommand: command not found\n", 127},
	} {
		r, err := sh.Run(t.Context(), step.command)
		if err != nil {
			t.Fatal(err)
		}
		if step.want == "" && step.exit == 2 {
			r.Stdout = nil // bash's own words about syntax
		}
		if r.Exit != step.exit || step.exit != 1 && string(r.Stdout) != step.want {
			t.Errorf("%q: exit %d, output %q, want %d, %q", step.command, r.Exit, r.Stdout, step.exit, step.want)
		}
	}
}

func TestOutOfMemoryIsSeen(t *testing.T) {
	b := newBackend(t)
	if b.groups.parent["memory"] == "" {
		t.Skip("no writable memory control group")
	}
	x, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir(), Limits: sandbox.Limits{Memory: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"python3", "-c", "x = b'x' * (200 << 20)"}})
	if err != nil || !r.OutOfMemory || r.Signal != 9 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() || r.OutOfMemory {
		t.Errorf("afterwards: %+v %v", r, err)
	}
}

func TestWhatMustNotBeConfigured(t *testing.T) {
	for name, o := range map[string]Options{
		"root uid":        {FirstUID: 0, UIDs: 10},
		"unknown allowed": {Allow: []string{"everything"}},
		"whole host":      {ReadOnly: []string{"/"}},
		"relative path":   {ReadOnly: []string{"etc"}},
		"hidden path":     {ReadOnly: []string{"/var/tmp/x"}},
		"no bubblewrap":   {Bwrap: "/nonexistent/bwrap"},
	} {
		o.StateDir = t.TempDir()
		if b, err := New(o); err == nil {
			b.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// A cell that the kernel does not confine is refused: here one without a filter.
func TestFailsClosed(t *testing.T) {
	b := newBackend(t)
	b.filter = nil // an empty program, which bubblewrap or the kernel refuses
	x, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); !errors.Is(err, sandbox.ErrInfrastructure) {
		t.Errorf("%+v %v", r, err)
	}
	if err := b.verify(os.Getpid(), true); err == nil {
		t.Error("the trainer itself passes for a sandbox")
	}
}

func TestReadOnlyPathsAreShown(t *testing.T) {
	const file, folder = "/etc/profile", "/etc/skel" // every Debian has them, no sandbox shows them
	want, err := os.ReadFile(file)
	if err != nil {
		t.Skip(err)
	}
	b := newBackendWith(t, Options{ReadOnly: []string{file, folder}})
	x, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", "cat $0; test -f $1/.bashrc || exit 9; echo x > $0", file, folder}})
	if err != nil || !bytes.Equal(r.Stdout, want) || r.Exit != 1 {
		t.Errorf("%+v %v", r, err)
	}
}

// Files in /dev/shm count as memory. A sandbox that fills its memory with them
// has not lost its infrastructure.
func TestFilesThatFillTheMemory(t *testing.T) {
	b := newBackend(t)
	x, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir(), Limits: sandbox.Limits{Memory: 48 << 20, Disk: 400 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for range 2 {
		r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", "for i in 1 2 3; do head -c 100M /dev/zero > f$i; done; sleep 0.1"}})
		t.Logf("%+v", r)
		if err != nil {
			t.Fatal(err)
		}
		x.(*box).dropCell()
	}
	if _, err := x.Harvest(t.Context()); err != nil {
		t.Error(err)
	}
}
