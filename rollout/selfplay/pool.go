package selfplay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// FailedPatchName is the file of a second-order bug's folder that holds the
// failed patch.
const FailedPatchName = "failed.diff"

// Bug is a valid artifact, as the injector left it or (paper section 2.5) with
// a solver's failed patch on top.
type Bug struct {
	// ID names the bug's folder: the artifact's content hash and, for a
	// second-order bug, the failed patch's id.
	ID       string
	Artifact Artifact
	Report   Report
	// Failed is the failed patch of a second-order bug, nil otherwise.
	Failed []byte
}

// Order is 1, or 2 when a failed patch lies on top of the bug.
func (b Bug) Order() int {
	if b.Failed != nil {
		return 2
	}
	return 1
}

// LoadBug reads a bug's folder: an artifact, its report.json and, for a
// second-order bug, failed.diff.
func LoadBug(dir string) (Bug, error) {
	a, err := LoadArtifact(dir)
	if err != nil {
		return Bug{}, fmt.Errorf("bug %s: %w", dir, err)
	}
	report, err := LoadReport(dir)
	if err != nil {
		return Bug{}, fmt.Errorf("bug %s: %w", dir, err)
	}
	b := Bug{ID: a.ID(), Artifact: a, Report: report}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Bug{}, fmt.Errorf("bug %s: %w", dir, err)
	}
	defer root.Close()
	failed, err := readRegular(root, FailedPatchName, maxPatchBytes)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return b, nil
	case err != nil:
		return Bug{}, fmt.Errorf("bug %s: %w", dir, err)
	}
	p, err := ParsePatch(failed)
	if err != nil {
		return Bug{}, fmt.Errorf("bug %s: %s: %w", dir, FailedPatchName, err)
	}
	b.Failed = failed
	b.ID += "-" + p.ID()
	return b, nil
}

// Pool keeps bugs on disk, a folder each, named by their IDs. Adding is atomic
// and repeating it changes nothing, so that a run killed at any moment can
// resume. One process may write a pool at a time; within it a Pool is safe for
// concurrent use.
type Pool struct {
	dir string

	mu  sync.Mutex
	ids map[string]bool
}

// OpenPool opens or creates a pool's folder.
func OpenPool(dir string) (*Pool, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open bug pool: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open bug pool: %w", err)
	}
	p := &Pool{dir: dir, ids: map[string]bool{}}
	for _, e := range entries {
		if e.IsDir() && isBugID(e.Name()) {
			p.ids[e.Name()] = true
		}
	}
	return p, nil
}

// Clean removes what a crash left half-written. It is for the process that writes the
// pool, before it does: what another one writes looks the same.
func (p *Pool) Clean() error {
	entries, err := os.ReadDir(p.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(p.dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("clean bug pool: %w", err)
	}
	return nil
}

// isBugID reports whether a name is one or two hashes of 16 hexadecimal digits.
func isBugID(name string) bool {
	first, second, two := strings.Cut(name, "-")
	isHash := func(s string) bool { return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == "" }
	return isHash(first) && (!two || isHash(second))
}

// Dir is the folder of a bug.
func (p *Pool) Dir(id string) string { return filepath.Join(p.dir, id) }

// IDs lists the bugs of an order, 1 or 2, sorted: the same whatever order they
// were added in.
func (p *Pool) IDs(order int) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := []string{}
	for id := range p.ids {
		if strings.Contains(id, "-") == (order == 2) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Get reads one bug.
func (p *Pool) Get(id string) (Bug, error) {
	p.mu.Lock()
	known := p.ids[id]
	p.mu.Unlock()
	if !known {
		return Bug{}, fmt.Errorf("bug %q: %w in the pool %s", id, fs.ErrNotExist, p.dir)
	}
	b, err := LoadBug(p.Dir(id))
	if err == nil && b.ID != id {
		err = fmt.Errorf("bug %s: its content was changed: it hashes to %s", p.Dir(id), b.ID)
	}
	return b, err
}

// Add stores a valid artifact. added is false when the pool has it already.
func (p *Pool) Add(a Artifact, report Report) (bug Bug, added bool, err error) {
	if !report.Valid {
		return Bug{}, false, fmt.Errorf("pool: artifact %s is not valid: check %s refuses it", a.ID(), report.Refusal())
	}
	bug = Bug{ID: a.ID(), Artifact: a, Report: report}
	added, err = p.store(bug, a.files(report))
	return bug, added, err
}

// AddFailed stores a second-order bug: parent, which must be of order 1, with
// the failed patch of an attempt on it. Only what takes part in a verdict is
// kept of the patch. When why is not "", the bug was not pooled: the patch
// cannot be used or does not apply, changes nothing, or is pooled already.
func (p *Pool) AddFailed(ctx context.Context, repo *Repo, parent Bug, patch []byte) (bug Bug, why string, err error) {
	if parent.Order() != 1 {
		return Bug{}, "the bug is of order 2 already", nil
	}
	if len(bytes.TrimSpace(patch)) == 0 {
		return Bug{}, "changes nothing", nil
	}
	given, err := repo.solverOverlay(ctx, parent.Artifact, nil)
	if err != nil {
		return Bug{}, "", fmt.Errorf("pool a failed patch: %w", err)
	}
	filtered, err := repo.filterPatch(given, parent.Artifact, patch)
	if isOutcome(err) {
		return Bug{}, err.Error(), nil
	}
	if err != nil {
		return Bug{}, "", err
	}
	if len(filtered.patch.files) == 0 {
		return Bug{}, "changes nothing", nil
	}
	patched, err := repo.apply(ctx, given, filtered.patch)
	if isOutcome(err) {
		return Bug{}, err.Error(), nil
	}
	if err != nil {
		return Bug{}, "", err
	}
	if patched.key() == given.key() {
		return Bug{}, "changes nothing", nil
	}
	bug = parent
	bug.Failed = filtered.patch.Bytes()
	bug.ID = parent.ID + "-" + filtered.patch.ID()
	files := parent.Artifact.files(parent.Report)
	files[FailedPatchName] = bug.Failed
	added, err := p.store(bug, files)
	if err != nil {
		return Bug{}, "", err
	}
	if !added {
		return bug, "pooled already", nil
	}
	return bug, "", nil
}

func (p *Pool) store(b Bug, files map[string][]byte) (added bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ids[b.ID] {
		return false, nil
	}
	if err := saveFolder(p.Dir(b.ID), files); err != nil {
		return false, fmt.Errorf("pool: %w", err)
	}
	p.ids[b.ID] = true
	return true, nil
}
