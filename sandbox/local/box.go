//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

// box is a live sandbox.
type box struct {
	backend *Backend
	slot    slot
	spec    sandbox.Spec
	limits  sandbox.Limits
	env     map[string]string
	base    *harvest.Base
	lower   *lower // what lies below an overlay
	layer   *layer // nil where the workspace is a copy of its own
	userns  int    // maps the owner of lower's files, -1 without an overlay
	expires time.Time

	busy    sync.Mutex // held while a method works; Close waits for it
	cell    Cell       // nil until a command needs one
	group   *group     // nil where control groups are missing
	fresh   int64      // bytes in use at the start
	disk    int64      // bytes in use after the last command
	done    chan struct{}
	once    sync.Once
	closing error
}

// tree names the workspace for this process.
func (x *box) tree() string {
	if x.layer != nil {
		return x.layer.path()
	}
	return x.slot.workspace()
}

// root opens the workspace.
func (x *box) root(what string) (*os.Root, error) {
	root, err := os.OpenRoot(x.tree())
	if err != nil {
		return nil, infra(what, err)
	}
	return root, nil
}

// populate fills the slot, for a fork of what from has.
func (x *box) populate(ctx context.Context, from *box) error {
	var err error
	if o := x.backend.overlays; o != nil {
		err = x.overlay(ctx, o, from)
	} else {
		err = x.fill(ctx, from)
	}
	if err != nil {
		return err
	}
	x.disk = x.usage()
	x.fresh = x.disk
	if from != nil {
		x.fresh = from.fresh // what it has grown by counts on
	}
	return nil
}

// overlay makes the workspace an overlay over a copy of its source.
func (x *box) overlay(ctx context.Context, o *overlays, from *box) error {
	var err error
	if x.userns < 0 {
		if x.userns, err = o.userNamespace(x.slot.number); err != nil {
			return err
		}
	}
	if from != nil {
		x.lower = from.lower
		x.backend.lowers.share(x.lower)
	} else if x.lower, err = x.backend.lowers.of(x.spec); err != nil {
		return err
	}
	x.base = x.lower.base
	uid, gid := x.uid()
	var fill func(*layer) error
	if from != nil {
		fill = func(l *layer) error {
			return from.layer.copyTo(ctx, l, harvest.Owner{UID: uid, GID: gid}, from.bounds())
		}
	}
	x.layer, err = o.mount(overlaySpec{
		dir: x.slot.dir, lower: x.lower.dir, userns: x.userns, uid: uid, gid: gid, disk: x.limits.Disk,
	}, fill)
	return err
}

// fill makes the workspace a copy of its source, or of another's workspace.
func (x *box) fill(ctx context.Context, from *box) error {
	uid, gid := x.uid()
	keep := harvest.Keep
	if x.backend.root {
		keep = harvest.Owner{UID: uid, GID: gid}
		if err := os.Chown(x.slot.dir, 0, gid); err != nil {
			return err
		}
	}
	if err := os.Chmod(x.slot.dir, 0o710); err != nil {
		return err
	}
	home := filepath.Join(x.slot.tmp(), path.Base(sandbox.HomeDir))
	for _, dir := range []string{x.slot.workspace(), x.slot.tmp(), home} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if x.backend.root {
			if err := os.Chown(dir, uid, gid); err != nil {
				return err
			}
		}
	}
	if from != nil {
		x.base = from.base
		root, err := x.root("fork")
		if err != nil {
			return err
		}
		defer root.Close()
		return duplicate(ctx, from, root, keep)
	}
	var err error
	x.base, err = harvest.Copy(x.spec.Dir, x.slot.workspace(), keep)
	return err
}

// release takes down what populate has made, in part or whole.
func (x *box) release() error {
	if x.layer != nil {
		x.layer.close()
	}
	if x.lower != nil {
		x.backend.lowers.giveBack(x.lower)
	}
	err := x.slot.release()
	if x.userns >= 0 {
		x.backend.userns.put(x.slot.number, x.userns)
	}
	return err
}

// uid is the sandbox's user on the host.
func (x *box) uid() (uid, gid int) {
	if x.backend.root {
		return x.slot.number, x.slot.number
	}
	return os.Geteuid(), os.Getegid()
}

// begin claims the sandbox for one method.
func (x *box) begin(ctx context.Context) (end func(), err error) {
	x.busy.Lock()
	select {
	case <-x.done:
		err = sandbox.ErrClosed
	default:
		err = ctx.Err()
	}
	if err != nil {
		x.busy.Unlock()
		return nil, err
	}
	return x.busy.Unlock, nil
}

// Close kills what runs and removes the workspace.
func (x *box) Close() error {
	x.once.Do(func() {
		close(x.done)
		x.busy.Lock()
		defer x.busy.Unlock()
		x.dropCell()
		if x.group != nil {
			x.group.remove()
		}
		if err := x.release(); err != nil {
			x.closing = infra("close", err)
		}
		x.backend.forget(x)
	})
	return x.closing
}

// ReadFile implements sandbox.Sandbox.
func (x *box) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	end, err := x.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	root, err := x.root("read file")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Non-blocking: opening a FIFO must not wait for a writer.
	f, err := root.OpenFile(local(name), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, infra("read file", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read file", Path: name, Err: errors.New("not a regular file")}
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// WriteFile implements sandbox.Sandbox.
func (x *box) WriteFile(ctx context.Context, name string, data []byte, mode uint32) error {
	end, err := x.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	root, err := x.root("write file")
	if err != nil {
		return err
	}
	defer root.Close()
	name = local(name)
	uid, gid := x.uid()
	for i, c := range name {
		if c != '/' {
			continue
		}
		err := root.Mkdir(name[:i], 0o755)
		if err == nil && x.backend.root {
			err = root.Lchown(name[:i], uid, gid)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write file: %w", err)
		}
	}
	// A new file rather than new content: what is there may be a link, a FIFO,
	// or one of several names of a file.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write file: %w", err)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	_, err = f.Write(data)
	if err == nil && x.backend.root {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(mode) & fs.ModePerm)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return infra("write file", err)
	}
	return nil
}

// local makes a path relative to the workspace; os.Root refuses what still leaves it.
func local(name string) string {
	if rest, ok := strings.CutPrefix(name+"/", sandbox.Workdir+"/"); ok {
		name = rest
	}
	return path.Clean(name)
}

// Harvest implements sandbox.Sandbox.
func (x *box) Harvest(ctx context.Context) ([]sandbox.Change, error) {
	end, err := x.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var changes []sandbox.Change
	if x.layer != nil {
		changes, err = x.layer.changes(ctx, x.base, x.backend.opts.Bounds)
	} else {
		changes, err = x.base.Changes(ctx, x.tree(), x.backend.opts.Bounds)
	}
	if err != nil && ctx.Err() == nil {
		return nil, infra("harvest", err)
	}
	return changes, err
}
