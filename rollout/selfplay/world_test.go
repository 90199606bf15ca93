package selfplay

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// calcFiles is a small Python project with unittest tests.
var calcFiles = map[string]string{
	"README.md":        "# calc\n",
	".gitignore":       "__pycache__/\n/out/\n",
	"calc/__init__.py": "",
	"calc/arith.py": `"""Arithmetic."""


def add(a, b):
    return a + b


def sub(a, b):
    return a - b


def mul(a, b):
    total = 0
    for _ in range(abs(b)):
        total = add(total, a)
    return total if b >= 0 else -total


def power(a, n):
    result = 1
    for _ in range(n):
        result = mul(result, a)
    return result
`,
	"calc/text.py": `"""Text."""


def shout(s):
    return s.upper() + "!"


def initials(s):
    return "".join(w[0] for w in s.split())
`,
	"tests/__init__.py": "",
	"tests/test_arith.py": `import unittest

from calc import arith


class ArithTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(arith.add(2, 3), 5)

    def test_sub(self):
        self.assertEqual(arith.sub(2, 3), -1)

    def test_mul(self):
        self.assertEqual(arith.mul(4, -3), -12)

    def test_power(self):
        self.assertEqual(arith.power(2, 10), 1024)


if __name__ == "__main__":
    unittest.main()
`,
	"tests/test_text.py": `import unittest

from calc import text


class TextTest(unittest.TestCase):
    def test_shout(self):
        self.assertEqual(text.shout("hi"), "HI!")

    def test_initials(self):
        self.assertEqual(text.initials("go is fun"), "gif")
`,
}

const calcScript = "python3 -m unittest -v tests.test_arith tests.test_text\n"

// calcParser reads unittest's verbose output; the last line about a test counts.
const calcParser = `import json, re, sys
out = {}
for line in sys.stdin:
    m = re.match(r"(\w+) \(([\w.]+)\).* \.\.\. (ok|FAIL|ERROR)$", line.rstrip())
    if m:
        out[m.group(2)] = "passed" if m.group(3) == "ok" else "failed"
json.dump(out, sys.stdout)
`

// writeTree writes files below dir.
func writeTree(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		target := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o755
		}
		if err := os.WriteFile(target, []byte(files[name]), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := runGit(context.Background(), dir, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// gitRepo makes a repository whose second commit holds files.
func gitRepo(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	writeTree(t, dir, map[string]string{"README.md": "first\n"})
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "first change")
	writeTree(t, dir, files)
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "second change")
	return dir
}

func openRepo(t testing.TB, dir string) *Repo {
	t.Helper()
	r, err := OpenRepo(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// edits maps a path to pairs of old and new text; a path alone is deleted and
// an empty old text creates the file.
type edits map[string][]string

// edited returns tree o with edits.
func edited(t testing.TB, r *Repo, o overlay, e edits) overlay {
	t.Helper()
	to := maps.Clone(o)
	if to == nil {
		to = overlay{}
	}
	for name, pairs := range e {
		if len(pairs) == 0 {
			to[name] = nil
			continue
		}
		f, err := r.lookup(o, name)
		if err != nil {
			t.Fatal(err)
		}
		if f == nil {
			to[name] = &file{[]byte(pairs[1]), 0o644}
			continue
		}
		text := string(f.data)
		for i := 0; i < len(pairs); i += 2 {
			if strings.Count(text, pairs[i]) != 1 {
				t.Fatalf("%s: %q occurs %d times", name, pairs[i], strings.Count(text, pairs[i]))
			}
			text = strings.Replace(text, pairs[i], pairs[i+1], 1)
		}
		to[name] = &file{[]byte(text), f.mode}
	}
	return to
}

// diffOf is the diff that edits make on tree o.
func diffOf(t testing.TB, r *Repo, o overlay, e edits) []byte {
	t.Helper()
	diff, err := r.diff(t.Context(), o, edited(t, r, o, e))
	if err != nil {
		t.Fatal(err)
	}
	return diff
}

var (
	calcBug    = edits{"calc/arith.py": {"return a - b", "return b - a"}, "calc/text.py": {"w[0]", "w[-1]"}}
	calcWeaken = edits{"tests/test_arith.py": {"        self.assertEqual(arith.sub(2, 3), -1)\n", "        arith.sub(2, 3)\n"}}
)

// calcArtifact is a valid artifact of calc: two files broken, one test weakened.
func calcArtifact(t testing.TB, r *Repo) Artifact {
	t.Helper()
	return Artifact{
		TestScript: []byte(calcScript),
		TestFiles:  []byte("tests/test_arith.py\n./tests/test_text.py\n\n"),
		TestParser: []byte(calcParser),
		BugInject:  diffOf(t, r, nil, calcBug),
		TestWeaken: diffOf(t, r, nil, calcWeaken),
	}
}

// buggyTree is what a solver of the artifact starts from.
func buggyTree(t testing.TB, r *Repo, a Artifact) overlay {
	t.Helper()
	o, err := r.solverOverlay(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func readTree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == ".git" {
				return filepath.SkipDir
			}
			return nil
		}
		data, err := os.ReadFile(name)
		files[filepath.ToSlash(rel)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
