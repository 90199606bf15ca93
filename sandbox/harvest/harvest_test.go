//go:build linux

package harvest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestMain keeps the many small files of these tests in memory where it can.
func TestMain(m *testing.M) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	os.Exit(m.Run())
}

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func copied(t testing.TB, files map[string]string) (src, dst string, base *Base) {
	t.Helper()
	src, dst = t.TempDir(), t.TempDir()
	write(t, src, files)
	base, err := Copy(src, dst, Keep)
	if err != nil {
		t.Fatal(err)
	}
	return src, dst, base
}

func TestCopyKeepsModesLinksAndOneTime(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	write(t, src, map[string]string{"plain": "x", "run": "x", "setuid": "x", "locked/f": "x", "secret": "x"})
	for name, mode := range map[string]uint32{"run": 0o755, "setuid": 0o4755, "secret": 0o400, "locked": 0o500} {
		if err := unix.Chmod(filepath.Join(src, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(src, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	base, err := Copy(src, dst, Keep)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		"plain": 0o644, "run": 0o755, "setuid": 0o755, "secret": 0o600, "locked": fs.ModeDir | 0o700, "locked/f": 0o644, "link": fs.ModeSymlink | 0o777,
	} {
		info, err := os.Lstat(filepath.Join(dst, name))
		if err != nil || info.Mode() != want || !info.ModTime().Equal(Epoch) {
			t.Errorf("%s: %v, want mode %v and time %v (%v)", name, info, want, Epoch, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dst, "fifo")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a FIFO was copied")
	}
	if c, err := base.Changes(t.Context(), dst, Bounds{}); err != nil || len(c) > 0 {
		t.Errorf("changes of a fresh copy: %v %v", c, err)
	}
}

// Whatever is done to the copy, the changes applied to the original give the copy.
// What is recorded in place is what a copy of it records.
func TestRecordIsWhatCopyRecords(t *testing.T) {
	src, _, _ := copied(t, map[string]string{"a": "1", "d/b": "two", "d/e/empty": ""})
	if err := os.Symlink("a", filepath.Join(src, "l")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(src, "a"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(src, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := Copy(src, t.TempDir(), Keep)
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := Record(src)
	if err != nil || !maps.Equal(recorded.entries, base.entries) {
		t.Errorf("recorded %v, copied %v, %v", recorded, base, err)
	}
}

// A folder in memory lists its newest entry first, which would tell a sandbox
// in what order its source was made.
func TestCopiesAreListedInTheOrderOfNames(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	for _, name := range []string{"b", "d", "a", "c"} {
		write(t, src, map[string]string{name: name})
	}
	if _, err := Copy(src, dst, Keep); err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	for _, name := range []string{"a", "b", "c", "d"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dst, name), &st); err != nil {
			t.Fatal(err)
		}
		if made := uint64(st.Ctim.Nano()); made < last {
			t.Errorf("%s was made before the name in front of it", name)
		} else {
			last = made
		}
	}
}

func TestChangesLeadFromOriginalToCopy(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "d/a", "d/b", "d/e/c", "f/g"})
		files := rapid.MapOf(names, rapid.SampledFrom([]string{"", "x", "y", "xx"}))
		before, after := files.Draw(rt, "before"), files.Draw(rt, "after")
		_, dst, base := copied(t, before)
		for name := range before {
			if err := os.Remove(filepath.Join(dst, name)); err != nil {
				rt.Fatal(err)
			}
		}
		write(t, dst, after)
		changes, err := base.Changes(context.Background(), dst, Bounds{})
		if err != nil {
			rt.Fatal(err)
		}
		got := map[string]string{}
		for k, v := range before {
			got[k] = v
		}
		for _, c := range changes {
			if old, ok := got[c.Path]; ok && !c.Deleted && old == string(c.Data) {
				rt.Errorf("%s did not change", c.Path)
			}
			if c.Deleted {
				delete(got, c.Path)
			} else {
				got[c.Path] = string(c.Data)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(after) {
			rt.Errorf("%v, want %v", got, after)
		}
	})
}

func TestBounds(t *testing.T) {
	_, dst, base := copied(t, map[string]string{"large": strings.Repeat("x", 200), "deep/1/2/3/f": "x"})
	write(t, dst, map[string]string{"a": strings.Repeat("x", 60), "b": strings.Repeat("x", 60), "c": strings.Repeat("x", 101)})
	changes, err := base.Changes(t.Context(), dst, Bounds{File: 100, Total: 100, Depth: 3})
	if err != nil {
		t.Fatal(err)
	}
	skipped := map[string]string{}
	for _, c := range changes {
		skipped[c.Path] = c.Skipped
		if c.Deleted {
			t.Errorf("%s is reported as deleted", c.Path)
		}
	}
	together := 0
	for _, name := range []string{"a", "b"} {
		if skipped[name] == "too large together" {
			together++
		}
	}
	if together != 1 || skipped["c"] != "too large" || skipped["deep/1/2"] != "too deep" {
		t.Errorf("%v", skipped)
	}
	if _, ok := skipped["large"]; ok {
		t.Error("an unchanged large file is reported")
	}
	changes, err = base.Changes(t.Context(), dst, Bounds{Entries: 3})
	if err != nil || len(changes) == 0 || changes[len(changes)-1].Skipped != "too many entries" {
		t.Errorf("%v %v", changes, err)
	}
	for _, c := range changes {
		if c.Deleted {
			t.Errorf("%s: a deletion although not everything was seen", c.Path)
		}
	}
}

// Where the host has no descriptor left, a change must not pass as unreadable:
// the agent's work would be judged without it.
func TestWantOfDescriptorsIsAnError(t *testing.T) {
	_, dst, base := copied(t, map[string]string{"a": "1", "b": "2"})
	write(t, dst, map[string]string{"a": "changed"})
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 128, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for {
		fd, err := unix.Open(dst, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		taken = append(taken, fd)
	}
	unix.Close(taken[0]) // for the folder
	changes, err := base.Changes(t.Context(), dst, Bounds{})
	for _, fd := range taken[1:] {
		unix.Close(fd)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("%v, %v", changes, err)
	}
	if changes, err = base.Changes(t.Context(), dst, Bounds{}); err != nil || len(changes) != 1 {
		t.Errorf("afterwards %v, %v", changes, err)
	}
}

func TestRemoveAllOfHostileTrees(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"keep": "x"})
	parent := t.TempDir()
	dir := filepath.Join(parent, "tree")
	write(t, dir, map[string]string{"a/b/c": "x", "e/f": "x"})
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	// Far deeper than a path can name, or than there are descriptors to hold.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if fd = next; err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(fd)
	for _, name := range []string{"a/b", "a", "e"} {
		if err := os.Chmod(filepath.Join(dir, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(parent); len(list) > 0 {
		t.Errorf("%v is left", list)
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Error("a link was followed:", err)
	}
	if err := RemoveAll(dir); err != nil {
		t.Error("removing nothing:", err)
	}
}

func TestInGit(t *testing.T) {
	for path, want := range map[string]bool{".git": true, ".git/x": true, "a/.git": true, "a/.git/b": true, ".gitignore": false, "a.git/b": false, "": false, "a/b": false} {
		if inGit(path) != want {
			t.Errorf("%q: %v", path, !want)
		}
	}
}

// What names no entry is refused: the folder that it stands for is nobody's to empty.
func TestRemoveAllOfNoEntry(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("d", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "d/.."} {
		if err := RemoveAll(name); err == nil {
			t.Errorf("%q was removed", name)
		}
	}
	if _, err := os.Stat("d"); err != nil {
		t.Error(err)
	}
}
