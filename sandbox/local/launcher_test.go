//go:build linux

package local

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// live starts a sandbox whose first command has run, with a launcher.
func live(t testing.TB, launcher string) (*box, *cell) {
	t.Helper()
	x := begin(t, newBackendWith(t, Options{Launcher: launcher}), sandbox.Spec{Dir: t.TempDir()})
	run(t, x, "true")
	return x, x.cell.(*cell)
}

func status(t testing.TB, text string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m
}

func read(t testing.TB, format string, args ...any) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf(format, args...))
	check(t, err)
	return string(text)
}

// What the kernel says about a command, and about the processes that stay: no
// right is left, and no user of the host but the sandbox's own is in sight.
func TestRightsThatAreLeft(t *testing.T) {
	onBoth(t, func(t *testing.T, launcher string) {
		x, c := live(t, launcher)
		uid, _ := x.uid()
		for who, text := range map[string]string{
			"command":       run(t, x, "cat /proc/self/status"),
			"first process": read(t, "/proc/%d/status", c.PID()),
			"launcher":      read(t, "/proc/%d/status", c.launcher.Pid),
		} {
			s := status(t, text)
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				if who == "launcher" && launcher == LauncherBwrap && set == "CapBnd" {
					continue // which can gain nothing by it
				}
				if s[set] != "0000000000000000" {
					t.Errorf("%s: %s is %s", who, set, s[set])
				}
			}
			id, filter := strconv.Itoa(uid), "2"
			switch who {
			case "command":
				id = "1000"
			case "launcher":
				filter = "0" // it runs nothing of anybody's
			}
			if s["Uid"] != strings.Join([]string{id, id, id, id}, " ") || s["NoNewPrivs"] != "1" || s["Seccomp"] != filter {
				t.Errorf("%s: uid %s, no new privileges %s, seccomp %s", who, s["Uid"], s["NoNewPrivs"], s["Seccomp"])
			}
			if x.backend.root && s["Groups"] != "" {
				t.Errorf("%s: groups %q", who, s["Groups"])
			}
		}
		for _, file := range []string{"uid_map", "gid_map"} {
			if got := strings.Fields(read(t, "/proc/%d/%s", c.PID(), file)); !slices.Equal(got, []string{"1000", strconv.Itoa(uid), "1"}) {
				t.Errorf("%s is %q", file, got)
			}
		}
		if got := run(t, x, "cat /proc/self/setgroups"); got != "deny\n" {
			t.Errorf("setgroups: %q", got)
		}
		r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"python3", "-c", "import os\nos.setgroups([1000])"}})
		if err != nil || r.OK() {
			t.Errorf("groups can be set: %+v %v", r, err)
		}
		if launcher == LauncherNative {
			if got := run(t, x, "cat /proc/sys/user/max_user_namespaces; echo 9 2>&- > /proc/sys/user/max_user_namespaces; cat /proc/sys/user/max_user_namespaces"); got != "0\n0\n" {
				t.Errorf("user namespaces that may be made: %q", got)
			}
		}
	})
}

// Nothing that the trainer has open, also not what its own parent has left open to
// every child, is open in what it starts.
func TestNoDescriptorIsLeaked(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(secret, []byte("hunter2"), 0o644))
	fd, err := unix.Open(secret, unix.O_RDONLY, 0) // without O_CLOEXEC
	check(t, err)
	defer unix.Close(fd)
	onBoth(t, func(t *testing.T, launcher string) {
		x, c := live(t, launcher)
		if got := run(t, x, "python3 -c 'import os; print(sorted(os.listdir(\"/proc/self/fd\")))'"); got != "['0', '1', '2', '3']\n" { // 3 is the list itself
			t.Errorf("the command has %s", got)
		}
		open := func(pid int) map[string]string {
			m := map[string]string{}
			list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			check(t, err)
			for _, name := range list {
				target, err := os.Readlink(name)
				check(t, err)
				m[filepath.Base(name)], _, _ = strings.Cut(target, ":")
			}
			return m
		}
		if got := open(c.PID()); !maps.Equal(got, map[string]string{"0": "/dev/null", "1": "/dev/null", "2": "/dev/null", "3": "socket"}) {
			t.Errorf("the first process has %v", got)
		}
		got := open(c.launcher.Pid)
		if launcher == LauncherNative && len(got) > 0 || slices.Contains(slices.Collect(maps.Values(got)), secret) {
			t.Errorf("the launcher has %v", got)
		}
	})
}

// What is mounted inside, and how, is known to the last mount; none of it is
// shared with anybody, and the host does not see it.
func TestMountsInside(t *testing.T) {
	onBoth(t, func(t *testing.T, launcher string) {
		b := newBackendWith(t, Options{Launcher: launcher, ReadOnly: []string{"/etc/skel"}})
		before := read(t, "/proc/self/mountinfo")
		x := begin(t, b, sandbox.Spec{Dir: t.TempDir()})
		inside := run(t, x, "cat /proc/self/mountinfo")
		if read(t, "/proc/self/mountinfo") != before {
			t.Error("the host sees mounts of the sandbox")
		}
		devices := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
		writable := []string{"/proc", "/dev/pts", "/dev/shm", "/workspace", "/tmp"}
		want := slices.Concat([]string{"/", "/dev", "/etc/skel"}, devices, writable)
		if launcher == LauncherBwrap {
			writable = append(writable, devices...)
		}
		for _, name := range b.shown {
			if info, err := os.Lstat("/" + name); err == nil && info.IsDir() {
				want = append(want, "/"+name)
			}
		}
		if launcher == LauncherNative {
			for _, name := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"} {
				if _, err := os.Stat(name); err == nil {
					want = append(want, name)
				}
			}
		}
		var got []string
		for line := range strings.Lines(inside) {
			head, _, _ := strings.Cut(line, " - ")
			f := strings.Fields(head)
			at, options := f[4], strings.Split(f[5], ",")
			got = append(got, at)
			if !slices.Contains(options, "nosuid") {
				t.Errorf("setuid programs count at %s: %s", at, f[5])
			}
			if device := at == "/dev/pts" || slices.Contains(devices, at); !device && !slices.Contains(options, "nodev") {
				t.Errorf("devices count at %s: %s", at, f[5])
			}
			if slices.Contains(options, "ro") == slices.Contains(writable, at) {
				t.Errorf("%s is mounted %s", at, f[5])
			}
			if tags := f[6:]; launcher == LauncherNative && len(tags) > 0 {
				t.Errorf("%s is connected with other namespaces: %s", at, tags)
			}
		}
		if launcher == LauncherNative {
			r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"touch", "-c", "/dev/null"}})
			if err != nil || r.OK() {
				t.Errorf("the host's device file was changed: %+v %v", r, err)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("mounted are %q\nwant %q", got, want)
		}
	})
}

// The sandbox's /proc is its own, and its first process tells nothing of the host.
func TestFirstProcessTellsNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, launcher string) {
		x, _ := live(t, launcher)
		for script, want := range map[string]string{
			"cd /proc; set -- [0-9]*; echo $# $1":                           "2 1\n", // the other is the shell
			"tr '\\0' ' ' < /proc/1/cmdline":                                "/.pid1 ",
			"cat /proc/1/comm":                                              ".pid1\n",
			"hostname; cat /proc/self/cgroup | grep -c ssr-sandbox || true": "sandbox\n0\n",
			"ls /proc/1/fd /proc/1/root /proc/1/cwd/ 2>&- | wc -l":          "0\n",
			"cat /proc/1/environ /proc/1/mem /proc/1/maps 2>&- | wc -c":     "0\n",
			"readlink /proc/1/exe /proc/1/ns/user || echo unreadable":       "unreadable\n",
			"ls / /dev | tr '\\n' ' ' | grep -c 'old\\|host\\|\\.old' || :": "0\n",
		} {
			if got := run(t, x, script); got != want {
				t.Errorf("%s: %q, want %q", script, got, want)
			}
		}
	})
}

// namespaces of a process, as the kernel names them.
func namespaces(proc string) []string {
	var all []string
	for _, kind := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if name, err := os.Readlink(filepath.Join(proc, "ns", kind)); err == nil {
			all = append(all, name)
		}
	}
	return all
}

// networks counts the network namespaces of the machine, those included that the
// kernel is about to free. It is exact to a few.
func networks(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "net_namespace" {
			n, err := strconv.Atoi(f[1])
			check(t, err)
			return n
		}
	}
	t.Skip("the kernel does not tell how many network namespaces there are")
	return 0
}

// A sandbox has seven namespaces of its own. When it is closed no process is in
// them, nothing keeps them, and the trainer holds nothing of it.
func TestNamespacesComeAndGo(t *testing.T) {
	onBoth(t, func(t *testing.T, launcher string) {
		const rounds, tolerance = 60, 30
		b := newBackendWith(t, Options{Launcher: launcher})
		dir, host := t.TempDir(), namespaces("/proc/self")
		once := func(pin bool) {
			x := begin(t, b, sandbox.Spec{Dir: dir, Frozen: true})
			run(t, x, "true")
			proc := fmt.Sprintf("/proc/%d", x.cell.PID())
			inside := namespaces(proc)
			if len(inside) != 7 || slices.ContainsFunc(inside, func(n string) bool { return slices.Contains(host, n) }) {
				t.Errorf("namespaces %q, the host's are %q", inside, host)
			}
			if pin { // so that nobody else's get their numbers
				files, err := filepath.Glob(proc + "/ns/*")
				check(t, err)
				for _, name := range files {
					f, err := os.Open(name)
					check(t, err)
					defer f.Close()
				}
			}
			check(t, x.Close())
			if !pin {
				return
			}
			procs, err := filepath.Glob("/proc/[0-9]*")
			check(t, err)
			for _, p := range procs {
				for _, n := range namespaces(p) {
					if slices.Contains(inside, n) {
						t.Errorf("%s is in %s of a closed sandbox", p, n)
					}
				}
			}
		}
		for range 3 {
			once(true)
		}
		before, held := networks(t), descriptors(t)
		for range rounds {
			once(false)
		}
		if n := descriptors(t); n > held {
			t.Errorf("%d descriptors are open, %d were", n, held)
		}
		for i := 0; networks(t) > before+tolerance; i++ {
			if i == 400 {
				t.Fatalf("%d network namespaces, %d were there before %d sandboxes", networks(t), before, rounds)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(list)
}

// instead has a backend start a shell script in place of the native launcher. $0
// is the launcher.
func instead(t testing.TB, b *Backend, script string) {
	t.Helper()
	dir, err := os.MkdirTemp(b.opts.StateDir, fmt.Sprintf("new-%d-", os.Getpid()))
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o711))
	launcher := b.rootfs + pid1.ProgramPath
	check(t, os.WriteFile(dir+pid1.ProgramPath, fmt.Appendf(nil, "#!/bin/sh\nset -- %s \"$@\"\n%s\n", launcher, script), 0o755))
	was := b.rootfs
	b.rootfs = dir
	t.Cleanup(func() { b.rootfs = was })
}

// A launcher that is killed before the sandbox is ready, at whatever moment, is a
// failure of the infrastructure that leaves nothing; the next one works.
func TestLauncherKilledWhileItWorks(t *testing.T) {
	b := newBackendWith(t, Options{Launcher: LauncherNative})
	x := begin(t, b, sandbox.Spec{Dir: t.TempDir()})
	root := b.rootfs
	for _, after := range []string{"", "0", "0.001", "0.002", "0.003", "0.005", "0.01", "0.02"} {
		script := "kill -9 $$"
		if after != "" {
			script = `root=` + root + `; launcher=$1; shift; what=$1; shift 2; "$launcher" $what $root "$@" & sleep ` + after + `; kill -9 $!`
		}
		t.Run("after "+after, func(t *testing.T) {
			instead(t, b, script)
			r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"sleep", "20"}})
			switch {
			case err == nil && r.Signal == 9: // it was ready
			case err != nil && errors.Is(err, sandbox.ErrInfrastructure) && strings.Contains(err.Error(), "launcher native"):
			default:
				t.Errorf("%+v %v", r, err)
			}
			x.dropCell()
			for i := 0; len(b.processesOf(x.slot)) > 0; i++ {
				if i == 400 {
					t.Fatalf("processes %v are left", b.processesOf(x.slot))
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	if got := run(t, x, "echo works"); got != "works\n" {
		t.Errorf("afterwards: %q", got)
	}
}

// With the process that the launcher leaves outside dies all that is inside.
func TestLauncherKilledWhileACommandRuns(t *testing.T) {
	onBoth(t, func(t *testing.T, launcher string) {
		x, c := live(t, launcher)
		mark := strconv.Itoa(300_000 + os.Getpid())
		time.AfterFunc(300*time.Millisecond, func() { c.launcher.Kill() })
		r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", "trap '' TERM HUP; setsid sleep $0 & sleep $0", mark}})
		if err != nil || r.Exit != -1 || r.Signal != 9 {
			t.Errorf("%+v %v", r, err)
		}
		for i := 0; len(running(mark)) > 0; i++ {
			if i == 200 {
				t.Fatalf("processes %v are left", running(mark))
			}
			time.Sleep(5 * time.Millisecond)
		}
		if got := run(t, x, "echo works"); got != "works\n" {
			t.Errorf("afterwards: %q", got)
		}
	})
}

// Where the native launcher does not work bubblewrap takes its place, and says
// so; where it is asked for by name, nothing does.
func TestChoiceOfLauncher(t *testing.T) {
	b := newBackend(t)
	if b.Launcher() != LauncherNative || b.refused != nil {
		t.Errorf("%s, %v", b.Launcher(), b.refused)
	}
	instead(t, b, "echo 'new namespace: error 1' >&2")
	check(t, b.chooseLauncher())
	if b.Launcher() != LauncherBwrap || b.refused == nil || !strings.Contains(b.refused.Error(), "operation not permitted; user namespaces are refused") {
		t.Errorf("%s, %v", b.Launcher(), b.refused)
	}
	if notes := b.capabilities().Notes; !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "operation not permitted") }) {
		t.Errorf("notes %q", notes)
	}
	b.opts.Bwrap = ""
	t.Setenv("PATH", "")
	if err := b.chooseLauncher(); !errors.Is(err, sandbox.ErrInfrastructure) || !strings.Contains(err.Error(), "not permitted") || !strings.Contains(err.Error(), "apt-get install bubblewrap") {
		t.Error(err)
	}
	b.opts.Launcher = LauncherNative
	if err := b.chooseLauncher(); !errors.Is(err, sandbox.ErrInfrastructure) || strings.Contains(err.Error(), "bubblewrap") {
		t.Error(err)
	}
	for _, o := range []Options{{Launcher: "docker"}, {Launcher: LauncherBwrap}} { // bubblewrap is not in PATH
		o.StateDir = t.TempDir()
		if b, err := New(o); err == nil {
			b.Close()
			t.Errorf("%+v: accepted", o)
		}
	}
}

// The launcher refuses to work as root.
func TestLauncherIsNeverRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b := newBackendWith(t, Options{Launcher: LauncherNative})
	x := begin(t, b, sandbox.Spec{Dir: t.TempDir()})
	b.root = false // so that it is started as what the trainer is
	_, err := b.newCell(t.Context(), x)
	if !errors.Is(err, sandbox.ErrInfrastructure) || !strings.Contains(err.Error(), "as root") {
		t.Error(err)
	}
	b.root = true
}
