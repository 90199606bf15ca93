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
	"regexp"
	"slices"
	"strconv"
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

// maxPatched bounds how many applied patches are remembered, and
// maxPatchedMemory the bytes of their files.
const (
	maxPatched       = 512
	maxPatchedMemory = 256 << 20
)

// patchResult is a remembered application; err is nil or a *PatchError.
type patchResult struct {
	tree overlay
	err  error
}

// apply returns the tree o with patch p on top. A patch that does not fit is a
// *PatchError.
func (r *Repo) apply(ctx context.Context, o overlay, p *Patch) (overlay, error) {
	sum := sha256.Sum256(p.Bytes())
	key := o.key() + hex.EncodeToString(sum[:])
	r.mu.Lock()
	done, ok := r.patched[key]
	r.mu.Unlock()
	if ok {
		return done.tree, done.err
	}
	tree, err := r.applyInScratch(ctx, o, p)
	var refused *PatchError
	if err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	size := 0
	for _, f := range tree {
		if f != nil {
			size += len(f.data)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.patchedMemory += size; len(r.patched) >= maxPatched || r.patchedMemory > maxPatchedMemory {
		clear(r.patched)
		r.patchedMemory = size
	}
	r.patched[key] = patchResult{tree, err}
	return tree, err
}

// applyInScratch has the host's git apply p in a folder that holds nothing but
// the touched files, under numbers for names: no path or attribute of the tree
// has a meaning to git.
func (r *Repo) applyInScratch(ctx context.Context, o overlay, p *Patch) (overlay, error) {
	scratch, err := os.MkdirTemp(filepath.Join(r.work, "scratch"), "apply-")
	if err != nil {
		return nil, hostError("apply a patch", err)
	}
	defer os.RemoveAll(scratch)
	paths := p.Paths()
	sizes := map[string]uint64{}
	for i, name := range paths {
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
		sizes[name] = uint64(len(f.data))
		if err := writeFile(filepath.Join(scratch, number(i)), f.data, f.mode); err != nil {
			return nil, hostError("apply a patch", err)
		}
	}
	if p.patchedBytes(sizes) > maxPatchedBytes {
		return nil, patchErrorf("touches or makes files of more than %d MiB together", maxPatchedBytes>>20)
	}
	_, err = runGit(ctx, scratch, p.numbered(paths).Bytes(), "apply", "--whitespace=nowarn", "-")
	var ge *gitError
	switch {
	case errors.As(err, &ge):
		return nil, patchErrorf("does not apply: %s", unnumbered(strings.ReplaceAll(strings.ReplaceAll(ge.stderr, "error: ", ""), "\n", "; "), paths))
	case errors.Is(err, errGitSlow):
		return nil, patchErrorf("takes more than %v to apply", gitTimeout)
	case err != nil:
		return nil, err
	}
	return r.collect(o, paths, scratch)
}

// collect reads the numbered paths back from scratch on top of o.
func (r *Repo) collect(o overlay, paths []string, scratch string) (overlay, error) {
	entries, err := os.ReadDir(scratch)
	if err != nil {
		return nil, hostError("apply a patch", err)
	}
	index := map[string]string{}
	for i, name := range paths {
		index[number(i)] = name
	}
	found := overlay{}
	for _, e := range entries {
		name, ok := index[e.Name()]
		if !ok || !e.Type().IsRegular() {
			return nil, patchErrorf("writes %s, which is not among the files it names", e.Name())
		}
		info, err := e.Info()
		if err != nil {
			return nil, hostError("apply a patch", err)
		}
		data, err := os.ReadFile(filepath.Join(scratch, e.Name()))
		if err != nil {
			return nil, hostError("apply a patch", err)
		}
		found[name] = &file{data, permissions(info.Mode())}
	}
	return r.overlaid(o, paths, found)
}

// number is the name under which git sees the i-th path of a list.
func number(i int) string { return fmt.Sprintf("%06d", i) }

var numbers = regexp.MustCompile(`\b\d{6}\b`)

// unnumbered puts the paths back into what git said about their numbers.
func unnumbered(text string, paths []string) string {
	return numbers.ReplaceAllStringFunc(text, func(s string) string {
		if i, err := strconv.Atoi(s); err == nil && i < len(paths) {
			return paths[i]
		}
		return s
	})
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
