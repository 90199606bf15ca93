//go:build linux

package local

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

// overlayBackend is a backend with overlays, or the test is skipped.
func overlayBackend(t testing.TB) *Backend {
	t.Helper()
	b := newBackend(t)
	if b.overlays == nil {
		t.Skip("no overlays: ", b.copied)
	}
	return b
}

// Closed once more, a backend closes nobody else's descriptors.
func TestCloseTwice(t *testing.T) {
	b := overlayBackend(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var files []*os.File // which take the numbers that are free again
	for range 8 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	for _, f := range files {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func writeTree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		to := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func begin(t testing.TB, b *Backend, spec sandbox.Spec) *box {
	t.Helper()
	x, err := b.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x.(*box)
}

func run(t testing.TB, x sandbox.Sandbox, script string) string {
	t.Helper()
	r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", script}})
	if err != nil || !r.OK() {
		t.Fatalf("%s: %+v %v\n%s%s", script, r, err, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// Whatever is done to a workspace, looking at what lies above tells the same as
// looking at everything; and a fork shows the same again.
func TestChangesAboveAreAllChanges(t *testing.T) {
	b := overlayBackend(t)
	names := []string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/c", "f", "f/g", "f/g/h", "n", "n/a", ".git", ".git/x", "d/.git"}
	dir := writeTree(t, map[string]string{"a": "1", "d/a": "2", "d/e/c": "3", "f/g/h": "4", "f/i": "5", ".git/x": "6"})
	rapid.Check(t, func(rt *rapid.T) {
		s, err := b.Start(context.Background(), sandbox.Spec{Dir: dir, Frozen: true})
		if err != nil {
			rt.Fatal(err)
		}
		defer s.Close()
		x := s.(*box)
		root, err := os.OpenRoot(x.tree())
		if err != nil {
			rt.Fatal(err)
		}
		defer root.Close()
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			name, other := rapid.SampledFrom(names).Draw(rt, "name"), rapid.SampledFrom(names).Draw(rt, "other")
			// Many of these fail, as they may.
			switch rapid.SampledFrom([]string{"write", "remove", "remove", "mkdir", "rename", "rename", "link", "symlink", "chmod", "fifo", "lock", "touch"}).Draw(rt, "step") {
			case "write":
				if f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644); err == nil {
					_, err = f.WriteString(other)
					check(t, errors.Join(err, f.Close()))
				}
			case "remove":
				_ = root.RemoveAll(name)
			case "mkdir":
				_ = root.Mkdir(name, 0o755)
			case "rename":
				_ = root.Rename(name, other)
			case "link":
				_ = root.Link(name, other)
			case "symlink":
				_ = root.Symlink(other, name)
			case "chmod":
				_ = root.Chmod(name, 0o755)
			case "fifo":
				_ = unix.Mkfifo(x.tree()+"/"+name, 0o600)
			case "touch":
				_ = root.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0))
			case "lock":
				if info, err := root.Lstat(name); err == nil && info.Mode().IsRegular() {
					_ = root.Chmod(name, 0o600)
				}
			}
		}
		all, err := x.base.Changes(context.Background(), x.tree(), harvest.Bounds{})
		if err != nil {
			rt.Fatal(err)
		}
		above, err := x.Harvest(context.Background())
		if err != nil || !same(above, all) {
			rt.Errorf("above: %v, %v\nall: %v", above, err, all)
		}
		fork, err := x.Fork(context.Background())
		if err != nil {
			rt.Fatal(err)
		}
		defer fork.Close()
		forked, err := fork.Harvest(context.Background())
		if err != nil || !same(forked, all) {
			rt.Errorf("fork: %v, %v\nall: %v", forked, err, all)
		}
	})
}

func same(a, b []sandbox.Change) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }

// An upper folder that nobody could have made through an overlay: what is
// reported is what the overlay shows, and nothing outside is read or opened.
func TestForgedUpperFolder(t *testing.T) {
	b := overlayBackend(t)
	secret := writeTree(t, map[string]string{"secret": "hunter2"})
	dir := writeTree(t, map[string]string{"a": "1", "b": "2", "c": "3", "d/f": "4", "e/f": "5", "g/f": "6", "h/f": "7", "l/f": "8", "o/f": "9", "p/f": "x"})
	c, err := b.lowers.of(sandbox.Spec{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer b.lowers.giveBack(c)
	// Below the state folder: where /tmp is a mount of its own, overlays do not see it.
	slot, err := os.MkdirTemp(b.opts.StateDir, "slot-")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := b.overlays.userNamespace(b.opts.FirstUID)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	forge := func(l *layer) error {
		upper, err := l.upper()
		check(t, err)
		defer upper.Close()
		at := int(upper.Fd())
		mkdir := func(name string) { check(t, unix.Mkdirat(at, name, 0o755)) }
		set := func(name, attribute, value string) {
			fd, err := unix.Openat(at, name, unix.O_RDONLY, 0)
			check(t, err)
			defer unix.Close(fd)
			check(t, unix.Fsetxattr(fd, attribute, []byte(value), 0))
		}
		put := func(name, text string) {
			fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT, 0o4755)
			check(t, err)
			_, err = unix.Write(fd, []byte(text))
			check(t, errors.Join(err, unix.Close(fd)))
		}
		check(t, unix.Mknodat(at, "a", unix.S_IFCHR, 0))                              // a whiteout
		check(t, unix.Mknodat(at, "zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))) // devices
		check(t, unix.Mknodat(at, "b", unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0))))    //
		check(t, unix.Mknodat(at, "whiteout of nothing", unix.S_IFCHR, 0))            //
		check(t, unix.Symlinkat(secret, at, "d"))                                     // a link over a folder
		mkdir("c")                                                                    // a folder over a file
		put("c/n", "new")                                                             //
		mkdir("e")                                                                    // opaque
		set("e", "trusted.overlay.opaque", "y")                                       //
		mkdir("moved")                                                                // another's content
		set("moved", "trusted.overlay.redirect", "/g")
		check(t, unix.Mknodat(at, "g", unix.S_IFCHR, 0))           //
		mkdir("out")                                               // leads nowhere
		set("out", "trusted.overlay.redirect", "/../../../../etc") //
		mkdir("h")                                                 // what only looks like attributes
		set("h", "user.overlay.opaque", "y")                       //
		put("l", "a file over a folder")                           //
		check(t, unix.Linkat(at, "l", at, "m", 0))                 // two names
		check(t, unix.Mknodat(at, "pipe", unix.S_IFIFO, 0))        //
		mkdir("o")                                                 //
		put("o/f", "hidden by an attribute")                       //
		set("o/f", "trusted.overlay.metacopy", "")                 // data from below, if it were believed
		mkdir("p")                                                 // locked
		put("p/q", "locked")                                       //
		return errors.Join(unix.Fchmodat(at, "p/q", 0, 0), unix.Fchmodat(at, "p", 0, 0))
	}
	l, err := b.overlays.mount(overlaySpec{dir: slot, lower: c.dir, userns: ns, uid: b.opts.FirstUID, gid: b.opts.FirstUID, disk: 1 << 20}, forge)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	changes, err := l.changes(t.Context(), c.base, harvest.Bounds{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range changes {
		switch {
		case c.Deleted:
			got[c.Path] = "deleted"
		case c.Skipped != "":
			got[c.Path] = "skipped " + c.Skipped
		default:
			got[c.Path] = string(c.Data)
		}
		if bytes.Contains(c.Data, []byte("hunter2")) {
			t.Errorf("%s tells the secret", c.Path)
		}
	}
	want := map[string]string{
		"a": "deleted", "zero": "skipped device", "b": "skipped device", "d": secret, "d/f": "deleted", "c": "deleted", "c/n": "new", "e/f": "deleted",
		"g/f": "deleted", "moved/f": "6", "out": "skipped unreadable: permission denied", "l": "a file over a folder", "l/f": "deleted", "m": "a file over a folder", "pipe": "skipped fifo", "p/q": "locked",
		"o/f": "skipped unreadable: operation not permitted",
	}
	if !maps.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	all, err := c.base.Changes(t.Context(), l.path(), harvest.Bounds{})
	if err != nil || !same(all, changes) {
		t.Errorf("all of it: %v, %v", all, err)
	}
	// A copy of it has no devices and no two names of a file.
	var copied *layer
	copied, err = b.overlays.mount(overlaySpec{dir: slot, lower: c.dir, userns: ns, uid: b.opts.FirstUID, gid: b.opts.FirstUID, disk: 1 << 20}, func(to *layer) error {
		return l.copyTo(t.Context(), to, harvest.Owner{UID: b.opts.FirstUID + 1, GID: b.opts.FirstUID + 1}, harvest.Bounds{})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer copied.close()
	upper, err := copied.upper()
	check(t, err)
	defer upper.Close()
	for name, want := range map[string]string{"a": "whiteout", "zero": "whiteout", "b": "whiteout", "pipe": "pipe", "d": "link", "l": "file", "m": "file", "moved": "folder", "p": "folder"} {
		var st unix.Stat_t
		kind := ""
		if unix.Fstatat(int(upper.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			kind = map[uint32]string{unix.S_IFCHR: "whiteout", unix.S_IFIFO: "pipe", unix.S_IFBLK: "block device", unix.S_IFLNK: "link", unix.S_IFREG: "file", unix.S_IFDIR: "folder"}[st.Mode&unix.S_IFMT]
		}
		if kind != want || kind == "whiteout" && st.Rdev != 0 || kind == "file" && (st.Nlink != 1 || st.Mode&0o7000 != 0) || kind != "" && kind != "whiteout" && int(st.Uid) != b.opts.FirstUID+1 {
			t.Errorf("%s is %q, of %d, mode %o, %d names; want %q", name, kind, st.Uid, st.Mode, st.Nlink, want)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Backends of one process share a state folder, as those of a trainer's and of
// an embedder's do where none is configured.
func TestBackendsShareAStateFolder(t *testing.T) {
	one := overlayBackend(t)
	two, err := New(one.opts)
	check(t, err)
	defer func() { check(t, two.Close()) }()
	dir := writeTree(t, map[string]string{"a": "1"})
	for _, b := range []*Backend{one, two} {
		for range 2 {
			if got := run(t, begin(t, b, sandbox.Spec{Dir: dir}), "cat a"); got != "1" {
				t.Errorf("%q", got)
			}
		}
	}
}

// Sandboxes of a frozen folder share a copy, which none of them changes; those
// of another folder see it as it is when they start.
func TestFrozenFoldersAreCopiedOnce(t *testing.T) {
	b := overlayBackend(t)
	dir := writeTree(t, map[string]string{"a": "1", "d/b": "2"})
	copied := func() int {
		list, err := filepath.Glob(b.opts.StateDir + "/lower-*")
		check(t, err)
		return len(list)
	}
	one, two := begin(t, b, sandbox.Spec{Dir: dir, Frozen: true}), begin(t, b, sandbox.Spec{Dir: dir, Frozen: true})
	if n := copied(); n != 1 {
		t.Errorf("%d copies, want 1", n)
	}
	run(t, one, "echo x >> a; rm -r d; chmod 777 .")
	if got := run(t, two, "cat a d/b; echo; stat -c '%U %a %Y' a d/b .; touch a; chmod 600 d/b; mv d e"); got != "12\nagent 644 946684800\nagent 644 946684800\nagent 700 946684800\n" {
		t.Errorf("%q", got)
	}
	check(t, os.WriteFile(filepath.Join(dir, "a"), []byte("changed"), 0o644))
	plain := begin(t, b, sandbox.Spec{Dir: dir})
	if got := run(t, plain, "cat a"); got != "changed" || copied() != 2 {
		t.Errorf("%q, %d copies", got, copied())
	}
	check(t, plain.Close())
	check(t, one.Close())
	check(t, two.Close())
	if n := copied(); n != 1 {
		t.Errorf("%d copies are kept, want 1", n)
	}
	for range 2 * idleLowers {
		check(t, begin(t, b, sandbox.Spec{Dir: writeTree(t, map[string]string{"f": ""}), Frozen: true}).Close())
	}
	if n := copied(); n != idleLowers {
		t.Errorf("%d idle copies, want %d", n, idleLowers)
	}
	if _, err := b.Start(t.Context(), sandbox.Spec{Dir: filepath.Join(dir, "missing"), Frozen: true}); err == nil {
		t.Error("a folder that is not there")
	}
	check(t, b.Close())
	if n := copied(); n != 0 {
		t.Errorf("%d copies are left", n)
	}
}

// The size of its file system bounds a sandbox, however fast it writes.
func TestDiskIsBoundedAtOnce(t *testing.T) {
	b := overlayBackend(t)
	const disk = 4 << 20
	x := begin(t, b, sandbox.Spec{Dir: writeTree(t, map[string]string{"below": strings.Repeat("x", 1<<20)}), Limits: sandbox.Limits{Disk: disk}})
	for name, script := range map[string]string{
		"one file":      "head -c 64M /dev/zero > f",
		"in /tmp":       "head -c 64M /dev/zero > /tmp/f",
		"without names": "python3 -c 'import os\nfor i in range(64):\n fd = os.open(\"f\", os.O_CREAT | os.O_RDWR); os.unlink(\"f\"); os.write(fd, bytes(1 << 20))'",
		"files":         "python3 -c 'for i in range(10**6): open(str(i), \"w\").close()'",
		"copied up":     "for i in 1 2 3 4 5 6; do cp below /tmp/$i || exit 1; done",
	} {
		r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", script}})
		if err != nil || r.OK() {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if name != "without names" && !r.DiskFull {
			t.Errorf("%s: not disk full", name)
		}
		var st unix.Statfs_t
		check(t, unix.Fstatfs(int(x.layer.memory.Fd()), &st))
		if most := uint64(disk+overDiskBytes) / uint64(st.Bsize); st.Blocks > most || st.Files > disk/perEntry+overDiskFiles {
			t.Errorf("%s: room for %d blocks and %d files", name, st.Blocks, st.Files)
		}
		run(t, x, "find . /tmp -type f ! -name below -exec rm -f {} +")
	}
}

// What a sandbox is told of its mounts names nothing of the host, and the host
// sees none of them.
func TestMountsAreTheSandboxsOwn(t *testing.T) {
	b := overlayBackend(t)
	x := begin(t, b, sandbox.Spec{Dir: writeTree(t, map[string]string{"a": "1"})})
	inside := run(t, x, "cat /proc/self/mountinfo")
	if !strings.Contains(inside, " /workspace ") || strings.Contains(inside, "/"+strconv.Itoa(x.slot.number)) || strings.Contains(inside, filepath.Base(x.lower.dir)) {
		t.Errorf("%s", inside)
	}
	for _, flag := range []string{"nosuid", "nodev"} {
		for _, at := range []string{"/workspace", "/tmp"} {
			if !strings.Contains(run(t, x, "grep ' "+at+" ' /proc/self/mountinfo"), flag) {
				t.Errorf("%s is not %s", at, flag)
			}
		}
	}
	outside, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(outside, []byte(b.opts.StateDir)) {
		t.Errorf("%s %v", outside, err)
	}
	if list, err := os.ReadDir(x.slot.dir); err != nil || len(list) != 1 {
		t.Errorf("the slot's folder has %v on the host, %v", list, err)
	}
	for _, program := range []string{
		`os.setxattr("a", "trusted.overlay.opaque", b"y")`, `os.setxattr(".", "trusted.overlay.redirect", b"/etc")`,
		`os.getxattr(".", "trusted.overlay.origin")`, `os.mknod("w", 0o20000, 0)`, `os.chown("a", 0, 0)`,
	} {
		r, err := x.Exec(t.Context(), sandbox.Cmd{Args: []string{"python3", "-c", "import os\n" + program}})
		if err != nil || r.OK() || !bytes.Contains(r.Stderr, []byte("Error")) {
			t.Errorf("%s: %+v %v", program, r, err)
		}
	}
}

// The namespace that the launcher starts in has what is shown, and nothing else
// of this machine.
func TestOnlyNeededMountsAreCopied(t *testing.T) {
	b := overlayBackend(t)
	x := begin(t, b, sandbox.Spec{Dir: t.TempDir()})
	var there string
	check(t, b.spawn.do(func() error {
		defer unix.Setns(b.spawn.home, unix.CLONE_NEWNS)
		if err := unix.Setns(x.layer.namespace, unix.CLONE_NEWNS); err != nil {
			return err
		}
		text, err := os.ReadFile("/proc/thread-self/mountinfo")
		there = string(text)
		return err
	}))
	for _, at := range []string{"/", "/proc", "/dev", "/dev/shm", x.slot.dir, x.slot.workspace()} {
		if !strings.Contains(there, " "+at+" ") {
			t.Errorf("%s is missing", at)
		}
	}
	for line := range strings.Lines(there) {
		at := strings.Fields(line)[4]
		if below(at, "/sys") || below(at, "/run") || below(at, "/mnt") {
			t.Errorf("%s is there", at)
		}
	}
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a", "/", true}, {"/", "/", true}, {"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/", "/a", false}} {
		if below(c.path, c.dir) != c.want {
			t.Errorf("%s below %s: %v", c.path, c.dir, !c.want)
		}
	}
}

// A number that is free again brings its namespace along.
func TestUserNamespacesAreKept(t *testing.T) {
	b := overlayBackend(t)
	dir := t.TempDir()
	x := begin(t, b, sandbox.Spec{Dir: dir})
	number, ns := x.slot.number, x.userns
	check(t, x.Close())
	if y := begin(t, b, sandbox.Spec{Dir: dir}); y.slot.number != number || y.userns != ns {
		t.Errorf("%d with %d, want %d with %d", y.slot.number, y.userns, number, ns)
	}
	if z := begin(t, b, sandbox.Spec{Dir: dir}); z.slot.number == number {
		t.Errorf("two sandboxes are %d", number)
	}
	for i := range idleNamespaces + 1 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		check(t, err)
		b.userns.put(i, fd)
	}
	if n := len(b.userns.idle); n != idleNamespaces {
		t.Errorf("%d are kept", n)
	}
}

func TestWhyWorkspacesAreCopies(t *testing.T) {
	b := newBackendWith(t, Options{Copy: true})
	caps := b.capabilities()
	if !slices.ContainsFunc(caps.Notes, func(n string) bool { return strings.Contains(n, "copies") && strings.Contains(n, "configuration") }) {
		t.Errorf("%q", caps.Notes)
	}
	if _, err := newOverlays(t.TempDir(), "/none", 30_000, nil); err == nil {
		t.Error("overlays without a folder in memory and without a helper")
	}
}

// /proc/self is the first thread's: it must not be one whose mounts differ.
func TestThreadsAreNeverTheFirst(t *testing.T) {
	for range 50 {
		thread := newThread()
		check(t, thread.do(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("the first thread was taken")
			}
			return nil
		}))
		thread.close()
	}
}
