// Package stats estimates rates with intervals of confidence.
package stats

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// z is the 97.5th percentile of the normal distribution.
const z = 1.959963984540054

// Interval is an estimate with its 95% interval of confidence.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

func (i Interval) String() string {
	return fmt.Sprintf("%.1f%% [%.1f%%, %.1f%%]", 100*i.Value, 100*i.Low, 100*i.High)
}

// Wilson is the rate of successes in n independent trials with Wilson's
// interval (Wilson 1927). Of no trials nothing is known: [0, 1].
func Wilson(successes, n int) Interval {
	if n == 0 {
		return Interval{Value: math.NaN(), Low: 0, High: 1}
	}
	p, m := float64(successes)/float64(n), float64(n)
	centre := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	// Where nothing or everything succeeded, rounding must not exclude the rate.
	return Interval{Value: p, Low: min(p, max(0, centre-half)), High: max(p, min(1, centre+half))}
}

// Task is how often one task was attempted and solved.
type Task struct{ Attempts, Solved int }

// Pass1 is the mean over tasks of the share of attempts that solve them.
//
// With one attempt each its interval is Wilson's. With more, attempts at one
// task are not independent of each other, so the tasks are resampled (a
// bootstrap of 4,000 draws from seed, percentiles), and the interval is never
// narrower than Wilson's for as many trials as there are attempts.
func Pass1(tasks []Task, seed uint64) Interval {
	var rates []float64
	attempts, solved, single := 0, 0, true
	for _, t := range tasks {
		if t.Attempts == 0 {
			continue
		}
		rates = append(rates, float64(t.Solved)/float64(t.Attempts))
		attempts, solved = attempts+t.Attempts, solved+t.Solved
		single = single && t.Attempts == 1
	}
	w := Wilson(solved, attempts)
	if len(rates) == 0 || single {
		return w
	}
	const draws = 4000
	r := rand.New(rand.NewPCG(seed, 0x57a75))
	means := make([]float64, draws)
	for i := range means {
		for range rates {
			means[i] += rates[r.IntN(len(rates))]
		}
		means[i] /= float64(len(rates))
	}
	slices.Sort(means)
	value := mean(rates)
	return Interval{Value: value, Low: min(value, w.Low, means[draws*25/1000]), High: max(value, w.High, means[draws*975/1000])}
}

// PassK is the unbiased estimate of the chance that at least one of k attempts
// solves a task, mean over the tasks with at least k attempts (Chen et al.,
// arXiv 2107.03374, equation 1); NaN when there is none.
func PassK(tasks []Task, k int) float64 {
	var all []float64
	for _, t := range tasks {
		if t.Attempts < k {
			continue
		}
		miss := 1.0
		for i := t.Attempts - t.Solved + 1; i <= t.Attempts; i++ {
			miss *= 1 - float64(k)/float64(i)
		}
		if t.Attempts-t.Solved < k {
			miss = 0
		}
		all = append(all, 1-miss)
	}
	if len(all) == 0 {
		return math.NaN()
	}
	return mean(all)
}

func mean(x []float64) (m float64) {
	for _, v := range x {
		m += v
	}
	return m / float64(len(x))
}
