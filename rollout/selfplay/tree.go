package selfplay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
)

// maxTrees is how many prepared trees that nobody uses are kept for reuse.
const maxTrees = 64

// Tree is a prepared folder to start sandboxes from. It is shared between all
// who ask for an equal one and must not be written.
type Tree struct {
	// Dir is what sandbox.Spec.Dir wants.
	Dir string

	repo     *Repo
	overlay  overlay
	prepared *preparedTree
}

// preparedTree is the shared part of equal Trees.
type preparedTree struct {
	dir   string
	ready chan struct{} // closed when err is set
	err   error
	users int   // guarded by Repo.mu
	used  int64 // Repo.clock at the last release
}

// Release says that no further sandbox will be started from the tree. It may
// be called more than once.
func (t *Tree) Release() {
	p := t.prepared
	if p == nil {
		return
	}
	t.prepared = nil
	r := t.repo
	r.mu.Lock()
	defer r.mu.Unlock()
	p.users--
	r.clock++
	p.used = r.clock
	r.evict()
}

// evict removes the trees that were released longest ago. The caller holds r.mu.
func (r *Repo) evict() {
	for len(r.trees) > maxTrees {
		oldest := ""
		for key, p := range r.trees {
			if p.users == 0 && (oldest == "" || p.used < r.trees[oldest].used) {
				oldest = key
			}
		}
		if oldest == "" {
			return
		}
		os.RemoveAll(r.trees[oldest].dir)
		delete(r.trees, oldest)
	}
}

// prepare returns the tree that kind and o make, building it with build into an
// empty folder unless an equal one is there.
func (r *Repo) prepare(ctx context.Context, kind string, o overlay, build func(dir string) error) (*Tree, error) {
	key := kind + "-" + o.key()[:32]
	for {
		t, built, err := r.prepareOnce(ctx, key, o, build)
		// Whoever waited for one that was not made, since its maker was stopped, say,
		// makes it.
		if err == nil || built || ctx.Err() != nil {
			return t, err
		}
	}
}

// prepareOnce takes the tree of that key, or builds it where nobody has begun to.
func (r *Repo) prepareOnce(ctx context.Context, key string, o overlay, build func(dir string) error) (t *Tree, built bool, err error) {
	r.mu.Lock()
	p, ok := r.trees[key]
	if !ok {
		r.clock++
		p = &preparedTree{dir: filepath.Join(r.work, "trees", fmt.Sprintf("%s-%d", key, r.clock)), ready: make(chan struct{})}
		r.trees[key] = p
	}
	p.users++
	r.mu.Unlock()
	t = &Tree{Dir: p.dir, repo: r, overlay: o, prepared: p}
	if !ok {
		p.err = build(p.dir)
		if p.err != nil {
			r.mu.Lock()
			delete(r.trees, key)
			r.mu.Unlock()
			os.RemoveAll(p.dir)
		}
		close(p.ready)
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		t.Release()
		return nil, !ok, fmt.Errorf("prepare a tree: %w", context.Cause(ctx))
	}
	if p.err != nil {
		t.Release()
		return nil, !ok, p.err
	}
	return t, !ok, nil
}

// plainTree is the tree of an overlay without .git: what tests are run on.
func (r *Repo) plainTree(ctx context.Context, o overlay) (*Tree, error) {
	return r.prepare(ctx, "plain", o, func(dir string) error {
		if err := r.materialise(dir, o, nil); err != nil {
			return err
		}
		return fixTimes(dir)
	})
}

// InjectorTree is the original with its history in a clean .git: one branch,
// no remote, no hooks, no reflog, nothing of the user's configuration. A plain
// folder gets a history of one commit.
func (r *Repo) InjectorTree(ctx context.Context) (*Tree, error) {
	return r.prepare(ctx, "injector", nil, func(dir string) error {
		if err := r.materialise(dir, nil, nil); err != nil {
			return err
		}
		if err := fixTimes(dir); err != nil {
			return err
		}
		if r.head == "" {
			return initCommit(ctx, dir)
		}
		return r.copyHistory(ctx, dir)
	})
}

// copyHistory gives dir a .git with everything reachable from HEAD.
func (r *Repo) copyHistory(ctx context.Context, dir string) error {
	gitDir := filepath.Join(dir, ".git")
	if _, err := runGit(ctx, dir, nil, "init", "-q", "--template=", "-b", "main", "--object-format="+r.format); err != nil {
		return err
	}
	pack := filepath.Join(gitDir, "objects", "pack")
	if err := os.MkdirAll(pack, 0o755); err != nil {
		return hostError("prepare the history", err)
	}
	bare := filepath.Join(r.work, "git")
	if _, err := runGit(ctx, bare, []byte(r.head+"\n"), "pack-objects", "--revs", "-q", filepath.Join(pack, "pack")); err != nil {
		return err
	}
	if err := copyShallow(bare, gitDir); err != nil {
		return err
	}
	for _, args := range [][]string{{"update-ref", "refs/heads/main", r.head}, {"read-tree", r.head}} {
		if _, err := runGit(ctx, dir, nil, args...); err != nil {
			return err
		}
	}
	// Status 1 only says that something needs an update: an absent submodule.
	var ge *gitError
	if _, err := runGit(ctx, dir, nil, "update-index", "-q", "--refresh"); err != nil && !errors.As(err, &ge) {
		return err
	}
	return finishGitDir(gitDir, r.format)
}

// SolverTree is what a solver gets: the original, bug_inject, test_weaken and,
// for a second-order bug, the failed patch, with a fresh one-commit .git.
// Caches and backups that could hold the original are left out and all times
// are equal. A diff that does not fit is a *PatchError.
func (r *Repo) SolverTree(ctx context.Context, a Artifact, secondOrder []byte) (*Tree, error) {
	o, err := r.solverOverlay(ctx, a, secondOrder)
	if err != nil {
		return nil, err
	}
	return r.prepare(ctx, "solver", o, func(dir string) error {
		leaks, err := r.leaks(o)
		if err != nil {
			return err
		}
		if err := r.materialise(dir, o, func(name string) bool { return leaks[name] }); err != nil {
			return err
		}
		if err := fixTimes(dir); err != nil {
			return err
		}
		return initCommit(ctx, dir)
	})
}

// Fits returns an error where a bug's diffs do not fit the repository: it was made
// in another one, or in another version of it.
func (r *Repo) Fits(ctx context.Context, bug Bug) error {
	if _, err := r.solverOverlay(ctx, bug.Artifact, bug.Failed); err != nil {
		return fmt.Errorf("bug %s does not fit the repository; was it made in another one, or in another version? %w", bug.ID, err)
	}
	return nil
}

// solverOverlay is original → bug_inject → test_weaken → failed patch.
func (r *Repo) solverOverlay(ctx context.Context, a Artifact, secondOrder []byte) (overlay, error) {
	o, err := r.applyDiff(ctx, nil, BugInjectName, a.BugInject)
	if err != nil {
		return nil, err
	}
	if o, err = r.applyDiff(ctx, o, TestWeakenName, a.TestWeaken); err != nil {
		return nil, err
	}
	if secondOrder == nil {
		return o, nil
	}
	filtered, err := r.filterPatch(o, a, secondOrder)
	if err != nil {
		return nil, fmt.Errorf("second-order patch: %w", err)
	}
	if len(filtered.patch.files) == 0 {
		return o, nil
	}
	if o, err = r.apply(ctx, o, filtered.patch); err != nil {
		return nil, fmt.Errorf("second-order patch: %w", err)
	}
	return o, nil
}

// applyDiff parses and applies one of an artifact's diffs, named in errors.
func (r *Repo) applyDiff(ctx context.Context, o overlay, name string, diff []byte) (overlay, error) {
	p, err := ParsePatch(diff)
	if err == nil {
		o, err = r.apply(ctx, o, p)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return o, nil
}

// materialise writes the tree of o into the new folder dir, hard-linking what
// equals the snapshot. Paths that skip selects are left out.
func (r *Repo) materialise(dir string, o overlay, skip func(name string) bool) error {
	made := map[string]bool{}
	parent := func(name string) error {
		d := path.Dir(name)
		if made[d] {
			return nil
		}
		made[d] = true
		return os.MkdirAll(filepath.Join(dir, filepath.FromSlash(d)), 0o755)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return hostError("prepare a tree", err)
	}
	put := func(name string) error {
		if skip != nil && skip(name) {
			return nil
		}
		if err := parent(name); err != nil {
			return err
		}
		target := filepath.Join(dir, filepath.FromSlash(name))
		if f := o[name]; f != nil {
			return writeFile(target, f.data, f.mode)
		}
		if r.base[name].mode.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		return linkOrCopy(filepath.Join(r.work, "base", filepath.FromSlash(name)), target, r.base[name].mode)
	}
	// In the order of names: some file systems list a folder in the order that it
	// was filled, which must not tell what the overlay changed.
	names := slices.Collect(maps.Keys(r.base))
	for name := range o {
		if _, there := r.base[name]; !there {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if f, changed := o[name]; changed && f == nil {
			continue
		}
		if err := put(name); err != nil {
			return hostError("prepare a tree", err)
		}
	}
	return nil
}

// linkOrCopy links, or copies where the file system refuses another link.
func linkOrCopy(source, target string, mode fs.FileMode) error {
	err := os.Link(source, target)
	if err == nil || !(errors.Is(err, syscall.EMLINK) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EXDEV)) {
		return err
	}
	if mode&fs.ModeSymlink != 0 {
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return writeFile(target, data, mode)
}

// fixTimes gives everything below dir, and dir itself, the tree's time.
func fixTimes(dir string) error {
	var names []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink == 0 {
			names = append(names, name)
		}
		return nil
	})
	// Children first: touching one would change its folder's time.
	for _, name := range slices.Backward(names) {
		if err == nil {
			err = os.Chtimes(name, treeTime, treeTime)
		}
	}
	if err != nil {
		return hostError("prepare a tree", err)
	}
	return nil
}
