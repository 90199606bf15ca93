package rl

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// Estimator turns the rewards of one group (episodes of the same task and role)
// into an advantage each. A group without spread gets zeros from every estimator.
type Estimator func(rewards []float64) []float64

var estimators = map[string]Estimator{
	"group_mean":    GroupMean,
	"leave_one_out": LeaveOneOut,
	"grpo":          GroupStandardized,
	"maxrl":         MaxRL,
}

// NewEstimator returns the estimator of that name: group_mean (the default of
// the paper, SSR's code world model), leave_one_out, grpo or maxrl.
func NewEstimator(name string) (Estimator, error) {
	if e, ok := estimators[name]; ok {
		return e, nil
	}
	return nil, fmt.Errorf("rl: no advantage estimator %q; there are %v", name, slices.Sorted(maps.Keys(estimators)))
}

// GroupMean is A = R − mean(R), with no division by the deviation.
func GroupMean(rewards []float64) []float64 {
	adv := make([]float64, len(rewards))
	if !HasSpread(rewards) {
		return adv // exact zeros, where the mean's rounding might leave a residue
	}
	m := mean(rewards)
	for i, r := range rewards {
		adv[i] = r - m
	}
	return adv
}

// LeaveOneOut (RLOO) is A = R − the mean of the others' rewards; 0 for a group of one.
func LeaveOneOut(rewards []float64) []float64 {
	adv := GroupMean(rewards)
	n := float64(len(rewards))
	if n < 2 {
		return adv
	}
	for i := range adv {
		adv[i] *= n / (n - 1)
	}
	return adv
}

// GroupStandardized (GRPO) is the group mean's advantage divided by the sample
// standard deviation of the rewards (n − 1) plus 1e-6.
func GroupStandardized(rewards []float64) []float64 {
	adv := GroupMean(rewards)
	if len(rewards) < 2 {
		return adv
	}
	var ss float64
	for _, a := range adv {
		ss += a * a
	}
	d := math.Sqrt(ss/float64(len(rewards)-1)) + 1e-6
	for i := range adv {
		adv[i] /= d
	}
	return adv
}

// MaxRL is A = (R − mean(R)) / mean(R), which for 0/1 rewards follows the
// gradient of log solve rate at the group's size. Where a reward is negative,
// rewards are first measured from the group's lowest one, so that −1/+1 rewards
// and 0/1 rewards give the same advantages.
func MaxRL(rewards []float64) []float64 {
	adv := GroupMean(rewards)
	if !HasSpread(rewards) {
		return adv
	}
	m := mean(rewards) - min(0, slices.Min(rewards))
	for i := range adv {
		adv[i] /= m
	}
	return adv
}

// HasSpread says whether the rewards of a group differ at all; a group without
// spread carries no gradient.
func HasSpread(rewards []float64) bool {
	for _, r := range rewards {
		if r != rewards[0] {
			return true
		}
	}
	return false
}

func mean(x []float64) float64 {
	var s float64
	for _, v := range x {
		s += v
	}
	return s / float64(len(x))
}
