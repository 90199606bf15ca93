package selfplay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
)

// Specification is the solver's specification: the weakening reversed, from the
// weakened test files back to the original ones.
func (r *Repo) Specification(ctx context.Context, a Artifact) ([]byte, error) {
	o, err := r.applyDiff(ctx, nil, TestWeakenName, a.TestWeaken)
	if err != nil {
		return nil, err
	}
	return r.diff(ctx, o, nil)
}

// Fix is the patch that undoes the injection: what a perfect solver submits.
func (r *Repo) Fix(ctx context.Context, a Artifact) ([]byte, error) {
	o, err := r.applyDiff(ctx, nil, BugInjectName, a.BugInject)
	if err != nil {
		return nil, err
	}
	return r.diff(ctx, o, nil)
}

// Diff renders what a sandbox changed in the tree as a git diff. The tree's own
// .git, caches, editor files, links, what the repository's .gitignore files
// name and new binary files are left out; so is what harvesting skipped.
func (t *Tree) Diff(ctx context.Context, changes []sandbox.Change) ([]byte, error) {
	paths, found := []string{}, overlay{}
	var created []string
	for _, c := range changes {
		if unsafePath(c.Path) != "" || isCache(c.Path) || c.Skipped != "" || fs.FileMode(c.Mode)&fs.ModeType != 0 {
			continue
		}
		old, err := t.repo.lookup(t.overlay, c.Path)
		if err != nil {
			return nil, err
		}
		if c.Deleted {
			if old != nil {
				paths = append(paths, c.Path)
			}
			continue
		}
		if old == nil {
			if isBinary(c.Data) || t.repo.exists(t.overlay, c.Path) {
				continue
			}
			created = append(created, c.Path)
		}
		paths = append(paths, c.Path)
		found[c.Path] = &file{c.Data, permissions(fs.FileMode(c.Mode))}
	}
	ignored, err := t.repo.ignored(ctx, created)
	if err != nil {
		return nil, err
	}
	paths = slices.DeleteFunc(paths, func(name string) bool { return ignored[name] })
	to := maps.Clone(t.overlay)
	if to == nil {
		to = overlay{}
	}
	for _, name := range paths {
		to[name] = found[name]
	}
	return t.repo.diff(ctx, t.overlay, to)
}

func isBinary(data []byte) bool {
	return bytes.IndexByte(data[:min(len(data), 8000)], 0) >= 0
}

// ignored tells which of names the snapshot's .gitignore files exclude.
func (r *Repo) ignored(ctx context.Context, names []string) (map[string]bool, error) {
	var rules []string
	for _, name := range r.sorted {
		if path.Base(name) == ".gitignore" {
			rules = append(rules, name)
		}
	}
	if len(names) == 0 || len(rules) == 0 {
		return nil, nil
	}
	scratch, err := os.MkdirTemp(filepath.Join(r.work, "scratch"), "ignore-")
	if err != nil {
		return nil, hostError("read .gitignore", err)
	}
	defer os.RemoveAll(scratch)
	for _, name := range rules {
		f, err := r.lookup(nil, name)
		if err != nil {
			return nil, err
		}
		target := filepath.Join(scratch, filepath.FromSlash(name))
		if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			err = writeFile(target, f.data, f.mode)
		}
		if err != nil {
			return nil, hostError("read .gitignore", err)
		}
	}
	if _, err := runGit(ctx, scratch, nil, "init", "-q", "--template="); err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, name := range names {
		list.WriteString("./" + name + "\x00") // a name that begins with ":" has a meaning to git
	}
	out, err := runGit(ctx, scratch, []byte(list.String()), "check-ignore", "--no-index", "--stdin", "-z")
	var ge *gitError
	if errors.As(err, &ge) && ge.exit == 1 { // none is ignored
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ignored := map[string]bool{}
	for name := range bytes.SplitSeq(out, []byte{0}) {
		ignored[strings.TrimPrefix(string(name), "./")] = true
	}
	return ignored, nil
}

// diff is the git diff from tree a to tree b, nil when they are equal. The
// host's git compares numbered files, so that no path or attribute of the tree
// has a meaning to it.
func (r *Repo) diff(ctx context.Context, a, b overlay) ([]byte, error) {
	scratch, err := os.MkdirTemp(filepath.Join(r.work, "scratch"), "diff-")
	if err != nil {
		return nil, hostError("compare trees", err)
	}
	defer os.RemoveAll(scratch)
	for _, side := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(scratch, side), 0o755); err != nil {
			return nil, hostError("compare trees", err)
		}
	}
	touched := slices.Sorted(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			touched = append(touched, name)
		}
	}
	slices.Sort(touched)
	for i, name := range touched {
		for side, o := range map[string]overlay{"a": a, "b": b} {
			f, err := r.lookup(o, name)
			if err != nil {
				return nil, err
			}
			if f == nil {
				continue
			}
			if err := writeFile(filepath.Join(scratch, side, number(i)), f.data, f.mode); err != nil {
				return nil, hostError("compare trees", err)
			}
		}
	}
	out, err := runGit(ctx, scratch, nil, "diff", "--no-index", "--no-ext-diff", "--no-textconv", "--no-color",
		"--no-renames", "--binary", "--full-index", "--src-prefix=", "--dst-prefix=", "a", "b")
	var ge *gitError
	if err == nil || !errors.As(err, &ge) || ge.exit != 1 {
		return nil, err
	}
	p, err := parsePatch(out)
	if err != nil {
		return nil, fmt.Errorf("compare trees: %w", err)
	}
	for _, f := range p.files {
		for _, side := range []*string{&f.OldName, &f.NewName} {
			if *side == "" {
				continue
			}
			i, err := strconv.Atoi(path.Base(*side))
			if err != nil || i >= len(touched) {
				return nil, fmt.Errorf("compare trees: git named %q", *side)
			}
			*side = touched[i]
		}
	}
	return p.Bytes(), nil
}
