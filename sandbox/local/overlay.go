//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// Where the kernel lets us, a workspace is an overlay: a read-only copy of the
// source below, which sandboxes share, and a file system in memory above, which
// is the sandbox's own and has a size. Making one costs the same whatever the
// source holds, and what a sandbox has changed is what lies above.
//
// Each sandbox has a mount namespace, which no process is in, with a tmpfs over
// its slot's folder:
//
//	<slot>/upper, work   above: the overlay's own folders
//	<slot>/lower         below: the shared copy, its owner mapped to the sandbox's
//	<slot>/workspace     the overlay
//	<slot>/tmp           seen as /tmp
//
// A launcher is started in that namespace. The host's own namespace sees none of
// it, and when the trainer ends, however it does, the kernel takes it down.
//
// The overlay is made by root, outside the sandbox's user namespace: its
// whiteouts and attributes (trusted.overlay.*) take rights that nothing inside
// has, while in a user namespace (user.overlay.*) the sandbox's user has them.
type overlays struct {
	*thread
	host   int    // the mount namespace of all other threads
	home   int    // the thread's own, which those of sandboxes are copies of
	helper string // the program that makes user namespaces, see pid1.UserNamespaceArgument
}

// newOverlays gets ready to make overlays and tries one out in the folder dir.
// needed are the places of this machine that a launcher shows in sandboxes.
func newOverlays(dir, helper string, uid int, needed []string) (*overlays, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the trainer is not root")
	}
	if !inMemory(dir) {
		return nil, fmt.Errorf("the state folder %s is not in memory", dir)
	}
	o := &overlays{thread: newThread(), host: -1, home: -1, helper: helper}
	err := o.do(func() (err error) {
		if o.host, err = openNamespace("thread-self", "mnt"); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		// What is mounted here stays here; what the host unmounts goes here too.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		unmountBut(append(needed, dir))
		o.home, err = openNamespace("thread-self", "mnt")
		return err
	})
	if err == nil {
		err = o.try(dir, uid)
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// try makes an overlay and looks whether its files belong to the right user.
func (o *overlays) try(dir string, uid int) error {
	dir, err := os.MkdirTemp(dir, fmt.Sprintf("new-%d-", os.Getpid()))
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lower, slot := filepath.Join(dir, "copy"), filepath.Join(dir, "slot")
	if err := errors.Join(os.Mkdir(slot, 0o700), os.Mkdir(lower, 0o700), os.WriteFile(filepath.Join(lower, "f"), nil, 0o600)); err != nil {
		return err
	}
	ns, err := o.userNamespace(uid)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	l, err := o.mount(overlaySpec{dir: slot, lower: lower, userns: ns, uid: uid, gid: uid, disk: 1 << 20}, nil)
	if err != nil {
		return err
	}
	defer l.close()
	var st unix.Stat_t
	if err := unix.Stat(l.path()+"/f", &st); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if int(st.Uid) != uid {
		return fmt.Errorf("a file of the copy belongs to %d in the overlay, want %d", st.Uid, uid)
	}
	return nil
}

func (o *overlays) close() {
	o.thread.close()
	for _, fd := range []*int{&o.host, &o.home} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1 // another close must not close somebody else's
		}
	}
}

// unmountBut takes away what this thread's mount namespace has on the way
// neither to what is needed nor below it: the namespace of each sandbox is a copy
// of this one, which its launcher copies once more, and bubblewrap reads the list of
// mounts for each of its own.
// What covers a part of a needed place stays.
func unmountBut(needed []string) {
	for i, name := range needed {
		if real, err := filepath.EvalSymlinks(name); err == nil {
			needed[i] = real
		}
	}
	text, _ := os.ReadFile("/proc/thread-self/mountinfo")
	mounts := strings.Split(strings.TrimSpace(string(text)), "\n")
	slices.Reverse(mounts) // what was mounted last first
	for _, line := range mounts {
		f := strings.Fields(line)
		if len(f) < 5 || strings.Contains(f[4], `\`) { // a name with blanks
			continue
		}
		at := f[4]
		if !slices.ContainsFunc(needed, func(n string) bool { return below(n, at) || below(at, n) }) {
			_ = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
}

// below reports whether a path is dir or lies in it.
func below(path, dir string) bool {
	return strings.HasPrefix(path+"/", strings.TrimSuffix(dir, "/")+"/")
}

func openNamespace(process, kind string) (int, error) {
	name := filepath.Join("/proc", process, "ns", kind)
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// userNamespace makes a user namespace in which root is the host's user uid.
// Nothing runs in it: it says how the owner of a copy's files is mapped.
func (o *overlays) userNamespace(uid int) (int, error) {
	p, err := os.StartProcess(o.helper, []string{o.helper, pid1.UserNamespaceArgument}, &os.ProcAttr{Dir: "/", Env: []string{}})
	if err != nil {
		return -1, err
	}
	defer p.Wait()
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return -1, os.NewSyscallError("waitid", err)
		}
	}
	proc := strconv.Itoa(p.Pid)
	for _, file := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(filepath.Join("/proc", proc, file), fmt.Appendf(nil, "0 %d 1\n", uid), 0); err != nil {
			return -1, fmt.Errorf("user namespace: %w", err)
		}
	}
	return openNamespace(proc, "user")
}

// overlaySpec describes an overlay to be made.
type overlaySpec struct {
	dir      string // the slot's folder
	lower    string // what lies below
	userns   int    // maps its owner
	uid, gid int
	disk     int64 // size in bytes
}

// layer is an overlay with its mount namespace.
type layer struct {
	namespace int
	memory    *os.File // the root of the tmpfs
	merged    *os.File // the root of the overlay
}

// path names the workspace for this process, whose threads are in another mount
// namespace. The dot makes the last element one that is no link.
func (l *layer) path() string { return fmt.Sprintf("/proc/self/fd/%d/.", l.merged.Fd()) }

// upper opens what lies above.
func (l *layer) upper() (*os.File, error) {
	fd, err := unix.Openat(int(l.memory.Fd()), "upper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "upper", Err: err}
	}
	return os.NewFile(uintptr(fd), "upper"), nil
}

// usage is how many bytes the sandbox's files take, those without a name included.
func (l *layer) usage() int64 {
	var st unix.Statfs_t
	if unix.Fstatfs(int(l.memory.Fd()), &st) != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree)*st.Bsize + int64(st.Files-st.Ffree)*perEntry
}

// changes reports how the workspace differs from what lies below.
func (l *layer) changes(ctx context.Context, base *harvest.Base, bounds harvest.Bounds) ([]sandbox.Change, error) {
	upper, err := l.upper()
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	return base.ChangesAbove(ctx, upper, l.path(), bounds)
}

// copyTo puts what lies above into another overlay, before that is mounted.
func (l *layer) copyTo(ctx context.Context, other *layer, owner harvest.Owner, bounds harvest.Bounds) error {
	from, err := l.upper()
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := other.upper()
	if err != nil {
		return err
	}
	defer to.Close()
	return harvest.CopyUpper(ctx, from, to, owner, bounds)
}

// close gives the overlay up. Its memory is free when the last process in it has ended.
func (l *layer) close() {
	for _, f := range []*os.File{l.merged, l.memory} {
		if f != nil {
			f.Close()
		}
	}
	if l.namespace >= 0 {
		unix.Close(l.namespace)
	}
}

// mount makes an overlay. fill, which may be nil, puts something into its upper
// folder first.
func (o *overlays) mount(s overlaySpec, fill func(*layer) error) (*layer, error) {
	l := &layer{namespace: -1}
	lower, err := l.prepare(s, fill)
	if err == nil {
		defer unix.Close(lower)
		err = o.do(func() (err error) {
			// Back, so that this thread does not keep what it has made.
			defer func() { err = errors.Join(err, os.NewSyscallError("setns", unix.Setns(o.home, unix.CLONE_NEWNS))) }()
			if err := unix.Setns(o.home, unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("setns", err)
			}
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := l.attach(s.dir, lower); err != nil {
				return err
			}
			l.namespace, err = openNamespace("thread-self", "mnt")
			return err
		})
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return l, nil
}

// overDiskBytes and overDiskFiles are the room above the limit on disk: a write
// that finds no place has left the limit behind, unless it is larger.
const overDiskBytes, overDiskFiles = 1 << 20, 64

const mountAttributes = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOATIME

// prepare makes what lies above, in no mount namespace yet, and returns the mount
// of what lies below.
func (l *layer) prepare(s overlaySpec, fill func(*layer) error) (lower int, err error) {
	memory, err := newMount("tmpfs", [][2]string{
		{"size", strconv.FormatInt(s.disk+overDiskBytes, 10)},
		{"nr_inodes", strconv.FormatInt(s.disk/perEntry+overDiskFiles, 10)},
		{"mode", "0710"}, {"uid", "0"}, {"gid", strconv.Itoa(s.gid)},
	})
	if err != nil {
		return -1, err
	}
	l.memory = os.NewFile(uintptr(memory), s.dir)
	home := path.Join("tmp", path.Base(sandbox.HomeDir))
	for _, f := range []struct {
		name string
		mode uint32
		own  bool
	}{{"lower", 0o700, false}, {"work", 0o700, false}, {"workspace", 0o755, false}, {"upper", 0o700, true}, {"tmp", 0o700, true}, {home, 0o700, true}} {
		err := unix.Mkdirat(memory, f.name, f.mode)
		if err == nil && f.own {
			err = unix.Fchownat(memory, f.name, s.uid, s.gid, 0)
		}
		if err != nil {
			return -1, &os.PathError{Op: "mkdir", Path: f.name, Err: err}
		}
	}
	if fill != nil {
		if err := fill(l); err != nil {
			return -1, err
		}
	}
	epoch := unix.NsecToTimespec(harvest.Epoch.UnixNano())
	if err := unix.UtimesNanoAt(memory, "upper", []unix.Timespec{epoch, epoch}, 0); err != nil {
		return -1, os.NewSyscallError("utimensat", err)
	}
	lower, err = unix.OpenTree(unix.AT_FDCWD, s.lower, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	if err := unix.MountSetattr(lower, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: mountAttributes | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_IDMAP, Attr_clr: unix.MOUNT_ATTR__ATIME, Userns_fd: uint64(s.userns),
	}); err != nil {
		unix.Close(lower)
		return -1, os.NewSyscallError("mount_setattr", err)
	}
	return lower, nil
}

// attach puts the parts into the calling thread's mount namespace, and makes the
// overlay of them there.
func (l *layer) attach(dir string, lower int) error {
	memory := int(l.memory.Fd())
	if err := moveMount(memory, unix.AT_FDCWD, dir); err != nil {
		return err
	}
	if err := moveMount(lower, memory, "lower"); err != nil {
		return err
	}
	// Relative names, because the sandbox sees them in its /proc/self/mountinfo.
	if err := unix.Fchdir(memory); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	merged, err := newMount("overlay", [][2]string{
		{"lowerdir", "lower"}, {"upperdir", "upper"}, {"workdir", "work"},
		// A folder of the copy can be renamed, and a file above is all of the file.
		{"redirect_dir", "on"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "off"},
	})
	if err != nil {
		return err
	}
	l.merged = os.NewFile(uintptr(merged), "workspace")
	return moveMount(merged, memory, "workspace")
}

// newMount makes a mount that is nowhere yet.
func newMount(kind string, options [][2]string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", kind, os.NewSyscallError("fsopen", err))
	}
	defer unix.Close(fs)
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("%s: option %s=%s: %w", kind, o[0], o[1], syscallError("fsconfig", fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%s: %w", kind, syscallError("fsconfig", fs, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, mountAttributes)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", kind, os.NewSyscallError("fsmount", err))
	}
	return fd, nil
}

// syscallError adds what the kernel says about a file system that is being made.
func syscallError(call string, fs int, err error) error {
	said := make([]byte, 200)
	if n, e := unix.Read(fs, said); e == nil && n > 0 {
		return fmt.Errorf("%s: %w (%q)", call, err, said[:n])
	}
	return os.NewSyscallError(call, err)
}

func moveMount(mount, dir int, name string) error {
	if err := unix.MoveMount(mount, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: name, Err: err}
	}
	return nil
}

// userNamespaces keeps those of numbers that are free again: a sandbox that takes
// the same number needs none made.
type userNamespaces struct {
	mu   sync.Mutex
	idle []numbered
}

type numbered struct{ number, fd int }

// idleNamespaces bounds the descriptors that are held for nobody.
const idleNamespaces = 256

// take returns a number that there is one for, with it, or wanted and -1.
func (u *userNamespaces) take(wanted int) (number, fd int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := len(u.idle)
	if n == 0 {
		return wanted, -1
	}
	last := u.idle[n-1]
	u.idle = u.idle[:n-1]
	return last.number, last.fd
}

// put keeps one, or closes it.
func (u *userNamespaces) put(number, fd int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle) >= idleNamespaces {
		unix.Close(fd)
		return
	}
	u.idle = append(u.idle, numbered{number, fd})
}

func (u *userNamespaces) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, n := range u.idle {
		unix.Close(n.fd)
	}
	u.idle = nil
}
