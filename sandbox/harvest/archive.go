//go:build linux

package harvest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrTooLarge is wrapped by the errors of Pack and Unpack beyond their bounds.
var ErrTooLarge = errors.New("too large")

// Pack writes a file or folder of a tree that a sandbox wrote as a tar stream.
// name is slash-separated and relative to dir, "." for all of it. Entries of a
// folder are named relative to it, a file by its last element, in the order of
// names; times are Epoch and owners are left out. No link is followed; FIFOs,
// sockets and devices are left out. No process may be writing the tree.
func Pack(ctx context.Context, dir, name string, w io.Writer, bounds Bounds) error {
	if !filepath.IsLocal(name) {
		return &fs.PathError{Op: "pack", Path: name, Err: errors.New("not a path inside the folder")}
	}
	p := packer{ctx: ctx, tar: tar.NewWriter(w), bounds: bounds.withDefaults()}
	fd, err := OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: dir, Err: err}
	}
	parent, last := path.Split(path.Clean(name))
	for elem := range strings.SplitSeq(path.Clean(parent), "/") {
		below, err := OpenDir(fd, elem)
		unix.Close(fd)
		if err != nil {
			return &fs.PathError{Op: "pack", Path: name, Err: err}
		}
		fd = below
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, last, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "pack", Path: name, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = p.folder(fd, last, "", 0)
	case unix.S_IFREG:
		err = p.file(fd, last, last, &st)
	default:
		return &fs.PathError{Op: "pack", Path: name, Err: errors.New("neither a file nor a folder")}
	}
	if err != nil {
		return err
	}
	return p.tar.Close()
}

type packer struct {
	ctx     context.Context
	tar     *tar.Writer
	bounds  Bounds
	entries int
	total   int64
}

// folder packs what is in the folder dir/name under the prefix rel.
func (p *packer) folder(dir int, name, rel string, depth int) error {
	if depth > p.bounds.Depth {
		return &fs.PathError{Op: "pack", Path: rel, Err: fmt.Errorf("%w: more than %d folders deep", ErrTooLarge, p.bounds.Depth)}
	}
	fd, err := OpenDir(dir, name)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: rel, Err: err}
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	left := p.bounds.Entries - p.entries
	names, err := f.Readdirnames(left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return &fs.PathError{Op: "pack", Path: rel, Err: err}
	}
	if len(names) > left {
		return fmt.Errorf("pack: %w: more than %d entries", ErrTooLarge, p.bounds.Entries)
	}
	p.entries += len(names)
	slices.Sort(names)
	for _, n := range names {
		if err := p.entry(fd, n, path.Join(rel, n), depth); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) entry(dir int, name, rel string, depth int) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "pack", Path: rel, Err: err}
	}
	h := &tar.Header{Name: rel, Mode: int64(st.Mode & 0o777), ModTime: Epoch, Format: tar.FormatPAX}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, rel+"/"
		if err := p.tar.WriteHeader(h); err != nil {
			return fmt.Errorf("pack: %w", err)
		}
		return p.folder(dir, name, rel, depth+1)
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return &fs.PathError{Op: "pack", Path: rel, Err: err}
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(buf[:n])
		if err := p.tar.WriteHeader(h); err != nil {
			return fmt.Errorf("pack: %w", err)
		}
	case unix.S_IFREG:
		return p.file(dir, name, rel, &st)
	}
	return nil
}

func (p *packer) file(dir int, name, rel string, st *unix.Stat_t) error {
	if p.total += st.Size; st.Size > p.bounds.File || p.total > p.bounds.Total {
		return &fs.PathError{Op: "pack", Path: rel, Err: ErrTooLarge}
	}
	f, err := openRegular(dir, name)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: rel, Err: err}
	}
	defer f.Close()
	h := &tar.Header{Typeflag: tar.TypeReg, Name: rel, Mode: int64(st.Mode & 0o777), Size: st.Size, ModTime: Epoch, Format: tar.FormatPAX}
	err = p.tar.WriteHeader(h)
	if err == nil {
		_, err = io.CopyN(p.tar, f, st.Size)
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", rel, err)
	}
	return nil
}

// Unpack unpacks a tar stream of files, folders and symbolic links into the
// folder name of root, which is made where it is missing. Nothing outside root is written, whatever names and links say; a name
// that leaves it, and any other kind of entry, is an error. What is in the way
// of a file or link is replaced, unless it is a folder. Modes keep the nine bits
// of permission, and the owner may read and write what was made; files are of Epoch.
func Unpack(ctx context.Context, r io.Reader, root *os.Root, name string, owner Owner, bounds Bounds) error {
	u := unpacker{root: root, owner: owner, bounds: bounds.withDefaults()}
	if !filepath.IsLocal(name) {
		return &fs.PathError{Op: "unpack", Path: name, Err: errors.New("not a path inside the folder")}
	}
	if err := u.folders(path.Clean(name)); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if name != "." {
		below, err := root.OpenRoot(name)
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		defer below.Close()
		u.root = below
	}
	in := tar.NewReader(r)
	for entries := 0; ; entries++ {
		h, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("unpack: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case entries >= u.bounds.Entries:
			return fmt.Errorf("unpack: %w: more than %d entries", ErrTooLarge, u.bounds.Entries)
		}
		if err := u.entry(h, in); err != nil {
			return fmt.Errorf("unpack %q: %w", h.Name, err)
		}
	}
}

type unpacker struct {
	root   *os.Root
	owner  Owner
	bounds Bounds
	total  int64
}

func (u *unpacker) entry(h *tar.Header, in io.Reader) error {
	name := path.Clean(h.Name)
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return nil
	case name == "." && h.Typeflag == tar.TypeDir:
		return nil
	case path.IsAbs(name) || name == "." || name == ".." || strings.HasPrefix(name, "../") || strings.IndexByte(name, 0) >= 0:
		return errors.New("not a path inside the folder")
	case strings.Count(name, "/") >= u.bounds.Depth:
		return fmt.Errorf("%w: more than %d folders deep", ErrTooLarge, u.bounds.Depth)
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	if err := u.folders(path.Dir(name)); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if err := u.folders(name); err != nil {
			return err
		}
		return u.root.Chmod(name, mode|0o700)
	}
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(name, mode|0o600, h.Size, in)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(name)
	}
	return fmt.Errorf("neither a file, a folder nor a symbolic link (type %q)", h.Typeflag)
}

// folders makes a folder and those around it.
func (u *unpacker) folders(name string) error {
	if name == "." {
		return nil
	}
	info, err := u.root.Lstat(name)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%s is in the way and no folder", name)
	}
	if err := u.folders(path.Dir(name)); err != nil {
		return err
	}
	if err := u.root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return u.own(name)
}

func (u *unpacker) file(name string, mode fs.FileMode, size int64, in io.Reader) error {
	if u.total += size; size > u.bounds.File || u.total > u.bounds.Total {
		return ErrTooLarge
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	if err == nil && u.owner != Keep {
		err = f.Chown(u.owner.UID, u.owner.GID)
	}
	if err == nil {
		err = errors.Join(f.Chmod(mode), futimes(int(f.Fd())))
	}
	return errors.Join(err, f.Close())
}

func (u *unpacker) own(name string) error {
	if u.owner == Keep {
		return nil
	}
	return u.root.Lchown(name, u.owner.UID, u.owner.GID)
}
