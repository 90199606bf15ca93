package rl

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ssr-go/ssr/rollout"
)

// Selection says which finished groups enter an update, and with what advantage.
type Selection struct {
	// Advantage is applied to the groups of usable trajectories.
	Advantage Estimator
	// TurnCredit says how an episode's advantage falls to its turns.
	TurnCredit
	// MaxLag discards trajectories that have a token sampled more than MaxLag
	// versions ago (paper: 8). Negative: no bound.
	MaxLag int64
	// MaskOutcomes are trajectory outcomes, for instance "context", whose rewards
	// count in their group but whose tokens are not trained on.
	MaskOutcomes []string
}

// Sequence is one trajectory as training sees it. The slices belong to the
// trajectory and are parallel; Logprobs is nil in supervised examples.
type Sequence struct {
	ID string
	// Group is the ID of the group that it belongs to.
	Group     string
	Tokens    []int32
	Trained   []bool
	Logprobs  []float32
	Advantage float64
	// Advantages, where not nil, are those of each token, instead of Advantage.
	Advantages []float64
	// OldLogprobs are the trainer's when the step began; nil where no objective
	// reads them.
	OldLogprobs []float64
}

// Selected is what Select kept, and how much it did not.
type Selected struct {
	// Sequences is ordered by ID.
	Sequences []Sequence
	// Groups is the number of groups that contribute.
	Groups int
	// NoSpread counts groups without any advantage: with a group's baseline, those
	// whose remaining rewards are all equal.
	NoSpread int
	// Failed, Cancelled, Stale, Masked and Empty count trajectories: lost to
	// infrastructure, stopped, sampled too many versions ago, left out for their
	// outcome or since every turn was certain, or without one trained token.
	Failed, Cancelled, Stale, Masked, Empty int
}

// Select computes advantages and drops what must not be trained on at policy
// version now. It does not depend on the order of groups or of trajectories. A
// trajectory that is not scored, or is stale, does not count in its group's
// baseline either.
func Select(groups []*rollout.Group, now int64, s Selection) (Selected, error) {
	var out Selected
	seen := map[string]bool{}
	groups = slices.Clone(groups)
	slices.SortStableFunc(groups, func(a, b *rollout.Group) int { return cmp.Compare(a.ID, b.ID) })
	scored := make([][]*rollout.Trajectory, len(groups))
	episodes := make([][]Episode, len(groups))
	for i, g := range groups {
		var err error
		if scored[i], err = out.scored(g, now, s.MaxLag); err != nil {
			return Selected{}, err
		}
		for _, t := range scored[i] {
			episodes[i] = append(episodes[i], Episode{Role: string(t.Role), Reward: t.Reward, Length: countTrue(t.Trained[1:])})
		}
	}
	seconds := meanSeconds(slices.Concat(scored...))
	estimated := s.Advantage.Estimate(episodes)
	if len(estimated) != len(episodes) {
		return Selected{}, fmt.Errorf("rl: the estimator answered for %d groups of %d", len(estimated), len(episodes))
	}
	for i, advantages := range estimated {
		if len(advantages) != len(episodes[i]) {
			return Selected{}, fmt.Errorf("rl: the estimator gave %d advantages for the %d episodes of group %s", len(advantages), len(episodes[i]), groups[i].ID)
		}
		if k := slices.IndexFunc(advantages, func(a float64) bool { return !finite(a) }); k >= 0 {
			return Selected{}, fmt.Errorf("rl: the estimator gave %s, of reward %g, the advantage %g", scored[i][k].ID, scored[i][k].Reward, advantages[k])
		}
		if !slices.ContainsFunc(advantages, func(a float64) bool { return a != 0 }) {
			out.NoSpread++
			continue
		}
		var kept []*rollout.Trajectory
		var group []Sequence
		for k, a := range advantages {
			t := scored[i][k]
			if seen[t.ID] {
				return Selected{}, fmt.Errorf("rl: trajectory %s appears twice", t.ID)
			}
			seen[t.ID] = true
			switch {
			case slices.Contains(s.MaskOutcomes, t.Outcome):
				out.Masked++
			case episodes[i][k].Length == 0:
				out.Empty++
			default:
				kept = append(kept, t)
				group = append(group, Sequence{ID: t.ID, Group: groups[i].ID, Tokens: t.Tokens, Trained: t.Trained, Logprobs: t.Logprobs,
					Advantage: a, Advantages: s.TurnCredit.advantages(t, a, seconds)})
			}
		}
		s.keepUncertain(group, kept)
		group = slices.DeleteFunc(group, func(q Sequence) bool {
			certain := countTrue(q.Trained[1:]) == 0
			if certain {
				out.Masked++
			}
			return certain
		})
		out.Sequences = append(out.Sequences, group...)
		if len(group) > 0 {
			out.Groups++
		}
	}
	slices.SortFunc(out.Sequences, func(a, b Sequence) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// scored returns the group's usable trajectories, ordered by ID.
func (out *Selected) scored(g *rollout.Group, now, maxLag int64) ([]*rollout.Trajectory, error) {
	var kept []*rollout.Trajectory
	for _, t := range g.Trajectories {
		if t.Role != g.Role {
			return nil, fmt.Errorf("rl: group %s of role %s holds trajectory %s of role %s", g.ID, g.Role, t.ID, t.Role)
		}
		n := len(t.Tokens)
		if len(t.Trained) != n || len(t.Logprobs) != n || len(t.Versions) != n {
			return nil, fmt.Errorf("rl: trajectory %s has %d tokens, %d trained, %d logprobs, %d versions; they must be parallel",
				t.ID, n, len(t.Trained), len(t.Logprobs), len(t.Versions))
		}
		switch {
		case t.Status == rollout.Failed:
			out.Failed++
		case t.Status == rollout.Cancelled:
			out.Cancelled++
		case t.Status != rollout.Scored:
			return nil, fmt.Errorf("rl: trajectory %s has status %q; it must have reached its end", t.ID, t.Status)
		case n == 0:
			out.Empty++
		case maxLag >= 0 && lag(t, now) > maxLag:
			out.Stale++
		default:
			kept = append(kept, t)
		}
	}
	slices.SortFunc(kept, func(a, b *rollout.Trajectory) int { return cmp.Compare(a.ID, b.ID) })
	return kept, nil
}

// lag is the age in versions of a trajectory's oldest sampled token.
func lag(t *rollout.Trajectory, now int64) int64 {
	var oldest int64
	for i, trained := range t.Trained {
		if trained {
			oldest = max(oldest, now-t.Versions[i])
		}
	}
	return oldest
}
