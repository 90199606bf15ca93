package sandboxtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// RunTrees runs the part of the suite that needs no command: folders, tar
// streams, snapshots and forks. A backend whose commands are scripted passes it.
func RunTrees(t *testing.T, c Config) {
	for _, x := range treeTests {
		t.Run(x.name, func(t *testing.T) { x.run(&env{T: t, config: c}) })
	}
}

// tarOf makes a tar stream of "NAME TEXT" entries: "NAME/" a folder, "-> x" a
// link, "= x" a hard link, "fifo" a pipe, "device" a device.
func tarOf(t *env, entries ...[2]string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e[0], Mode: 0o640, Typeflag: tar.TypeReg, Size: int64(len(e[1]))}
		target, isLink := strings.CutPrefix(e[1], "-> ")
		other, isHard := strings.CutPrefix(e[1], "= ")
		switch {
		case strings.HasSuffix(e[0], "/"):
			h.Typeflag, h.Size, h.Mode = tar.TypeDir, 0, 0o750
		case isLink:
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, target
		case isHard:
			h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, other
		case e[1] == "fifo":
			h.Typeflag, h.Size = tar.TypeFifo, 0
		case e[1] == "device":
			h.Typeflag, h.Size = tar.TypeBlock, 0
		}
		err := w.WriteHeader(h)
		if err == nil && h.Typeflag == tar.TypeReg {
			_, err = io.WriteString(w, e[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// untar lists a tar stream as "NAME TEXT" in its order.
func untar(t *env, r io.Reader) (list []string) {
	t.Helper()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s tells its owner", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			text = nil
		case tar.TypeSymlink:
			text = []byte("-> " + h.Linkname)
		case tar.TypeReg:
		default:
			t.Errorf("%s is of type %q", h.Name, h.Typeflag)
		}
		list = append(list, strings.TrimSpace(h.Name+" "+string(text)))
	}
}

func (t *env) download(s sandbox.Sandbox, path string) []string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Download(t.Context(), path, &b); err != nil {
		t.Fatalf("download %q: %v", path, err)
	}
	return untar(t, &b)
}

func (t *env) list(s sandbox.Sandbox, path string) string {
	t.Helper()
	entries, err := s.List(t.Context(), path)
	if err != nil {
		t.Fatalf("list %q: %v", path, err)
	}
	var out []string
	for _, e := range entries {
		kind := "file"
		switch mode := fs.FileMode(e.Mode); {
		case mode.IsDir():
			kind = "folder"
		case mode&fs.ModeSymlink != 0:
			kind = "link"
		case !mode.IsRegular():
			kind = "other"
		}
		out = append(out, fmt.Sprintf("%s %s %d", e.Name, kind, e.Size))
	}
	return strings.Join(out, ", ")
}

var treeTests = []test{
	{"list", "", func(t *env) {
		s := t.start(map[string]string{"b": "12", "a/deep/f": "1", "c.sh": "#!x", "l": "-> b", "out": "-> /", "up": "-> .."}, sandbox.Limits{})
		want := "a folder 0, b file 2, c.sh file 3, l link 0, out link 0, up link 0"
		for _, path := range []string{"", ".", "/workspace", "a/.."} {
			if got := t.list(s, path); got != want {
				t.Errorf("%q: %s, want %s", path, got, want)
			}
		}
		if got := t.list(s, "a/deep"); got != "f file 1" {
			t.Errorf("a/deep: %s", got)
		}
		for _, path := range []string{"b", "missing", "l", "out", "out/etc", "up", "..", "../..", "/etc", "a/b/c", "a\x00b"} {
			if got, err := s.List(t.Context(), path); err == nil {
				t.Errorf("%q was listed: %v", path, got)
			}
		}
	}},
	{"tar streams", "", func(t *env) {
		s := t.start(map[string]string{"old": "old", "dir/kept": "kept", "l": "-> old"}, sandbox.Limits{})
		up := func(path string, entries ...[2]string) {
			t.Helper()
			if err := s.Upload(t.Context(), path, tarOf(t, entries...)); err != nil {
				t.Errorf("upload to %q: %v", path, err)
			}
		}
		up("", [2]string{"./", ""}, [2]string{"old", "new"}, [2]string{"dir/", ""}, [2]string{"dir/f", "f"}, [2]string{"l", "no link any more"})
		up("new/place", [2]string{"a", "1"}, [2]string{"b/c", "2"}, [2]string{"link", "-> a"}, [2]string{"empty", ""})
		want := []string{"dir/", "dir/f f", "dir/kept kept", "l no link any more", "new/", "new/place/", "new/place/a 1", "new/place/b/", "new/place/b/c 2", "new/place/empty", "new/place/link -> a", "old new"}
		for _, path := range []string{"", ".", "/workspace"} {
			if got := t.download(s, path); !slices.Equal(got, want) {
				t.Errorf("%q: %q, want %q", path, got, want)
			}
		}
		if got := t.download(s, "new/place/b"); !slices.Equal(got, []string{"c 2"}) {
			t.Errorf("a folder: %q", got)
		}
		if got := t.download(s, "dir/f"); !slices.Equal(got, []string{"f f"}) {
			t.Errorf("a file: %q", got)
		}
		if got := t.harvest(s); describe(got, "dir/f") != "file f" || got["dir/f"].Mode != 0o640 || describe(got, "new/place/link") != "link a" {
			t.Errorf("%+v", got)
		}
		var b bytes.Buffer
		for _, path := range []string{"missing", "..", "/etc", "new/place/link", "a\x00b", "old/x"} {
			if err := s.Download(t.Context(), path, &b); err == nil {
				t.Errorf("%q was downloaded", path)
			}
		}
	}},
	{"hostile tar streams", "", func(t *env) {
		outside := t.TempDir()
		s := t.start(map[string]string{"f": "x", "dir/f": "x", "out": "-> " + outside}, sandbox.Limits{Disk: 1 << 20})
		for name, stream := range map[string]io.Reader{
			"leaves":              tarOf(t, [2]string{"../x", "x"}),
			"leaves deep":         tarOf(t, [2]string{"a/../../x", "x"}),
			"absolute":            tarOf(t, [2]string{outside + "/x", "x"}),
			"through a link":      tarOf(t, [2]string{"out/x", "x"}),
			"through its link":    tarOf(t, [2]string{"l", "-> " + outside}, [2]string{"l/x", "x"}),
			"hard link":           tarOf(t, [2]string{"p", "= /etc/passwd"}),
			"pipe":                tarOf(t, [2]string{"p", "fifo"}),
			"device":              tarOf(t, [2]string{"d", "device"}),
			"too large":           tarOf(t, [2]string{"big", strings.Repeat("x", 1<<20+1)}),
			"too large together":  tarOf(t, [2]string{"b1", strings.Repeat("x", 1<<19)}, [2]string{"b2", strings.Repeat("x", 1<<19)}, [2]string{"b3", "x"}),
			"below a file":        tarOf(t, [2]string{"f/x", "x"}),
			"no tar":              strings.NewReader(strings.Repeat("not a tar stream ", 100)),
			"cut in the middle":   io.LimitReader(tarOf(t, [2]string{"a", strings.Repeat("x", 2000)}), 1000),
			"a reader that fails": io.MultiReader(strings.NewReader("x"), failing{}),
		} {
			if err := s.Upload(t.Context(), "", stream); err == nil || errors.Is(err, sandbox.ErrInfrastructure) {
				t.Errorf("%s: %v, want the caller's error", name, err)
			}
		}
		if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
			t.Errorf("%v was written outside (%v)", list, err)
		}
		if err := s.Upload(t.Context(), "..", tarOf(t, [2]string{"x", "x"})); err == nil {
			t.Error("uploaded outside")
		}
		if data, err := s.ReadFile(t.Context(), "f", 10); err != nil || string(data) != "x" {
			t.Errorf("f is %q, %v", data, err)
		}
	}},
	{"snapshot and fork", "", func(t *env) {
		s := t.start(map[string]string{"a": "1", "gone": "x", "d/e/f": "deep", "l": "-> a", ".git/HEAD": "ref"}, sandbox.Limits{})
		write := func(s sandbox.Sandbox, name, text string) {
			t.Helper()
			if err := s.WriteFile(t.Context(), name, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(s, "a", "2")
		write(s, "new", "n")
		dir := filepath.Join(t.TempDir(), "snapshot")
		if err := s.Snapshot(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		write(s, "a", "3")
		fork := t.startDir(dir, sandbox.Limits{})
		for name, want := range map[string]string{"a": "2", "new": "n", "d/e/f": "deep", ".git/HEAD": "ref", "gone": "x"} {
			if data, err := fork.ReadFile(t.Context(), name, 100); err != nil || string(data) != want {
				t.Errorf("the fork's %s is %q, %v; want %q", name, data, err, want)
			}
		}
		if got := t.harvest(fork); len(got) > 0 {
			t.Errorf("a fresh fork has changes: %v", got)
		}
		write(fork, "a", "4")
		if data, err := s.ReadFile(t.Context(), "a", 100); err != nil || string(data) != "3" {
			t.Errorf("the original's a is %q, %v", data, err)
		}
		if got := t.harvest(fork); describe(got, "a") != "file 4" || len(got) != 1 {
			t.Errorf("the fork's changes: %v", got)
		}
		second := t.startDir(dir, sandbox.Limits{})
		if data, err := second.ReadFile(t.Context(), "a", 100); err != nil || string(data) != "2" {
			t.Errorf("a second fork's a is %q, %v", data, err)
		}
		if err := s.Snapshot(t.Context(), dir); err == nil {
			t.Error("a snapshot went into a folder that is not empty")
		}
	}},
	{"fork", "", func(t *env) {
		s := t.start(map[string]string{"a": "1", "gone": "x", "d/e/f": "deep", "l": "-> a", ".git/HEAD": "ref"}, sandbox.Limits{})
		write := func(s sandbox.Sandbox, name, text string) {
			t.Helper()
			if err := s.WriteFile(t.Context(), name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		read := func(s sandbox.Sandbox, name, want string) {
			t.Helper()
			if data, err := s.ReadFile(t.Context(), name, 100); err != nil || string(data) != want {
				t.Errorf("%s is %q, %v; want %q", name, data, err, want)
			}
		}
		write(s, "a", "2")
		write(s, "new/n", "n")
		fork, err := s.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer fork.Close()
		write(s, "a", "3")
		for name, want := range map[string]string{"a": "2", "new/n": "n", "d/e/f": "deep", ".git/HEAD": "ref", "gone": "x"} {
			read(fork, name, want)
		}
		if got := t.harvest(fork); describe(got, "a") != "file 2" || describe(got, "new/n") != "file n" || len(got) != 2 {
			t.Errorf("the fork's changes: %v", got)
		}
		write(fork, "d/e/f", "4")
		read(s, "d/e/f", "deep")
		read(s, "a", "3")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		second, err := fork.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		read(second, "d/e/f", "4")
		read(second, "a", "2")
		if _, err := s.Fork(t.Context()); !errors.Is(err, sandbox.ErrClosed) {
			t.Errorf("a fork of a closed sandbox: %v", err)
		}
	}},
	{"trees after the end", "", func(t *env) {
		s := t.start(map[string]string{"a": "1"}, sandbox.Limits{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		_, err := s.List(ctx, "")
		errs := []error{err, s.Upload(ctx, "", tarOf(t)), s.Download(ctx, "", io.Discard), s.Snapshot(ctx, filepath.Join(t.TempDir(), "x"))}
		for i, err := range errs {
			if !errors.Is(err, sandbox.ErrClosed) {
				t.Errorf("method %d after Close: %v", i, err)
			}
		}
		live := t.start(map[string]string{"a": "1"}, sandbox.Limits{})
		over, cancel := context.WithCancel(ctx)
		cancel()
		if err := live.Download(over, "", io.Discard); !errors.Is(err, context.Canceled) {
			t.Errorf("download after the context's end: %v", err)
		}
	}},
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the network is gone") }

// packTests need commands to make hostile trees.
var packTests = []test{
	{"fork of a tree that was worked on", "", func(t *env) {
		s := t.start(map[string]string{"README": "x", "src/a": "1", "src/b": "2", "old/a": "3", "old/b/c": "4", "lib/x": "5"}, sandbox.Limits{})
		t.must(s, `rm README; mv src moved; rm -r old; mkdir old; echo n > old/new; chmod 700 lib; ln lib/x lib/y; ln -s x lib/l; mkfifo lib/pipe
mkdir p; echo s > p/q; chmod 400 p/q; echo hidden > /tmp/t`)
		want := t.harvest(s)
		fork, err := s.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer fork.Close()
		got := t.harvest(fork)
		// A pipe may be left out.
		delete(want, "lib/pipe")
		delete(got, "lib/pipe")
		for path := range want {
			if describe(got, path) != describe(want, path) {
				t.Errorf("%s is %q in the fork, %q in the original", path, describe(got, path), describe(want, path))
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d changes in the fork, %d in the original", len(got), len(want))
		}
		const list = "cat moved/a old/new lib/l; ls -A . old; stat -c %U . moved/a lib/x p/q; ls -A /tmp; touch moved/b lib/x; rm -r moved p lib old; ls -A"
		if out := t.must(fork, list); out != "1n\n5.:\nlib\nmoved\nold\np\n\nold:\nnew\nagent\nagent\nagent\nagent\nhome\n" {
			t.Errorf("in the fork: %q", out)
		}
		if out := t.must(s, "cat moved/a /tmp/t"); out != "1hidden\n" {
			t.Errorf("in the original: %q", out)
		}
	}},
	{"download of a hostile tree", "", func(t *env) {
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("hunter2"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := t.start(map[string]string{"a": "x", "locked/b": "y"}, sandbox.Limits{FileSize: 1 << 40, Disk: 8 << 20})
		t.must(s, "ln -s "+secret+" secret; ln -s / root; ln -s . self; mkfifo pipe; mkdir p; echo z > p/q; chmod 000 p/q p locked; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'")
		want := []string{"a x", "locked/", "locked/b y", "p/", "p/q z", "root -> /", "secret -> " + secret, "self -> ."}
		t.within(5*time.Second, func() {
			if got := t.download(s, ""); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
		for _, path := range []string{"secret", "root/etc/passwd", "self/a", "pipe", "sock"} {
			if err := s.Download(t.Context(), path, io.Discard); err == nil {
				t.Errorf("%q was downloaded", path)
			}
		}
		dir := filepath.Join(t.TempDir(), "snapshot")
		if err := s.Snapshot(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		fork := t.startDir(dir, sandbox.Limits{})
		if got := t.must(fork, "cat locked/b p/q; readlink secret"); got != "yz\n"+secret+"\n" {
			t.Errorf("the fork has %q", got)
		}
		t.must(s, "truncate -s 500G sparse")
		t.within(5*time.Second, func() {
			if err := s.Download(t.Context(), "", io.Discard); err == nil {
				t.Error("500 GB were downloaded")
			}
		})
	}},
	{"what is uploaded is the agent's", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		if err := s.Upload(t.Context(), "in", tarOf(t, [2]string{"d/", ""}, [2]string{"d/run.sh", "echo ran\n"})); err != nil {
			t.Fatal(err)
		}
		got := t.must(s, "cd in/d && sh run.sh && echo more >> run.sh && touch new && stat -c '%U %a' run.sh . && rm -r ../d")
		if got != "ran\nagent 640\nagent 750\n" {
			t.Errorf("%q", got)
		}
	}},
}
