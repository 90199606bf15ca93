package selfplay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// file is the content of one regular file.
type file struct {
	data []byte
	mode fs.FileMode // 0644 or 0755
}

// overlay is how a tree differs from the snapshot: path → content, nil for a
// deleted path. It never holds a path that equals the snapshot's, so equal
// trees have equal overlays. Overlays are immutable once made.
type overlay map[string]*file

// key identifies the tree that the overlay makes.
func (o overlay) key() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if f := o[name]; f == nil {
			fmt.Fprintf(h, "%q deleted\n", name)
		} else {
			fmt.Fprintf(h, "%q %o %d\n", name, f.mode, len(f.data))
			h.Write(f.data)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// without returns the overlay with the paths that drop selects as in the snapshot.
func (o overlay) without(drop func(name string) bool) overlay {
	kept := overlay{}
	for name, f := range o {
		if !drop(name) {
			kept[name] = f
		}
	}
	return kept
}

// lookup returns a regular file of the tree, nil when there is none.
func (r *Repo) lookup(o overlay, name string) (*file, error) {
	if f, ok := o[name]; ok {
		return f, nil
	}
	e, ok := r.base[name]
	if !ok || !e.mode.IsRegular() {
		return nil, nil
	}
	data, err := os.ReadFile(filepath.Join(r.work, "base", filepath.FromSlash(name)))
	if err != nil {
		return nil, hostError("read the snapshot", err)
	}
	return &file{data, e.mode}, nil
}

// exists reports whether the tree has name as a file, link or submodule.
func (r *Repo) exists(o overlay, name string) bool {
	if f, ok := o[name]; ok {
		return f != nil
	}
	_, ok := r.base[name]
	return ok
}

// maxPatched bounds the memory of applied patches.
const maxPatched = 512

// patchResult is a remembered application; err is nil or a *PatchError.
type patchResult struct {
	tree overlay
	err  error
}

// apply returns the tree o with patch p on top. A patch that does not fit is a
// *PatchError. The work is done by the host's git in a scratch folder that
// holds nothing but the touched files.
func (r *Repo) apply(ctx context.Context, o overlay, p *Patch) (overlay, error) {
	text := p.Bytes()
	sum := sha256.Sum256(text)
	key := o.key() + hex.EncodeToString(sum[:])
	r.mu.Lock()
	done, ok := r.patched[key]
	r.mu.Unlock()
	if ok {
		return done.tree, done.err
	}
	tree, err := r.applyText(ctx, o, p.Paths(), text)
	var refused *PatchError
	if err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.patched) >= maxPatched {
		clear(r.patched)
	}
	r.patched[key] = patchResult{tree, err}
	return tree, err
}

func (r *Repo) applyText(ctx context.Context, o overlay, paths []string, text []byte) (overlay, error) {
	scratch, err := os.MkdirTemp(filepath.Join(r.work, "scratch"), "apply-")
	if err != nil {
		return nil, hostError("apply a patch", err)
	}
	defer os.RemoveAll(scratch)
	for _, name := range paths {
		if e, ok := r.base[name]; ok && !e.mode.IsRegular() {
			return nil, patchErrorf("%s is a link or a submodule of the repository", name)
		}
		f, err := r.lookup(o, name)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		target := filepath.Join(scratch, filepath.FromSlash(name))
		if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			err = writeFile(target, f.data, f.mode)
		}
		if err != nil {
			return nil, hostError("apply a patch", err)
		}
	}
	_, err = runGit(ctx, scratch, text, "apply", "--whitespace=nowarn", "-")
	var ge *gitError
	if errors.As(err, &ge) {
		return nil, patchErrorf("does not apply: %s", strings.ReplaceAll(strings.ReplaceAll(ge.stderr, "error: ", ""), "\n", "; "))
	}
	if err != nil {
		return nil, err
	}
	return r.collect(o, paths, scratch)
}

// collect reads the touched paths back from scratch on top of o.
func (r *Repo) collect(o overlay, paths []string, scratch string) (overlay, error) {
	root, err := os.OpenRoot(scratch)
	if err != nil {
		return nil, hostError("apply a patch", err)
	}
	defer root.Close()
	found := overlay{}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() || !slices.Contains(paths, name) {
			return patchErrorf("writes %s, which is not among the files it names", name)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := root.ReadFile(name)
		if err != nil {
			return err
		}
		found[name] = &file{data, permissions(info.Mode())}
		return nil
	})
	var refused *PatchError
	if errors.As(err, &refused) {
		return nil, err
	}
	if err != nil {
		return nil, hostError("apply a patch", err)
	}
	return r.overlaid(o, paths, found)
}

// overlaid returns o with paths as in found (absent: deleted).
func (r *Repo) overlaid(o overlay, paths []string, found overlay) (overlay, error) {
	tree := maps.Clone(o)
	if tree == nil {
		tree = overlay{}
	}
	for _, name := range paths {
		f := found[name]
		original, err := r.lookup(nil, name)
		if err != nil {
			return nil, err
		}
		if equalFiles(f, original) {
			delete(tree, name)
		} else {
			tree[name] = f
		}
	}
	for _, name := range paths {
		if found[name] == nil {
			continue
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if r.exists(tree, dir) {
				return nil, patchErrorf("%s is below %s, which is not a folder", name, dir)
			}
		}
		if r.isFolder(tree, name) {
			return nil, patchErrorf("%s is a folder", name)
		}
	}
	return tree, nil
}

func equalFiles(a, b *file) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.mode == b.mode && bytes.Equal(a.data, b.data)
}

// isFolder reports whether the tree has a path below name.
func (r *Repo) isFolder(o overlay, name string) bool {
	for other, f := range o {
		if f != nil && strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	if !r.dirs[name] {
		return false
	}
	for other := range r.base {
		if strings.HasPrefix(other, name+"/") && r.exists(o, other) {
			return true
		}
	}
	return false
}

// writeFile creates a file with exactly this mode and the tree's time.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Close(), os.Chtimes(name, treeTime, treeTime))
}
