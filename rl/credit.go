package rl

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/ssr-go/ssr/rollout"
)

// Credit within an episode: which of its turns or tokens get how much.

// GAE is generalised advantage estimation (arXiv 1506.02438, eq. 16) for those who
// bring values: rewards and values have one entry per step (token or turn) of an
// episode, which ends after the last. Returns are advantages plus values, the
// targets of the values.
func GAE(rewards, values []float64, gamma, lambda float64) (advantages, returns []float64, err error) {
	if len(rewards) != len(values) {
		return nil, nil, fmt.Errorf("rl: %d rewards and %d values; there must be one of each per step", len(rewards), len(values))
	}
	advantages, returns = make([]float64, len(rewards)), make([]float64, len(rewards))
	var next, running float64
	for i := len(rewards) - 1; i >= 0; i-- {
		running = rewards[i] + gamma*next - values[i] + gamma*lambda*running
		advantages[i], returns[i] = running, running+values[i]
		next = values[i]
	}
	return advantages, returns, nil
}

// TurnReturns are the discounted sums of each turn's reward and those after it.
func TurnReturns(rewards []float64, gamma float64) []float64 {
	returns := make([]float64, len(rewards))
	var running float64
	for i := len(rewards) - 1; i >= 0; i-- {
		running = rewards[i] + gamma*running
		returns[i] = running
	}
	return returns
}

// TurnAdvantages centres the turns' returns of episodes, which roles name: each
// role's by the mean over all turns of its own episodes (the agent-specific
// normalisation of MARS, arXiv 2510.15414).
func TurnAdvantages(returns [][]float64, roles []string) ([][]float64, error) {
	if len(returns) != len(roles) {
		return nil, fmt.Errorf("rl: %d episodes and %d roles; each needs one", len(returns), len(roles))
	}
	all := map[string][]float64{}
	for e, r := range returns {
		all[roles[e]] = append(all[roles[e]], r...)
	}
	out := make([][]float64, len(returns))
	for e, r := range returns {
		centred := make([]float64, len(r))
		for k := range r {
			centred[k] = r[k] - mean(all[roles[e]])
		}
		out[e] = centred
	}
	return out, nil
}

// TurnCredit says how the advantage of an episode falls to its turns.
type TurnCredit struct {
	// TurnDiscount, where positive, multiplies it by its power of the number of
	// turns that follow the token's.
	TurnDiscount float64 `json:"turn_discount,omitempty" yaml:"turn_discount"`
	// TurnDuration multiplies it by the time that the turn took, over the mean of the
	// step's turns, so that what is quick is not learned for being done more often
	// (arXiv 2509.01684). Wall clocks make runs of one seed differ.
	TurnDuration bool `json:"turn_duration,omitempty" yaml:"turn_duration"`
	// TurnEntropy, where positive, trains on that share of a group's turns only:
	// those of the highest mean −log-probability of their tokens, which is what the
	// sample says of their entropy (after DART, arXiv 2509.23866, which keeps 0.8).
	TurnEntropy float64 `json:"turn_entropy,omitempty" yaml:"turn_entropy"`
}

func (c TurnCredit) check() error {
	if !(c.TurnDiscount >= 0 && c.TurnDiscount <= 1) {
		return fmt.Errorf("turn_discount is %g; it must lie in (0, 1], or be 0 for none", c.TurnDiscount)
	}
	if !(c.TurnEntropy >= 0 && c.TurnEntropy <= 1) {
		return fmt.Errorf("turn_entropy is %g; it must lie in (0, 1], or be 0 for all turns", c.TurnEntropy)
	}
	return nil
}

// advantages are those of the tokens of a trajectory of advantage a, where a turn
// took seconds on average; nil where each is a. What precedes a turn has that turn's.
func (c TurnCredit) advantages(t *rollout.Trajectory, a, seconds float64) []float64 {
	if c.TurnDiscount == 0 && !c.TurnDuration || len(t.Turns) == 0 {
		return nil
	}
	out := make([]float64, len(t.Tokens))
	end := len(out)
	for k := len(t.Turns) - 1; k >= 0; k-- {
		credit := a
		if c.TurnDuration && seconds > 0 {
			credit *= t.Turns[k].Seconds / seconds
		}
		start := 0
		if k > 0 {
			start = t.Turns[k-1].End
		}
		for i := start; i < end; i++ {
			out[i] = credit
		}
		end = start
		if c.TurnDiscount > 0 {
			a *= c.TurnDiscount
		}
	}
	return out
}

// keepUncertain clears Trained of the group's turns of the lowest entropy.
func (c TurnCredit) keepUncertain(group []Sequence, from []*rollout.Trajectory) {
	if c.TurnEntropy == 0 {
		return
	}
	type turn struct {
		of      int // of group
		at      rollout.Turn
		entropy float64
	}
	var turns []turn
	for k, t := range from {
		group[k].Trained = slices.Clone(group[k].Trained)
		for _, at := range t.Turns {
			var sum float64
			for _, l := range t.Logprobs[at.Start:at.End] {
				sum -= float64(l)
			}
			turns = append(turns, turn{k, at, sum / float64(max(1, at.End-at.Start))})
		}
	}
	slices.SortStableFunc(turns, func(a, b turn) int { return cmp.Compare(b.entropy, a.entropy) })
	for _, low := range turns[int(math.Ceil(c.TurnEntropy*float64(len(turns)))):] {
		clear(group[low.of].Trained[low.at.Start:low.at.End])
	}
}

// meanSeconds is the mean time of the turns of trajectories.
func meanSeconds(ts []*rollout.Trajectory) float64 {
	var seconds []float64
	for _, t := range ts {
		for _, turn := range t.Turns {
			seconds = append(seconds, turn.Seconds)
		}
	}
	if len(seconds) == 0 {
		return 0
	}
	return mean(seconds)
}

// Overlong is the penalty for episodes that come near their limit (DAPO, arXiv
// 2503.14476, eq. 13).
type Overlong struct {
	// Max is the limit of the trained tokens of an episode, Buffer the stretch
	// before it over which the penalty grows from 0 to Factor. Max 0: none.
	Max    int     `json:"max" yaml:"max"`
	Buffer int     `json:"buffer" yaml:"buffer"`
	Factor float64 `json:"factor" yaml:"factor"`
	// Unclamped lets it grow further beyond the limit.
	Unclamped bool `json:"unclamped,omitempty" yaml:"unclamped"`
}

func (o Overlong) check() error {
	if o.Max == 0 {
		return nil
	}
	if o.Max < 0 || o.Buffer <= 0 || o.Buffer > o.Max || !(o.Factor > 0) {
		return fmt.Errorf("overlong: max %d, buffer %d and factor %g; want 0 < buffer ≤ max and factor > 0 (the paper has 1)", o.Max, o.Buffer, o.Factor)
	}
	return nil
}

// Shape is the reward of an episode of that length after the penalty.
func (o Overlong) Shape(reward float64, length int) float64 {
	over := length - (o.Max - o.Buffer)
	if o.Max == 0 || over <= 0 {
		return reward
	}
	penalty := o.Factor * float64(over) / float64(o.Buffer)
	if !o.Unclamped {
		penalty = min(penalty, o.Factor)
	}
	return reward - penalty
}
