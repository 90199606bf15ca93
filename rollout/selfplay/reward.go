package selfplay

// Alpha is the paper's weight of the difficulty term in the injector's reward
// (section 2.4).
const Alpha = 0.8

// InvalidReward is the injector's reward for an artifact that validation
// refuses, and for an episode that never submits one.
const InvalidReward = -1.0

// InjectorReward is the reward of a valid bug that a share s in [0, 1] of its
// solver group solved (section 2.4): -alpha when nobody or everybody did, else
// 1 - (1+alpha)s. Over binomially drawn s with a group of 8 and alpha 0.8 its
// expectation peaks at a solve probability of 0.257.
func InjectorReward(alpha, s float64) float64 {
	if s <= 0 || s >= 1 {
		return -alpha
	}
	return 1 - (1+alpha)*s
}

// SolverReward is +1 for a solved bug and -1 otherwise (section 2.4).
func SolverReward(solved bool) float64 {
	if solved {
		return 1
	}
	return -1
}
