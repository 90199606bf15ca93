package rl

import "fmt"

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
	if o.Max < 0 || o.Buffer <= 0 || o.Buffer > o.Max || !(o.Factor >= 0) {
		return fmt.Errorf("overlong: max %d, buffer %d and factor %g; want 0 < buffer ≤ max and factor ≥ 0", o.Max, o.Buffer, o.Factor)
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
