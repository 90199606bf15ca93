//go:build linux

package docker

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/local"
)

func startFake(t testing.TB, b *local.Backend) sandbox.Sandbox {
	t.Helper()
	s, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir(), Owner: "run 7", Limits: sandbox.Limits{Memory: 64 << 20, Processes: 10, Lifetime: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContainerIsHardened(t *testing.T) {
	f := newFakeEngine(t)
	b := newFake(t, f, Options{CPUs: 1.5, ReadOnly: []string{"/srv"}})
	s := startFake(t, b)
	r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"echo", "hello"}})
	if err != nil || string(r.Stdout) != "hello" || string(r.Stderr) != "warning" || !r.OK() {
		t.Fatalf("%+v %v", r, err)
	}
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"exit", "7"}}); err != nil || r.Exit != 7 {
		t.Errorf("%+v %v", r, err)
	}
	big := bytes.Repeat([]byte("0123456789"), 40_000) // several frames
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"cat"}, Stdin: bytes.NewReader(big)}); err != nil || !bytes.Equal(r.Stdout, big) {
		t.Errorf("cat gave %d bytes back: %v", len(r.Stdout), err)
	}
	if len(f.containers) != 1 {
		t.Errorf("%d containers for one sandbox", len(f.containers))
	}
	for _, c := range f.containers {
		h := c.config.HostConfig
		uid, _, _ := strings.Cut(c.config.User, ":")
		if h.NetworkMode != "none" || !h.ReadonlyRootfs || !slices.Equal(h.CapDrop, []string{"ALL"}) || !slices.Equal(h.SecurityOpt, []string{"no-new-privileges"}) ||
			h.Memory != 64<<20 || h.MemorySwap != h.Memory || h.PidsLimit != 10+overhead+gvisorThreads || h.NanoCpus != 15e8 || h.Privileged || h.IpcMode != "private" || h.Runtime != "runsc" ||
			uid == "0" || uid == "" || !slices.Contains(h.MaskedPaths, "/sys") || !slices.Contains(h.ReadonlyPaths, "/proc/sys") || !c.config.OpenStdin || !c.config.StdinOnce {
			t.Errorf("%+v", c.config)
		}
		writable := 0
		for _, m := range h.Mounts {
			if !m.ReadOnly {
				writable++
			}
		}
		if writable != 2 || len(h.Mounts) != 7 {
			t.Errorf("mounts %+v", h.Mounts)
		}
		if left := c.config.Labels; left[labelOwner] != "run 7" || left[labelState] == "" || left[labelSlot] != uid {
			t.Errorf("labels %v", left)
		}
		if d, err := time.Parse(time.RFC3339, c.config.Labels[labelDeadline]); err != nil || time.Until(d) > 12*time.Minute || time.Until(d) < 10*time.Minute {
			t.Errorf("deadline %v %v", d, err)
		}
	}
	if err := s.Close(); err != nil || f.left() != 0 {
		t.Errorf("%d containers are left (%v)", f.left(), err)
	}
}

func TestCommandsEndAtTheirDeadline(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		f := newFakeEngine(t)
		f.deaf = deaf
		s := startFake(t, newFake(t, f, Options{}))
		r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"wait"}, Timeout: 50 * time.Millisecond})
		if err != nil || !r.TimedOut || r.Exit != -1 || r.Signal != 9 || r.Wall > interruptTimeout+2*time.Second {
			t.Errorf("deaf %v: %+v %v", deaf, r, err)
		}
		if n := f.left(); deaf && n != 0 {
			t.Errorf("a container that does not obey is left")
		}
		if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
			t.Errorf("afterwards: %+v %v", r, err)
		}
		if n := len(f.containers); deaf && n != 2 || !deaf && n != 1 {
			t.Errorf("deaf %v: %d containers", deaf, n)
		}
	}
}

// Whoever gives up while a container is made does not wait for its removal, and
// it is removed all the same.
func TestCancelledWhileTheContainerIsMade(t *testing.T) {
	f := newFakeEngine(t)
	f.mute = true
	removable := make(chan struct{})
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete {
			<-removable
		}
		return false
	}
	b := newFake(t, f, Options{})
	s := startFake(t, b)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if r, err := s.Exec(ctx, sandbox.Cmd{Args: []string{"true"}}); err == nil {
		t.Errorf("%+v", r)
	}
	if n := f.left(); n != 1 {
		t.Errorf("%d containers, want the one that cannot be removed yet", n)
	}
	close(removable)
	if err := errors.Join(s.Close(), b.Close()); err != nil || f.left() != 0 {
		t.Errorf("%d containers are left (%v)", f.left(), err)
	}
}

// A sandbox ends with its processes; the engine may take its time to remove what is left.
func TestCloseDoesNotWaitForTheEngine(t *testing.T) {
	f := newFakeEngine(t)
	first := exec.Command("sleep", "1000")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan error, 1)
	go func() { dead <- first.Wait() }()
	f.pid = first.Process.Pid
	removable := make(chan struct{})
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete {
			<-removable
		}
		return false
	}
	// The process that is played is not confined at all.
	b := newFake(t, f, Options{Runtime: "runc", Allow: []string{"filesystem", "network", "syscalls", "user"}})
	s := startFake(t, b)
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
		t.Fatalf("%+v %v", r, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-dead; err == nil || err.Error() != "signal: killed" {
		t.Errorf("the first process: %v", err)
	}
	if n := f.left(); n != 1 {
		t.Errorf("%d containers, want the one that cannot be removed yet", n)
	}
	close(removable)
	if err := b.Close(); err != nil || f.left() != 0 {
		t.Errorf("%d containers are left (%v)", f.left(), err)
	}
}

func TestImageSize(t *testing.T) {
	f := newFakeEngine(t)
	n, err := ImageSize(t.Context(), "unix://"+f.socket, "registry.test:5000/group/image:v1")
	if err != nil || n != 123_456_789 {
		t.Errorf("%d %v", n, err)
	}
	if _, err := ImageSize(t.Context(), "unix://"+f.socket, "missing"); !errors.Is(err, ErrNoImage) {
		t.Errorf("%v", err)
	}
}

// What breaks on the engine's side is an infrastructure failure with a name.
func TestFaults(t *testing.T) {
	answer := func(path string, status int, text string) func(f *fakeEngine) {
		return func(f *fakeEngine) {
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, path) {
					return false
				}
				say(w, status, message{text})
				return true
			}
		}
	}
	for _, c := range []struct {
		name     string
		opts     Options
		sabotage func(f *fakeEngine)
		want     error
		text     string
	}{
		{"image missing", Options{Image: "other"}, func(*fakeEngine) {}, ErrNoImage, "docker pull other"},
		{"engine down", Options{}, func(f *fakeEngine) { f.stop() }, ErrNoDaemon, "engine.sock"},
		{"disk full at create", Options{}, answer("/create", 500, "mkdir /x: no space left on device"), ErrDiskFull, "no space"},
		{"disk full at start", Options{}, answer("/start", 500, "OCI runtime create failed: write: no space left on device"), ErrDiskFull, "no space"},
		{"start refused", Options{}, answer("/start", 500, "OCI runtime create failed: exec format error"), nil, "exec format error"},
		{"removed by somebody", Options{}, answer("/json", 404, "No such container"), ErrLost, "removed"},
		{"limits dropped", Options{}, func(f *fakeEngine) { f.noLimits = true }, nil, `without protection "memory"`},
		{"engine too old", Options{}, func(f *fakeEngine) {
			f.fault = func(w http.ResponseWriter, r *http.Request) bool { w.Header().Set("Api-Version", "1.39"); return true }
		}, nil, "Docker 20.10"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeEngine(t)
			s := startFake(t, newFake(t, f, c.opts))
			c.sabotage(f)
			r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}})
			if !errors.Is(err, sandbox.ErrInfrastructure) || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%+v %v", r, err)
			}
			if f.fault == nil && f.left() > 0 {
				t.Error("a container is left")
			}
		})
	}
}

func TestEngineEndsDuringACommand(t *testing.T) {
	f := newFakeEngine(t)
	s := startFake(t, newFake(t, f, Options{}))
	if err := s.WriteFile(t.Context(), "kept", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { f.stop(); close(stopped) })
	_, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"wait"}})
	<-stopped
	if !errors.Is(err, sandbox.ErrInfrastructure) || !errors.Is(err, ErrNoDaemon) {
		t.Fatal(err)
	}
	f.listen() // restarted: its containers have ended, the workspace has not
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
		t.Errorf("after the restart: %+v %v", r, err)
	}
	if data, err := s.ReadFile(t.Context(), "kept", 10); err != nil || string(data) != "x" {
		t.Errorf("the workspace has lost its files: %q %v", data, err)
	}
}

func TestContainerOutOfMemory(t *testing.T) {
	f := newFakeEngine(t)
	s := startFake(t, newFake(t, f, Options{}))
	r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"oom"}})
	if err != nil || !r.OutOfMemory || r.Signal != 9 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() || r.OutOfMemory {
		t.Errorf("afterwards: %+v %v", r, err)
	}
}

// In gVisor a command can end the container, by killing the first process or by its
// memory, and the engine tells neither: both are outcomes, or whoever loses could have
// itself run again.
func TestFirstProcessKilledFromInside(t *testing.T) {
	f := newFakeEngine(t)
	s := startFake(t, newFake(t, f, Options{}))
	r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"kill"}})
	if err != nil || r.OK() || r.OutOfMemory || r.Signal != 9 || r.Exit != -1 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
		t.Errorf("afterwards: %+v %v", r, err)
	}
}

// An engine that accepts and never answers does not hold the trainer up.
func TestEngineHangs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	c := client{socket: socket}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.attach(ctx, "x"); !errors.Is(err, ErrHung) {
		t.Errorf("attach: %v", err)
	}
	if _, err := dialEngine(ctx, socket); !errors.Is(err, ErrHung) {
		t.Errorf("dial: %v", err)
	}
}

// Containers whose trainer is dead are removed, and only those.
func TestSweepRemovesContainersOfTheDead(t *testing.T) {
	f := newFakeEngine(t)
	b := newFake(t, f, Options{})
	s := startFake(t, b)
	if _, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	var mine containerConfig
	for _, c := range f.containers {
		mine = c.config
	}
	add := func(id string, labels map[string]string) {
		c := mine
		c.Labels = map[string]string{labelState: mine.Labels[labelState], labelSlot: mine.Labels[labelSlot], labelDeadline: mine.Labels[labelDeadline]}
		for k, v := range labels {
			c.Labels[k] = v
		}
		f.containers[id] = &fakeContainer{config: c}
	}
	add("no slot", map[string]string{labelSlot: "4"})
	add("expired", map[string]string{labelDeadline: "2020-01-01T00:00:00Z"})
	add("other state", map[string]string{labelState: "/elsewhere", labelSlot: "4"})
	if _, err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, c := range f.containers {
		if want := id == "no slot" || id == "expired"; c.removed != want {
			t.Errorf("%s: removed %v", id, c.removed)
		}
	}
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
		t.Errorf("%+v %v", r, err)
	}
}

// What an engine says of a host's control groups is not what it may use of them.
func TestRootlessEngines(t *testing.T) {
	f := newFakeEngine(t)
	host := "unix://" + f.socket
	f.info = map[string]any{"Rootless": true, "CgroupVersion": "1", "MemoryLimit": true, "PidsLimit": true}
	if _, err := Look(t.Context(), host); err == nil || !strings.Contains(err.Error(), "cannot limit memory") {
		t.Errorf("Podman, version 1: %v", err)
	}
	f.info["CgroupVersion"] = "2"
	if caps, err := Look(t.Context(), host); err != nil || caps.Enforced["memory"] == "" || !strings.Contains(caps.Enforced["user"], "user namespace") {
		t.Errorf("Podman, version 2: %+v %v", caps, err)
	}
	f.info["SecurityOptions"] = []string{"name=seccomp,profile=default", "name=rootless"}
	if _, err := Look(t.Context(), host); err == nil || !strings.Contains(err.Error(), "rootless Docker") {
		t.Errorf("Docker: %v", err)
	}
	f.podman = true // 5.4 says the same of itself
	if _, err := Look(t.Context(), host); err != nil {
		t.Errorf("Podman 5: %v", err)
	}
}

// Podman gets in its own words what it passes over in Docker's.
func TestPodman(t *testing.T) {
	f := newFakeEngine(t)
	f.podman = true
	s := startFake(t, newFake(t, f, Options{}))
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
		t.Fatalf("%+v %v", r, err)
	}
	for _, c := range f.containers {
		h := c.config.HostConfig
		rootless := os.Geteuid() != 0 // this process plays the engine
		if !slices.ContainsFunc(h.SecurityOpt, func(s string) bool { return strings.HasPrefix(s, "mask=/sys:") }) || (h.UsernsMode == "keep-id") != rootless {
			t.Errorf("%+v", h)
		}
		for _, at := range []string{"/run", "/var/tmp"} {
			if !slices.ContainsFunc(h.Mounts, func(m mount) bool { return m.Target == at && m.ReadOnly }) {
				t.Errorf("%s can be written: %+v", at, h.Mounts)
			}
		}
	}
	// It fails to kill what dies meanwhile.
	failures := 0
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete || failures == 2 {
			return false
		}
		failures++
		say(w, 500, message{"crun: open pidfd: No such process"})
		return true
	}
	if err := s.Close(); err != nil || f.left() != 0 {
		t.Errorf("%d containers are left (%v)", f.left(), err)
	}
}

func TestWhatCannotBeConfigured(t *testing.T) {
	for name, o := range map[string]Options{"no image": {}, "another machine": {Image: "x", Host: "tcp://10.0.0.1:2375"}, "unknown protection": {Image: "x", Host: "/x", Allow: []string{"all"}, StateDir: t.TempDir()}, "gVisor": {Image: "x", Host: "/x", Runtime: "runsc-kvm", StateDir: t.TempDir()}} {
		if b, err := New(o); err == nil {
			b.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}
