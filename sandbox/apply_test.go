package sandbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestApply(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	for name, text := range map[string]string{"edit": "old", "gone/a": "x", "folder/f": "x", "file": "x", "kept/a": "x", "kept/b": "x", ".git/config": "mine"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"out": outside, "inside": "kept"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	link := uint32(fs.ModeSymlink)
	refused, err := Apply(dir, []Change{
		{Path: "edit", Mode: 0o755, Data: []byte("new")}, {Path: "new/deep", Mode: 0o4644, Data: []byte("n")},
		{Path: "folder", Mode: 0o644, Data: []byte("now a file")}, {Path: "folder/f", Deleted: true},
		{Path: "file/f", Mode: 0o644, Data: []byte("now a folder")}, {Path: "file", Deleted: true},
		{Path: "gone/a", Deleted: true}, {Path: "kept/a", Deleted: true}, {Path: "never", Deleted: true},
		{Path: "l", Mode: link, Data: []byte("kept/b")}, {Path: "new/l", Mode: link, Data: []byte("../edit")}, {Path: "inside", Mode: 0o644, Data: []byte("a file")},
		{Path: "absolute", Mode: link, Data: []byte("/etc/passwd")}, {Path: "new/up", Mode: link, Data: []byte("../../x")},
		{Path: "../x", Mode: 0o644}, {Path: "/x", Mode: 0o644}, {Path: ".git/config", Mode: 0o644, Data: []byte("evil")}, {Path: "sub/.GIT/hooks/x", Mode: 0o755}, {Path: "pipe", Skipped: "fifo"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range refused {
		names = append(names, r.Path)
	}
	if want := []string{"../x", ".git/config", "/x", "absolute", "new/up", "pipe", "sub/.GIT/hooks/x"}; !slices.Equal(names, want) {
		t.Errorf("refused %q, want %q", names, want)
	}
	for name, want := range map[string]string{"edit": "new", "new/deep": "n", "folder": "now a file", "file/f": "now a folder", "kept/b": "x", "l": "x", "new/l": "new", "inside": "a file", ".git/config": "mine"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"gone", "kept/a", "absolute", "pipe", "sub"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "new/deep")); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	// A folder that is a link out of the tree is not written through.
	if _, err := Apply(dir, []Change{{Path: "out/x", Mode: 0o644, Data: []byte("x")}}); err == nil {
		t.Error("a link out of the tree was followed")
	}
	if list, _ := os.ReadDir(outside); len(list) > 0 {
		t.Errorf("%v was written outside", list)
	}
}
