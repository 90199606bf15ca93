//go:build linux

package pid1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve runs the program as the first process of a pid namespace of its own.
func serve(t *testing.T, lifetime time.Duration) *Stream {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make the namespace")
	}
	dir, err := os.MkdirTemp("", "ssr-pid1-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "pid1")
	if err := errors.Join(os.Chmod(dir, 0o711), os.WriteFile(path, Program(), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, StreamArgument)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
		Credential: &syscall.Credential{Uid: 65533, Gid: 65533, Groups: []uint32{}},
	}
	w, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("no pid namespace: ", err)
	}
	t.Cleanup(func() {
		w.Close() // it ends with its stream
		cmd.Wait()
	})
	s, err := NewStream(w, r, lifetime, Filter())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Stream) run(t *testing.T, stdin io.Reader, script string) (stdout, stderr string, reply Reply) {
	t.Helper()
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	var out, err bytes.Buffer
	r := Request{Folder: "/", Args: []string{"bash", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=two words"}, Limits: []Limit{{Resource: syscall.RLIMIT_NOFILE, Soft: 50, Hard: 50}}}
	if err := s.Start(r); err != nil {
		t.Fatal(err)
	}
	reply, e := s.Follow(stdin, &out, &err)
	if e != nil {
		t.Fatal(script, e)
	}
	return out.String(), err.String(), reply
}

func TestStream(t *testing.T) {
	s := serve(t, time.Hour)
	for _, c := range []struct {
		script, out, err string
		status           syscall.WaitStatus
	}{
		{`echo "$A"; pwd; ulimit -n; echo oops >&2; exit 3`, "two words\n/\n50\n", "oops\n", 3 << 8},
		{"exit 137", "", "", 137 << 8},
		{"kill -9 $$", "", "", 9},
		{"ls -l /proc/self/fd | grep -c ' -> '", "4\n", "", 0}, // the last is the folder itself
		{"(setsid sleep 100 &) ; sleep 100 & echo left", "left\n", "", 0},
		{"kill -9 -1 2>/dev/null; kill -9 1; echo alive", "alive\n", "", 0},
		{"unshare -Ur true 2>/dev/null || echo refused", "refused\n", "", 0},
	} {
		out, err, reply := s.run(t, nil, c.script)
		if out != c.out || err != c.err || reply.Status != c.status {
			t.Errorf("%s: %q %q %v", c.script, out, err, reply.Status)
		}
	}
	big := bytes.Repeat([]byte("0123456789abcde\n"), 100_000)
	if out, _, _ := s.run(t, bytes.NewReader(big), "cat"); out != string(big) {
		t.Errorf("cat gave %d bytes back of %d", len(out), len(big))
	}
	if out, _, _ := s.run(t, bytes.NewReader(big), "head -c 5; exec <&-; sleep 0.1"); out != "01234" {
		t.Errorf("%q", out)
	}
	// Input that comes when its command has ended does not reach the next one.
	for range 20 {
		r, w := io.Pipe()
		s.run(t, r, "true")
		go func() { w.Write([]byte("stale")); w.Close() }()
		if out, _, _ := s.run(t, strings.NewReader("fresh"), "cat"); out != "fresh" {
			t.Fatalf("%q", out)
		}
		r.Close()
	}
}

// The first process blocks SIGPIPE (13) and SIGCHLD (17), a command no signal.
func TestSignalsThatAreBlocked(t *testing.T) {
	out, _, reply := serve(t, time.Hour).run(t, nil, `
read -r _ _ _ first _ </proc/self/stat
sed -n 's/^SigBlk:.//p' /proc/$first/status /proc/self/status`)
	if want := fmt.Sprintf("%016x\n%016x\n", 1<<12|1<<16, 0); out != want || reply.Status != 0 {
		t.Errorf("%q, status %v, want %q", out, reply.Status, want)
	}
}

func TestStreamKill(t *testing.T) {
	s := serve(t, time.Hour)
	if err := s.Kill(); err != nil { // nothing runs
		t.Fatal(err)
	}
	begun := writer(func(p []byte) {
		if err := s.Kill(); err != nil || string(p) != "begun\n" {
			t.Errorf("%q %v", p, err)
		}
	})
	if err := s.Start(Request{Folder: "/", Args: []string{"bash", "-c", "trap '' TERM; (setsid sleep 100 &); echo begun; while :; do sleep 100; done"}}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Follow(strings.NewReader(""), begun, io.Discard); err != nil || r.Status != 9 {
		t.Errorf("%+v %v", r, err)
	}
	if out, _, _ := s.run(t, nil, "ls /proc >/dev/null; echo works"); out != "works\n" {
		t.Errorf("afterwards: %q", out)
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestStreamLifetime(t *testing.T) {
	s := serve(t, time.Second)
	if err := s.Start(Request{Folder: "/", Args: []string{"sleep", "100"}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := s.Follow(strings.NewReader(""), io.Discard, io.Discard); err == nil || time.Since(begin) > 50*time.Second { // half of the sleep
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// Outside a namespace of its own the program would kill everything: it must not start.
func TestOnlyAsTheFirstProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid1")
	if err := os.WriteFile(path, Program(), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, StreamArgument).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) > 0 {
		t.Errorf("%v %q", err, out)
	}
}

// Frames that no first process sends end the stream with an error.
func FuzzStream(f *testing.F) {
	f.Add([]byte("H\x00\x00\x00\x00O\x02\x00\x00\x00hiS\x00\x00\x00\x00"))
	f.Add([]byte("H\x00\x00\x00\x00O\xff\xff\xff\xff"))
	f.Add([]byte("H\x00\x00\x00\x00A\x00\x00\x00\x00A\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := NewStream(io.Discard, bytes.NewReader(data), time.Second, nil)
		if err != nil {
			return
		}
		if err := s.Start(Request{Folder: "/", Args: []string{"x"}}); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Follow(strings.NewReader(""), io.Discard, io.Discard); err == nil && !bytes.Contains(data, []byte("S\x20\x00\x00\x00")) {
			t.Errorf("a reply out of nothing: %+v", r)
		}
	})
}
