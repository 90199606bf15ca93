package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

var execTests = []test{
	{"streams and status", "", func(t *env) {
		s := t.start(map[string]string{"a.txt": "content\n"}, sandbox.Limits{})
		for _, c := range []struct {
			script, stdout, stderr string
			exit, signal           int
		}{
			{"cat a.txt; echo oops >&2; exit 3", "content\n", "oops\n", 3, 0},
			{"exit 0", "", "", 0, 0},
			{"exit 137", "", "", 137, 0}, // not to be taken for a signal
			{"exit 255", "", "", 255, 0},
			{"kill -9 $$", "", "", -1, 9},
			{"kill -TERM $$", "", "", -1, 15},
			{"kill -SEGV $$", "", "", -1, 11},
			{"(kill -9 $BASHPID); exit $?", "", "", 137, 0},
			{"trap 'exit 4' TERM; kill $$", "", "", 4, 0},
			{"echo 'exit status: 0'; printf '\\0exit 0\\n'; false", "exit status: 0\n\x00exit 0\n", "", 1, 0},
			{"echo x > /dev/stdout; echo y > /dev/stderr", "x\n", "y\n", 0, 0},
		} {
			r := t.bash(s, c.script)
			if string(r.Stdout) != c.stdout || r.Exit != c.exit || r.Signal != c.signal || c.stderr != "" && string(r.Stderr) != c.stderr {
				t.Errorf("%s: exit %d signal %d %q %q", c.script, r.Exit, r.Signal, r.Stdout, r.Stderr)
			}
			if r.TimedOut || r.Truncated || r.DiskFull || r.OutOfMemory || r.Wall <= 0 {
				t.Errorf("%s: %+v", c.script, r)
			}
		}
	}},
	{"stdin", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		big := bytes.Repeat([]byte("0123456789abcde\n"), 100_000) // more than a pipe holds
		r := t.exec(s, sandbox.Cmd{Args: []string{"cat"}, Stdin: bytes.NewReader(big)})
		if !bytes.Equal(r.Stdout, big) {
			t.Errorf("cat gave %d bytes back of %d", len(r.Stdout), len(big))
		}
		if r := t.exec(s, sandbox.Cmd{Args: []string{"cat"}}); !r.OK() || len(r.Stdout) > 0 {
			t.Errorf("no stdin: %+v", r)
		}
		t.within(5*time.Second, func() { // a command need not read what it is given
			if r := t.exec(s, sandbox.Cmd{Args: []string{"true"}, Stdin: bytes.NewReader(big)}); !r.OK() {
				t.Errorf("unread stdin: %+v", r)
			}
		})
	}},
	{"arguments, folder and environment", "", func(t *env) {
		dir := t.tree(map[string]string{"sub dir/f": "x"})
		s, err := t.open().Start(t.Context(), sandbox.Spec{Dir: dir, Env: map[string]string{"A": "spec", "B": "spec"}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		args := []string{"", "a b", "$HOME", "'", "é\n", "*", "-n"}
		r := t.exec(s, sandbox.Cmd{Args: append([]string{"printf", "%s|"}, args...)})
		if want := strings.Join(args, "|") + "|"; string(r.Stdout) != want {
			t.Errorf("arguments %q, want %q", r.Stdout, want)
		}
		r = t.exec(s, sandbox.Cmd{Args: []string{"bash", "-c", `pwd; echo "$A $B $HOME $LANG $TMPDIR"; cd && pwd`}, Dir: "sub dir", Env: map[string]string{"B": "two words"}})
		want := "/workspace/sub dir\nspec two words " + sandbox.HomeDir + " C.UTF-8 /tmp\n" + sandbox.HomeDir + "\n"
		if string(r.Stdout) != want {
			t.Errorf("%q, want %q", r.Stdout, want)
		}
	}},
	{"what cannot be run", "", func(t *env) {
		s := t.start(map[string]string{"plain": "text", "dir/f": "x"}, sandbox.Limits{})
		for _, c := range []struct {
			cmd  sandbox.Cmd
			exit int
		}{
			{sandbox.Cmd{Args: []string{"no-such-program"}}, 127},
			{sandbox.Cmd{Args: []string{"./no-such-file"}}, 127},
			{sandbox.Cmd{Args: []string{"./plain"}}, 126},
			{sandbox.Cmd{Args: []string{"./dir"}}, 126},
			{sandbox.Cmd{Args: []string{"true"}, Dir: "no-such-folder"}, 126},
		} {
			if r := t.exec(s, c.cmd); r.Exit != c.exit || len(r.Stderr) == 0 {
				t.Errorf("%+v: exit %d %q", c.cmd, r.Exit, r.Stderr)
			}
		}
		for _, args := range [][]string{nil, {""}, {"echo", "a\x00b"}} {
			if _, err := s.Exec(t.Context(), sandbox.Cmd{Args: args}); err == nil || errors.Is(err, sandbox.ErrInfrastructure) {
				t.Errorf("%q: %v, want a caller's error", args, err)
			}
		}
	}},
	{"the system's tools", "", func(t *env) {
		s := t.start(map[string]string{"a": "1\n2\n", "b": "1\n3\n"}, sandbox.Limits{})
		got := t.must(s, `sed s/1/x/ a; grep -c 2 a; diff a b | head -1; python3 -c 'import json, unittest, sqlite3; print("py")'
git init -q . && git add -A && git commit -qm first && git log --format=%an,%at`)
		if want := "x\n2\n1\n2c2\npy\nagent,946684800\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}},
	{"files stay between commands", "", func(t *env) {
		s := t.start(map[string]string{"a": "1"}, sandbox.Limits{})
		t.must(s, "echo 2 >> a; mkdir d; echo t > /tmp/t; echo h > ~/h")
		if got := t.must(s, "cat a; ls -d d; cat /tmp/t ~/h"); got != "12\nd\nt\nh\n" {
			t.Errorf("%q", got)
		}
	}},
	{"timestamps are equal", "", func(t *env) {
		s := t.start(map[string]string{"a": "1", "d/b": "2", "l": "-> a"}, sandbox.Limits{})
		if got := t.must(s, `find . -printf '%T@\n' | sort -u | wc -l`); strings.TrimSpace(got) != "1" {
			t.Errorf("%s different times: %s", strings.TrimSpace(got), t.must(s, "find . -printf '%p %t\n'"))
		}
	}},
	{"deadline", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		t.must(s, "true") // the bounds below are the commands', not the making's
		timeout := time.Duration(t.slowness() * float64(time.Second))
		for name, script := range map[string]string{
			"sleeps":          "sleep MARK",
			"ignores signals": "trap '' TERM INT HUP QUIT; while :; do sleep MARK; done",
			"stops itself":    "sleep MARK & kill -STOP $$",
			"left its parent": "(setsid nohup sleep MARK >/dev/null 2>&1 &) ; sleep MARK",
			"reads stdin":     "sleep MARK & read x < <(sleep MARK)",
		} {
			mark := marker()
			t.within(5*timeout, func() {
				r := t.exec(s, sandbox.Cmd{Args: []string{"bash", "-c", "echo begun; " + strings.ReplaceAll(script, "MARK", mark)}, Timeout: timeout})
				if !r.TimedOut || r.OK() || string(r.Stdout) != "begun\n" || r.Exit != -1 || r.Wall < timeout {
					t.Errorf("%s: %+v", name, r)
				}
			})
			t.gone(mark)
		}
		if got := t.must(s, "echo alive"); got != "alive\n" {
			t.Error("the sandbox does not outlive a deadline")
		}
	}},
	{"background processes end with the command", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		t.must(s, "true") // the bounds below are the commands', not the making's
		for name, script := range map[string]string{
			"holds the pipes": "sleep MARK & echo done",
			"new session":     "setsid sleep MARK & echo done",
			"daemon":          "(setsid bash -c 'trap \"\" TERM HUP; sleep MARK; sleep MARK' </dev/null >/dev/null 2>&1 &); echo done",
			"many":            "for i in $(seq 30); do sleep MARK & done; echo done",
		} {
			mark := marker()
			t.within(5*time.Second, func() {
				if r := t.bash(s, strings.ReplaceAll(script, "MARK", mark)); !r.OK() || string(r.Stdout) != "done\n" {
					t.Errorf("%s: %+v", name, r)
				}
			})
			t.gone(mark)
		}
	}},
	{"cancelled", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		t.must(s, "true")
		mark := marker()
		t.within(5*time.Second, func() {
			_, err := s.Exec(cancelled(t.Context(), 200*time.Millisecond), sandbox.Cmd{Args: []string{"sleep", mark}})
			if !errors.Is(err, context.Canceled) || errors.Is(err, sandbox.ErrInfrastructure) {
				t.Errorf("error %v", err)
			}
		})
		t.gone(mark)
		t.must(s, "true")
	}},
	{"shell", "", func(t *env) {
		sh := sandbox.NewShell(t.start(nil, sandbox.Limits{}))
		for _, c := range []struct{ command, want string }{
			{"mkdir d && cd d && export V='a b'", ""},
			{"pwd; echo $V; exit 1", "/workspace/d\na b\n"},
			{"cd /; sleep 100", ""},
			{"pwd", "/workspace/d\n"},
		} {
			sh.Timeout = time.Minute
			if strings.Contains(c.command, "sleep") {
				sh.Timeout = 200 * time.Millisecond
			}
			if r, err := sh.Run(t.Context(), c.command); err != nil || string(r.Stdout) != c.want {
				t.Errorf("%s: %q %v", c.command, r.Stdout, err)
			}
		}
	}},
}
