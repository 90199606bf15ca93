package selfplay

import (
	"context"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Options tune a Validator. The zero value works.
type Options struct {
	// Timeout of one run of a test script; 0 means 90 s.
	Timeout time.Duration
	// Parallel bounds the sandboxes alive at once; 0 means GOMAXPROCS.
	Parallel int
	// ReuseOriginal keeps the outcome of a script and parser on the original
	// tree, so that artifacts sharing them run it once.
	ReuseOriginal bool
	// Limits of every sandbox; zero fields take the backend's defaults.
	Limits sandbox.Limits
	// Owner labels the sandboxes.
	Owner string
}

// Validator runs artifacts and patches in fresh sandboxes. It is safe for concurrent use.
type Validator struct{}

// NewValidator makes a Validator over one repository.
func NewValidator(backend sandbox.Backend, repo *Repo, opts Options) *Validator { return nil }

// Validate runs the seven checks in order.
func (v *Validator) Validate(ctx context.Context, a Artifact, req Requirements) (Report, error) {
	return Report{}, errStub
}

// Verdict judges a patch. report is the artifact's validation; secondOrder is
// nil for a first-order bug.
func (v *Validator) Verdict(ctx context.Context, a Artifact, report Report, patch, secondOrder []byte) (Verdict, error) {
	return Verdict{}, errStub
}
