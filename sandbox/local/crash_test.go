//go:build linux

package local

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// The test binary plays a trainer that is killed, or one that is not root.
const (
	crashVariable    = "SSR_TEST_CRASH_STATE"
	launcherVariable = "SSR_TEST_CRASH_LAUNCHER"
	nonRootVariable  = "SSR_TEST_NON_ROOT"
)

// The sandboxes of the trainer that is killed: with commands that resist, and idle.
const hostile, idle = 2, 200

// TestCrashHelper is the trainer of TestSweepAfterCrash.
func TestCrashHelper(t *testing.T) {
	state := os.Getenv(crashVariable)
	if state == "" {
		t.Skip("run by TestSweepAfterCrash")
	}
	b, err := New(Options{StateDir: state, Launcher: os.Getenv(launcherVariable)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range hostile {
		x, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir(), Owner: fmt.Sprint("crash ", i)})
		if err != nil {
			t.Fatal(err)
		}
		script := "mkdir -p d/e; chmod 000 d/e d; (setsid sleep $0 &); trap '' TERM; touch up; sleep $0; sleep $0"
		go x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", script, os.Getenv("MARK")}})
		for {
			if _, err := os.Stat(x.(*box).tree() + "/up"); err == nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	// And many idle ones.
	for i := range idle {
		x, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir(), Owner: fmt.Sprint("crash idle ", i)})
		if err == nil {
			_, err = x.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	os.NewFile(3, "ready").WriteString("up\n")
	time.Sleep(10 * time.Minute)
}

func TestSweepAfterCrash(t *testing.T) { onBoth(t, testSweepAfterCrash) }

func testSweepAfterCrash(t *testing.T, launcher string) {
	b := newBackendWith(t, Options{Launcher: launcher})
	mark := strconv.Itoa(200_000 + os.Getpid())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashHelper$")
	cmd.Env = append(os.Environ(), crashVariable+"="+b.opts.StateDir, launcherVariable+"="+launcher, "MARK="+mark, "TMPDIR="+t.TempDir())
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("the helper said %q, %v", line, err)
	}
	if n, err := b.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("swept %d of a living trainer, %v", n, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	// The kernel alone must end the processes.
	for i := 0; len(running(mark)) > 0; i++ {
		if i == 200 {
			t.Fatalf("processes %v outlive the trainer", running(mark))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if dead, err := b.Leftovers(); err != nil || len(dead) != hostile+idle || !strings.HasPrefix(dead[0].Owner, "crash ") || dead[0].Trainer != cmd.Process.Pid {
		t.Errorf("left over: %+v, %v", dead, err)
	}
	if n, err := b.Sweep(t.Context()); n != hostile+idle || err != nil {
		t.Errorf("swept %d, want %d, %v", n, hostile+idle, err)
	}
	if n, err := b.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("swept %d again, %v", n, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, b)
}

// running finds the sleeps of a test by their argument.
func running(mark string) []string {
	var found []string
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range list {
		args, _ := os.ReadFile(name)
		if strings.HasPrefix(string(args), "sleep\x00"+mark) {
			found = append(found, name)
		}
	}
	return found
}

// TestNotRoot runs a part of this binary's tests as an ordinary user.
func TestNotRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the whole suite runs as an ordinary user")
	}
	dir, err := os.MkdirTemp(stateParent(), "ssr-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "local.test")
	copyFile(t, os.Args[0], binary)
	cmd := exec.Command(binary, "-test.v", "-test.run", os.Getenv(nonRootVariable))
	if os.Getenv(nonRootVariable) == "" {
		cmd.Args[len(cmd.Args)-1] = "^TestSuite$/^(native|bwrap)$/^(Exec|Limits|Escape|Harvest|Life)$/(streams|^processes$|^memory$|^disk|privileges|hostile|close)"
	}
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir, "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") < 2*7 {
		t.Errorf("%v\n%s", err, out)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}
