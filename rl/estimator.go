package rl

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
)

// Episode is what an estimator sees of a trajectory.
type Episode struct {
	Role   string
	Reward float64
	// Length is the number of trained tokens.
	Length int
}

// Estimator turns the rewards of a step into advantages. One that carries
// something from step to step also implements Stateful.
type Estimator interface {
	// Estimate returns an advantage for each episode of each group; the episodes
	// of a group share a task and a role. Roles never mix.
	Estimate(groups [][]Episode) [][]float64
}

// Stateful is implemented by estimators that carry something from step to step.
type Stateful interface {
	State() map[string]float64
	Restore(state map[string]float64)
}

// GroupEstimator is an Estimator that looks at the rewards of one group only.
type GroupEstimator func(rewards []float64) []float64

// Estimate implements Estimator.
func (e GroupEstimator) Estimate(groups [][]Episode) [][]float64 {
	out := make([][]float64, len(groups))
	for g, group := range groups {
		rewards := make([]float64, len(group))
		for i, ep := range group {
			rewards[i] = ep.Reward
		}
		out[g] = e(rewards)
	}
	return out
}

// Baseline names what is subtracted from a reward.
type Baseline string

const (
	NoBaseline          Baseline = "" // nothing
	BaselineGroupMean   Baseline = "group_mean"
	BaselineLeaveOneOut Baseline = "leave_one_out"
	BaselineLength      Baseline = "length_weighted"
	BaselineSecondBest  Baseline = "second_best"
	// BaselineRole is a moving average of the rewards of the episode's role, over
	// steps (SPIRAL, arXiv 2506.24119): b ← decay·b + (1 − decay)·R after each.
	BaselineRole Baseline = "role_ema"
)

// Scale names what the difference is divided by.
type Scale string

const (
	NoScale   Scale = "" // one
	ScaleStd  Scale = "group_std"
	ScaleStep Scale = "step_std" // the deviation of all rewards of the role in the step
	ScaleMean Scale = "group_mean"
)

// Deviation says which standard deviation.
type Deviation string

const (
	SampleDeviation     Deviation = "" // of n − 1 degrees of freedom, also "sample"
	PopulationDeviation Deviation = "population"
	// OthersDeviation is the sample deviation of the other episodes' rewards.
	OthersDeviation Deviation = "leave_one_out"
)

// AdvantageSettings are A = (R − baseline) / (scale + epsilon), of rewards that
// may be shaped before, and whitened after. The published trainers disagree on
// each of these; docs/objectives.md says who does which.
type AdvantageSettings struct {
	Baseline Baseline `json:"baseline,omitempty" yaml:"baseline"`
	// Decay is that of the baseline role_ema.
	Decay float64 `json:"decay,omitempty" yaml:"decay"`
	Scale Scale   `json:"scale,omitempty" yaml:"scale"`
	// Deviation and Epsilon are those of the scales that are deviations.
	Deviation Deviation `json:"deviation,omitempty" yaml:"deviation"`
	Epsilon   float64   `json:"epsilon,omitempty" yaml:"epsilon"`
	// PassK, where positive, is the k of PassK, in the place of baseline and scale.
	PassK int `json:"pass_k,omitempty" yaml:"pass_k"`
	// Whiten shifts and scales the advantages of each role in the step to mean 0
	// and sample deviation 1 over its trained tokens.
	Whiten bool `json:"whiten,omitempty" yaml:"whiten"`
	// KeepSingle gives the only episode of a group its reward, where the baseline
	// is its group; otherwise it has 0.
	KeepSingle bool `json:"keep_single,omitempty" yaml:"keep_single"`
	// TurnCredit says how an episode's advantage falls to its turns.
	TurnCredit `yaml:",inline"`
	// Overlong shapes rewards before all else.
	Overlong Overlong `json:"overlong,omitzero" yaml:"overlong"`
}

// AdvantagePreset is a named estimator.
type AdvantagePreset struct {
	About    string
	Defaults AdvantageSettings
}

var (
	// advantagesMu guards advantages and baselines.
	advantagesMu sync.RWMutex
	baselines    = map[Baseline]func(group []Episode) []float64{}
)

// RegisterBaseline adds a baseline under a new name: centre gives each episode of a group
// of one task and role its reward less the baseline. Scales, whitening, what is shaped
// before and how advantages fall to turns come with it.
func RegisterBaseline(name Baseline, centre func(group []Episode) []float64) {
	advantagesMu.Lock()
	defer advantagesMu.Unlock()
	baselines[name] = centre
}

// RegisterAdvantage adds a named estimator, or replaces one.
func RegisterAdvantage(name string, p AdvantagePreset) {
	advantagesMu.Lock()
	defer advantagesMu.Unlock()
	advantages[name] = p
}

// registered is the baseline of that name, nil for those of this package.
func (b Baseline) registered() func(group []Episode) []float64 {
	advantagesMu.RLock()
	defer advantagesMu.RUnlock()
	return baselines[b]
}

var advantages = map[string]AdvantagePreset{
	"group_mean":            {"R − mean: the game's default (SSR, after the code world model), Dr. GRPO (arXiv 2503.20783)", AdvantageSettings{Baseline: BaselineGroupMean}},
	"leave_one_out":         {"R − mean of the others: RLOO (arXiv 2402.14740)", AdvantageSettings{Baseline: BaselineLeaveOneOut}},
	"rloo":                  {"another name of leave_one_out", AdvantageSettings{Baseline: BaselineLeaveOneOut}},
	"grpo":                  {"(R − mean) / deviation (arXiv 2402.03300)", AdvantageSettings{Baseline: BaselineGroupMean, Scale: ScaleStd, Epsilon: 1e-6}},
	"grpo_step_std":         {"(R − mean) / the deviation of the whole step", AdvantageSettings{Baseline: BaselineGroupMean, Scale: ScaleStep, Epsilon: 1e-4}},
	"maxrl":                 {"(R − mean) / mean: the gradient of log solve rate (arXiv 2602.02710)", AdvantageSettings{Baseline: BaselineGroupMean, Scale: ScaleMean}},
	"opo":                   {"R − the mean weighted by length (arXiv 2505.23585)", AdvantageSettings{Baseline: BaselineLength}},
	"reinforce_pp":          {"REINFORCE++: R, whitened over the step's tokens (arXiv 2501.03262)", AdvantageSettings{Whiten: true}},
	"reinforce_pp_baseline": {"REINFORCE++ with the group's mean as a baseline (arXiv 2501.03262)", AdvantageSettings{Baseline: BaselineGroupMean, Whiten: true}},
	"outcome":               {"R itself, as IPA weighs its chunks (arXiv 2512.24873, with turn_discount 0.95)", AdvantageSettings{}},
	"passk":                 {"the gradient of pass@k (arXiv 2505.15201)", AdvantageSettings{PassK: 4}},
	"passk_best":            {"the best of the group less the second best, over the deviation (arXiv 2503.19595)", AdvantageSettings{Baseline: BaselineSecondBest, Scale: ScaleStd, Epsilon: 1e-6}},
	"role_ema":              {"R − a moving average of the role's rewards: SPIRAL (arXiv 2506.24119)", AdvantageSettings{Baseline: BaselineRole, Decay: 0.95}},
}

// AdvantageNames lists the named estimators.
func AdvantageNames() []string {
	advantagesMu.RLock()
	defer advantagesMu.RUnlock()
	return slices.Sorted(maps.Keys(advantages))
}

// LookupAdvantage returns the named estimator's description and default settings.
func LookupAdvantage(name string) (AdvantagePreset, error) {
	advantagesMu.RLock()
	p, ok := advantages[name]
	advantagesMu.RUnlock()
	if !ok {
		return p, fmt.Errorf("rl: no advantage estimator %q; there are %v", name, AdvantageNames())
	}
	return p, nil
}

// NewEstimator returns the estimator of that name, with its default settings.
func NewEstimator(name string) (Estimator, error) {
	p, err := LookupAdvantage(name)
	if err != nil {
		return nil, err
	}
	return p.Defaults.Estimator()
}

// Estimator returns the estimator that s describes.
func (s AdvantageSettings) Estimator() (Estimator, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("rl: advantage: %w", err)
	}
	e := &estimator{s: s, own: s.Baseline.registered(), baselines: map[string]float64{}}
	if s.Baseline == BaselineRole {
		return &roleEstimator{e}, nil
	}
	return e, nil
}

func (s AdvantageSettings) check() error {
	switch s.Baseline {
	case NoBaseline, BaselineGroupMean, BaselineLeaveOneOut, BaselineLength, BaselineSecondBest:
	case BaselineRole:
		if !(s.Decay >= 0 && s.Decay < 1) {
			return fmt.Errorf("decay is %g; it must lie in [0, 1)", s.Decay)
		}
	default:
		if s.Baseline.registered() != nil {
			break
		}
		return fmt.Errorf("no baseline %q; there are %s, %s, %s, %s, %s, or none", s.Baseline,
			BaselineGroupMean, BaselineLeaveOneOut, BaselineLength, BaselineSecondBest, BaselineRole)
	}
	switch {
	case s.Scale != NoScale && s.Scale != ScaleStd && s.Scale != ScaleStep && s.Scale != ScaleMean:
		return fmt.Errorf("no scale %q; there are %s, %s, %s, or none", s.Scale, ScaleStd, ScaleStep, ScaleMean)
	case s.Deviation != SampleDeviation && s.Deviation != "sample" && s.Deviation != PopulationDeviation && s.Deviation != OthersDeviation:
		return fmt.Errorf("no deviation %q; there are sample, %s, %s", s.Deviation, PopulationDeviation, OthersDeviation)
	case !(s.Epsilon >= 0):
		return fmt.Errorf("epsilon is %g; it must not be negative", s.Epsilon)
	case s.PassK < 0:
		return fmt.Errorf("pass_k is %d; it must be positive, or 0 for none", s.PassK)
	case s.PassK > 0 && (s.Baseline != NoBaseline || s.Scale != NoScale):
		return fmt.Errorf("pass_k is %d, with the baseline %q and the scale %q; it stands in their place", s.PassK, s.Baseline, s.Scale)
	}
	return errors.Join(s.TurnCredit.check(), s.Overlong.check())
}

// estimator is AdvantageSettings at work.
type estimator struct {
	s         AdvantageSettings
	own       func(group []Episode) []float64 // of a registered baseline
	baselines map[string]float64              // of BaselineRole
}

// roleEstimator is one with a state.
type roleEstimator struct{ *estimator }

// State implements Stateful.
func (e *roleEstimator) State() map[string]float64 { return maps.Clone(e.baselines) }

// Restore implements Stateful.
func (e *roleEstimator) Restore(state map[string]float64) {
	e.baselines = maps.Clone(state)
	if e.baselines == nil {
		e.baselines = map[string]float64{}
	}
}

// Estimate implements Estimator.
func (e *estimator) Estimate(groups [][]Episode) [][]float64 {
	out := make([][]float64, len(groups))
	shaped := make([][]float64, len(groups))
	byRole := map[string][]float64{}
	for g, group := range groups {
		for _, ep := range group {
			r := e.s.Overlong.Shape(ep.Reward, ep.Length)
			shaped[g] = append(shaped[g], r)
			byRole[ep.Role] = append(byRole[ep.Role], r)
		}
	}
	for g, group := range groups {
		out[g] = e.centre(group, shaped[g])
		if len(group) == 1 && e.s.KeepSingle {
			continue
		}
		for i := range out[g] {
			if out[g][i] != 0 { // no spread is no advantage, whatever the scale
				out[g][i] /= e.scale(i, shaped[g], byRole[group[i].Role])
			}
		}
	}
	if e.s.Whiten {
		whiten(groups, out)
	}
	return out
}

// centre subtracts the baseline from a group's rewards.
func (e *estimator) centre(group []Episode, rewards []float64) []float64 {
	if e.s.PassK > 0 {
		return PassK(rewards, e.s.PassK)
	}
	if len(group) == 1 && e.s.KeepSingle && e.s.Baseline != BaselineRole {
		return slices.Clone(rewards)
	}
	if e.own != nil && len(group) > 0 {
		group = slices.Clone(group)
		for i, r := range rewards {
			group[i].Reward = r // as shaped
		}
		return e.own(group)
	}
	switch e.s.Baseline {
	case BaselineGroupMean:
		return GroupMean(rewards)
	case BaselineLeaveOneOut:
		return LeaveOneOut(rewards)
	case BaselineLength:
		lengths := make([]int, len(group))
		for i, ep := range group {
			lengths[i] = ep.Length
		}
		return LengthWeighted(rewards, lengths)
	case BaselineSecondBest:
		return SecondBest(rewards)
	case BaselineRole:
		adv := make([]float64, len(group))
		for i, ep := range group {
			b := e.baselines[ep.Role]
			adv[i] = rewards[i] - b
			e.baselines[ep.Role] = e.s.Decay*b + (1-e.s.Decay)*rewards[i]
		}
		return adv
	default:
		return slices.Clone(rewards)
	}
}

// scale is what the advantage of episode i of a group is divided by.
func (e *estimator) scale(i int, rewards, ofRole []float64) float64 {
	var d float64
	switch e.s.Scale {
	case NoScale:
		return 1
	case ScaleMean:
		return offset(rewards)
	case ScaleStep:
		d = e.deviation(ofRole, slices.Index(ofRole, rewards[i]))
	default:
		d = e.deviation(rewards, i)
	}
	return cmp.Or(d+e.s.Epsilon, 1)
}

func (e *estimator) deviation(x []float64, i int) float64 {
	switch e.s.Deviation {
	case PopulationDeviation:
		return deviation(x, 0)
	case OthersDeviation:
		return deviation(slices.Delete(slices.Clone(x), i, i+1), 1)
	default:
		return deviation(x, 1)
	}
}

// whiten brings the advantages of each role to mean 0 and sample variance 1 over
// trained tokens; 1e-8 is added to the variance, as in the published code.
func whiten(groups [][]Episode, adv [][]float64) {
	type moments struct{ n, sum, ss float64 }
	of := map[string]*moments{}
	visit := func(f func(m *moments, n float64, a *float64)) {
		for g, group := range groups {
			for i, ep := range group {
				if of[ep.Role] == nil {
					of[ep.Role] = &moments{}
				}
				f(of[ep.Role], float64(ep.Length), &adv[g][i])
			}
		}
	}
	visit(func(m *moments, n float64, a *float64) { m.n += n; m.sum += n * *a })
	visit(func(m *moments, n float64, a *float64) {
		if m.n > 0 {
			d := *a - m.sum/m.n
			m.ss += n * d * d
		}
	})
	visit(func(m *moments, n float64, a *float64) {
		if m.n > 0 {
			*a = (*a - m.sum/m.n) / math.Sqrt(m.ss/max(1, m.n-1)+1e-8)
		}
	})
}
