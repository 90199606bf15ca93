package worldtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// needs skips the test where a program of the world's language is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s on this machine", program)
		}
	}
}

func build(t *testing.T, name string) string {
	t.Helper()
	needs(t, "bash", "git")
	dir := filepath.Join(t.TempDir(), name)
	if err := Make(t.Context(), dir, name); err != nil {
		t.Fatal(err)
	}
	return dir
}

// run returns what a command prints, and whether it ended well.
func run(t *testing.T, dir string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out), err == nil
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, ok := run(t, dir, append([]string{"git"}, args...)...)
	if !ok {
		t.Fatalf("git %s: %s", strings.Join(args, " "), out)
	}
	return strings.TrimSpace(out)
}

func TestSameCommitsEverywhere(t *testing.T) {
	t.Setenv("GIT_COMMITTER_NAME", "Somebody Else")
	t.Setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
	t.Setenv("TZ", "Asia/Tokyo")
	for name, least := range map[string]int{"quill": 30, "pocket": 10} {
		dir := build(t, name)
		want, err := os.ReadFile(filepath.Join(Dir(name), "commit"))
		if err != nil {
			t.Fatal(err)
		}
		if got := git(t, dir, "rev-parse", "HEAD"); got != strings.TrimSpace(string(want)) {
			t.Errorf("%s ends at %s, want %s", name, got, want)
		}
		if commits := strings.Count(git(t, dir, "log", "--format=%h"), "\n") + 1; commits < least {
			t.Errorf("%s has %d commits, want at least %d", name, commits, least)
		}
		if err := Make(t.Context(), dir, name); err != nil {
			t.Errorf("making %s again: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Make(t.Context(), dir, name); err == nil {
			t.Errorf("making %s over local changes succeeded", name)
		}
	}
}

func TestQuillPasses(t *testing.T) {
	needs(t, "python3")
	dir := build(t, "quill")
	out, ok := run(t, dir, "python3", "-B", "-m", "unittest")
	if !ok || !strings.Contains(out, "Ran 192 tests") {
		t.Errorf("quill's own tests: %s", out)
	}
}

// TestQuillNoticesDeletions: every statement is held by a test of its function.
func TestQuillNoticesDeletions(t *testing.T) {
	if testing.Short() {
		t.Skip("runs quill's tests 579 times, five seconds")
	}
	needs(t, "python3")
	dir := build(t, "quill")
	out, ok := run(t, ".", "python3", filepath.Join(Dir("quill"), "deletions.py"), dir)
	if !ok {
		t.Error(out)
	}
}

func TestPocketPasses(t *testing.T) {
	needs(t, "make", "gcc")
	dir := build(t, "pocket")
	out, ok := run(t, dir, "make", "-s", "check")
	lines := regexp.MustCompile(`(?m)^ok   \w+$`).FindAllString(out, -1)
	if !ok || len(lines) != 33 {
		t.Errorf("%d of 33 tests of pocket pass:\n%s", len(lines), out)
	}
}

// TestHistoryCanBeUndone: reverting the code of a past fix makes a test of
// today fail, for enough commits to draw from.
func TestHistoryCanBeUndone(t *testing.T) {
	if testing.Short() {
		t.Skip("runs quill's tests once for each of its commits, five seconds")
	}
	needs(t, "python3")
	dir := build(t, "quill")
	commits := strings.Fields(git(t, dir, "log", "--format=%H"))
	usable := 0
	for _, commit := range commits[:len(commits)-1] {
		patch, _ := run(t, dir, "git", "show", "--format=", commit, "--", "quill")
		apply := exec.CommandContext(t.Context(), "git", "apply", "-R")
		apply.Dir = dir
		apply.Stdin = bytes.NewBufferString(patch)
		if apply.Run() != nil {
			continue // later commits built on it
		}
		if out, ok := run(t, dir, "python3", "-B", "-m", "unittest"); ok {
			t.Errorf("undoing %s is not noticed:\n%s", git(t, dir, "show", "-s", "--oneline", commit), out)
		}
		usable++
		git(t, dir, "checkout", "-q", "--", ".")
		git(t, dir, "clean", "-fdq")
	}
	if usable < 25 {
		t.Errorf("only %d of %d commits can be undone", usable, len(commits))
	}
}
