package sandbox

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// tree writes files; a value that starts with "-> " is a link, one with "#!" is executable.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		put(t, dir, name, text)
	}
	return dir
}

func put(t testing.TB, dir, name, text string) {
	t.Helper()
	to := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if target, ok := strings.CutPrefix(text, "-> "); ok {
		err = os.Symlink(target, to)
	} else {
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		err = os.WriteFile(to, []byte(text), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func change(name, text string) Change {
	if target, ok := strings.CutPrefix(text, "-> "); ok {
		return Change{Path: name, Mode: uint32(fs.ModeSymlink), Data: []byte(target)}
	}
	mode := uint32(0o644)
	if strings.HasPrefix(text, "#!") {
		mode = 0o755
	}
	return Change{Path: name, Mode: mode, Data: []byte(text)}
}

// apply runs git apply in dir and fails the test when it refuses.
func apply(t testing.TB, dir string, patch []byte) {
	t.Helper()
	cmd := exec.Command("git", "apply", "--whitespace=nowarn", "-")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(patch)
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir), "GIT_CONFIG_NOSYSTEM=1", "HOME=/nonexistent")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git apply: %v\n%s\n%s", err, out, patch)
	}
}

// contents reads a tree back in the notation of tree.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(name)
			got[rel] = "-> " + target
			return err
		}
		data, err := os.ReadFile(name)
		got[rel] = string(data)
		if info, _ := d.Info(); (info.Mode()&0o100 != 0) != strings.HasPrefix(string(data), "#!") {
			t.Errorf("%s: mode %v", rel, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDiffIsWhatGitApplies(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	const long = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n18\n19\n20\n"
	for name, c := range map[string]struct {
		old, new map[string]string // nil value: deleted
		deleted  []string
	}{
		"edit in the middle": {old: map[string]string{"a": long}, new: map[string]string{"a": strings.Replace(long, "10\n", "ten\n", 1)}},
		"two hunks":          {old: map[string]string{"a": long}, new: map[string]string{"a": "0\n" + strings.Replace(long, "20\n", "", 1)}},
		"new and deleted":    {old: map[string]string{"gone": "x\n", "dir/gone": "y"}, new: map[string]string{"new/deep/file": "n\n"}, deleted: []string{"gone", "dir/gone"}},
		"no final newline":   {old: map[string]string{"a": "x\ny", "b": "x\n", "c": "x"}, new: map[string]string{"a": "x\ny\n", "b": "x", "c": "z"}},
		"empty files":        {old: map[string]string{"a": "", "b": "x\n", "gone": ""}, new: map[string]string{"a": "x\n", "b": "", "new": ""}, deleted: []string{"gone"}},
		"execute bit":        {old: map[string]string{"a": "x\n"}, new: map[string]string{"a": "#!x\n"}},
		"links":              {old: map[string]string{"l": "-> a", "f": "x\n", "g": "-> a", "gone": "-> b"}, new: map[string]string{"l": "-> b", "f": "-> a", "g": "x\n", "new": "-> /etc/passwd"}, deleted: []string{"gone"}},
		"file becomes folder": {
			old: map[string]string{"a": "x\n"}, new: map[string]string{"a/b": "x\n"}, deleted: []string{"a"},
		},
		"folder becomes file": {
			old: map[string]string{"a/b": "x\n"}, new: map[string]string{"a": "x\n"}, deleted: []string{"a/b"},
		},
		"names": {
			old: map[string]string{"a b": "x\n"},
			new: map[string]string{"a b": "y\n", "tab\there": "x\n", "new\nline": "x\n", `q"u\o`: "x\n", "é": "x\n", "\xff": "x\n", "- x": "x\n", " lead": "x\n"},
		},
		"carriage returns": {old: map[string]string{"a": "x\r\ny\r\n"}, new: map[string]string{"a": "x\r\nz\r\n"}},
		"like a patch":     {old: map[string]string{"a": "--- a\n+++ b\n@@ -1 +1 @@\n"}, new: map[string]string{"a": "--- b\n+++ b\n@@ -1 +1 @@\n-- \n"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, c.old)
			want := map[string]string{}
			var changes []Change
			for k, v := range c.old {
				want[k] = v
			}
			for k, v := range c.new {
				want[k] = v
				changes = append(changes, change(k, v))
			}
			for _, k := range c.deleted {
				delete(want, k)
				changes = append(changes, Change{Path: k, Deleted: true})
			}
			patch, refused, err := Diff(dir, changes)
			if err != nil || len(refused) > 0 {
				t.Fatal(refused, err)
			}
			apply(t, dir, patch)
			got := contents(t, dir)
			for k, v := range want {
				if got[k] != v {
					t.Errorf("%q: %q, want %q\n%s", k, got[k], v, patch)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d files, want %d\n%s", len(got), len(want), patch)
			}
		})
	}
}

func TestDiffRefuses(t *testing.T) {
	dir := tree(t, map[string]string{"bin": "a\x00b", "text": "x\n"})
	patch, refused, err := Diff(dir, []Change{
		{Path: "../out", Data: []byte("x")},
		{Path: "/abs", Data: []byte("x")},
		{Path: "a//b", Data: []byte("x")},
		{Path: ".git/hooks/pre-commit", Data: []byte("x")},
		{Path: "sub/.GIT/config", Data: []byte("x")},
		{Path: "bin", Data: []byte("now text\n")},
		{Path: "text", Data: []byte("now\x00binary")},
		{Path: "pipe", Skipped: "fifo"},
		{Path: "never", Deleted: true},
	})
	if err != nil || len(patch) != 0 || len(refused) != 9 {
		t.Errorf("patch %q, refused %v, error %v", patch, refused, err)
	}
}

// Any two texts: what git makes of the patch is the new text.
func TestDiffRoundTrip(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.Custom(func(t *rapid.T) string {
			s := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "", "c", "-", "+"}), 0, 40).Draw(t, "lines"), "\n")
			return s
		})
		old, now := text.Draw(t, "old"), text.Draw(t, "new")
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(old), 0o644); err != nil {
			t.Fatal(err)
		}
		patch, _, err := Diff(dir, []Change{change("f", now)})
		if err != nil {
			t.Fatal(err)
		}
		if old == now {
			if len(patch) > 0 {
				t.Fatalf("a patch for nothing: %s", patch)
			}
			return
		}
		cmd := exec.Command("git", "apply", "--whitespace=nowarn", "-")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(patch)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir)}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, patch)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "f")); string(got) != now {
			t.Fatalf("%q, want %q\n%s", got, now, patch)
		}
	})
}

// The script is the shortest: against an independent longest common subsequence.
func TestDiffIsMinimal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 12)
		a, b := lines.Draw(t, "a"), lines.Draw(t, "b")
		edits, keptA, keptB := 0, []string{}, []string{}
		x, y := 0, 0
		for _, s := range diffLines(a, b) {
			keptA, keptB = append(keptA, a[x:s.a0]...), append(keptB, b[y:s.b0]...)
			edits += s.a1 - s.a0 + s.b1 - s.b0
			x, y = s.a1, s.b1
		}
		keptA, keptB = append(keptA, a[x:]...), append(keptB, b[y:]...)
		if strings.Join(keptA, "\n") != strings.Join(keptB, "\n") {
			t.Fatalf("kept %q and %q", keptA, keptB)
		}
		if want := len(a) + len(b) - 2*lcs(a, b); edits != want {
			t.Fatalf("%d edits, want %d", edits, want)
		}
	})
}

func lcs(a, b []string) int {
	if len(a) == 0 || len(b) == 0 {
		return 0
	}
	row := make([]int, len(b)+1)
	for _, x := range a {
		diagonal := 0
		for j, y := range b {
			up := row[j+1]
			if x == y {
				row[j+1] = diagonal + 1
			} else {
				row[j+1] = max(row[j+1], row[j])
			}
			diagonal = up
		}
	}
	return row[len(b)]
}

func TestDiffOfUnrelatedTextsIsBounded(t *testing.T) {
	var a, b strings.Builder
	for i := range 20_000 {
		a.WriteString(strings.Repeat("a", i%7) + "\n")
		b.WriteString(strings.Repeat("b", 1+i%5) + "\n")
	}
	dir := tree(t, map[string]string{"f": a.String()})
	patch, _, err := Diff(dir, []Change{change("f", b.String())})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, dir, patch)
	if got := contents(t, dir)["f"]; got != b.String() {
		t.Error("the patch does not give the new text")
	}
}
