//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

// List implements sandbox.Sandbox.
func (x *box) List(ctx context.Context, name string) ([]sandbox.Entry, error) {
	end, err := x.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	root, err := x.root("list")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Without O_DIRECTORY a pipe of that name would be opened.
	f, err := root.OpenFile(local(name), os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	defer f.Close()
	infos, err := f.Readdir(harvest.DefaultBounds.Entries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list: %w", err)
	}
	entries := make([]sandbox.Entry, 0, len(infos))
	for _, info := range infos {
		e := sandbox.Entry{Name: info.Name(), Mode: uint32(info.Mode() & (fs.ModePerm | fs.ModeType))}
		if info.Mode().IsRegular() {
			e.Size = info.Size()
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b sandbox.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// bounds of what is packed and unpacked: a workspace cannot grow beyond them.
func (x *box) bounds() harvest.Bounds {
	all := x.fresh + x.limits.Disk
	return harvest.Bounds{File: all, Total: all, Depth: maxDepth}
}

// Upload implements sandbox.Sandbox.
func (x *box) Upload(ctx context.Context, name string, tar io.Reader) error {
	end, err := x.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	root, err := x.root("upload")
	if err != nil {
		return err
	}
	defer root.Close()
	owner := harvest.Keep
	if x.backend.root {
		owner.UID, owner.GID = x.uid()
	}
	bounds := harvest.Bounds{File: x.limits.Disk, Total: x.limits.Disk, Depth: maxDepth}
	if err := harvest.Unpack(ctx, tar, root, local(name), owner, bounds); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return nil
}

// Download implements sandbox.Sandbox.
func (x *box) Download(ctx context.Context, name string, tar io.Writer) error {
	end, err := x.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := harvest.Pack(ctx, x.tree(), local(name), tar, x.bounds()); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	return nil
}

// Snapshot implements sandbox.Sandbox.
func (x *box) Snapshot(ctx context.Context, dir string) error {
	end, err := x.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		return fmt.Errorf("snapshot: %s is not empty (%w)", dir, errors.Join(err, fs.ErrExist))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer root.Close()
	if err := duplicate(ctx, x, root, harvest.Keep); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// Fork implements sandbox.Sandbox.
func (x *box) Fork(ctx context.Context) (sandbox.Sandbox, error) {
	end, err := x.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return x.backend.start(ctx, x.spec, x)
}

// duplicate writes a sandbox's workspace into an empty folder.
func duplicate(ctx context.Context, from *box, root *os.Root, owner harvest.Owner) error {
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(harvest.Pack(ctx, from.tree(), ".", w, from.bounds()))
	}()
	err := harvest.Unpack(ctx, r, root, ".", owner, from.bounds())
	r.CloseWithError(err) // so that the packer ends
	<-packed
	return err
}
