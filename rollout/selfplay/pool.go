package selfplay

import "context"

// Bug is one entry of a Pool.
type Bug struct {
	ID       string
	Parent   string // the first-order bug's ID, for a second-order bug
	Artifact Artifact
	Report   Report
	Failed   []byte // the failed patch of a second-order bug, else nil
}

// Order is 1, or 2 when a failed patch lies on top of the bug.
func (b Bug) Order() int {
	if b.Failed != nil {
		return 2
	}
	return 1
}

// Pool keeps bugs on disk, a folder each.
type Pool struct{}

// OpenPool opens or creates a pool folder.
func OpenPool(dir string) (*Pool, error) { return nil, errStub }

// Add stores a valid artifact; false when it is there already.
func (p *Pool) Add(a Artifact, r Report) (Bug, bool, error) { return Bug{}, false, errStub }

// AddFailed stores parent with a failed patch on top; when it is not pooled, why says so.
func (p *Pool) AddFailed(ctx context.Context, repo *Repo, parent Bug, patch []byte) (bug Bug, why string, err error) {
	return Bug{}, "", errStub
}

// IDs lists the bugs of an order, sorted.
func (p *Pool) IDs(order int) []string { return nil }

// Get reads one bug.
func (p *Pool) Get(id string) (Bug, error) { return Bug{}, errStub }

// LoadBug reads a bug's folder.
func LoadBug(dir string) (Bug, error) { return Bug{}, errStub }
