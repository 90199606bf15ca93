package sandboxtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// The hostile programs are what an agent might run to get out of its sandbox, to
// wear the host down, or to fool who looks at its work afterwards: five of the
// seven families of docs/security.md. (The other two, finding the answer and
// turning a verdict, are about repositories; rollout/selfplay has them.) Each
// family has controls, named so: programs that its detector must catch in the
// act, and honest work that must go through.

// hostile is a small program of an agent's and what must come of it.
type hostile struct {
	name string
	// needs is the protection under test, "" when every backend must pass.
	needs string
	// program is a bash script. MARK in it is a number of seconds that nothing
	// else on the host sleeps: no process that has it in its arguments may outlive
	// the program. SECRET is a file of the host with the word "hunter2" in it,
	// TOUCH a path in a folder of the host that anybody may write, PORT a TCP port
	// and SOCKET an abstract unix socket on which the host listens, HOSTNAME the
	// host's name and FOLDER the folder of the test.
	program string
	want    outcome
	limits  sandbox.Limits
}

// outcome judges what became of a program; "" says that it is as it must be.
type outcome struct {
	// asks makes the program a question: ESCAPED is printed where it succeeds.
	asks  bool
	judge func(t *env, s sandbox.Sandbox, r sandbox.Result) string
}

var (
	// held: the program does not reach what it tries.
	held = outcome{true, func(_ *env, _ sandbox.Sandbox, r sandbox.Result) string {
		if strings.Contains(string(r.Stdout), "ESCAPED") {
			return "it got through"
		}
		return ""
	}}
	// through is for controls: the program reaches what it tries.
	through = outcome{true, func(_ *env, _ sandbox.Sandbox, r sandbox.Result) string {
		if !strings.Contains(string(r.Stdout), "ESCAPED") {
			return "the detector is blind"
		}
		return ""
	}}
	// worksAfter: whatever became of the program, the sandbox runs another.
	worksAfter = outcome{false, func(t *env, s sandbox.Sandbox, _ sandbox.Result) string {
		if r := t.bash(s, "echo works"); !r.OK() || string(r.Stdout) != "works\n" {
			return "the sandbox does not work any more"
		}
		return ""
	}}
	timedOut  = ends("timed out", func(r sandbox.Result) bool { return r.TimedOut && r.Exit == -1 })
	diskFull  = ends("disk full", func(r sandbox.Result) bool { return r.DiskFull && !r.TimedOut })
	truncated = ends("output cut", func(r sandbox.Result) bool { return r.Truncated && !r.TimedOut })
	fails     = ends("failure", func(r sandbox.Result) bool { return !r.OK() && !r.TimedOut })
	overCPU   = ends("SIGXCPU or SIGKILL", func(r sandbox.Result) bool { return !r.TimedOut && (r.Signal == 24 || r.Signal == 9) })
)

// ends wants a kind of end.
func ends(what string, is func(sandbox.Result) bool) outcome {
	return outcome{false, func(_ *env, _ sandbox.Sandbox, r sandbox.Result) string {
		if is(r) {
			return ""
		}
		return "want " + what
	}}
}

// prints wants a normal end with this output.
func prints(text string) outcome {
	return ends(fmt.Sprintf("the output %q", text), func(r sandbox.Result) bool { return r.OK() && string(r.Stdout) == text })
}

// exits wants a status and a signal, exactly.
func exits(status, signal int) outcome {
	return ends(fmt.Sprintf("status %d, signal %d", status, signal), func(r sandbox.Result) bool {
		return r.Exit == status && r.Signal == signal && !r.TimedOut
	})
}

// harvested wants changes by path: "file TEXT", "link TARGET", "skipped WHY",
// "deleted", or "absent" for a path that must not be among them; " / " stands
// between what is as good. No change, and
// nothing of the patch made of them, may hold what SECRET holds.
func harvested(want map[string]string) outcome {
	return outcome{false, func(t *env, s sandbox.Sandbox, _ sandbox.Result) string {
		got := t.harvest(s)
		for path, w := range want {
			if g := describe(got, path); !slices.Contains(strings.Split(w, " / "), g) {
				return fmt.Sprintf("%q is %q, want %q", path, g, w)
			}
		}
		changes := make([]sandbox.Change, 0, len(got))
		for _, c := range got {
			changes = append(changes, c)
		}
		patch, _, err := sandbox.Diff(t.source, changes)
		if err != nil {
			return err.Error()
		}
		if tellSecret(changes, patch) {
			return "it took what the host keeps secret"
		}
		return ""
	}}
}

func tellSecret(changes []sandbox.Change, patch []byte) bool {
	for _, c := range changes {
		if strings.Contains(string(c.Data), "hunter2") {
			return true
		}
	}
	return strings.Contains(string(patch), "hunter2")
}

func describe(changes map[string]sandbox.Change, path string) string {
	c, ok := changes[path]
	switch {
	case !ok:
		return "absent"
	case c.Deleted:
		return "deleted"
	case c.Skipped != "":
		return "skipped " + c.Skipped
	case os.FileMode(c.Mode)&os.ModeSymlink != 0:
		return "link " + string(c.Data)
	}
	return "file " + string(c.Data)
}

// families in the order of docs/security.md.
var families = []struct {
	name     string
	programs []hostile
}{
	{"Escape", escapePrograms}, {"Exhaustion", exhaustionPrograms}, {"Time", timePrograms},
	{"Network", networkPrograms}, {"Harvest", harvestPrograms},
}

// worldFiles are the workspace of every hostile program.
var worldFiles = map[string]string{
	"README": "a project\n", "src/main.py": "print('hello')\n", "src/data.txt": "one\ntwo\n", "run.sh": "#!/bin/sh\n", "link": "-> README",
}

// runHostile runs all families on one backend, each program in a sandbox of its
// own beside one that must not notice any of it.
func runHostile(t *testing.T, c Config) {
	shared := &env{T: t, config: c}
	shared.source = shared.tree(worldFiles)
	h := newHost(shared)
	caps, err := shared.open().Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bystander := shared.startDir(shared.source, sandbox.Limits{})
	shared.must(bystander, "echo untouched > mine; echo untouched > /tmp/mine")
	t.Run("control: the detectors fire", func(t *testing.T) { h.check(&env{T: t}) })
	for _, f := range families {
		if !c.wants(f.name) {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			before := h.state()
			for _, p := range f.programs {
				t.Run(p.name, func(t *testing.T) {
					if how, known := caps.Enforced[p.needs]; slices.Contains(c.Unenforced, p.needs) || known && how == "" {
						t.Skipf("%s: not enforced here", p.needs)
					}
					h.run(&env{T: t, config: c, backend: shared.backend, source: shared.source}, p)
				})
			}
			if after := h.state(); after != before {
				t.Errorf("the host has changed\nbefore: %s\nafter:  %s", before, after)
			}
			mine := (&env{T: t}).must(bystander, "cat mine /tmp/mine; ls | wc -l")
			if mine != fmt.Sprintf("untouched\nuntouched\n%d\n", 5) {
				t.Errorf("another sandbox was changed: %q", mine)
			}
		})
	}
}

// host is what hostile programs may try to reach.
type host struct {
	secret, touch, port, socket, name, folder string
}

func newHost(t *env) *host {
	dir := t.TempDir()
	h := &host{secret: filepath.Join(dir, "secret"), touch: filepath.Join(dir, "open", "touched")}
	err := os.WriteFile(h.secret, []byte("hunter2\n"), 0o644)
	if err == nil {
		err = os.Mkdir(filepath.Dir(h.touch), 0o777)
	}
	if err == nil {
		err = os.Chmod(filepath.Dir(h.touch), 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSR_TEST_SECRET", "hunter2")
	tcp, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	h.socket = "ssr-test-" + marker()
	unixSocket, err := net.Listen("unix", "@"+h.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unixSocket.Close() })
	_, h.port, _ = net.SplitHostPort(tcp.Addr().String())
	if h.name, err = os.Hostname(); err == nil {
		h.folder, err = os.Getwd()
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// state is what of the host a program could have changed.
func (h *host) state() string {
	var b strings.Builder
	for _, name := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe", "/proc/sys/user/max_user_namespaces", "/proc/modules", "/proc/swaps",
		"/proc/self/oom_score_adj", "/etc/passwd",
	} {
		data, err := os.ReadFile(name)
		fmt.Fprintf(&b, "%s %x %v\n", name, data, err)
	}
	_, err := os.Lstat(h.touch)
	fmt.Fprintf(&b, "touched %v\n", err == nil)
	return b.String()
}

// check does on the host what no program may, and sees that it is noticed.
func (h *host) check(t *env) {
	mark, before := marker(), h.state()
	cmd := exec.Command("sleep", mark)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	found := processes(mark)
	for until := time.Now().Add(10 * time.Second); len(found) == 0 && time.Now().Before(until); found = processes(mark) {
		time.Sleep(time.Millisecond) // Start returns before the kernel shows the arguments
	}
	if len(found) != 1 || found[0] != cmd.Process.Pid {
		t.Errorf("of the process %d with the mark, %v was found", cmd.Process.Pid, found)
	}
	if err := os.WriteFile(h.touch, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if h.state() == before {
		t.Error("a file that was made on the host went unnoticed")
	}
	if err := os.Remove(h.touch); err != nil {
		t.Fatal(err)
	}
	changes := map[string]sandbox.Change{"l": {Path: "l", Mode: uint32(os.ModeSymlink), Data: []byte("/x")}, "p": {Path: "p", Skipped: "fifo"}, "d": {Path: "d", Deleted: true}}
	for path, want := range map[string]string{"l": "link /x", "p": "skipped fifo", "d": "deleted", "n": "absent"} {
		if got := describe(changes, path); got != want {
			t.Errorf("the change %q reads %q, want %q", path, got, want)
		}
	}
	if !tellSecret([]sandbox.Change{{Data: []byte("hunter2\n")}}, nil) || !tellSecret(nil, []byte("+hunter2\n")) || tellSecret(nil, []byte("+x\n")) {
		t.Error("a secret that was taken goes unnoticed")
	}
}

// run runs one program to its judgement.
func (h *host) run(t *env, p hostile) {
	mark := marker()
	program := strings.NewReplacer("MARK", mark, "SECRET", h.secret, "TOUCH", h.touch, "PORT", h.port, "SOCKET", h.socket, "HOSTNAME", h.name, "FOLDER", h.folder).Replace(p.program)
	if p.want.asks {
		program = "if {\n" + program + "\n} >/tmp/log 2>&1; then echo ESCAPED; fi; cat /tmp/log"
	}
	s := t.startDir(t.source, p.limits)
	r := t.bash(s, program)
	if why := p.want.judge(t, s, r); why != "" {
		t.Errorf("%s: exit %d, signal %d, timed out %v, disk full %v, cut %v\n%.2000s\n%.2000s",
			why, r.Exit, r.Signal, r.TimedOut, r.DiskFull, r.Truncated, r.Stdout, r.Stderr)
	}
	if strings.Contains(p.program, "MARK") {
		t.gone(mark)
	}
	if err := s.Close(); err != nil {
		t.Errorf("what the program left cannot be removed: %v", err)
	}
}
