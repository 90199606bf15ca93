package selfplay

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/ssr-go/ssr/sandbox"
)

func TestSnapshotIsHeadNotTheWorkingTree(t *testing.T) {
	dir := gitRepo(t, calcFiles)
	writeTree(t, dir, map[string]string{"calc/arith.py": "uncommitted\n", "untracked.txt": "x"})
	r := openRepo(t, dir)
	tree, err := r.plainTree(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	if diff := cmp.Diff(calcFiles, readTree(t, tree.Dir)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Lstat(filepath.Join(tree.Dir, ".git")); err == nil {
		t.Error("a plain tree has a .git")
	}
}

func TestSnapshotOfAPlainFolderInsideARepository(t *testing.T) {
	outer := gitRepo(t, map[string]string{"outer.txt": "x"})
	inner := filepath.Join(outer, "inner")
	writeTree(t, inner, calcFiles)
	writeTree(t, inner, map[string]string{"calc/__pycache__/arith.cpython-311.pyc": "stale", "calc/.arith.py.swp": "stale"})
	r := openRepo(t, inner)
	tree, err := r.InjectorTree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(calcFiles, readTree(t, tree.Dir)); diff != "" {
		t.Error(diff)
	}
	if n := git(t, tree.Dir, "rev-list", "--count", "HEAD"); n != "1" {
		t.Errorf("%s commits, want 1", n)
	}
}

// Every setting of a hostile .git/config that can name a program names one that leaves a mark.
func hostileConfig(t *testing.T, dir string) (mark string) {
	t.Helper()
	mark = filepath.Join(t.TempDir(), "ran")
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ntouch "+mark+"\ncat\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	hooks := filepath.Join(dir, ".git", "hooks")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, hook := range []string{"post-checkout", "post-index-change", "pre-commit", "post-commit", "reference-transaction", "post-applypatch"} {
		if err := os.WriteFile(filepath.Join(hooks, hook), []byte("#!/bin/sh\ntouch "+mark+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := "\n[core]\n\tfsmonitor = @P@\n\tsshCommand = @P@\n\tpager = @P@\n\teditor = @P@\n\taskPass = @P@\n\tgitProxy = @P@\n" +
		"[diff]\n\texternal = @P@\n[diff \"x\"]\n\ttextconv = @P@\n\tcommand = @P@\n[filter \"x\"]\n\tclean = @P@\n\tsmudge = @P@\n\tprocess = @P@\n\trequired = true\n" +
		"[alias]\n\trev-parse = !@P@\n\tls-tree = !@P@\n[credential]\n\thelper = !@P@\n[uploadpack]\n\tpackObjectsHook = @P@\n[gpg]\n\tprogram = @P@\n[include]\n\tpath = evil\n" +
		"[remote \"o\"]\n\turl = ext::@P@\n\tpromisor = true\n\tpartialclonefilter = blob:none\n[extensions]\n\tpartialClone = o\n"
	f, err := os.OpenFile(filepath.Join(dir, ".git", "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.ReplaceAll(config, "@P@", program)); err != nil {
		t.Fatal(err)
	}
	return mark
}

func TestOpeningAHostileRepositoryRunsNothingOfIts(t *testing.T) {
	files := map[string]string{".gitattributes": "* filter=x diff=x text eol=crlf ident export-subst\n", "a.py": "x = '$Id$'\n", "b.py": "y = 1\n"}
	dir := gitRepo(t, files)
	mark := hostileConfig(t, dir)
	r := openRepo(t, dir)
	tree, err := r.InjectorTree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := Artifact{TestFiles: []byte("b.py"), BugInject: diffOf(t, r, nil, edits{"a.py": {"x", "z"}}), TestWeaken: diffOf(t, r, nil, edits{"b.py": {"1", "2"}})}
	solver, err := r.SolverTree(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range []*Tree{tree, solver} {
		config, err := os.ReadFile(filepath.Join(tree.Dir, ".git", "config"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(config, []byte("filter")) || bytes.Contains(config, []byte("program")) {
			t.Errorf("the user's configuration reached a tree:\n%s", config)
		}
	}
	// Stored bytes are what trees hold: no filter, no line ends, no $Id$.
	if got := readTree(t, solver.Dir)["a.py"]; got != "z = '$Id$'\n" {
		t.Errorf("a.py is %q", got)
	}
	if _, err := os.Lstat(mark); err == nil {
		t.Error("a program named by the repository's configuration was run on the host")
	}
	// The trap works: git as a user would run it springs it.
	control := exec.Command("git", "status")
	control.Dir = dir
	control.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	control.Run()
	if _, err := os.Lstat(mark); err != nil {
		t.Error("the test's own trap does not work")
	}
}

func TestInjectorTreeHasTheHistoryAndNothingElse(t *testing.T) {
	dir := gitRepo(t, calcFiles)
	git(t, dir, "update-ref", "refs/heads/secret", "HEAD~1")
	git(t, dir, "remote", "add", "origin", "https://user:token@example.invalid/x.git")
	r := openRepo(t, dir)
	tree, err := r.InjectorTree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	if got := git(t, tree.Dir, "log", "--format=%s"); got != "second change\nfirst change" {
		t.Errorf("log is %q", got)
	}
	if got := git(t, tree.Dir, "status", "--porcelain"); got != "" {
		t.Errorf("a fresh tree is not clean: %s", got)
	}
	if got := git(t, tree.Dir, "for-each-ref", "--format=%(refname)"); got != "refs/heads/main" {
		t.Errorf("refs are %q", got)
	}
	if !strings.Contains(git(t, tree.Dir, "show", "HEAD~1:README.md"), "first") {
		t.Error("git show cannot read the past")
	}
	config, _ := os.ReadFile(filepath.Join(tree.Dir, ".git", "config"))
	if bytes.Contains(config, []byte("example.invalid")) {
		t.Error("the remote's address was copied")
	}
}

func TestSolverTreeHoldsNoTraceOfTheOriginal(t *testing.T) {
	files := map[string]string{}
	for k, v := range calcFiles {
		files[k] = v
	}
	original := calcFiles["calc/arith.py"]
	files["calc/arith.py.orig"] = original
	files["build/lib/calc/arith.py"] = original
	files["calc/__pycache__/arith.cpython-311.pyc"] = original
	files["docs/build/guide.md"] = "how to build\n"
	dir := gitRepo(t, calcFiles)
	writeTree(t, dir, files)
	git(t, dir, "add", "-A", "-f")
	git(t, dir, "commit", "-q", "-m", "third")
	r := openRepo(t, dir)
	a := calcArtifact(t, r)
	tree, err := r.SolverTree(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()

	want := map[string]string{}
	for k, v := range calcFiles {
		want[k] = v
	}
	want["docs/build/guide.md"] = "how to build\n"
	want["calc/arith.py"] = strings.Replace(original, "return a - b", "return b - a", 1)
	want["calc/text.py"] = strings.Replace(want["calc/text.py"], "w[0]", "w[-1]", 1)
	want["tests/test_arith.py"] = strings.Replace(want["tests/test_arith.py"], "self.assertEqual(arith.sub(2, 3), -1)", "arith.sub(2, 3)", 1)
	if diff := cmp.Diff(want, readTree(t, tree.Dir)); diff != "" {
		t.Error(diff)
	}
	if n := git(t, tree.Dir, "rev-list", "--all", "--count"); n != "1" {
		t.Errorf("%s commits, want 1", n)
	}
	// Every object of the store is one that the commit reaches.
	all := git(t, tree.Dir, "cat-file", "--batch-check", "--batch-all-objects")
	if reach := git(t, tree.Dir, "rev-list", "--objects", "HEAD"); strings.Count(all, "\n") != strings.Count(reach, "\n") {
		t.Errorf("the object store holds more than the commit:\n%s\n%s", all, reach)
	}
	if got := git(t, tree.Dir, "status", "--porcelain", "--ignored"); got != "" {
		t.Errorf("a fresh tree is not clean: %s", got)
	}
	for _, name := range []string{"logs", "ORIG_HEAD", "packed-refs", "refs/stash", "hooks"} {
		if _, err := os.Lstat(filepath.Join(tree.Dir, ".git", name)); err == nil {
			t.Errorf(".git/%s exists", name)
		}
	}
	err = filepath.Walk(tree.Dir, func(name string, info os.FileInfo, err error) error {
		if err == nil && !info.ModTime().Equal(treeTime) {
			t.Errorf("%s was modified at %v", name, info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSolverTreeOfASecondOrderBug(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	a := calcArtifact(t, r)
	failed := diffOf(t, r, buggyTree(t, r, a), edits{"calc/text.py": {`"!"`, `"?"`}})
	tree, err := r.SolverTree(t.Context(), a, failed)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	got := readTree(t, tree.Dir)["calc/text.py"]
	if !strings.Contains(got, `"?"`) || !strings.Contains(got, "w[-1]") {
		t.Errorf("the failed patch is not on top of the bug:\n%s", got)
	}
}

// Who waits for a tree whose maker is stopped makes it: another's context is not its own.
func TestTreeOfAStoppedMaker(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	stopped := errors.New("stopped")
	synctest.Test(t, func(t *testing.T) {
		maker, stop := context.WithCancelCause(t.Context())
		var wait sync.WaitGroup
		wait.Go(func() {
			if _, err := r.prepare(maker, "kind", nil, func(string) error { <-maker.Done(); return context.Cause(maker) }); !errors.Is(err, stopped) {
				t.Errorf("the maker has %v", err)
			}
		})
		synctest.Wait()
		for range 2 {
			wait.Go(func() {
				tree, err := r.prepare(t.Context(), "kind", nil, func(dir string) error { return os.Mkdir(dir, 0o755) })
				if err != nil {
					t.Error(err)
					return
				}
				defer tree.Release()
				if _, err := os.Stat(tree.Dir); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		stop(stopped)
		wait.Wait()
	})
}

func TestEqualTreesAreShared(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	a := calcArtifact(t, r)
	one, err := r.SolverTree(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.SolverTree(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if one.Dir != two.Dir {
		t.Error("equal trees were prepared twice")
	}
	one.Release()
	one.Release() // the second does nothing
	for i := range maxTrees + 10 {
		tree, err := r.plainTree(t.Context(), overlay{"n.txt": {[]byte{byte(i)}, 0o644}})
		if err != nil {
			t.Fatal(err)
		}
		tree.Release()
	}
	if _, err := os.Stat(two.Dir); err != nil {
		t.Errorf("a tree in use was evicted: %v", err)
	}
	two.Release()
	dirs, err := os.ReadDir(filepath.Join(r.work, "trees"))
	if err != nil || len(dirs) > maxTrees {
		t.Errorf("%d trees are kept, want at most %d (%v)", len(dirs), maxTrees, err)
	}
}

func TestSpecificationAndFix(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	a := calcArtifact(t, r)
	spec, err := r.Specification(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	want := `diff --git a/tests/test_arith.py b/tests/test_arith.py
--- a/tests/test_arith.py
+++ b/tests/test_arith.py
@@ -8,7 +8,7 @@ class ArithTest(unittest.TestCase):
         self.assertEqual(arith.add(2, 3), 5)
 
     def test_sub(self):
-        arith.sub(2, 3)
+        self.assertEqual(arith.sub(2, 3), -1)
 
     def test_mul(self):
         self.assertEqual(arith.mul(4, -3), -12)
`
	if diff := cmp.Diff(want, string(spec)); diff != "" {
		t.Error(diff)
	}
	fix, err := r.Fix(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePatch(fix)
	if err != nil {
		t.Fatal(err)
	}
	given := buggyTree(t, r, a)
	fixed, err := r.apply(t.Context(), given, p)
	if err != nil {
		t.Fatal(err)
	}
	if len(fixed) != 1 || fixed["tests/test_arith.py"] == nil {
		t.Errorf("after the fix %d files differ from the original, want the weakened test alone", len(fixed))
	}
}

func TestDiffOfASandboxsChanges(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	tree, err := r.SolverTree(t.Context(), calcArtifact(t, r), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	regular := uint32(0o644)
	diff, err := tree.Diff(t.Context(), []sandbox.Change{
		{Path: "calc/text.py", Mode: regular, Data: []byte("changed\n")},
		{Path: "README.md", Deleted: true},
		{Path: "run.sh", Mode: 0o755, Data: []byte("true")},
		{Path: "calc/__pycache__/text.cpython-311.pyc", Mode: regular, Data: []byte("\x00")},
		{Path: "out/result.txt", Mode: regular, Data: []byte("ignored by .gitignore\n")},
		{Path: "a.out", Mode: 0o755, Data: []byte("\x7fELF\x00")},
		{Path: ".git/hooks/pre-commit", Mode: 0o755, Data: []byte("evil")},
		{Path: "link", Mode: uint32(os.ModeSymlink | 0o777), Data: []byte("/etc/passwd")},
		{Path: "pipe", Skipped: "fifo"},
		{Path: "../outside", Mode: regular, Data: []byte("x")},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePatch(diff)
	if err != nil {
		t.Fatalf("%v in\n%s", err, diff)
	}
	if d := cmp.Diff([]string{"README.md", "calc/text.py", "run.sh"}, p.Paths()); d != "" {
		t.Error(d)
	}
	after, err := r.apply(t.Context(), tree.overlay, p)
	if err != nil {
		t.Fatalf("%v in\n%s", err, diff)
	}
	if f := after["run.sh"]; f == nil || f.mode != 0o755 || string(f.data) != "true" {
		t.Errorf("run.sh came back as %+v", f)
	}
	if f, ok := after["README.md"]; !ok || f != nil {
		t.Error("README.md was not deleted")
	}
	if none, err := tree.Diff(t.Context(), nil); err != nil || none != nil {
		t.Errorf("no changes make the diff %q (%v)", none, err)
	}
}

func TestOpenRepoSaysWhatIsWrong(t *testing.T) {
	empty := t.TempDir()
	noCommit := t.TempDir()
	git(t, noCommit, "init", "-q")
	for dir, want := range map[string]string{
		filepath.Join(empty, "absent"): "no such file",
		empty:                          "no file in it",
		noCommit:                       "commit its files first",
	} {
		if _, err := OpenRepo(t.Context(), dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", dir, err, want)
		}
	}
}

// A process that was killed leaves its folder; the next one removes it, but
// never a folder in use.
func TestAbandonedFoldersAreSwept(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir := t.TempDir()
	writeTree(t, dir, calcFiles)
	abandoned, err := OpenRepo(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	live := openRepo(t, dir)
	abandoned.lock.Close() // as the kernel does at the process's end
	third := openRepo(t, dir)
	if _, err := os.Stat(abandoned.work); err == nil {
		t.Error("the abandoned folder is still there")
	}
	for _, r := range []*Repo{live, third} {
		if _, err := r.InjectorTree(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
