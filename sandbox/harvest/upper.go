//go:build linux

package harvest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
)

// An overlay shows a copy, below, and what was changed in it, above. The folder
// above holds new and changed entries whole, and whiteouts (character devices of
// number 0, 0) in place of what is gone; a folder with one of these attributes
// hides what the copy has under its name. See the kernel's
// Documentation/filesystems/overlayfs.rst.
const (
	opaqueAttribute   = "trusted.overlay.opaque"
	redirectAttribute = "trusted.overlay.redirect"
)

// hides reports whether a folder above does not just add to the one below.
func hides(dir int) bool {
	for _, name := range []string{opaqueAttribute, redirectAttribute} {
		if n, err := unix.Fgetxattr(dir, name, nil); err == nil && n > 0 || err != nil && err != unix.ENODATA && err != unix.ENOTSUP {
			return true
		}
	}
	return false
}

// ChangesAbove is Changes of an overlay over a copy that b records, made by
// looking only at what the folder above has. That folder says where to look;
// what is there, the overlay shows, and nothing of the upper folder is opened
// but folders. dir is the overlay; neither may be written meanwhile.
func (b *Base) ChangesAbove(ctx context.Context, upper *os.File, dir string, bounds Bounds) ([]sandbox.Change, error) {
	above, err := unix.Openat(int(upper.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "harvest", Path: upper.Name(), Err: err}
	}
	if hides(above) {
		unix.Close(above)
		return b.Changes(ctx, dir, bounds)
	}
	fd, err := OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		unix.Close(above)
		return nil, &fs.PathError{Op: "harvest", Path: dir, Err: err}
	}
	w := upperWalker{newWalker(ctx, b, bounds), map[string]bool{}, map[string]bool{}}
	return w.finish(w.both(above, fd, "", 0), w.looked)
}

type upperWalker struct {
	*walker
	whole map[string]bool // paths of which everything was looked at
	self  map[string]bool // folders that were only walked through
}

// looked reports whether the walk would have seen what is at a path.
func (w *upperWalker) looked(path string) bool {
	if w.self[path] || w.whole[path] {
		return true
	}
	for i, c := range path {
		if c == '/' && w.whole[path[:i]] {
			return true
		}
	}
	return false
}

// both walks an open folder above beside the same in the overlay, and closes them.
func (w *upperWalker) both(above, dir int, rel string, depth int) error {
	defer unix.Close(dir)
	return w.names(above, rel, func(name, path string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(above, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "harvest", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return w.all(dir, name, path, depth)
		}
		fd, err := OpenDir(above, name)
		if err != nil || hides(fd) {
			if err == nil {
				unix.Close(fd)
			}
			return w.all(dir, name, path, depth)
		}
		w.self[path] = true
		shown := w.open(dir, name, path, depth)
		if shown < 0 {
			unix.Close(fd)
			return nil
		}
		return w.both(fd, shown, path, depth+1)
	})
}

// all looks at everything that the overlay shows at a path.
func (w *upperWalker) all(dir int, name, path string, depth int) error {
	w.whole[path] = true
	if err := unix.Faccessat(dir, name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return nil // a whiteout
	}
	return w.entry(dir, name, path, depth)
}

// CopyUpper copies what an overlay has above into another's upper folder, which
// is empty, for an overlay over the same copy. Links are not followed, each name
// of a file becomes a file, and devices become whiteouts: what hides something
// below has to hide it in the copy, too. Times are Epoch.
func CopyUpper(ctx context.Context, from, to *os.File, owner Owner, bounds Bounds) error {
	c := upperCopier{ctx: ctx, owner: owner, bounds: bounds.withDefaults()}
	fd, err := unix.Openat(int(from.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = c.folder(fd, int(to.Fd()), ".", 0)
	}
	if err != nil {
		return fmt.Errorf("copy what has changed: %w", err)
	}
	return nil
}

type upperCopier struct {
	ctx     context.Context
	owner   Owner
	bounds  Bounds
	entries int
	total   int64
}

// folder copies what is in the open folder from, which it closes, into to.
func (c *upperCopier) folder(from, to int, rel string, depth int) error {
	f := os.NewFile(uintptr(from), rel)
	defer f.Close()
	if depth > c.bounds.Depth {
		return &fs.PathError{Op: "copy", Path: rel, Err: fmt.Errorf("%w: more than %d folders deep", ErrTooLarge, c.bounds.Depth)}
	}
	names, err := f.Readdirnames(c.bounds.Entries - c.entries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return &fs.PathError{Op: "copy", Path: rel, Err: err}
	}
	if c.entries += len(names); c.entries > c.bounds.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrTooLarge, c.bounds.Entries)
	}
	for _, name := range names {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(from, to, name, path.Join(rel, name), depth); err != nil {
			return &fs.PathError{Op: "copy", Path: path.Join(rel, name), Err: err}
		}
	}
	return nil
}

func (c *upperCopier) entry(from, to int, name, rel string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fd, err := OpenDir(from, name)
		if err != nil {
			return err
		}
		made, err := makeFolder(fd, to, name)
		if err != nil {
			unix.Close(fd)
			return err
		}
		defer unix.Close(made)
		if err := c.folder(fd, made, rel, depth+1); err != nil {
			return err
		}
		if err := unix.Fchmod(made, st.Mode&0o777); err != nil {
			return err
		}
	case unix.S_IFREG:
		if err := c.file(from, to, name, &st); err != nil {
			return err
		}
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(from, name, buf)
		if err == nil {
			err = unix.Symlinkat(string(buf[:n]), to, name)
		}
		if err != nil {
			return err
		}
	case unix.S_IFIFO, unix.S_IFSOCK:
		if err := unix.Mknodat(to, name, st.Mode&(unix.S_IFMT|0o777), 0); err != nil {
			return err
		}
	default:
		return unix.Mknodat(to, name, unix.S_IFCHR, 0) // a whiteout, or in place of a device
	}
	if c.owner != Keep {
		if err := unix.Fchownat(to, name, c.owner.UID, c.owner.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to, name, epochTimes(), unix.AT_SYMLINK_NOFOLLOW)
}

// makeFolder makes a folder with the attributes of the open folder from, and opens it.
func makeFolder(from, to int, name string) (made int, err error) {
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return -1, err
	}
	if made, err = OpenDir(to, name); err != nil {
		return -1, err
	}
	for _, attribute := range []string{opaqueAttribute, redirectAttribute} {
		value := make([]byte, 4096)
		n, err := unix.Fgetxattr(from, attribute, value)
		if err == unix.ENODATA || err == unix.ENOTSUP {
			continue
		}
		if err == nil {
			err = unix.Fsetxattr(made, attribute, value[:n], 0)
		}
		if err != nil {
			unix.Close(made)
			return -1, err
		}
	}
	return made, nil
}

func (c *upperCopier) file(from, to int, name string, st *unix.Stat_t) error {
	if c.total += st.Size; st.Size > c.bounds.File || c.total > c.bounds.Total {
		return ErrTooLarge
	}
	in, err := openRegular(from, name)
	if err != nil {
		return err
	}
	defer in.Close()
	fd, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(fs.FileMode(st.Mode&0o777)), out.Close())
}
