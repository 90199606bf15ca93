package sandboxtest

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

var limitTests = []test{
	{"output", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{Output: 10_000})
		t.must(s, "true") // the bound below is the command's, not the making's
		mark := marker()
		t.within(5*time.Second, func() {
			r := t.bash(s, "sleep "+mark+" & yes & yes >&2")
			if !r.Truncated || r.OK() || len(r.Stdout)+len(r.Stderr) != 10_000 {
				t.Errorf("truncated %v, %d+%d bytes", r.Truncated, len(r.Stdout), len(r.Stderr))
			}
			if len(bytes.Trim(r.Stdout, "y\n")) > 0 {
				t.Error("the output is not the head of what was printed")
			}
		})
		t.gone(mark)
		if r := t.bash(s, "head -c 10000 /dev/zero"); !r.OK() || len(r.Stdout) != 10_000 {
			t.Errorf("exactly the limit: %d bytes, truncated %v", len(r.Stdout), r.Truncated)
		}
	}},
	{"processes", "processes", func(t *env) {
		s := t.start(nil, sandbox.Limits{Processes: 40})
		r := t.python(s, `
import os, time
n = 0
try:
    while n < 200:
        if os.fork() == 0:
            time.sleep(100)
        n += 1
except OSError:
    pass
print(n, flush=True)
os._exit(0)`)
		n, _ := strconv.Atoi(strings.TrimSpace(string(r.Stdout)))
		if n < 30 || n > 40 {
			t.Errorf("%d processes with a limit of 40 (%+v)", n, r)
		}
		mark := marker()
		t.within(10*time.Second, func() {
			t.exec(s, sandbox.Cmd{Args: []string{"bash", "-c", "b() { b | b & }; b; b; sleep " + mark}, Timeout: time.Second})
		})
		t.gone(mark)
		t.must(s, "true")
	}},
	{"processes of another sandbox do not count", "", func(t *env) {
		a, b := t.start(nil, sandbox.Limits{Processes: 20}), t.start(nil, sandbox.Limits{Processes: 20})
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 3 & done; wait"}, Timeout: time.Second})
		}()
		time.Sleep(300 * time.Millisecond)
		t.must(b, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.01 & done; wait")
		<-done
	}},
	{"memory", "memory", func(t *env) {
		s := t.start(nil, sandbox.Limits{Memory: 96 << 20})
		r := t.python(s, "x = bytearray(400 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('fits')")
		if r.OK() || bytes.Contains(r.Stdout, []byte("fits")) {
			t.Errorf("400 MiB fit into 96: %+v", r)
		}
		t.must(s, "python3 -c 'x = b\"x\" * (20 << 20)'")
	}},
	{"shared memory", "memory", func(t *env) {
		s := t.start(nil, sandbox.Limits{Memory: 96 << 20})
		if r := t.bash(s, "head -c 300M /dev/zero > /dev/shm/x"); r.OK() {
			t.Error("300 MiB fit into /dev/shm")
		}
	}},
	{"disk", "disk", func(t *env) {
		limits := sandbox.Limits{Disk: 8 << 20, FileSize: 4 << 20}
		for name, script := range map[string]string{
			"many files":    "i=0; while :; do head -c 1M /dev/urandom > f$i; i=$((i+1)); done",
			"in tmp":        "i=0; while :; do head -c 1M /dev/urandom > /tmp/f$i; i=$((i+1)); done",
			"empty files":   "python3 -c 'for i in range(10**7): open(str(i), \"w\").close()'",
			"locked folder": "mkdir d; cd d; chmod 311 .; i=0; while :; do head -c 1M /dev/urandom > f$i; i=$((i+1)); done",
			"deep folders":  "python3 -c 'import os\nfor i in range(10**7): os.mkdir(\"d\"); os.chdir(\"d\")'",
		} {
			s := t.start(nil, limits)
			t.within(20*time.Second, func() {
				if r := t.bash(s, script); !r.DiskFull || r.OK() || r.TimedOut {
					t.Errorf("%s: disk full %v, timed out %v, exit %d\n%s", name, r.DiskFull, r.TimedOut, r.Exit, r.Stderr)
				}
			})
			if err := s.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
		}
	}},
	{"disk can be freed", "disk", func(t *env) {
		s := t.start(nil, sandbox.Limits{Disk: 4 << 20})
		if r := t.bash(s, "head -c 6M /dev/urandom > f"); !r.DiskFull {
			t.Errorf("%+v", r)
		}
		if r := t.bash(s, "rm f; sleep 0.2"); !r.OK() {
			t.Errorf("removing: %+v", r)
		}
		t.must(s, "head -c 2M /dev/urandom > f")
	}},
	{"file size", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{FileSize: 1 << 20})
		if r := t.bash(s, "head -c 2M /dev/zero > f; echo; truncate -s 2M sparse"); r.OK() {
			t.Errorf("%+v", r)
		}
		if got := t.must(s, "stat -c %s f"); strings.TrimSpace(got) != "1048576" {
			t.Errorf("a file of %s bytes", got)
		}
	}},
	{"open files", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{OpenFiles: 32})
		r := t.python(s, "x = [open('/dev/null') for _ in range(64)]")
		if r.OK() || !bytes.Contains(r.Stderr, []byte("Too many open files")) {
			t.Errorf("%+v", r)
		}
	}},
	{"processor time", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{CPU: time.Second})
		r := t.exec(s, sandbox.Cmd{Args: []string{"bash", "-c", "while :; do :; done"}, Timeout: 10 * time.Minute})
		if r.OK() || r.TimedOut || r.Signal != 24 && r.Signal != 9 || r.CPU > 3*time.Second {
			t.Errorf("%+v", r)
		}
		if r := t.bash(s, "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"); r.CPU <= 0 || r.CPU > r.Wall+time.Second {
			t.Errorf("processor time %v of %v", r.CPU, r.Wall)
		}
	}},
	{"limits cannot be raised", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{OpenFiles: 64})
		r := t.python(s, `
import resource
for name in "CORE CPU FSIZE NOFILE NPROC".split():
    what = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(what)
    try:
        resource.setrlimit(what, (hard + 1, hard + 1))
        print("raised", name)
    except (ValueError, OSError):
        pass
print(resource.getrlimit(resource.RLIMIT_CORE))`)
		if string(r.Stdout) != "(0, 0)\n" {
			t.Errorf("%s%s", r.Stdout, r.Stderr)
		}
	}},
	{"lifetime", "", func(t *env) {
		s := t.start(map[string]string{"a": "x"}, sandbox.Limits{Lifetime: time.Second})
		mark := marker()
		t.within(5*time.Second, func() {
			if r := t.bash(s, "sleep "+mark); !r.TimedOut {
				t.Errorf("%+v", r)
			}
		})
		t.gone(mark)
		if r := t.bash(s, "true"); !r.TimedOut || r.OK() {
			t.Errorf("after the end: %+v", r)
		}
		if data, err := s.ReadFile(t.Context(), "a", 10); err != nil || string(data) != "x" {
			t.Error("files cannot be read after the end:", err)
		}
	}},
}
