package rl

import (
	"math"
	"slices"
)

// Baselines and scales of one group: functions of the rewards of the episodes of
// one task and role. A group without spread gets exact zeros from each.

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

// LeaveOneOut (RLOO, arXiv 2402.14740) is A = R − the mean of the others'
// rewards; 0 for a group of one.
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

// LengthWeighted (OPO, arXiv 2505.23585) is A = R − Σ lR / Σ l with the episodes'
// lengths l: the baseline of least variance where a gradient's square grows with
// the length.
func LengthWeighted(rewards []float64, lengths []int) []float64 {
	adv := make([]float64, len(rewards))
	var sum, total float64
	for i, r := range rewards {
		sum += float64(lengths[i]) * r
		total += float64(lengths[i])
	}
	if !HasSpread(rewards) || total == 0 {
		return adv
	}
	for i, r := range rewards {
		adv[i] = r - sum/total
	}
	return adv
}

// SecondBest (arXiv 2503.19595) gives the best episode its distance from the
// second best, and the others nothing: the gradient of the best of the group.
func SecondBest(rewards []float64) []float64 {
	adv := make([]float64, len(rewards))
	best, second := math.Inf(-1), math.Inf(-1)
	at := -1
	for i, r := range rewards {
		if r > best {
			at, best, second = i, r, best
		} else {
			second = max(second, r)
		}
	}
	if len(rewards) > 1 {
		adv[at] = best - second
	}
	return adv
}

// PassK is the gradient of pass@k, where a reward above 0 is a success: a success
// among c of n episodes gets k·C(n−c, k−1)/C(n−1, k−1), that is k times how often
// k − 1 of the others all fail, and a failure gets nothing. It is the estimate of
// PKPO (arXiv 2505.15201) times n, as terms are averaged here, less the pass@(k−1)
// of the others as a baseline. A group smaller than k teaches nothing.
func PassK(rewards []float64, k int) []float64 {
	n, c := len(rewards), 0
	for _, r := range rewards {
		if r > 0 {
			c++
		}
	}
	alone := float64(k)
	for j := range k - 1 {
		alone *= float64(n-c-j) / float64(n-1-j)
		if n-c-j <= 0 {
			alone = 0
			break
		}
	}
	adv := make([]float64, n)
	for i, r := range rewards {
		if r > 0 {
			adv[i] = alone
		}
	}
	return adv
}

// offset is what MaxRL divides by: the mean reward, measured from the group's
// lowest one where a reward is negative, so that −1/+1 rewards and 0/1 rewards
// give the same advantages.
func offset(rewards []float64) float64 {
	return mean(rewards) - min(0, slices.Min(rewards))
}

// deviation is the standard deviation with n − less degrees of freedom; 0 where
// there are none.
func deviation(x []float64, less int) float64 {
	if len(x) <= less {
		return 0
	}
	m := mean(x)
	var ss float64
	for _, v := range x {
		ss += (v - m) * (v - m)
	}
	return math.Sqrt(ss / float64(len(x)-less))
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
