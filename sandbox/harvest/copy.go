//go:build linux

// Package harvest makes the private copy of a folder that a sandbox works on,
// and finds out afterwards what changed in it. Everything that the sandbox
// wrote is hostile: no symbolic link is followed, no program is run, nothing
// but regular files is opened, and every quantity is bounded.
package harvest

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Epoch is the modification time of everything in a fresh copy, so that no
// timestamp points at a file that was prepared differently from the others.
var Epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Base records a tree as it was copied: what changes are relative to.
type Base struct {
	entries map[string]entry // by slash-separated relative path; folders are not recorded
}

type entry struct {
	mode uint32 // permission bits; fs.ModeSymlink for a link
	size int64
	sum  [sha256.Size]byte // of the content, or of a link's target
}

// Owner is the host user that a copy belongs to; Keep leaves it to the caller.
type Owner struct{ UID, GID int }

// Keep makes Copy leave ownership as the calling process creates it.
var Keep = Owner{-1, -1}

// Copy copies the content of folder src into the existing folder dst. Links
// are copied as links; FIFOs, sockets and devices are left out. Whatever the
// modes in src, the owner may read and write everything in the copy; setuid
// and setgid bits are dropped.
func Copy(src, dst string, owner Owner) (*Base, error) {
	info, err := os.Stat(src)
	if err != nil {
		return nil, fmt.Errorf("workspace source: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("workspace source %s is not a folder", src)
	}
	c := copier{
		base:  &Base{entries: map[string]entry{}},
		owner: owner,
		buf:   make([]byte, 64<<10),
		hash:  sha256.New(),
	}
	if err := c.folder(src, dst, ""); err != nil {
		return nil, fmt.Errorf("copy workspace: %w", err)
	}
	return c.base, nil
}

type copier struct {
	base  *Base
	owner Owner
	buf   []byte
	hash  hash.Hash
}

// folder copies what is in src into dst, which exists, and then sets dst's owner and time.
func (c *copier) folder(src, dst, rel string) error {
	list, err := os.ReadDir(src) // sorted: the copy does not repeat the order of src's making
	if err != nil {
		return err
	}
	for _, e := range list {
		from, to := filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())
		path := e.Name()
		if rel != "" {
			path = rel + "/" + path
		}
		switch {
		case e.IsDir():
			info, err := e.Info()
			if err != nil {
				return err
			}
			if err := os.Mkdir(to, 0o700); err != nil {
				return err
			}
			if err := c.folder(from, to, path); err != nil {
				return err
			}
			if err := os.Chmod(to, info.Mode().Perm()|0o700); err != nil {
				return err
			}
		case e.Type() == fs.ModeSymlink:
			if err := c.link(from, to, path); err != nil {
				return err
			}
		case e.Type().IsRegular():
			if err := c.file(from, to, path); err != nil {
				return err
			}
		}
	}
	return c.finish(dst)
}

func (c *copier) file(from, to, path string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	c.hash.Reset()
	// The wrappers keep io.CopyBuffer from choosing a path that bypasses buf.
	n, err := io.CopyBuffer(io.MultiWriter(c.hash, out), struct{ io.Reader }{in}, c.buf)
	if err != nil {
		return err
	}
	if c.owner != Keep {
		if err := out.Chown(c.owner.UID, c.owner.GID); err != nil {
			return err
		}
	}
	mode := info.Mode().Perm() | 0o600
	if err := out.Chmod(mode); err != nil {
		return err
	}
	e := entry{mode: uint32(mode), size: n}
	c.hash.Sum(e.sum[:0])
	c.base.entries[path] = e
	return futimes(int(out.Fd()))
}

func (c *copier) link(from, to, path string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, to); err != nil {
		return err
	}
	c.base.entries[path] = entry{
		mode: uint32(fs.ModeSymlink), size: int64(len(target)), sum: sha256.Sum256([]byte(target)),
	}
	return c.finish(to)
}

// Record is the Base of a tree that stays where it is: what Copy would record.
func Record(dir string) (*Base, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	defer root.Close()
	b := &Base{entries: map[string]entry{}}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		e := entry{mode: uint32(fs.ModeSymlink)}
		sum := sha256.New()
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := root.Readlink(name)
			if err != nil {
				return err
			}
			e.size = int64(len(target))
			io.WriteString(sum, target)
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			f, err := root.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			e.mode = uint32(info.Mode().Perm() | 0o600)
			if e.size, err = io.Copy(sum, f); err != nil {
				return err
			}
		default:
			return nil
		}
		sum.Sum(e.sum[:0])
		b.entries[name] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", dir, err)
	}
	return b, nil
}

// finish sets owner and time of a folder or link.
func (c *copier) finish(path string) error {
	if c.owner != Keep {
		if err := os.Lchown(path, c.owner.UID, c.owner.GID); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, epochTimes(), unix.AT_SYMLINK_NOFOLLOW)
}

func epochTimes() []unix.Timespec {
	t := unix.NsecToTimespec(Epoch.UnixNano())
	return []unix.Timespec{t, t}
}

func futimes(fd int) error {
	ns := epochTimes()
	tv := []unix.Timeval{{Sec: ns[0].Sec}, {Sec: ns[1].Sec}}
	return unix.Futimes(fd, tv)
}

// OpenDir opens one path component as a folder, never through a link. A folder
// that its owner has locked is unlocked first. The tree may be changing.
func OpenDir(dir int, name string) (int, error) {
	const flags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|flags, 0)
	if err != unix.EACCES {
		return fd, err
	}
	// Hold the folder itself: between a check and a chmod by name, the name
	// could come to be a link.
	held, err := unix.Openat(dir, name, unix.O_PATH|flags, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(held)
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", held), 0o700); err != nil {
		return -1, err
	}
	return unix.Openat(held, ".", unix.O_RDONLY|flags, 0)
}
