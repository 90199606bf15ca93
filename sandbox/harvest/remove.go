//go:build linux

package harvest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeDepth is how many folders the remover holds open; what lies deeper is
// moved up first.
const removeDepth = 64

// RemoveAll removes a tree that a sandbox wrote: also with folders of mode 000
// and of any depth. It does not follow links. Nothing may be writing to it.
func RemoveAll(path string) error {
	if name := filepath.Base(path); name == "." || name == ".." || name == "/" {
		return fmt.Errorf("remove what a sandbox left: %q names no entry of a folder", path)
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("remove what a sandbox left: %w", err)
	}
	defer parent.Close()
	r := remover{top: int(parent.Fd()), name: filepath.Base(path)}
	for pending := []string{r.name}; len(pending) > 0; {
		name := pending[0]
		if err := r.remove(r.top, name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what a sandbox left: %w", &fs.PathError{Op: "remove", Path: filepath.Join(filepath.Dir(path), name), Err: err})
		}
		pending, r.moved = append(pending[1:], r.moved...), nil
	}
	return nil
}

type remover struct {
	top   int      // the folder that holds the tree
	name  string   // of the tree
	moved []string // folders that were too deep and are now in top
	count int
}

func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if depth >= removeDepth {
		r.count++
		aside := fmt.Sprintf("%s.%d", r.name, r.count)
		if e := unix.Renameat(dir, name, r.top, aside); e != nil {
			return err
		}
		r.moved = append(r.moved, aside)
		return nil
	}
	fd, e := OpenDir(dir, name)
	if e != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	_ = unix.Fchmod(fd, 0o700) // a folder that cannot be written cannot be emptied
	for {
		names, e := f.Readdirnames(1024)
		for _, n := range names {
			if err := r.remove(fd, n, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(e, io.EOF) {
			break
		}
		if e != nil {
			return e
		}
		// What is left may have been skipped over by the removals.
		if _, e := f.Seek(0, io.SeekStart); e != nil {
			return e
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
