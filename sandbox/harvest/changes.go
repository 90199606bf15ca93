//go:build linux

package harvest

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
)

// Bounds limit what Changes reads. They are far above an honest episode and
// keep a hostile one from filling the trainer's memory.
type Bounds struct {
	File    int64 // bytes of one changed file
	Total   int64 // bytes of all changed files together
	Entries int   // files, links and folders visited
	Depth   int   // folders inside each other
}

// DefaultBounds are used for zero fields.
var DefaultBounds = Bounds{File: 8 << 20, Total: 64 << 20, Entries: 200_000, Depth: 128}

func (b Bounds) withDefaults() Bounds {
	d := DefaultBounds
	if b.File <= 0 {
		b.File = d.File
	}
	if b.Total <= 0 {
		b.Total = d.Total
	}
	if b.Entries <= 0 {
		b.Entries = d.Entries
	}
	if b.Depth <= 0 {
		b.Depth = d.Depth
	}
	return b
}

// Changes compares the folder dir with the base it was copied from, sorted by
// path. No process may be writing dir meanwhile.
//
// As in git, folders exist only through what is in them, and of a file's mode
// only the owner's execute bit counts. Anything named .git, at any depth, is
// left out. A FIFO, socket or device, a file over the bounds or unreadable,
// and a folder beyond the bounds is a Change with Skipped set; when the count of entries is
// exceeded, the last change has the path "." and deletions are not reported.
func (b *Base) Changes(ctx context.Context, dir string, bounds Bounds) ([]sandbox.Change, error) {
	fd, err := OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		return nil, &fs.PathError{Op: "harvest", Path: dir, Err: err}
	}
	w := newWalker(ctx, b, bounds)
	return w.finish(w.folder(fd, "", 0), func(string) bool { return true })
}

func newWalker(ctx context.Context, b *Base, bounds Bounds) *walker {
	return &walker{ctx: ctx, base: b, bounds: bounds.withDefaults(), seen: map[string]bool{}}
}

// finish adds the deletions, of those paths that the walk has looked for, and
// sorts. err is how the walk ended.
func (w *walker) finish(err error, looked func(path string) bool) ([]sandbox.Change, error) {
	if err != nil && !errors.Is(err, errTooMany) {
		return nil, err
	}
	if w.short != nil {
		return nil, w.short
	}
	if err == nil {
		for path := range w.base.entries {
			if !w.seen[path] && !inGit(path) && looked(path) && !w.unseen(path) {
				w.add(sandbox.Change{Path: path, Deleted: true})
			}
		}
	}
	sort.Slice(w.changes, func(i, j int) bool { return w.changes[i].Path < w.changes[j].Path })
	if err != nil {
		w.add(sandbox.Change{Path: ".", Skipped: errTooMany.Error()})
	}
	return w.changes, nil
}

var errTooMany = errors.New("too many entries")

type walker struct {
	ctx     context.Context
	base    *Base
	bounds  Bounds
	seen    map[string]bool // paths that hold something other than a folder
	opaque  []string        // folders that were not entered, with a final slash
	changes []sandbox.Change
	visited int
	total   int64
	short   error // the first entry that could not be read for want of the host's resources
}

// unseen reports whether path lies in a folder that was not entered.
func (w *walker) unseen(path string) bool {
	for _, p := range w.opaque {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

func (w *walker) add(c sandbox.Change) { w.changes = append(w.changes, c) }

// folder walks an open folder and closes it.
func (w *walker) folder(fd int, rel string, depth int) error {
	return w.names(fd, rel, func(name, path string) error { return w.entry(fd, name, path, depth) })
}

// names calls f for what is in an open folder, and closes the folder.
func (w *walker) names(fd int, rel string, f func(name, path string) error) error {
	dir := os.NewFile(uintptr(fd), rel)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if w.visited++; w.visited > w.bounds.Entries {
				return errTooMany
			}
			if w.visited%1024 == 0 && w.ctx.Err() != nil {
				return w.ctx.Err()
			}
			if name == ".git" {
				continue
			}
			path := name
			if rel != "" {
				path = rel + "/" + name
			}
			if err := f(name, path); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *walker) entry(dir int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		w.unreadable(path, err)
		return nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if fd := w.open(dir, name, path, depth); fd >= 0 {
			return w.folder(fd, path, depth+1)
		}
	case unix.S_IFREG:
		w.file(dir, name, path, &st)
	case unix.S_IFLNK:
		w.link(dir, name, path)
	case unix.S_IFIFO:
		w.skip(path, "fifo")
	case unix.S_IFSOCK:
		w.skip(path, "socket")
	default:
		w.skip(path, "device")
	}
	return nil
}

// open opens a folder, or says why it is not entered and returns -1.
func (w *walker) open(dir int, name, path string, depth int) int {
	why := "too deep"
	if depth+1 < w.bounds.Depth {
		fd, err := OpenDir(dir, name)
		if err == nil {
			return fd
		}
		why = "unreadable folder"
		w.note(path, err)
	}
	w.opaque = append(w.opaque, path+"/")
	w.add(sandbox.Change{Path: path, Skipped: why})
	return -1
}

// skip reports an entry that is there but not read: it is not a deletion either.
func (w *walker) skip(path, why string) {
	w.seen[path] = true
	w.add(sandbox.Change{Path: path, Skipped: why})
}

// unreadable skips an entry that the folder's owner made so that it cannot be read.
func (w *walker) unreadable(path string, err error) {
	w.note(path, err)
	w.skip(path, "unreadable: "+err.Error())
}

// note keeps an error that is the host's doing and not that of the folder's
// owner, who could otherwise lose a file that anyone can read.
func (w *walker) note(path string, err error) {
	if w.short == nil && (errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)) {
		w.short = &fs.PathError{Op: "harvest", Path: path, Err: err}
	}
}

func (w *walker) file(dir int, name, path string, st *unix.Stat_t) {
	mode := uint32(st.Mode & 0o777)
	old, known := w.base.entries[path]
	known = known && old.mode&uint32(fs.ModeSymlink) == 0
	sameMode := known && old.mode&0o100 == mode&0o100
	if known && st.Size == old.size && old.size > w.bounds.File {
		// Too large to report in any case; hash it, to know whether to mention it.
		if sum, ok := hashFile(dir, name); ok && sum == old.sum && sameMode {
			w.seen[path] = true
			return
		}
	}
	if st.Size > w.bounds.File {
		w.skip(path, "too large")
		return
	}
	data, err := readFile(dir, name, st)
	if err != nil {
		w.unreadable(path, err)
		return
	}
	w.seen[path] = true
	if sameMode && old.size == int64(len(data)) && old.sum == sha256.Sum256(data) {
		return
	}
	if w.total += int64(len(data)); w.total > w.bounds.Total {
		w.skip(path, "too large together")
		return
	}
	w.add(sandbox.Change{Path: path, Mode: mode, Data: data})
}

func (w *walker) link(dir int, name, path string) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		w.unreadable(path, err)
		return
	}
	w.seen[path] = true
	target := buf[:n]
	old, known := w.base.entries[path]
	if known && old.mode == uint32(fs.ModeSymlink) && old.sum == sha256.Sum256(target) {
		return
	}
	w.add(sandbox.Change{Path: path, Mode: uint32(fs.ModeSymlink), Data: target})
}

// openRegular opens a regular file for reading, never a link and never blocking.
func openRegular(dir int, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := unix.Openat(dir, name, flags, 0)
	if err == unix.EACCES {
		var st unix.Stat_t
		if e := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); e != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, err
		}
		if e := unix.Fchmodat(dir, name, uint32(st.Mode&0o777)|0o400, 0); e != nil {
			return nil, err
		}
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, errors.New("not a regular file")
	}
	return f, nil
}

func readFile(dir int, name string, st *unix.Stat_t) ([]byte, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, st.Size)
	n, err := io.ReadFull(f, data)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return data[:n], err
}

func hashFile(dir int, name string) (sum [sha256.Size]byte, ok bool) {
	f, err := openRegular(dir, name)
	if err != nil {
		return sum, false
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, false
	}
	h.Sum(sum[:0])
	return sum, true
}

// inGit reports whether a path lies in something named .git.
func inGit(path string) bool {
	for start := 0; ; {
		end := start
		for end < len(path) && path[end] != '/' {
			end++
		}
		if path[start:end] == ".git" {
			return true
		}
		if end == len(path) {
			return false
		}
		start = end + 1
	}
}
