package selfplay

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"slices"
	"strings"
	"testing"
)

func zipOf(t *testing.T, name, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	return b.String()
}

func tarGzipOf(t *testing.T, name, text string) string {
	t.Helper()
	var b bytes.Buffer
	g := gzip.NewWriter(&b)
	w := tar.NewWriter(g)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err != nil || w.Close() != nil || g.Close() != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What a project keeps beside its sources can hold the answer in many forms.
// The left column must be gone from a solver's tree; the right one, which looks
// alike and tells nothing, must stay.
func TestSolverTreeKeepsWhatTellsNothing(t *testing.T) {
	original, other := calcFiles["calc/arith.py"], calcFiles["calc/__init__.py"]+"x = 'nothing of the kind'\n"
	line := "    return a - b\n"
	gone := map[string]string{
		"calc/arith.py.orig": original, "calc/arith.py.bak": "older", "calc/arith.py~": original, "calc/.arith.py.swp": original, "calc/#arith.py#": original,
		"build/lib/calc/arith.py": original, "dist/bundle.js": "x\n" + line, "old/arith2.py": original + "# edited\n", "out/arith.map": "{}",
		"calc/arith.o": "compiled", "calc/__pycache__/arith.cpython-311.pyc": "compiled", "fix.patch": "+" + line, "calc/arith.py.rej": "+" + line, "notes.diff": "-" + line,
		"tags": "sub\tcalc/arith.py\t/^" + strings.TrimSpace(line) + "$/\n", "cscope.out": "x", ".hg/store/data": "x", ".svn/wc.db": "x", "sub/.jj/store": "x", ".bash_history": "vim",
		"dist/calc-1.0.zip": zipOf(t, "calc/arith.py", original), "release.whl": zipOf(t, "calc/arith.py", original), "dist/calc-1.0.tar.gz": tarGzipOf(t, "calc-1.0/calc/arith.py", original),
		"tests/data/all.tgz": tarGzipOf(t, "a", original), "dist/calc.tar.xz": "not looked into", "dist/broken.zip": "PK", "history.bundle": "# v2 git bundle\n",
		"venv/site-packages/calc/arith.py": original, "calc.egg-info/SOURCES.txt": "calc/arith.py",
	}
	kept := map[string]string{
		"docs/build/guide.md": "how to build\n", "dist/README": "x\n", "tests/data/some.zip": zipOf(t, "a", other), "tests/data/some.tar.gz": tarGzipOf(t, "a", other),
		"tests/data/broken.zip": "PK", "calc/other.o": "compiled", "series/first.patch": "+x\n", "tests/data/tags": "a list of tags\n", "calc/copy.py": original, "data.bundle": "not git's",
		"tests/data/pack.xz": "x",
	}
	files := map[string]string{}
	for _, m := range []map[string]string{calcFiles, gone, kept} {
		for k, v := range m {
			files[k] = v
		}
	}
	r := openRepo(t, gitRepo(t, files))
	tree, err := r.SolverTree(t.Context(), calcArtifact(t, r), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	got := readTree(t, tree.Dir)
	for name := range gone {
		if _, there := got[name]; there {
			t.Errorf("%s is still there", name)
		}
	}
	for name, text := range kept {
		if got[name] != text {
			t.Errorf("%s is gone", name)
		}
	}
	for name := range calcFiles {
		if _, there := got[name]; !there {
			t.Errorf("%s is gone", name)
		}
	}
	// Nor does the tree's own history hold any of it.
	objects := strings.Split(git(t, tree.Dir, "ls-tree", "-r", "--name-only", "HEAD"), "\n")
	for name := range gone {
		if slices.Contains(objects, name) {
			t.Errorf("%s is in the history", name)
		}
	}
}
