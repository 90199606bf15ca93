package sandboxtest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// attack is a shell script that prints ESCAPED when it gets through.
type attack struct{ name, script string }

var escapeTests = []test{
	{"no network", "network", func(t *env) {
		for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			abstract, err := net.Listen("unix", "@ssr-test-"+marker())
			if err != nil {
				t.Fatal(err)
			}
			defer abstract.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			r := t.python(t.start(nil, sandbox.Limits{}), `
import socket, sys
port, abstract = int(sys.argv[2]), sys.argv[3]
def attempt(name, f):
    try:
        f()
        print("reached", name)
    except OSError:
        pass
socket.setdefaulttimeout(1)
attempt("host", lambda: socket.create_connection(("127.0.0.1", port)))
attempt("internet", lambda: socket.create_connection(("1.1.1.1", 53)))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)))
attempt("dns", lambda: socket.getaddrinfo("example.org", 80))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0" + abstract[1:]))
s = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(s.getsockname())
c.send(b"own loopback works")
print(s.accept()[0].recv(100).decode())`, port, abstract.Addr().String())
			if string(r.Stdout) != "own loopback works\n" {
				t.Errorf("%s%s", r.Stdout, r.Stderr)
			}
		}
	}},
	{"two sandboxes", "", func(t *env) {
		dir := t.tree(map[string]string{"a": "original"})
		x, y := t.startDir(dir, sandbox.Limits{}), t.startDir(dir, sandbox.Limits{})
		mark := marker()
		running := make(chan sandbox.Result, 1)
		go func() {
			r, _ := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", "echo x > a; echo x > /tmp/t; echo x > /dev/shm/m; sleep " + mark + " & sleep 1; echo survived"}})
			running <- r
		}()
		time.Sleep(300 * time.Millisecond)
		t.attacks(y, []attack{
			{"file", "grep x a"}, {"tmp", "ls /tmp/t"}, {"shared memory", "ls /dev/shm/m"},
			{"process", "grep -a " + mark + " /proc/*/cmdline | grep -v grep | grep -v bash"}, {"kill", "kill -9 -1; false"}, {"ipc", "ipcs -m | grep -q 0x"},
		})
		if r := <-running; string(r.Stdout) != "survived\n" {
			t.Errorf("one sandbox disturbed another: %+v", r)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(data) != "original" {
			t.Errorf("the source was written: %q %v", data, err)
		}
	}},
}

// attacks runs scripts of which none may end well or say so.
func (t *env) attacks(s sandbox.Sandbox, list []attack) {
	t.Helper()
	for _, a := range list {
		r := t.bash(s, "if { "+a.script+"; } >/tmp/log 2>&1; then echo ESCAPED; cat /tmp/log; fi")
		if strings.Contains(string(r.Stdout), "ESCAPED") {
			t.Errorf("%s: %s\n%s", a.name, a.script, r.Stdout)
		}
	}
}
