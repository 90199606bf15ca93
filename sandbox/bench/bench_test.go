//go:build linux

package bench

import (
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/fake"
)

func TestSummarise(t *testing.T) {
	var all []time.Duration
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Millisecond) // 1 to 100 ms, backwards
	}
	if got := *summarise(all); got != (Times{51, 95, 100}) {
		t.Errorf("%+v", got)
	}
	if got := *summarise(all[:1]); got != (Times{1, 1, 1}) {
		t.Errorf("%+v", got)
	}
}

// Every part runs on a backend that takes known times, and leaves nothing; another
// beside it is measured for itself.
func TestRun(t *testing.T) {
	slow := fake.New(func(ctx context.Context, s *fake.Sandbox, cmd sandbox.Cmd) (sandbox.Result, error) {
		if cmd.Args[0] == "bash" {
			io.ReadFull(cmd.Stdin, make([]byte, 1<<20))
			<-ctx.Done()
			return sandbox.Result{}, ctx.Err()
		}
		time.Sleep(40 * time.Millisecond)
		return sandbox.Result{}, nil
	})
	b := fake.New(func(ctx context.Context, s *fake.Sandbox, cmd sandbox.Cmd) (sandbox.Result, error) {
		if cmd.Args[0] == "bash" && len(cmd.Args) == 4 { // the hostile tree
			io.ReadFull(cmd.Stdin, make([]byte, 1<<20))
			<-ctx.Done()
			return sandbox.Result{}, ctx.Err()
		}
		time.Sleep(2 * time.Millisecond)
		return sandbox.Result{}, nil
	})
	r, err := Run(t.Context(), b, Options{Rounds: 20, Span: 50 * time.Millisecond, Files: 60, Changed: 5, Alive: 10, Burst: 20, Hostile: 4, Workers: 2, Beside: slow})
	if err != nil {
		t.Fatal(err)
	}
	r.Missing = slices.DeleteFunc(r.Missing, func(s string) bool { return strings.HasPrefix(s, "plain bwrap") })
	if len(r.Missing) > 0 {
		t.Errorf("missing: %q", r.Missing)
	}
	for name, x := range map[string]*Times{"cold": r.Cold, "exec": r.Exec} {
		if x == nil || x.Rounds != 20 || x.Median < 2 || x.P95 < x.Median {
			t.Errorf("%s: %+v", name, x)
		}
	}
	if _, err := exec.LookPath("bwrap"); err == nil && os.Geteuid() == 0 {
		if r.PlainCold == nil || r.PlainDeath == nil || r.PlainBurstSeconds <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if r.PlainDiff == nil || r.Workspace == nil || r.Fork == nil || r.Harvest == nil || r.Death == nil || r.PlainCopy == nil || r.PerSecond <= 0 || r.PerSecond > 1000 || r.ExecPerSecond > 1000 || r.BurstSeconds < 0.002 {
		t.Errorf("%+v", r)
	}
	if o := r.Beside; o == nil || o.Cold == nil || o.Cold.Median < 40 || o.PerSecond <= 0 || o.PerSecond > 50 || o.BurstSeconds < 0.04 || o.Death == nil {
		t.Errorf("beside: %+v", o)
	}
	if b.Live() != 0 || slow.Live() != 0 {
		t.Errorf("%d and %d sandboxes are left", b.Live(), slow.Live())
	}
}

func TestWhatFailsIsNamed(t *testing.T) {
	b := fake.New(nil)
	b.Inject(fake.Fault{Op: fake.Harvest, Err: fake.ErrLost})
	r, err := Run(t.Context(), b, Options{Rounds: 1, Span: time.Millisecond, Files: 1, Alive: 1, Burst: 1, Hostile: 1, Workers: 1})
	if err != nil || r.Harvest != nil || !slices.ContainsFunc(r.Missing, func(s string) bool { return strings.HasPrefix(s, "harvest: ") && strings.Contains(s, "lost") }) {
		t.Errorf("%+v %v", r, err)
	}
}

// A docker client is measured in place of bwrap, and its container removed.
func TestDockerIsThePlainTool(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"$*\" >>" + dir + "/log\ncase $1 in run) sleep 0.05;; exec) sleep 0.02;; esac\necho c0ffee\n"
	if err := os.WriteFile(dir+"/docker", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	r, err := Run(t.Context(), fake.New(nil), Options{Rounds: 20, Span: time.Millisecond, Files: 1, Alive: 1, Burst: 1, Hostile: 1, Workers: 1, Image: "image:1", Runtime: "runsc"})
	if err != nil {
		t.Fatal(err)
	}
	if run, exec := r.PlainRun, r.PlainExec; run == nil || exec == nil || run.Rounds != 2 || run.Median < 50 || exec.Rounds != 2 || exec.Median < 20 || r.PlainCold != nil || r.PlainDeath != nil {
		t.Errorf("%+v %+v %+v, missing %q", run, exec, r.PlainCold, r.Missing)
	}
	log, _ := os.ReadFile(dir + "/log")
	const begin = "run --rm --network none "
	if want := begin + "--runtime runsc image:1 true\n" + begin + "--runtime runsc image:1 true\n" + begin + "--detach --runtime runsc image:1 sleep infinity\n" +
		strings.Repeat("exec c0ffee bash -c true\n", 2) + "rm --force c0ffee\n"; string(log) != want {
		t.Errorf("%s\nwant %s", log, want)
	}
}

// A bwrap that is killed while it starts, or never does, leaves nothing behind
// that holds the measurement up.
func TestPlainTreesEnd(t *testing.T) {
	if _, err := exec.LookPath("bwrap"); err != nil {
		t.Skip("bwrap is not installed")
	}
	x := run{ctx: t.Context(), o: Options{Hostile: 3}, small: t.TempDir()}
	for _, parts := range []int{0, 1, 8} { // how many are up when the tree is killed
		end, err := x.plainTree(idle(8), parts)
		if err != nil {
			t.Skip(err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	if _, err := x.plainTree("exit 3", 1); err == nil {
		t.Error("a tree that does not come up")
	}
}
