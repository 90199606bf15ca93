package sandboxtest

import (
	"fmt"
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
	{"the system cannot be written", "filesystem", func(t *env) {
		t.attacks(t.start(nil, sandbox.Limits{}), []attack{
			{"usr", "echo x > /usr/bin/ssr-test"}, {"etc", "echo x > /etc/ssr-test"}, {"root", "echo x > /ssr-test"},
			{"bin", "cp /bin/true /bin/ssr-test"}, {"dev", "echo x > /dev/ssr-test"}, {"var", "mkdir /var/ssr-test"},
			{"passwd", "echo x:x:0:0::/:/bin/sh >> /etc/passwd"}, {"lib", "touch /usr/lib/ssr-test"},
			{"own rights", "chmod 777 /etc /usr / /.pid1"}, {"move", "mv /etc /tmp/etc"},
		})
	}},
	{"the kernel cannot be set", "filesystem", func(t *env) {
		t.attacks(t.start(nil, sandbox.Limits{}), []attack{
			{"core_pattern", "echo '|/tmp/x' > /proc/sys/kernel/core_pattern"},
			{"hostname", "echo evil > /proc/sys/kernel/hostname && ! hostname | grep -q sandbox"},
			{"modprobe", "echo /tmp/x > /proc/sys/kernel/modprobe"}, {"sysrq", "echo h > /proc/sysrq-trigger"},
			{"user namespaces", "echo 10000 > /proc/sys/user/max_user_namespaces"},
			{"cgroup", "ls /sys/fs/cgroup | grep -q ."}, {"sys", "ls /sys/kernel | grep -q ."},
			{"kernel log", "dmesg | grep -q ."}, {"symbols", "grep -v '^0* ' /proc/kallsyms | grep -q ."},
			{"memory", "head -c 1 /dev/mem || head -c 1 /proc/kcore"},
			{"oom score", "echo -900 > /proc/self/oom_score_adj"}, {"priority", "nice -n -5 true 2>&1 | grep -q . || true; [ $(nice -n -5 nice 2>/dev/null || echo 0) -lt 0 ]"},
		})
	}},
	{"no privileges", "filesystem", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		t.attacks(s, []attack{
			{"root", "[ $(id -u) = 0 ]"},
			{"capabilities", "! grep -q 'CapEff:\\s*0*$' /proc/self/status || ! grep -q 'CapBnd:\\s*0*$' /proc/self/status"},
			{"new privileges", "! grep -q 'NoNewPrivs:\\s*1' /proc/self/status"},
			{"mount", "mkdir m; mount -t tmpfs none m"}, {"remount", "mount -o remount,rw /usr"}, {"bind", "mount --bind /tmp /usr"},
			{"umount", "umount /usr /proc"}, {"user namespace", "unshare -Ur true"}, {"namespaces", "unshare -m true || unshare -n true"},
			{"device node", "mknod /tmp/sda b 8 0"}, {"chroot", "chroot . true"}, {"setuid", "cp /bin/bash sh; chmod u+s sh; ./sh -p -c '[ $(id -u) != 1000 ]'"},
			{"sudo", "su -c true </dev/null || sudo -n true"}, {"clock", "date -s 2001-01-01"}, {"owner", "chown root /tmp/home"},
			{"first process", "cat /proc/1/environ | grep -q . || ls -l /proc/1/fd/3 || kill -9 1 && ! true"},
		})
		t.must(s, "kill -9 1; kill -STOP 1; true")
		t.must(s, "true")
	}},
	{"forbidden system calls", "syscalls", func(t *env) {
		r := t.python(t.start(nil, sandbox.Limits{}), `
import ctypes, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
numbers = {
    "x86_64": dict(add_key=248, keyctl=250, bpf=321, perf_event_open=298, userfaultfd=323, io_uring_setup=425, unshare=272, setns=308, mount=165, kexec_load=246, open_by_handle_at=304, clone3=435),
    "aarch64": dict(add_key=217, keyctl=219, bpf=280, perf_event_open=241, userfaultfd=282, io_uring_setup=425, unshare=97, setns=268, mount=40, kexec_load=104, open_by_handle_at=265, clone3=435),
}[platform.machine()]
for name, n in numbers.items():
    ctypes.set_errno(0)
    r = libc.syscall(n, 0, 0, 0, 0, 0)
    if ctypes.get_errno() not in (1, 38):  # EPERM, ENOSYS
        print("got through:", name, r, os.strerror(ctypes.get_errno()))
for name in ("AF_VSOCK", "AF_PACKET", "AF_ALG", "AF_BLUETOOTH", "AF_CAN"):
    try:
        socket.socket(getattr(socket, name), socket.SOCK_DGRAM if name != "AF_ALG" else socket.SOCK_SEQPACKET)
        print("made a socket:", name)
    except OSError:
        pass
import fcntl, pty
master, slave = pty.openpty()
try:
    fcntl.ioctl(slave, 0x5412, b"x")  # TIOCSTI
    print("typed into a terminal")
except OSError:
    pass`)
		if !r.OK() || len(r.Stdout) > 0 {
			t.Errorf("exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
		}
	}},
	{"the host is out of sight", "filesystem", func(t *env) {
		t.Setenv("SSR_TEST_SECRET", "hunter2")
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("hunter2"), 0o644); err != nil {
			t.Fatal(err)
		}
		wd, _ := os.Getwd()
		s := t.start(nil, sandbox.Limits{})
		t.attacks(s, []attack{
			{"environment", "env | grep hunter2 || cat /proc/*/environ | grep -a hunter2"},
			{"file", "cat " + secret}, {"source", "ls " + wd}, {"through proc", "cat /proc/*/root" + secret},
			{"homes", "ls /root /home 2>/dev/null | grep -q ."}, {"docker", "ls /run/docker.sock /var/run/docker.sock"},
			{"processes", fmt.Sprintf("ps -e 2>/dev/null | grep -q %q || [ $(ls -d /proc/[0-9]* | wc -l) -gt 8 ]", filepath.Base(os.Args[0]))},
			{"host name", "[ \"$(hostname)\" = " + quoteShell(hostname()) + " ]"},
			{"host user", "grep -q ':/home/' /etc/passwd"},
			{"descriptors", "ls -l /proc/self/fd/ | grep -v -e '[012] ->' -e '3 -> /proc/[0-9]*/fd' -e total"}, // beside 0, 1, 2 and the one that ls reads
		})
	}},
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

func hostname() string {
	name, _ := os.Hostname()
	return name
}

func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
