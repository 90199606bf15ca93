// Package sandboxtest is the suite that every sandbox backend passes: what a
// command may do, what it must not be able to do, and what is left afterwards.
// The sandboxes must have bash, python3 and git.
package sandboxtest

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Config describes the backend under test.
type Config struct {
	// New makes a backend for one test; the suite closes it.
	New func(t testing.TB) sandbox.Backend
	// Unenforced lists protections (keys of Capabilities.Enforced) that the
	// backend cannot give here; their tests are skipped, by name.
	Unenforced []string
	// Only names the groups to run (Exec, Limits, … and the families of hostile
	// programs); nil is all.
	Only []string
}

func (c Config) wants(group string) bool { return c.Only == nil || slices.Contains(c.Only, group) }

// Run runs the suite.
func Run(t *testing.T, c Config) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"Exec", execTests}, {"Limits", limitTests}, {"Escape", escapeTests},
		{"Files", fileTests}, {"Trees", slices.Concat(treeTests, packTests)}, {"Harvest", harvestTests}, {"Life", lifeTests},
	} {
		if !c.wants(group.name) {
			continue
		}
		t.Run(group.name, func(t *testing.T) {
			for _, x := range group.tests {
				t.Run(x.name, func(t *testing.T) {
					for _, p := range c.Unenforced {
						if p == x.needs {
							t.Skipf("%s is not enforced here", p)
						}
					}
					x.run(&env{T: t, config: c})
				})
			}
		})
	}
	t.Run("Hostile", func(t *testing.T) { runHostile(t, c) })
}

type test struct {
	name  string
	needs string // the protection under test, "" when every backend must pass
	run   func(*env)
}

// env is one test with its backend.
type env struct {
	*testing.T
	config  Config
	backend sandbox.Backend
	source  string // the workspace that a hostile program's sandbox began with
}

func (t *env) open() sandbox.Backend {
	t.Helper()
	if t.backend == nil {
		t.backend = t.config.New(t.T)
		b := t.backend
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Errorf("close backend: %v", err)
			}
		})
	}
	return t.backend
}

// start makes a sandbox on the given files; see tree.
func (t *env) start(files map[string]string, limits sandbox.Limits) sandbox.Sandbox {
	t.Helper()
	return t.startDir(t.tree(files), limits)
}

func (t *env) startDir(dir string, limits sandbox.Limits) sandbox.Sandbox {
	t.Helper()
	s, err := t.open().Start(t.Context(), sandbox.Spec{Dir: dir, Limits: limits, Owner: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// tree writes files on the host: "-> x" makes a link, "#!" an executable.
func (t *env) tree(files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, to)
		} else {
			err = os.WriteFile(to, []byte(text), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (t *env) exec(s sandbox.Sandbox, cmd sandbox.Cmd) sandbox.Result {
	t.Helper()
	r, err := s.Exec(t.Context(), cmd)
	if err != nil {
		t.Fatalf("exec %q: %v", cmd.Args, err)
	}
	return r
}

// bash runs a script and returns what became of it.
func (t *env) bash(s sandbox.Sandbox, script string) sandbox.Result {
	t.Helper()
	return t.exec(s, sandbox.Cmd{Args: []string{"bash", "-c", script}})
}

// must runs a script that has to succeed and returns its output.
func (t *env) must(s sandbox.Sandbox, script string) string {
	t.Helper()
	r := t.bash(s, script)
	if !r.OK() {
		t.Fatalf("%s\nexit %d, signal %d, timed out %v\n%s%s", script, r.Exit, r.Signal, r.TimedOut, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// python runs a Python program.
func (t *env) python(s sandbox.Sandbox, program string, args ...string) sandbox.Result {
	t.Helper()
	return t.exec(s, sandbox.Cmd{Args: append([]string{"python3", "-", "--"}, args...), Stdin: strings.NewReader(program)})
}

var markers atomic.Int64

// marker is a number of seconds that no other process sleeps, to find the
// processes of one test among those of the host.
func marker() string {
	return fmt.Sprintf("%d.%d", 100_000+os.Getpid(), markers.Add(1))
}

// gone fails the test when a process with the marker among its arguments is
// still there. The kernel needs a moment to drop a dead one from /proc.
func (t *env) gone(mark string) {
	t.Helper()
	left := processes(mark)
	t.within(100*time.Millisecond, func() {
		for until := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(until); left = processes(mark) {
			time.Sleep(5 * time.Millisecond)
		}
	})
	if len(left) > 0 {
		t.Errorf("processes %v are left behind", left)
	}
}

func processes(mark string) []int {
	var found []int
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if strings.Contains(string(args), mark) {
			found = append(found, pid)
		}
	}
	return found
}

// within fails the test when f takes longer. The limit is that of an ordinary machine
// which does nothing else: where a process waits for processors, or these are slow, f
// may take as many times as long as a loop does.
func (t *env) within(limit time.Duration, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	took := time.Since(begin)
	if took <= limit {
		return
	}
	if k := t.slowness(); took > time.Duration(k*float64(limit)) {
		t.Errorf("took %v, want at most %v on a machine that is %.1f times as slow as without other work", took, limit, k)
	}
}

// loopTime is more than twice the processor time that the loop of slowness takes of an
// ordinary processor, 0.2 s; an emulated one takes seconds, and waits for nothing meanwhile.
const loopTime = 500 * time.Millisecond

// slowness is how long a loop takes for each second of a processor, or against loopTime
// where a processor takes longer than that; at least 1.
func (t *env) slowness() float64 {
	t.Helper()
	loop := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	begin := time.Now()
	if err := loop.Run(); err != nil {
		t.Fatal(err)
	}
	computed := min(loop.ProcessState.UserTime()+loop.ProcessState.SystemTime(), loopTime)
	return max(1, time.Since(begin).Seconds()/computed.Seconds())
}

func (t *env) harvest(s sandbox.Sandbox) map[string]sandbox.Change {
	t.Helper()
	list, err := s.Harvest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]sandbox.Change{}
	for i, c := range list {
		if i > 0 && list[i-1].Path >= c.Path {
			t.Errorf("changes are not sorted: %q before %q", list[i-1].Path, c.Path)
		}
		m[c.Path] = c
	}
	return m
}

func cancelled(parent context.Context, after time.Duration) context.Context {
	ctx, cancel := context.WithCancel(parent)
	time.AfterFunc(after, cancel)
	return ctx
}
