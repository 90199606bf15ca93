package rollout

import (
	"context"
	"sync"

	"github.com/ssr-go/ssr/model/gen"
)

// Spread is a Policy over several of the same weights, one for each device. A
// trajectory stays where it began, since its KV cache is there; a new one goes to
// the policy that has the fewest, the first on a tie. What a policy answers depends
// on the request alone, so where a trajectory goes changes nothing that is recorded.
type Spread struct {
	policies []Policy

	mu    sync.Mutex
	at    map[string]int // trajectory → policy
	count []int          // trajectories of each policy
}

var _ Releaser = (*Spread)(nil)

// NewSpread returns a Policy over at least one other.
func NewSpread(policies ...Policy) *Spread {
	if len(policies) == 0 {
		panic("rollout: NewSpread of no policy")
	}
	return &Spread{policies: policies, at: map[string]int{}, count: make([]int, len(policies))}
}

// Generate asks the policy that has the request's trajectory.
func (s *Spread) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	return s.policies[s.place(req.ID)].Generate(ctx, req)
}

func (s *Spread) place(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.at[id]; ok {
		return i
	}
	least := 0
	for i, n := range s.count {
		if n < s.count[least] {
			least = i
		}
	}
	s.at[id] = least
	s.count[least]++
	return least
}

// Release forgets a trajectory, there too where it was. Unknown ids are ignored.
func (s *Spread) Release(id string) {
	s.mu.Lock()
	i, ok := s.at[id]
	if ok {
		delete(s.at, id)
		s.count[i]--
	}
	s.mu.Unlock()
	if r, can := s.policies[i].(Releaser); ok && can {
		r.Release(id)
	}
}
