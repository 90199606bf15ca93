package sandboxtest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

var fileTests = []test{
	{"read", "", func(t *env) {
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("hunter2"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := t.start(map[string]string{"d/a": "0123456789", "link": "-> d/a"}, sandbox.Limits{})
		t.must(s, fmt.Sprintf(`ln -s %s abs; ln -s / root; ln -s ../../../../../../../../%s up; mkfifo fifo; mkdir sub; ln -s ../../../../../../ sub/out
ln -s /proc/self/environ environ; ln -s loop loop; ln -s /dev/zero zero; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'`, secret, secret))
		for _, name := range []string{"d/a", "./d/../d/a", "/workspace/d/a"} {
			if data, err := s.ReadFile(t.Context(), name, 100); err != nil || string(data) != "0123456789" {
				t.Errorf("%s: %q %v", name, data, err)
			}
		}
		if data, err := s.ReadFile(t.Context(), "d/a", 4); err != nil || string(data) != "0123" {
			t.Errorf("limit: %q %v", data, err)
		}
		for _, name := range []string{
			"abs", "up", "root/etc/passwd", "root" + secret, "sub/out/etc/passwd", "environ", "loop", "zero", "fifo", "sock", "d", ".", "", "missing",
			"../" + secret, secret, "/etc/passwd", "d/../../x", "d/a/b", "a\x00b",
		} {
			t.within(2*time.Second, func() {
				if data, err := s.ReadFile(t.Context(), name, 100); err == nil {
					t.Errorf("%q was read: %q", name, data)
				}
			})
		}
	}},
	{"write", "", func(t *env) {
		outside := t.TempDir()
		victim := filepath.Join(outside, "victim")
		if err := os.WriteFile(victim, []byte("intact"), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(outside, 0o777); err != nil {
			t.Fatal(err)
		}
		s := t.start(map[string]string{"a": "old", "dir/b": "old"}, sandbox.Limits{})
		t.must(s, fmt.Sprintf("ln -s %s evil; ln -s %s evildir; mkfifo fifo; ln a hard; ln -s a alias", victim, outside))
		for name, mode := range map[string]uint32{"a": 0o644, "new/deep/f": 0o755, "fifo": 0o600, "evil": 0o644, "alias": 0o644} {
			if err := s.WriteFile(t.Context(), name, []byte("new "+name), mode); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got := t.must(s, fmt.Sprintf("cat %s; echo; stat -c '%%a %%U %%F' %s", name, name))
			if want := fmt.Sprintf("new %s\n%o agent regular file\n", name, mode); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if got := t.must(s, "cat hard"); got != "old" {
			t.Errorf("another name of a replaced file holds %q", got)
		}
		t.must(s, "echo more >> new/deep/f; touch new/deep/g")
		for _, name := range []string{"evildir/x", "../x", "/etc/x", "dir", ".", "", "a/b"} {
			if err := s.WriteFile(t.Context(), name, []byte("x"), 0o644); err == nil {
				t.Errorf("%q was written", name)
			}
		}
		if data, _ := os.ReadFile(victim); string(data) != "intact" {
			t.Errorf("a file of the host was written: %q", data)
		}
		if list, _ := os.ReadDir(outside); len(list) != 1 {
			t.Errorf("files of the host were made: %v", list)
		}
	}},
}

var harvestTests = []test{
	{"changes", "", func(t *env) {
		s := t.start(map[string]string{
			"same": "same", "touched": "same", "edited": "old", "gone": "x", "dir/gone": "x", "mode": "x", "script": "#!x",
			"link": "-> a", "tolink": "x", "tofolder": "x", "folder/f": "x", ".git/HEAD": "ref: refs/heads/main\n", "sub/.git/HEAD": "x",
		}, sandbox.Limits{})
		t.must(s, `touch touched; echo new > edited; rm -r gone dir; chmod +x mode; chmod 600 same; ln -sfn b link; ln -sf /etc/passwd tolink
rm tofolder; mkdir tofolder; echo y > tofolder/f; rm -r folder; echo z > folder; echo n > 'new file'; mkdir empty; echo x > .git/x; rm -r sub/.git`)
		got := t.harvest(s)
		link := uint32(fs.ModeSymlink)
		want := map[string]sandbox.Change{
			"edited": {Mode: 0o644, Data: []byte("new\n")}, "gone": {Deleted: true}, "dir/gone": {Deleted: true},
			"mode": {Mode: 0o755, Data: []byte("x")}, "link": {Mode: link, Data: []byte("b")}, "tolink": {Mode: link, Data: []byte("/etc/passwd")},
			"tofolder": {Deleted: true}, "tofolder/f": {Mode: 0o644, Data: []byte("y\n")}, "folder/f": {Deleted: true},
			"folder": {Mode: 0o644, Data: []byte("z\n")}, "new file": {Mode: 0o644, Data: []byte("n\n")},
		}
		for path, w := range want {
			g, ok := got[path]
			if !ok || g.Deleted != w.Deleted || g.Mode != w.Mode || !bytes.Equal(g.Data, w.Data) || g.Skipped != "" {
				t.Errorf("%s: %+v, want %+v", path, g, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d changes, want %d: %v", len(got), len(want), got)
		}
	}},
	{"hostile trees", "", func(t *env) {
		s := t.start(map[string]string{"a": "x", "locked/b": "x"}, sandbox.Limits{FileSize: 1 << 40})
		t.must(s, `mkfifo fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
ln -s / root; ln -s . self; ln -s /dev/zero zero; ln -s /proc/self/environ env
rm a; mkfifo a
truncate -s 500G sparse; head -c 100 /dev/zero > small
mkdir -p private/in; echo p > private/in/f; chmod 000 private/in/f private/in private
chmod 000 locked
printf x > $'new\nline'; printf x > $'\xff\xfe'; printf x > ' "quoted" \\ '; printf x > -- -n; printf x > "$(printf 'n%.0s' {1..250})"
echo y > hard1; ln hard1 hard2
python3 - <<'END'
import os
for i in range(200):
    os.mkdir("deep"); os.chdir("deep")
open("bottom", "w").close()
END`)
		var got map[string]sandbox.Change
		t.within(10*time.Second, func() { got = t.harvest(s) })
		for path, why := range map[string]string{"fifo": "fifo", "a": "fifo", "sock": "socket", "sparse": "too large"} {
			if got[path].Skipped != why {
				t.Errorf("%s: skipped %q, want %q", path, got[path].Skipped, why)
			}
		}
		for path, target := range map[string]string{"root": "/", "self": ".", "zero": "/dev/zero", "env": "/proc/self/environ"} {
			if c := got[path]; c.Mode != uint32(fs.ModeSymlink) || string(c.Data) != target {
				t.Errorf("%s: %+v", path, c)
			}
		}
		for path, data := range map[string]string{
			"private/in/f": "p\n", "new\nline": "x", "\xff\xfe": "x", ` "quoted" \\ `: "x", strings.Repeat("n", 250): "x", "hard1": "y\n", "hard2": "y\n", "small": string(make([]byte, 100)),
		} {
			if c, ok := got[path]; !ok || string(c.Data) != data || c.Skipped != "" {
				t.Errorf("%q: %+v", path, c)
			}
		}
		for path, c := range got {
			if c.Deleted || strings.HasPrefix(path, "root/") || strings.HasPrefix(path, "self/") {
				t.Errorf("%q: %+v", path, c)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("the tree cannot be removed: %v", err)
		}
	}},
	{"git runs nothing on the host", "", func(t *env) {
		mark := filepath.Join(t.TempDir(), "mark")
		if err := os.Chmod(filepath.Dir(mark), 0o777); err != nil {
			t.Fatal(err)
		}
		dir := t.tree(map[string]string{"a.txt": "1\n"})
		s := t.startDir(dir, sandbox.Limits{})
		t.must(s, fmt.Sprintf(`git init -q .; git add -A; git commit -qm x
printf '#!/bin/sh\ntouch %[1]s\n' > run; chmod +x run
for h in pre-commit post-checkout post-index-change fsmonitor-watchman pre-applypatch; do cp run .git/hooks/$h; done
for k in core.fsmonitor diff.external core.pager core.editor core.sshCommand filter.x.clean filter.x.smudge filter.x.process diff.x.textconv diff.x.command; do git config $k "touch %[1]s; cat"; done
git config core.hooksPath . ; git config include.path ../run
printf '* filter=x diff=x\n' > .gitattributes; cp .gitattributes .git/info/attributes
echo 2 > a.txt; echo b > hidden; git update-index --assume-unchanged a.txt; echo hidden >> .git/info/exclude`, mark))
		changes, err := s.Harvest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		patch, refused, err := sandbox.Diff(dir, changes)
		if err != nil || len(refused) > 0 {
			t.Error(refused, err)
		}
		for _, want := range []string{"+2\n", "+++ b/hidden", "+++ b/.gitattributes"} {
			if !bytes.Contains(patch, []byte(want)) {
				t.Errorf("the patch hides %q:\n%s", want, patch)
			}
		}
		if _, err := os.Lstat(mark); err == nil {
			t.Error("a program of the agent ran on the host")
		}
	}},
}
