package fake

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
)

// folder makes a path relative to the workspace, "" for the workspace itself,
// and reports whether it is a folder: one that has something in it.
func (s *Sandbox) folder(op, name string) (rel string, is bool, err error) {
	if inside, ok := strings.CutPrefix(name+"/", sandbox.Workdir+"/"); ok {
		name = inside
	}
	if path.Clean(name) == "." {
		return "", true, nil
	}
	if rel, err = clean(op, name); err != nil {
		return "", false, err
	}
	for _, other := range s.Names() {
		is = is || strings.HasPrefix(other, rel+"/")
	}
	return rel, is, nil
}

// below lists the files of a folder by their names relative to it, sorted.
func (s *Sandbox) below(rel string) (names []string) {
	for _, name := range s.Names() {
		if rel == "" {
			names = append(names, name)
		} else if inside, ok := strings.CutPrefix(name, rel+"/"); ok {
			names = append(names, inside)
		}
	}
	return names
}

// List implements sandbox.Sandbox. Folders exist through what is in them.
func (s *Sandbox) List(ctx context.Context, name string) ([]sandbox.Entry, error) {
	if _, err := s.strike(ctx, List); err != nil {
		return nil, err
	}
	rel, is, err := s.folder("list", name)
	if err != nil {
		return nil, err
	}
	if !is {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fs.ErrNotExist}
	}
	entries := []sandbox.Entry{}
	for _, inside := range s.below(rel) {
		first, _, deeper := strings.Cut(inside, "/")
		e := sandbox.Entry{Name: first, Mode: uint32(fs.ModeDir | 0o755)}
		if !deeper {
			f, _ := s.Get(path.Join(rel, inside))
			e.Mode = f.Mode
			if f.Mode&uint32(fs.ModeSymlink) == 0 {
				e.Size = int64(len(f.Data))
			}
		}
		if n := len(entries); n == 0 || entries[n-1].Name != first {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b sandbox.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// Upload implements sandbox.Sandbox.
func (s *Sandbox) Upload(ctx context.Context, name string, r io.Reader) error {
	if _, err := s.strike(ctx, Upload); err != nil {
		return err
	}
	rel, _, err := s.folder("upload", name)
	if err != nil {
		return err
	}
	left := s.Spec.Limits.WithDefaults().Disk
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		inside := path.Clean(h.Name)
		if !filepath.IsLocal(inside) {
			return fmt.Errorf("upload %q: not a path inside the folder", h.Name)
		}
		if left -= h.Size; left < 0 {
			return fmt.Errorf("upload %q: too large", h.Name)
		}
		to := path.Join(rel, inside)
		for dir := path.Dir(to); dir != "."; dir = path.Dir(dir) {
			if _, there := s.Get(dir); there {
				return fmt.Errorf("upload %q: %s is in the way and no folder", h.Name, dir)
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
		case tar.TypeSymlink:
			s.Put(to, File{Mode: uint32(fs.ModeSymlink), Data: []byte(h.Linkname)})
		case tar.TypeReg:
			data, err := io.ReadAll(in)
			if err != nil {
				return fmt.Errorf("upload %q: %w", h.Name, err)
			}
			s.Put(to, File{Mode: uint32(h.Mode)&0o777 | 0o600, Data: data})
		default:
			return fmt.Errorf("upload %q: neither a file, a folder nor a symbolic link", h.Name)
		}
	}
}

// Download implements sandbox.Sandbox.
func (s *Sandbox) Download(ctx context.Context, name string, w io.Writer) error {
	if _, err := s.strike(ctx, Download); err != nil {
		return err
	}
	rel, is, err := s.folder("download", name)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	write := func(inside string, f File) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: inside, Mode: int64(f.Mode & 0o777), Size: int64(len(f.Data))}
		if f.Mode&uint32(fs.ModeSymlink) != 0 {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, string(f.Data), 0
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("download: %w", err)
		}
		if h.Typeflag == tar.TypeSymlink {
			return nil
		}
		_, err := io.Copy(out, bytes.NewReader(f.Data))
		return err
	}
	if f, ok := s.Get(rel); ok && !is {
		if f.Mode&uint32(fs.ModeSymlink) != 0 {
			return &fs.PathError{Op: "download", Path: name, Err: errors.New("neither a file nor a folder")}
		}
		if err := write(path.Base(rel), f); err != nil {
			return err
		}
		return out.Close()
	}
	if !is {
		return &fs.PathError{Op: "download", Path: name, Err: fs.ErrNotExist}
	}
	made := map[string]bool{}
	for _, inside := range s.below(rel) {
		for i, c := range inside {
			if c == '/' && !made[inside[:i]] {
				made[inside[:i]] = true
				if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: inside[:i] + "/", Mode: 0o755}); err != nil {
					return fmt.Errorf("download: %w", err)
				}
			}
		}
		f, _ := s.Get(path.Join(rel, inside))
		if err := write(inside, f); err != nil {
			return err
		}
	}
	return out.Close()
}

// Fork implements sandbox.Sandbox.
func (s *Sandbox) Fork(ctx context.Context) (sandbox.Sandbox, error) {
	if _, err := s.strike(ctx, Fork); err != nil {
		return nil, err
	}
	s.mu.Lock()
	files, base := maps.Clone(s.files), s.base
	s.mu.Unlock()
	return s.backend.add(&Sandbox{Spec: s.Spec, backend: s.backend, files: files, base: base, done: make(chan struct{})})
}

// Snapshot implements sandbox.Sandbox.
func (s *Sandbox) Snapshot(ctx context.Context, dir string) error {
	if _, err := s.strike(ctx, Snapshot); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		return fmt.Errorf("snapshot: %s is not empty (%w)", dir, errors.Join(err, fs.ErrExist))
	}
	for _, name := range s.Names() {
		f, _ := s.Get(name)
		to := filepath.Join(dir, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(to), 0o755)
		switch {
		case err != nil:
		case f.Mode&uint32(fs.ModeSymlink) != 0:
			err = os.Symlink(string(f.Data), to)
		default:
			err = os.WriteFile(to, f.Data, fs.FileMode(f.Mode)&fs.ModePerm|0o600)
		}
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	return nil
}
