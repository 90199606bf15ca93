package selfplay

import (
	"context"
	"errors"

	"github.com/ssr-go/ssr/sandbox"
)

var errStub = errors.New("selfplay: not implemented yet")

const maxPatchBytes = 1 << 20

func unsafePath(name string) string { return "" }

// Repo is a snapshot of a user's repository from which clean trees are made.
type Repo struct{}

// OpenRepo snapshots the repository or plain folder dir. Close removes what was prepared.
func OpenRepo(ctx context.Context, dir string) (*Repo, error) { return nil, errStub }

// Close removes every prepared tree.
func (r *Repo) Close() error { return nil }

// Files lists the snapshot's regular files, sorted.
func (r *Repo) Files() []string { return nil }

// Tree is a prepared folder to start sandboxes from. It must not be written.
type Tree struct {
	// Dir is what sandbox.Spec.Dir wants.
	Dir string
}

// Release says that the tree is no longer used; call it after the last sandbox started from it.
func (t *Tree) Release() {}

// Diff renders what a sandbox changed in the tree as a git diff; a repository's
// own .git, caches and editor files are left out.
func (t *Tree) Diff(ctx context.Context, changes []sandbox.Change) ([]byte, error) {
	return nil, errStub
}

// InjectorTree is the original with its history in a clean .git.
func (r *Repo) InjectorTree(ctx context.Context) (*Tree, error) { return nil, errStub }

// SolverTree is original, bug_inject, test_weaken and, when not nil, the failed
// patch of a second-order bug, with a fresh one-commit .git.
func (r *Repo) SolverTree(ctx context.Context, a Artifact, secondOrder []byte) (*Tree, error) {
	return nil, errStub
}

// Specification is the reversed weakening as a diff: the solver's specification.
func (r *Repo) Specification(ctx context.Context, a Artifact) ([]byte, error) { return nil, errStub }
