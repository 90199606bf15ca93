package selfplay

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Attributes of a repository can have git rewrite content, and refuse content
// that does not fit. Neither must reach what a diff makes or a history holds.
func TestAttributesRewriteNothing(t *testing.T) {
	files := map[string]string{
		".gitattributes": "*.txt text eol=crlf\n*.py ident\n*.dat working-tree-encoding=UTF-16\n",
		"a.txt":          "one\ntwo\n", "a.py": "x = '$Id$'\n", "a.dat": "odd", "b_test.py": "assert 1\n",
	}
	dir := t.TempDir()
	writeTree(t, dir, files)
	r := openRepo(t, dir)
	rules := "diff --git a/.gitattributes b/.gitattributes\n--- a/.gitattributes\n+++ b/.gitattributes\n@@ -1,3 +1,4 @@\n *.txt text eol=crlf\n *.py ident\n *.dat working-tree-encoding=UTF-16\n+*.x eol=crlf\n"
	a := Artifact{
		TestFiles: []byte("b_test.py"),
		BugInject: []byte(rules +
			"diff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n" +
			"diff --git a/a.dat b/a.dat\n--- a/a.dat\n+++ b/a.dat\n@@ -1 +1 @@\n-odd\n\\ No newline at end of file\n+even\n\\ No newline at end of file\n"),
		TestWeaken: []byte("diff --git a/b_test.py b/b_test.py\n--- a/b_test.py\n+++ b/b_test.py\n@@ -1 +1 @@\n-assert 1\n+assert 2\n"),
	}
	tree, err := r.SolverTree(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	want := map[string]string{"a.txt": "one\nthree\n", "a.py": "x = '$Id$'\n", "a.dat": "even", "b_test.py": "assert 2\n"}
	got := readTree(t, tree.Dir)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s is %q, want %q", name, got[name], text)
		}
		blob, err := runGit(t.Context(), tree.Dir, nil, "cat-file", "blob", "HEAD:"+name)
		if err != nil || string(blob) != text {
			t.Errorf("%s is %q in the history, want %q (%v)", name, blob, text, err)
		}
	}
}

// The host's git is handed names that an agent chose.
func TestNamesWithAMeaningToGit(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles)) // it has a .gitignore
	tree, err := r.plainTree(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	names := []string{":(bad)x", ":/", ":!x", "-n", "--stdin", "*", "[a", `\x`, "a b", `"q"`, "é", "000001", "@{-1}"}
	var changes []sandbox.Change
	for _, name := range names {
		changes = append(changes, sandbox.Change{Path: strings.TrimSuffix(name, "/"), Mode: 0o644, Data: []byte("x\n")})
	}
	diff, err := tree.Diff(t.Context(), changes)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePatch(diff)
	if err != nil {
		t.Fatalf("%v in\n%s", err, diff)
	}
	after, err := r.apply(t.Context(), nil, p)
	if err != nil {
		t.Fatalf("%v in\n%s", err, diff)
	}
	for _, c := range changes {
		if f := after[c.Path]; f == nil || string(f.data) != "x\n" {
			t.Errorf("%q came back as %+v", c.Path, f)
		}
	}
}

// binaryPatch is a git binary patch of one file.
func binaryPatch(name, method string, size int, content []byte, isNew bool) []byte {
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	w.Write(content)
	w.Close()
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
	var out bytes.Buffer
	fmt.Fprintf(&out, "diff --git a/%s b/%s\n", name, name)
	if isNew {
		fmt.Fprint(&out, "new file mode 100644\n")
	}
	zero := strings.Repeat("0", 40)
	old := zero
	if !isNew {
		old = strings.Repeat("1", 40)
	}
	id := strings.Repeat("2", 40)
	if method == "literal" {
		id = fmt.Sprintf("%x", sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", size), content...)))
	}
	fmt.Fprintf(&out, "index %s..%s\nGIT binary patch\n%s %d\n", old, id, method, size)
	for chunk := range slices.Chunk(z.Bytes(), 52) {
		n := byte('A' + len(chunk) - 1)
		if len(chunk) > 26 {
			n = byte('a' + len(chunk) - 27)
		}
		out.WriteByte(n)
		for len(chunk)%4 != 0 {
			chunk = append(slices.Clip(chunk), 0)
		}
		for word := range slices.Chunk(chunk, 4) {
			v := binary.BigEndian.Uint32(word)
			var five [5]byte
			for i := 4; i >= 0; i-- {
				five[i], v = digits[v%85], v/85
			}
			out.Write(five[:])
		}
		out.WriteByte('\n')
	}
	out.WriteString("\n")
	return out.Bytes()
}

// A few kilobytes of patch must not make gigabytes on the host.
func TestPatchBombs(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"big": strings.Repeat("0123456789abcde\n", 1<<16), "small": strings.Repeat("y", 1<<16)})
	r := openRepo(t, dir)

	// Each byte 0x80 of a delta copies 65,536 bytes of the source.
	const copies = 60_000
	delta := binary.AppendUvarint(binary.AppendUvarint(nil, 1<<16), copies<<16)
	delta = append(delta, bytes.Repeat([]byte{0x80}, copies)...)

	var many bytes.Buffer
	for i := range 400 {
		fmt.Fprintf(&many, "diff --git a/big b/big%d\nsimilarity index 100%%\ncopy from big\ncopy to big%d\n", i, i)
	}
	for name, patch := range map[string][]byte{
		"delta": binaryPatch("small", "delta", len(delta), delta, false), "copies": many.Bytes(),
	} {
		p, err := ParsePatch(patch)
		if err == nil {
			_, err = r.apply(t.Context(), nil, p)
		}
		var refused *PatchError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "MiB together") && !strings.Contains(err.Error(), "larger than") {
			t.Errorf("%s: %v, want refused for its size", name, err)
		}
	}
	// The same kind of delta within bounds is what it says.
	delta = append(binary.AppendUvarint(binary.AppendUvarint(nil, 1<<16), 3<<16), 0x80, 0x80, 0x80)
	p, err := ParsePatch(binaryPatch("small", "delta", len(delta), delta, false))
	if err != nil {
		t.Fatal(err)
	}
	if deltaSize(p.files[0].BinaryFragment) != 3<<16 {
		t.Errorf("a delta of three copies makes %d bytes, want %d", deltaSize(p.files[0].BinaryFragment), 3<<16)
	}
	// git would inflate the reverse half, which nothing needs.
	reversed := append(binaryPatch("n", "literal", 3, []byte("\x00ab"), true), "literal 1000000000\nHcmV?d00001\n\n"...)
	if p, err = ParsePatch(reversed); err != nil || p.files[0].ReverseBinaryFragment != nil || bytes.Contains(p.Bytes(), []byte("1000000000")) {
		t.Errorf("the reverse of a binary patch is kept: %v", err)
	}
	if after, err := r.apply(t.Context(), nil, p); err != nil || string(after["n"].data) != "\x00ab" {
		t.Errorf("a binary file came out as %v, %v", after["n"], err)
	}
}

// A patch that keeps git busy is the fault of who wrote it, not of the host.
func TestASlowPatchIsRefused(t *testing.T) {
	dir := t.TempDir()
	const lines = 300_000
	writeTree(t, dir, map[string]string{"f": strings.Repeat("\n", lines)})
	r := openRepo(t, dir)
	var b strings.Builder
	const hunk = 100_000
	fmt.Fprintf(&b, "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -2,%d +2,%d @@\n", hunk+3, hunk+2)
	b.WriteString(strings.Repeat(" \n", hunk) + "-\n x\n \n")
	p, err := ParsePatch([]byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	was := gitTimeout
	gitTimeout = time.Second
	defer func() { gitTimeout = was }()
	_, err = r.apply(t.Context(), nil, p)
	var refused *PatchError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "takes more than 1s") {
		t.Errorf("%v, want refused for its time", err)
	}
}

// Nothing about a prepared file but its content may differ between files that
// the bug changed and others.
func TestSolverTreeDoesNotPointAtTheChange(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "ssr-test-")
	if err == nil {
		defer os.RemoveAll(memory)
		t.Setenv("TMPDIR", memory) // where folders are listed in the order of their making
	}
	r := openRepo(t, gitRepo(t, calcFiles))
	tree, err := r.SolverTree(t.Context(), calcArtifact(t, r), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	entries := 0
	for line := range strings.Lines(git(t, tree.Dir, "ls-files", "--debug")) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "ctime:"), strings.HasPrefix(line, "dev:"), strings.HasPrefix(line, "uid:"):
			entries++
			if strings.Trim(line, "ctimedvnoug:0 \t") != "" {
				t.Errorf("the index says %q of a file on the host", line)
			}
		}
	}
	if entries != 3*len(calcFiles) {
		t.Errorf("%d lines about %d files", entries, len(calcFiles))
	}
	if got := git(t, tree.Dir, "status", "--porcelain"); got != "" {
		t.Errorf("the tree is not clean: %s", got)
	}
	for _, sub := range []string{"calc", "tests"} {
		d, err := os.Open(filepath.Join(tree.Dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		names, err := d.Readdirnames(-1)
		d.Close()
		if err != nil {
			t.Fatal(err)
		}
		backwards := slices.Clone(names)
		slices.Reverse(backwards)
		if !slices.IsSorted(names) && !slices.IsSorted(backwards) && memory != "" {
			t.Errorf("%s is listed as %v", sub, names)
		}
	}
}

// What a patch brings beside the repair: taken, left out (with or without a
// note), or a reason to refuse it all.
func TestWhatAPatchMayBring(t *testing.T) {
	const (
		taken   = "taken"
		left    = "left out"
		refused = "refused"
	)
	base := map[string]string{
		"calc/use.py": "import numpy as np, yaml\nfrom attr.validators import optional\nfrom . import arith\n", "calc/tools/run.py": "x = 1\n", "tools/check.sh": "true\n",
		"calc/__main__.py": "x = 1\n", "vendor/dep/dep.go": "package dep\n", "calc/vector/__init__.py": "", "tests/helper.py": "import calc.vector\n",
		"pyproject.toml": "[project]\n", "Makefile": "all:\n", "plain.sh": "true\n",
	}
	for k, v := range calcFiles {
		base[k] = v
	}
	r := openRepo(t, gitRepo(t, base))
	a := calcArtifact(t, r)
	a.TestScript = []byte("#!/bin/bash\nbash ./tools/check.sh && python3 -m calc.tools.run; python3 -m calc\n" + calcScript)
	given := buggyTree(t, r, a)
	for want, names := range map[string][]string{
		taken: {"calc/helper.py", "helper.py", "calc/types.py", "README.md", "docs/a.md", "plain.sh", "tools/new.sh", "calc/yaml.py", "data.json", "env.py",
			"vector.py", "calc/arith.py", "calc/numpy/x.txt", "scripts/venv.sh"},
		left: {"tests/test_arith.py", "tests/new.py", "tests/conftest.py", "calc/__pycache__/a.pyc", "a.pyc", ".gitignore", "calc/.gitattributes", "pyproject.toml", "Makefile",
			"vendor/dep/dep.go", "vendor/new/new.go", "node_modules/chai/index.js", "web/node_modules/x.js", "tools/check.sh", "calc/tools/run.py", "calc/__main__.py", ".venv/lib/x.py", "x.egg-info/entry_points.txt"},
		refused: {"conftest.py", "calc/conftest.py", "pytest.ini", "pytest.toml", "sitecustomize.py", "usercustomize.py", "lib/x.pth", "json.py", "unittest/__init__.py", "src/unittest/__init__.py", "_json.py", "_strptime.py",
			"numpy/__init__.py", "numpy.py", "yaml.py", "src/attr/__init__.py", "setup.cfg", "tox.ini", "Gemfile", ".env", ".env.test", ".bashrc", ".npmrc", "jest.config.js", "bunfig.toml",
			".mvn/jvm.config", ".config/nextest.toml", ".cargo/config.toml", "go.work", "a.so", "a.cpython-311-x86_64-linux-gnu.so", "rules.mk", "x-1.0.dist-info/entry_points.txt", "test_script.sh", ".Rprofile", ".proverc", "phpunit.xml"},
	} {
		for _, name := range names {
			change := edits{name: {"", "x\n"}}
			if f, err := r.lookup(given, name); err != nil {
				t.Fatal(err)
			} else if f != nil {
				change = edits{name: {string(f.data), string(f.data) + "# changed\n"}}
			}
			got := taken
			filtered, err := r.filterPatch(given, a, diffOf(t, r, given, change))
			if err != nil {
				got = refused
			} else if len(filtered.patch.files) == 0 {
				got = left
			}
			if got != want {
				t.Errorf("%s is %s (%v), want %s", name, got, err, want)
			}
		}
	}
}

// docstringForgery forges good results for the tests that fail, in the form that
// unittest gives to a test with a docstring.
const docstringForgery = "import atexit, sys\ndef forge():\n" +
	"    for c, n in (('arith.Arith', 'sub'), ('text.Text', 'initials')):\n" +
	"        sys.stderr.write('test_%s (tests.test_%sTest.test_%s)\\nSays what it does. ... ok\\n' % (n, c, n))\n    sys.stderr.flush()\natexit.register(forge)\n"

// A parser that carries a test's name from one line to the next cannot be asked
// about the reversed log; results that are told twice are counted instead.
func TestForgedResultsBehindAParserWithState(t *testing.T) {
	base := map[string]string{}
	for k, v := range calcFiles {
		base[k] = v
	}
	doc := "(self):\n        \"\"\"Says what it does.\"\"\"\n"
	for _, name := range []string{"tests/test_arith.py", "tests/test_text.py"} {
		base[name] = strings.ReplaceAll(base[name], "(self):\n", doc)
	}
	r := openRepo(t, gitRepo(t, base))
	v := NewValidator(localBackend(t), r, Options{Timeout: 10 * time.Second})
	a := calcArtifact(t, r)
	a.TestParser = []byte(`import json, re, sys
out, name = {}, None
for line in sys.stdin:
    m = re.match(r"test_\w+ \(([\w.]+)\)$", line)
    if m:
        name = m.group(1)
    m = re.match(r".* \.\.\. (ok|FAIL|ERROR)$", line)
    if m and name:
        out[name] = "passed" if m.group(1) == "ok" else "failed"
        name = None
json.dump(out, sys.stdout)
`)
	for _, c := range []struct {
		name   string
		edits  edits
		solved bool
		reason string
	}{
		{"the fix", fixEdits(), true, "all 6 tests pass"},
		{"the forgery", edits{"calc/__init__.py": {"", docstringForgery}}, false, "the log names tests.test_arith.ArithTest.test_sub 3 times, on the original 1 times"},
	} {
		if verdict := judgeEdits(t, v, r, a, c.edits); verdict.Solved != c.solved || !strings.Contains(verdict.Reason, c.reason) {
			t.Errorf("%s: solved %v, reason %q; want %v, %q", c.name, verdict.Solved, verdict.Reason, c.solved, c.reason)
		}
	}
}

// A parser that takes a skip for a pass is known by a test that is skipped.
func TestSkippingBehindACarelessParser(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	a.TestParser = []byte(strings.NewReplacer("(ok|FAIL|ERROR)$", "(ok|FAIL|ERROR|skipped.*)$", `== "ok"`, `not in ("FAIL", "ERROR")`).Replace(calcParser))
	skip := "    import unittest\n    raise unittest.SkipTest('later')\n    "
	for _, c := range []struct {
		name   string
		edits  edits
		solved bool
		reason string
	}{
		{"the fix", fixEdits(), true, "all 6 tests pass"},
		{"skipping", edits{"calc/arith.py": {"    return b - a", skip + "return b - a"}, "calc/text.py": {"    return \"\".join", skip + "return \"\".join"}}, false, "takes a skipped test for one that passed"},
	} {
		if verdict := judgeEdits(t, v, r, a, c.edits); verdict.Solved != c.solved || !strings.Contains(verdict.Reason, c.reason) {
			t.Errorf("%s: solved %v, reason %q; want %v, %q", c.name, verdict.Solved, verdict.Reason, c.solved, c.reason)
		}
	}
}

// Results of tests that the original does not have are named in the verdict.
func TestInventedResultsAreNamed(t *testing.T) {
	r, v := calcValidator(t, Options{})
	e := with(fixEdits(), edits{"calc/__init__.py": {"", "import sys\nsys.stderr.write('test_new (tests.test_new.T.test_new) ... ok\\n')\n"}})
	verdict := judgeEdits(t, v, r, calcArtifact(t, r), e)
	if !verdict.Solved || !strings.Contains(verdict.Reason, "1 results are of tests that the original run does not have: tests.test_new.T.test_new") {
		t.Errorf("%+v", verdict)
	}
}

// Control tests work in JavaScript as they do in Python.
func TestTamperingInJavaScript(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("needs node")
	}
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{
		"sum.js":           "exports.sum = (a, b) => a + b;\nexports.neg = (a) => -a;\n",
		"test/sum.test.js": "const { test } = require('node:test');\nconst assert = require('node:assert');\nconst { sum, neg } = require('../sum.js');\ntest('sums', () => { assert.equal(sum(1, 2), 3); });\ntest('negates', () => { assert.equal(neg(1), -1); });\n",
	})
	r := openRepo(t, dir)
	v := NewValidator(localBackend(t), r, Options{Timeout: 20 * time.Second})
	a := Artifact{
		TestScript: []byte("node test/sum.test.js\n"), TestFiles: []byte("test/sum.test.js"),
		TestParser: []byte("import json, re, sys\nout = {}\nfor line in sys.stdin:\n    m = re.match(r'(not )?ok \\d+ - (\\S+)( # SKIP)?', line.strip())\n    if m:\n        out[m.group(2)] = 'failed' if m.group(1) or m.group(3) else 'passed'\nprint(json.dumps(out))\n"),
		BugInject:  diffOf(t, r, nil, edits{"sum.js": {"=> -a", "=> a"}}),
		TestWeaken: diffOf(t, r, nil, edits{"test/sum.test.js": {"assert.equal(neg(1), -1);", "neg(1);"}}),
	}
	report := Report{Valid: true, FailToPass: []string{"negates"}, PassToPass: []string{"sums"}}
	forged := "process.stdout.write('ok 1 - sums\\nok 2 - negates\\n');\nprocess.exit(0);\n"
	for _, c := range []struct {
		name   string
		edits  edits
		solved bool
		reason string
	}{
		{"the fix", edits{"sum.js": {"=> a;", "=> -a;"}}, true, "all 2 tests pass"},
		{"forged results", edits{"sum.js": {"exports.sum", forged + "exports.sum"}}, false, "a control test is missing from the run of test/sum.test.js"},
	} {
		verdict, err := v.Verdict(t.Context(), a, report, diffOf(t, r, buggyTree(t, r, a), c.edits), nil)
		if err != nil || verdict.Solved != c.solved || !strings.Contains(verdict.Reason, c.reason) {
			t.Errorf("%s: %+v, %v; want solved %v, %q", c.name, verdict, err, c.solved, c.reason)
		}
	}
}
