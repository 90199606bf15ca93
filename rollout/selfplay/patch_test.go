package selfplay

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const gitPatch = `diff --git a/calc/arith.py b/calc/arith.py
index 1111111..2222222 100644
--- a/calc/arith.py
+++ b/calc/arith.py
@@ -6,7 +6,7 @@ def add(a, b):
 
 
 def sub(a, b):
-    return a - b
+    return b - a
 
 
 def mul(a, b):
`

// What models write is forgiven where its meaning is plain; the outcome is the
// one of the strict patch.
func TestForgivenPatches(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	want := edited(t, r, nil, edits{"calc/arith.py": {"return a - b", "return b - a"}})
	for name, patch := range map[string]string{
		"strict":                                gitPatch,
		"wrong lengths":                         strings.Replace(gitPatch, "@@ -6,7 +6,7 @@", "@@ -6,3 +6,12 @@", 1),
		"lengths too small":                     strings.Replace(gitPatch, "@@ -6,7 +6,7 @@", "@@ -6 +6 @@", 1),
		"wrong position":                        strings.Replace(gitPatch, "@@ -6,7 +6,7 @@", "@@ -3,7 +3,7 @@", 1),
		"no final newline":                      strings.TrimSuffix(gitPatch, "\n"),
		"blank lines at the end, wrong lengths": strings.Replace(gitPatch, "-6,7 +6,7", "-6,20 +6,20", 1) + "\n\n",
		"blank lines at the end":                gitPatch + "\n\n",
		"context lost its space":                strings.ReplaceAll(gitPatch, "\n \n", "\n\n"),
		"carriage returns":                      strings.ReplaceAll(gitPatch, "\n", "\r\n"),
		"a mail around it":                      "From 1234 Mon Sep 17 00:00:00 2001\nSubject: x\n\n---\n calc/arith.py | 2 +-\n\n" + gitPatch + "-- \n2.39.2\n\n",
		"plain diff":                            gitPatch[strings.Index(gitPatch, "---"):],
		"plain diff, no prefixes":               strings.NewReplacer("a/calc", "calc", "b/calc", "calc").Replace(gitPatch[strings.Index(gitPatch, "---"):]),
		"plain diff with times":                 strings.NewReplacer("a/calc/arith.py\n", "a/calc/arith.py\t2024-01-01 00:00:00\n").Replace(gitPatch[strings.Index(gitPatch, "---"):]),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePatch([]byte(patch))
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.apply(t.Context(), nil, p)
			if err != nil {
				t.Fatal(err)
			}
			if got.key() != want.key() {
				t.Errorf("calc/arith.py became\n%s", got["calc/arith.py"].data)
			}
		})
	}
}

func TestPatchKinds(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	for name, c := range map[string]struct {
		patch string
		want  overlay
	}{
		"new file":       {"diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+x = 1\n", overlay{"n.py": {[]byte("x = 1\n"), 0o644}}},
		"new, lengths":   {"--- /dev/null\n+++ b/n.py\n@@ -0,0 +1,9 @@\n+x = 1\n+y = 2\n", overlay{"n.py": {[]byte("x = 1\ny = 2\n"), 0o644}}},
		"new empty file": {"diff --git a/n.py b/n.py\nnew file mode 100755\nindex 0000000..e69de29\n", overlay{"n.py": {[]byte{}, 0o755}}},
		"no newline":     {"diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n", overlay{"n.py": {[]byte("x"), 0o644}}},
		"deleted":        {"diff --git a/README.md b/README.md\ndeleted file mode 100644\n--- a/README.md\n+++ /dev/null\n@@ -1 +0,0 @@\n-# calc\n", overlay{"README.md": nil}},
		"mode":           {"diff --git a/README.md b/README.md\nold mode 100644\nnew mode 100755\n", overlay{"README.md": {[]byte("# calc\n"), 0o755}}},
		"rename":         {"diff --git a/README.md b/R.md\nsimilarity index 100%\nrename from README.md\nrename to R.md\n", overlay{"README.md": nil, "R.md": {[]byte("# calc\n"), 0o644}}},
		"quoted name":    {"diff --git \"a/\\303\\251.txt\" \"b/\\303\\251.txt\"\nnew file mode 100644\n--- /dev/null\n+++ \"b/\\303\\251.txt\"\n@@ -0,0 +1 @@\n+x\n", overlay{"é.txt": {[]byte("x\n"), 0o644}}},
		"small binary":   {"diff --git a/b.bin b/b.bin\nnew file mode 100644\nindex 0000000000000000000000000000000000000000..eaf36c1daccfdf325514461cd1a2ffbc139b5464\nGIT binary patch\nliteral 4\nLcmZQzWMT#Y01f~L\n\nliteral 0\nHcmV?d00001\n\n", overlay{"b.bin": {[]byte("\x00\x01\x02\x03"), 0o644}}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePatch([]byte(c.patch))
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.apply(t.Context(), nil, p)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(file{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefusedPatches(t *testing.T) {
	created := func(name, mode string) string {
		return "diff --git a/" + name + " b/" + name + "\nnew file mode " + mode + "\n--- /dev/null\n+++ b/" + name + "\n@@ -0,0 +1 @@\n+x\n"
	}
	for name, c := range map[string]struct{ patch, reason string }{
		"empty":             {"", "no changed file"},
		"white space":       {" \n\t\n", "no changed file"},
		"prose":             {"nothing to see\n", "no changed file"},
		"no numbers":        {"--- a/x\n+++ b/x\n@@\n-a\n+b\n", "without line numbers"},
		"dots for numbers":  {"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,? +1,? @@\n-a\n+b\n", "without line numbers"},
		"huge numbers":      {"--- a/x\n+++ b/x\n@@ -1,99999999999999999999 +1 @@\n-a\n+b\n", "without line numbers"},
		"hunk without file": {"@@ -1 +1 @@\n-a\n+b\n", "without file header"},
		"header alone":      {"diff --git a/x b/x\nindex 1111111..2222222 100644\n--- a/x\n+++ b/x\n", "has no hunk"},
		"parent folder":     {created("../x", "100644"), "leaves the tree"},
		"parent within":     {created("a/../../x", "100644"), "leaves the tree"},
		"dot":               {created("./x", "100644"), "is not clean"},
		"git folder":        {created("sub/.git/config", "100644"), "inside .git"},
		"git in capitals":   {created(".GIT/config", "100644"), "inside .git"},
		"git with a dot":    {created(".git./config", "100644"), "inside .git"},
		"git short name":    {created("git~1/config", "100644"), "inside .git"},
		"link":              {created("l", "120000"), "symbolic link"},
		"submodule":         {created("m", "160000"), "submodule"},
		"setuid":            {created("s", "104755"), "has mode"},
		"device":            {created("d", "020666"), "has mode"},
		"control character": {"diff --git \"a/x\\ny\" \"b/x\\ny\"\nnew file mode 100644\n--- /dev/null\n+++ \"b/x\\ny\"\n@@ -0,0 +1 @@\n+x\n", "control character"},
		"rename out":        {"diff --git a/x b/../y\nsimilarity index 100%\nrename from x\nrename to ../y\n", "leaves the tree"},
		"binary, no data":   {"diff --git a/x b/x\nindex 1111111..2222222 100644\nBinary files a/x and b/x differ\n", "its content is missing"},
		"binary bomb":       {"diff --git a/x b/x\nnew file mode 100644\nindex 0000000000000000000000000000000000000000..1111111111111111111111111111111111111111\nGIT binary patch\nliteral 1000000000\nLcmZQzWMT#Y01f~L\n\n", "over 65536 bytes"},
		"too large":         {strings.Repeat("x\n", maxPatchBytes), "more than 1048576"},
		"too many files":    {strings.Repeat(created("x", "100644"), maxPatchFiles+1), "more than 500"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePatch([]byte(c.patch))
			var refused *PatchError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, c.reason) {
				t.Errorf("error %v, want %q in it", err, c.reason)
			}
		})
	}
}

// The repository's own links must not lead a patch out of the tree.
func TestPatchesThroughLinks(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"a.txt": "a\n"})
	for name, target := range map[string]string{"out": outside, "file": filepath.Join(outside, "f"), "within": "a.txt"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r := openRepo(t, dir)
	for _, name := range []string{"out/x", "file", "out", "within"} {
		p, err := ParsePatch([]byte("--- /dev/null\n+++ b/" + name + "\n@@ -0,0 +1 @@\n+x\n"))
		if err != nil {
			t.Fatal(err)
		}
		var refused *PatchError
		if _, err := r.apply(t.Context(), nil, p); !errors.As(err, &refused) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	if names, _ := os.ReadDir(outside); len(names) > 0 {
		t.Errorf("written outside: %v", names)
	}
	tree, err := r.plainTree(t.Context(), overlay{"b.txt": {[]byte("b"), 0o644}})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	if target, err := os.Readlink(filepath.Join(tree.Dir, "out")); err != nil || target != outside {
		t.Errorf("the link became %q, %v", target, err)
	}
}

// Two patches have one id exactly when git patch-id --stable says so.
func TestPatchIDAgreesWithGit(t *testing.T) {
	moved := strings.Replace(gitPatch, "@@ -6,7 +6,7 @@ def add(a, b):", "@@ -60,7 +61,7 @@", 1)
	spaced := strings.Replace(gitPatch, "+    return b - a", "+\treturn  b-a", 1)
	other := strings.Replace(gitPatch, "return b - a", "return b + a", 1)
	second := strings.ReplaceAll(gitPatch, "arith", "text")
	patches := []string{gitPatch, moved, spaced, other, second, gitPatch + second, second + gitPatch}
	gitID := func(p string) string {
		out, err := runGit(t.Context(), t.TempDir(), []byte(p), "patch-id", "--stable")
		if err != nil {
			t.Fatal(err)
		}
		id, _, _ := strings.Cut(string(out), " ")
		return id
	}
	id := func(p string) string {
		parsed, err := ParsePatch([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		return parsed.ID()
	}
	for i, a := range patches {
		for j, b := range patches {
			if ours, gits := id(a) == id(b), gitID(a) == gitID(b); ours != gits {
				t.Errorf("patches %d and %d: equal %v, git says %v", i, j, ours, gits)
			}
		}
	}
}

func TestSplitAndPaths(t *testing.T) {
	p, err := ParsePatch([]byte(strings.ReplaceAll(gitPatch, "arith", "text") + gitPatch + "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"calc/arith.py", "calc/text.py", "x", "y"}, p.Paths()); diff != "" {
		t.Error(diff)
	}
	var joined []byte
	for _, one := range p.Split() {
		joined = append(joined, one.Bytes()...)
	}
	if string(joined) != string(p.Bytes()) {
		t.Errorf("the parts are\n%s\nthe whole\n%s", joined, p.Bytes())
	}
}

// Whatever the input, parsing ends in a *PatchError or in a patch whose text
// parses to the same patch and names only safe paths.
func FuzzParsePatch(f *testing.F) {
	f.Add([]byte(gitPatch))
	f.Add([]byte("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n\\ No newline at end of file"))
	f.Add([]byte("diff --git a/x b/y\nsimilarity index 90%\nrename from x\nrename to y\n"))
	f.Add([]byte("diff --git a/b.bin b/b.bin\nnew file mode 100644\nindex 0000..1111\nGIT binary patch\nliteral 4\nLcmZQzWMT#Y01f~L\n\n"))
	f.Add([]byte("diff --git \"a/\\056\\056/x\" b/x\n--- \"a/\\056\\056/x\"\n+++ b/x\n@@ -1,0 +1 @@\n+x\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePatch(data)
		if err != nil {
			var refused *PatchError
			if !errors.As(err, &refused) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		for _, name := range p.Paths() {
			if !filepath.IsLocal(name) || strings.Contains(strings.ToLower("/"+name+"/"), "/.git/") {
				t.Fatalf("path %q got through", name)
			}
		}
		again, err := ParsePatch(p.Bytes())
		if err != nil {
			t.Fatalf("its own text is refused: %v\n%s", err, p.Bytes())
		}
		if string(again.Bytes()) != string(p.Bytes()) || again.ID() != p.ID() {
			t.Fatalf("became\n%s\nthen\n%s", p.Bytes(), again.Bytes())
		}
	})
}
