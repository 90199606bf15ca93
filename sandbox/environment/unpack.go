package environment

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// UnpackRoot unpacks a root folder from a tar file, plain or compressed by gzip
// or zstd, into the new folder dir: the output of "docker export" or of
// mmdebstrap. Nothing outside dir is written, whatever names and links say.
// Files belong to the caller; setuid and setgid bits, devices, pipes and sockets
// are left out.
func UnpackRoot(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	in, err := decompress(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer in.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	folders := map[string]fs.FileMode{} // set at the end: a folder may be read-only
	for t := tar.NewReader(in); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := unpack(root, t, h, folders); err != nil {
			return fmt.Errorf("%s: %s: %w", file, h.Name, err)
		}
	}
	if _, err := root.Lstat("usr"); err != nil {
		return fmt.Errorf("%s holds no system: no folder usr in it", file)
	}
	for name, mode := range folders {
		if err := root.Chmod(name, mode); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func decompress(f io.Reader) (io.ReadCloser, error) {
	r := bufio.NewReaderSize(f, 1<<20)
	switch head, _ := r.Peek(4); {
	case strings.HasPrefix(string(head), "\x1f\x8b"):
		return gzip.NewReader(r)
	case string(head) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

func unpack(root *os.Root, t io.Reader, h *tar.Header, folders map[string]fs.FileMode) error {
	name := path.Clean(strings.TrimPrefix(h.Name, "/"))
	if name == "manifest.json" || name == "oci-layout" {
		return errors.New("this is an image with its layers; export a root folder instead (docker export CONTAINER)")
	}
	if name == "." {
		return nil
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		folders[name] = mode | 0o700
		return nil
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		return errors.Join(err, f.Chmod(mode), f.Close())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean(strings.TrimPrefix(h.Linkname, "/")), name)
	}
	return nil
}
