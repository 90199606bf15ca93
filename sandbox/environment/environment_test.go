package environment

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/fake"
)

func writeTar(t *testing.T, name string, headers ...tar.Header) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	var w io.WriteCloser = f
	switch filepath.Ext(name) {
	case ".gz":
		w = gzip.NewWriter(f)
	case ".zst":
		if w, err = zstd.NewWriter(f); err != nil {
			t.Fatal(err)
		}
	}
	out := tar.NewWriter(w)
	for _, h := range headers {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text, h.Linkname = h.Linkname, ""
			h.Size = int64(len(text))
		}
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(out, text)
	}
	err = errors.Join(out.Close(), w.Close())
	if w != f {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

var system = []tar.Header{
	{Typeflag: tar.TypeDir, Name: "./usr/", Mode: 0o555}, {Typeflag: tar.TypeReg, Name: "./usr/bin/x", Mode: 0o4755, Linkname: "program"},
	{Typeflag: tar.TypeLink, Name: "./usr/bin/y", Linkname: "./usr/bin/x"}, {Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin"},
	{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666}, {Typeflag: tar.TypeSymlink, Name: "etc/abs", Linkname: "/etc/passwd"},
}

func TestUnpackRoot(t *testing.T) {
	for _, name := range []string{"r.tar", "r.tar.gz", "r.tar.zst"} {
		dir := filepath.Join(t.TempDir(), "root")
		if err := UnpackRoot(writeTar(t, name, system...), dir); err != nil {
			t.Fatal(name, err)
		}
		info, err := os.Stat(dir + "/bin/x")
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: %v %v", name, info, err)
		}
		if data, err := os.ReadFile(dir + "/usr/bin/y"); err != nil || string(data) != "program" {
			t.Errorf("%s: %q %v", name, data, err)
		}
		if info, err := os.Stat(dir + "/usr"); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v", name, info, err)
		}
		if _, err := os.Lstat(dir + "/dev/null"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a device was made", name)
		}
	}
}

func TestUnpackRootRefuses(t *testing.T) {
	outside := t.TempDir()
	for name, c := range map[string]struct {
		want string
		h    []tar.Header
	}{
		"leaves":         {"escapes", []tar.Header{{Typeflag: tar.TypeReg, Name: "../x"}}},
		"through a link": {"escapes", []tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "l/x"}}},
		"hard link out":  {"escapes", []tar.Header{{Typeflag: tar.TypeLink, Name: "p", Linkname: "../../etc/passwd"}}},
		"layers":         {"docker export", []tar.Header{{Typeflag: tar.TypeReg, Name: "manifest.json"}}},
		"no system":      {"no folder usr", []tar.Header{{Typeflag: tar.TypeReg, Name: "x"}}},
	} {
		err := UnpackRoot(writeTar(t, "r.tar", c.h...), filepath.Join(t.TempDir(), "root"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if list, _ := os.ReadDir(outside); len(list) > 0 {
		t.Errorf("%v was written outside", list)
	}
}

func TestStore(t *testing.T) {
	s := Store{filepath.Join(t.TempDir(), "deep/store")}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := s.Get("missing"); err == nil || !strings.Contains(err.Error(), "ssr env add") {
		t.Error(err)
	}
	// What a killed process leaves of one.
	half := Store{t.TempDir()}
	if err := os.WriteFile(half.file("half"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := half.List(); err == nil || !strings.Contains(err.Error(), "half.json is not whole") || !strings.Contains(err.Error(), "add it again") {
		t.Error(err)
	}
	e, err := s.Add(Environment{Name: "tar", Rootfs: writeTar(t, "r.tar", system...)})
	if err != nil || e.Rootfs != filepath.Join(s.Dir, "tar") || e.Backend() != "local" {
		t.Fatal(e, err)
	}
	if n, err := Size(e.Rootfs); err != nil || n != int64(2*len("program")) {
		t.Errorf("size %d %v", n, err)
	}
	if e, err = s.Add(Environment{Name: "image", Image: "python:3"}); err != nil || e.Backend() != "docker" {
		t.Error(e, err)
	}
	for name, bad := range map[string]Environment{
		"twice": {Name: "tar", Image: "x"}, "name": {Name: "../x", Image: "x"}, "nothing": {Name: "n"}, "both": {Name: "b", Image: "x", Rootfs: "/"},
		"missing": {Name: "m", Rootfs: "/nonexistent/x.tar"}, "no tar": {Name: "t", Rootfs: os.Args[0]},
	} {
		if e, err := s.Add(bad); err == nil {
			t.Errorf("%s: accepted %v", name, e)
		}
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Name != "image" || list[1].Rootfs != filepath.Join(s.Dir, "tar") {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := s.Get("missing"); err == nil || !strings.HasSuffix(err.Error(), "there are image, tar") {
		t.Error(err)
	}
}

func TestReadTests(t *testing.T) {
	log := "tests/test_a.py::test_one PASSED            [ 50%]\ntests/test_a.py::test_two[a b] FAILED [100%]\n" +
		"PASSED tests/test_b.py::test_three\nFAILED tests/test_b.py::test_four - AssertionError: x\n" +
		"test_five (mod.Case) ... ok\ntest_six (mod.Case)\nWhat it does. ... FAIL\n" +
		"--- PASS: TestSeven (0.01s)\n    --- FAIL: TestSeven/eight (0.00s)\nPASSED nothing\n"
	want := map[string]bool{
		"tests/test_a.py::test_one": true, "tests/test_a.py::test_two[a b]": false, "tests/test_b.py::test_three": true, "tests/test_b.py::test_four": false,
		"test_five (mod.Case)": true, "test_six (mod.Case)": false, "TestSeven": true, "TestSeven/eight": false,
	}
	if got := readTests([]byte(log)); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestCheckFindsFlakyTests(t *testing.T) {
	n := 0
	b := fake.New(func(_ context.Context, s *fake.Sandbox, _ sandbox.Cmd) (sandbox.Result, error) {
		n++
		r := sandbox.Result{Stdout: []byte("a::stable PASSED\na::broken FAILED\n"), Exit: 1}
		if n != 3 {
			r.Stdout = append(r.Stdout, "a::flaky PASSED\n"...)
		} else {
			r.Stdout = append(r.Stdout, "a::flaky FAILED\na::late FAILED\n"...)
		}
		if _, dirty := s.Get("left"); dirty {
			t.Error("a run sees what another left")
		}
		s.Put("left", fake.File{})
		return r, nil
	})
	defer b.Close()
	r, err := Check(t.Context(), b, sandbox.Spec{}, sandbox.Cmd{Args: []string{"x"}}, 4)
	if err != nil || r.Passing != 1 || r.Failing != 1 || !slices.Equal(r.Unstable, []string{"a::flaky", "a::late"}) || !r.Flaky() || r.OK() || r.Exits[1] != 4 {
		t.Errorf("%+v %v", r, err)
	}
	if b.Live() != 0 {
		t.Error("sandboxes are left")
	}
	b.Inject(fake.Fault{Op: fake.Exec, Err: fake.ErrLost})
	if _, err := Check(t.Context(), b, sandbox.Spec{}, sandbox.Cmd{Args: []string{"x"}}, 4); !errors.Is(err, sandbox.ErrInfrastructure) {
		t.Error(err)
	}
}
