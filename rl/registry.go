package rl

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"gorgonia.org/gorgonia"
)

// Family is a named objective: its default settings, and how to make its
// surrogate from checked settings, among whose Params are the family's own alone.
// Corrections, penalties and aggregation are added by New.
type Family struct {
	// About says in one line what it is, and where it comes from.
	About    string
	Defaults Settings
	Build    func(s Settings) (Expression, error)
}

var (
	familiesMu sync.RWMutex
	families   = map[string]Family{
		"clip": {"the game's default: PPO's clip, asymmetric, over a constant length (SSR section 3, after the code world model)",
			Settings{ClipLow: 0.2, ClipHigh: 0.25, Aggregation: Constant, Length: 131072}, clipped},
		"ppo": {"PPO's clip, a mean over tokens (arXiv 1707.06347)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: TokenMean}, clipped},
		"decoupled_ppo": {"PPO's clip around the policy that began the step, weighted for the sampler (arXiv 2110.00641)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, Anchor: AnchorOld, Correction: Truncate, Aggregation: TokenMean}, clipped},
		"icepop": {"decoupled PPO that drops tokens on which trainer and sampler disagree (arXiv 2510.18855)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, Anchor: AnchorOld, Correction: IcePop, CorrectionLow: 0.5, CorrectionHigh: 5, Aggregation: TokenMean}, clipped},
		"grpo": {"PPO's clip, a mean over sequences' means, with a k3 penalty (arXiv 2402.03300)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, KLCoef: 0.04, Aggregation: SequenceMean}, clipped},
		"dr_grpo": {"GRPO over a constant length, without the penalty (arXiv 2503.20783)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: Constant, Length: 131072}, clipped},
		"dapo": {"clip-higher, a mean over tokens (arXiv 2503.14476), with the dual clip of its implementations",
			Settings{ClipLow: 0.2, ClipHigh: 0.28, DualClip: 3, Aggregation: TokenMean}, clipped},
		"gspo": {"PPO's clip on the ratio of whole sequences, with each token's own advantage: the token form (arXiv 2507.18071)",
			Settings{ClipLow: 3e-4, ClipHigh: 4e-4, Aggregation: SequenceMean}, sequenceClipped((*Inputs).Advantage)},
		"gspo_sequence": {"gspo with the mean advantage of each sequence: the sequence form",
			Settings{ClipLow: 3e-4, ClipHigh: 4e-4, Aggregation: SequenceMean}, sequenceClipped((*Inputs).SequenceAdvantage)},
		"cispo": {"REINFORCE weighted by the clipped ratio: no token loses its gradient (arXiv 2506.13585)",
			Settings{ClipLow: 1, ClipHigh: 4, Aggregation: TokenMean}, cispo},
		"sapo": {"a sigmoid gate of the ratio in the place of the clip (arXiv 2511.20347)",
			Settings{TauPositive: 1, TauNegative: 1.05, Aggregation: SequenceMean}, sapo},
		"gmpo": {"the geometric mean of a sequence's ratios, clipped token by token in the logarithm (arXiv 2507.20673)",
			Settings{ClipLow: 0.4, ClipHigh: 0.4, Aggregation: SequenceMean}, gmpo},
		"dppo": {"the ratio, without tokens whose probability moved too far: a bound on the total variation (arXiv 2602.04879)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: TokenMean}, dppo},
		"clip_cov": {"PPO's clip without a few tokens of high covariance, against the loss of entropy (arXiv 2505.22617)",
			Settings{ClipLow: 0.2, ClipHigh: 0.2, CovShare: 2e-4, CovLow: 1, CovHigh: 5, Aggregation: TokenMean}, clipCov},
		"kl_cov": {"the ratio, with a penalty on the tokens of the highest covariance (arXiv 2505.22617)",
			Settings{CovShare: 2e-4, CovKLCoef: 1, Aggregation: TokenMean}, klCov},
		"ipa": {"REINFORCE; where A < 0 weighted by the geometric mean of the turn's ratios, at most 1 (arXiv 2512.24873, eq. 9)",
			Settings{Correction: Truncate, CorrectionLevel: TurnLevel, CorrectionHigh: 1, CorrectionNegative: true, Aggregation: TokenMean}, reinforce},
		"reinforce": {"the policy gradient; trusts that the batch is on-policy: no ratio (Williams 1992)",
			Settings{Aggregation: TokenMean}, reinforce},
		"sft": {"the cross-entropy of the trained tokens; reads neither advantages nor rollout log-probabilities",
			Settings{Aggregation: TokenMean}, supervised},
	}
)

// Register adds a family under a new name, or replaces one.
func Register(name string, f Family) {
	familiesMu.Lock()
	defer familiesMu.Unlock()
	families[name] = f
}

// Names lists the registered objectives.
func Names() []string {
	familiesMu.RLock()
	defer familiesMu.RUnlock()
	return slices.Sorted(maps.Keys(families))
}

// Lookup returns a registered objective.
func Lookup(name string) (Family, error) {
	familiesMu.RLock()
	defer familiesMu.RUnlock()
	f, ok := families[name]
	if !ok {
		return f, fmt.Errorf("rl: no objective %q; there are %v", name, slices.Sorted(maps.Keys(families)))
	}
	return f, nil
}

// Defaults returns the default settings of an objective, to be changed and given to New.
func Defaults(name string) (Settings, error) {
	f, err := Lookup(name)
	f.Defaults.Params = maps.Clone(f.Defaults.Params)
	return f.Defaults, err
}

// New returns the named objective. Settings are taken as they are: start from Defaults.
func New(name string, s Settings) (Objective, error) {
	f, err := Lookup(name)
	if err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("rl: objective %s: %w", name, err)
	}
	for param := range s.Params {
		if _, ok := f.Defaults.Params[param]; !ok {
			return nil, fmt.Errorf("rl: objective %s: it has no parameter %q; it has %v", name, param, slices.Sorted(maps.Keys(f.Defaults.Params)))
		}
	}
	surrogate, err := f.Build(s)
	if err != nil {
		return nil, fmt.Errorf("rl: objective %s: %w", name, err)
	}
	o, err := Compose(surrogate, s)
	if err != nil {
		return nil, fmt.Errorf("rl: objective %s: %w", name, err)
	}
	return o, nil
}

// Compose makes an objective of a surrogate: the correction, the penalties and
// the aggregation of s are added to it.
func Compose(surrogate Expression, s Settings) (Objective, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("rl: %w", err)
	}
	var twice bool
	whole := Expression{
		Build: func(in *Inputs) *gorgonia.Node {
			term := surrogate.Build(in)
			twice = in.anchored && s.Anchor != AnchorOld && (s.Correction == Truncate || s.Correction == IcePop)
			return s.penalized(in, s.corrected(in, term))
		},
		Scaled:  surrogate.Scaled && s.KLCoef == 0 && s.EntropyCoef == 0,
		Clipped: surrogate.Clipped,
	}
	ev, err := newEvaluator(whole)
	if err != nil {
		return nil, err
	}
	if twice {
		return nil, errTwice
	}
	return &graphObjective{settings: s, eval: ev}, nil
}
