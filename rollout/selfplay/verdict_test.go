package selfplay

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// calcReport is what validation says of calcArtifact.
func calcReport() Report {
	return Report{
		Valid:      true,
		FailToPass: []string{"tests.test_arith.ArithTest.test_sub", "tests.test_text.TextTest.test_initials"},
		PassToPass: []string{
			"tests.test_arith.ArithTest.test_add", "tests.test_arith.ArithTest.test_mul",
			"tests.test_arith.ArithTest.test_power", "tests.test_text.TextTest.test_shout",
		},
	}
}

// fixEdits undo calcBug.
func fixEdits() edits {
	return edits{"calc/arith.py": {"return b - a", "return a - b"}, "calc/text.py": {"w[-1]", "w[0]"}}
}

// with adds edits to edits.
func with(e edits, more edits) edits {
	e = maps.Clone(e)
	maps.Copy(e, more)
	return e
}

func judgeEdits(t *testing.T, v *Validator, r *Repo, a Artifact, e edits) Verdict {
	t.Helper()
	verdict, err := v.Verdict(t.Context(), a, calcReport(), diffOf(t, r, buggyTree(t, r, a), e), nil)
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

func TestVerdictsOnHonestPatches(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	for _, c := range []struct {
		name   string
		edits  edits
		solved bool
		reason string
	}{
		{"the fix", fixEdits(), true, "all 6 tests pass"},
		{"half of it", edits{"calc/text.py": {"w[-1]", "w[0]"}}, false, "1 of 6 tests do not pass: tests.test_arith.ArithTest.test_sub"},
		{"one that breaks another test", with(fixEdits(), edits{"calc/text.py": {"w[-1]", "w[0]", ".upper()", ""}}), false, "1 of 6 tests do not pass: tests.test_text.TextTest.test_shout"},
		{"one that does not import", with(fixEdits(), edits{"calc/__init__.py": {"", "import nothing_like_it\n"}}), false, "6 of 6 tests do not pass"},
		{"the fix with caches", with(fixEdits(), edits{"calc/__pycache__/text.cpython-311.pyc": {"", "x"}, ".pytest_cache/v": {"", "x"}, "calc/text.py~": {"", "x"}}), true, "all 6 tests pass"},
		{"the fix with a helper module", with(edits{"calc/arith.py": {"return b - a", "from calc.types import minus\n    return minus(a, b)"}, "calc/types.py": {"", "def minus(a, b):\n    return a - b\n"}},
			edits{"calc/text.py": {"w[-1]", "w[0]"}}), true, "all 6 tests pass"},
		{"the fix with a new test", with(fixEdits(), edits{"tests/test_more.py": {"", "import unittest\n"}}), true, "all 6 tests pass"},
		{"the fix with the test restored", with(fixEdits(), edits{"tests/test_arith.py": {"        arith.sub(2, 3)\n", "        self.assertEqual(arith.sub(2, 3), -1)\n"}}), true, "all 6 tests pass"},
		{"the fix with notes and an ignore rule", with(fixEdits(), edits{"NOTES.md": {"", "# what I did\n"}, ".gitignore": {"/out/", "/out/\n*.log"}}), true, "the change of .gitignore was left out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			verdict := judgeEdits(t, v, r, a, c.edits)
			if verdict.Solved != c.solved || !strings.Contains(verdict.Reason, c.reason) {
				t.Errorf("solved %v, reason %q; want %v, %q", verdict.Solved, verdict.Reason, c.solved, c.reason)
			}
		})
	}
}

func TestVerdictRecordsEachTest(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	a.TestScript = []byte(calcScript + "if [ -e NEW ]; then echo 'test_new (x.new) ... ok'; fi\n")
	// mul is deleted, so that power fails with it.
	got := judgeEdits(t, v, r, a, edits{"calc/arith.py": {"return b - a", "return a - b"}, "calc/text.py": {"def initials", "def shorten"}, "NEW": {"", "x"}})
	want := Verdict{
		Reason: "1 of 6 tests do not pass: tests.test_text.TextTest.test_initials",
		Tests: map[string]TestStatus{
			"tests.test_arith.ArithTest.test_add": Passed, "tests.test_arith.ArithTest.test_mul": Passed,
			"tests.test_arith.ArithTest.test_power": Passed, "tests.test_arith.ArithTest.test_sub": Passed,
			"tests.test_text.TextTest.test_initials": Failed, "tests.test_text.TextTest.test_shout": Passed,
		},
		Unknown: []string{"x.new"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A module that is gone takes its tests with it.
	got = judgeEdits(t, v, r, a, edits{"calc/text.py": nil})
	if got.Solved || got.Tests["tests.test_text.TextTest.test_shout"] != Missing {
		t.Errorf("%+v", got)
	}
}

func TestVerdictsOnPatchesThatCannotBeUsed(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	fix := string(diffOf(t, r, buggyTree(t, r, a), fixEdits()))
	for name, c := range map[string]struct{ patch, reason string }{
		"empty":           {"", "2 of 6 tests do not pass: tests.test_arith.ArithTest.test_sub, tests.test_text.TextTest.test_initials; the patch is empty"},
		"prose":           {"I fixed it.\n", "refused: patch: no changed file"},
		"stale":           {strings.ReplaceAll(fix, "-    return b - a", "-    return c - a"), "refused: patch: does not apply"},
		"garbage":         {"diff --git a/x b/x\n@@ @@\n\x00\xff", "refused: patch: line 2: hunk header"},
		"path traversal":  {fix + "diff --git a/../../x b/../../x\nnew file mode 100644\n--- /dev/null\n+++ b/../../x\n@@ -0,0 +1 @@\n+x\n", `refused: patch: path "../../x" leaves the tree`},
		"absolute path":   {fix + "diff --git a//etc/x b//etc/x\nnew file mode 100644\n--- /dev/null\n+++ b//etc/x\n@@ -0,0 +1 @@\n+x\n", "refused: patch: "},
		"git hook":        {fix + "diff --git a/.git/hooks/x b/.git/hooks/x\nnew file mode 100755\n--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n", "inside .git"},
		"symbolic link":   {fix + "diff --git a/tests/l b/calc/l\nnew file mode 120000\n--- /dev/null\n+++ b/calc/l\n@@ -0,0 +1 @@\n+/etc\n\\ No newline at end of file\n", "symbolic link"},
		"file as folder":  {fix + "diff --git a/README.md/x b/README.md/x\nnew file mode 100644\n--- /dev/null\n+++ b/README.md/x\n@@ -0,0 +1 @@\n+x\n", "which is not a folder"},
		"folder as file":  {fix + "diff --git a/calc b/calc\nnew file mode 100644\n--- /dev/null\n+++ b/calc\n@@ -0,0 +1 @@\n+x\n", "refused: patch: "},
		"submodule":       {fix + "diff --git a/m b/m\nnew file mode 160000\n--- /dev/null\n+++ b/m\n@@ -0,0 +1 @@\n+Subproject commit 1234567890123456789012345678901234567890\n", "submodule"},
		"too large":       {fix + strings.Repeat("#", maxPatchBytes), "more than 1048576"},
		"native module":   {fix + "diff --git a/calc/arith.so b/calc/arith.so\nnew file mode 100644\nindex 0000000000000000000000000000000000000000..1111111111111111111111111111111111111111\nBinary files /dev/null and b/calc/arith.so differ\n", "calc/arith.so"},
		"binary, no data": {fix + "diff --git a/calc/x.bin b/calc/x.bin\nnew file mode 100644\nindex 0000000..1111111\nBinary files /dev/null and b/calc/x.bin differ\n", "its content is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			verdict, err := v.Verdict(t.Context(), a, calcReport(), []byte(c.patch), nil)
			if err != nil {
				t.Fatal(err)
			}
			if verdict.Solved || !strings.Contains(verdict.Reason, c.reason) || len(verdict.Tests) != 6 {
				t.Errorf("solved %v, reason %q, want %q in it", verdict.Solved, verdict.Reason, c.reason)
			}
		})
	}
}

func TestVerdictOnASecondOrderBug(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	given := buggyTree(t, r, a)
	failed := diffOf(t, r, given, edits{"calc/text.py": {"w[-1]", "w[1]"}})
	worse, err := r.solverOverlay(t.Context(), a, failed)
	if err != nil {
		t.Fatal(err)
	}
	patch := diffOf(t, r, worse, edits{"calc/arith.py": {"return b - a", "return a - b"}, "calc/text.py": {"w[1]", "w[0]"}})
	verdict, err := v.Verdict(t.Context(), a, calcReport(), patch, failed)
	if err != nil || !verdict.Solved {
		t.Errorf("%+v, %v; want solved", verdict, err)
	}
	// The same patch does not fit the first-order bug.
	verdict, err = v.Verdict(t.Context(), a, calcReport(), patch, nil)
	if err != nil || verdict.Solved || !strings.Contains(verdict.Reason, "does not apply") {
		t.Errorf("%+v, %v; want refused", verdict, err)
	}
}

// Where tests lie beside the code, only the listed files are restored: the
// whole folder would bring the original code back.
func TestTestsBesideTheCode(t *testing.T) {
	backend := localBackend(t)
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{
		"calc.py": "def add(a, b):\n    return a + b\n\n\ndef neg(a):\n    return -a\n",
		"test_calc.py": "import unittest\nimport calc\n\n\nclass T(unittest.TestCase):\n" +
			"    def test_add(self):\n        self.assertEqual(calc.add(1, 2), 3)\n\n    def test_neg(self):\n        self.assertEqual(calc.neg(1), -1)\n",
	})
	r := openRepo(t, dir)
	v := NewValidator(backend, r, Options{Timeout: 5 * time.Second})
	a := Artifact{
		TestScript: []byte("python3 -m unittest -v"),
		TestFiles:  []byte("test_calc.py"),
		TestParser: []byte(calcParser),
		BugInject:  diffOf(t, r, nil, edits{"calc.py": {"return -a", "return a"}}),
		TestWeaken: diffOf(t, r, nil, edits{"test_calc.py": {"self.assertEqual(calc.neg(1), -1)", "calc.neg(1)"}}),
	}
	report := validate(t, v, a, Requirements{2, 1, 1})
	if !report.Valid {
		t.Fatalf("refused: %+v", report.Checks)
	}
	for _, c := range []struct {
		patch  edits
		solved bool
	}{
		{edits{}, false},
		{edits{"README": {"", "nothing"}}, false},
		{edits{"calc.py": {"return a\n", "return -a\n"}}, true},
		{edits{"test_calc.py": nil}, false},
	} {
		patch := diffOf(t, r, buggyTree(t, r, a), c.patch)
		verdict, err := v.Verdict(t.Context(), a, report, patch, nil)
		if err != nil || verdict.Solved != c.solved {
			t.Errorf("%v: %+v, %v; want solved %v", c.patch, verdict, err, c.solved)
		}
	}
}

func TestVerdictErrors(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	if _, err := v.Verdict(t.Context(), a, Report{}, nil, nil); err == nil || !strings.Contains(err.Error(), "validate it first") {
		t.Errorf("a verdict without a report: %v", err)
	}
	wrong := calcReport()
	wrong.PassToPass = append(wrong.PassToPass, "tests.test_other")
	if _, err := v.Verdict(t.Context(), a, wrong, nil, nil); err == nil || !strings.Contains(err.Error(), "tests.test_other") {
		t.Errorf("a verdict with another artifact's report: %v", err)
	}
	if _, err := v.Verdict(t.Context(), a, calcReport(), nil, []byte("no patch")); err == nil {
		t.Error("a verdict on a second-order patch that is none")
	}
}

// A sandbox that sees the tree must find nothing of the original in it.
func TestVerdictTreeHasNoGit(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	a.TestScript = []byte("find /workspace /tmp /home /root /etc -name .git 2>/dev/null; find . -name '*.diff'; env | grep -i -e secret -e ssr\n" + calcScript)
	os.Setenv("SSR_TEST_SECRET", "x")
	defer os.Unsetenv("SSR_TEST_SECRET")
	log, _, err := v.runTree(t.Context(), buggyTree(t, r, a), a)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(log), "\n")
	if !strings.HasPrefix(first, "test_add") {
		t.Errorf("the sandbox sees %q", first)
	}
}

func TestSentinelNamesDifferAndAreFree(t *testing.T) {
	source := []byte(calcFiles["tests/test_arith.py"])
	seen := map[string]bool{}
	for i := range 100 {
		data, s, ok := withSentinels("tests/test_arith.py", source, fmt.Sprint(i))
		if !ok || s.passes == s.breaks || seen[s.passes] || !strings.Contains(string(data), s.breaks) {
			t.Fatalf("sentinel %d: %+v", i, s)
		}
		seen[s.passes] = true
		if !strings.HasSuffix(string(data), "\nif __name__ == \"__main__\":\n    unittest.main()\n") {
			t.Fatal("the main block is not last")
		}
	}
	if _, _, ok := withSentinels("test/run.sh", source, ""); ok {
		t.Error("a shell script was extended")
	}
}

func BenchmarkVerdict(b *testing.B) {
	r, v := calcValidator(b, Options{})
	a := calcArtifact(b, r)
	patch := diffOf(b, r, buggyTree(b, r, a), fixEdits())
	for b.Loop() {
		verdict, err := v.Verdict(context.Background(), a, calcReport(), patch, nil)
		if err != nil || !verdict.Solved {
			b.Fatal(verdict, err)
		}
	}
}
