package selfplay

import (
	"fmt"
	"slices"
)

// repair plays bugs of the fixed pools: the given number of groups, of which
// each is second-order with the configured probability where there are such.
func (s *stepPlay) repair() {
	first, second := s.bugs(func(w *world) []string { return w.Pool.IDs(1) }), s.secondOrder()
	draw := Draw(s.opts.Seed, "repair", s.step)
	n2 := 0
	for range s.opts.SolverGroups {
		if draw.Float64() < s.opts.SecondOrderFraction {
			n2++
		}
	}
	n2 = min(n2, len(second))
	drawn := slices.Concat(take(draw, second, n2), take(draw, first, s.opts.SolverGroups-n2))
	for round := 0; len(drawn) > 0; round++ {
		var playing []*attempt
		for _, r := range drawn {
			bug, ok := s.load(r)
			if !ok {
				return
			}
			playing = append(playing, s.attempt(r.world, bug, round > 0))
		}
		if round == s.opts.Resample {
			return
		}
		flat := 0
		for _, a := range playing {
			if <-a.ended; a.group == nil {
				return // cancelled
			}
			if !a.group.HasSpread() {
				flat++
			}
		}
		first = slices.DeleteFunc(slices.Clone(first), func(r bugRef) bool { return slices.Contains(drawn, r) })
		drawn = take(draw, first, flat)
	}
}

// bugRef is a bug of a pool, not read yet.
type bugRef struct {
	world *world
	id    string
}

func (s *stepPlay) bugs(ids func(*world) []string) (all []bugRef) {
	for _, w := range s.worlds {
		for _, id := range ids(w) {
			all = append(all, bugRef{w, id})
		}
	}
	return all
}

func (s *stepPlay) secondOrder() []bugRef {
	return s.bugs(func(w *world) []string { return s.state.SecondOrder[w.Name] })
}

func (s *stepPlay) load(r bugRef) (Bug, bool) {
	bug, err := r.world.Pool.Get(r.id)
	if err != nil {
		s.cancel(fmt.Errorf("read bug %s of %s: %w", r.id, r.world.Name, err))
		return Bug{}, false
	}
	return bug, true
}
