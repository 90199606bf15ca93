package rl

import "math"

// evaluator runs one expression over batches of any size.
type evaluator struct {
	expression             Expression
	usesOld, usesAdvantage bool
	machines               map[int]*machine
}

// newEvaluator compiles the smallest machine at once, so that a faulty
// expression is reported when it is configured.
func newEvaluator(e Expression) (*evaluator, error) {
	ev := &evaluator{expression: e, machines: map[int]*machine{}}
	m, err := ev.machine(1)
	if err != nil {
		return nil, err
	}
	ev.usesOld = m.in.old != nil || m.in.frozen != nil
	ev.usesAdvantage = m.in.advantage != nil || m.in.frozen != nil
	return ev, nil
}

// machine returns the smallest one that takes n units, or the largest there is.
func (ev *evaluator) machine(n int) (*machine, error) {
	size := machineSizes[len(machineSizes)-1]
	for _, s := range machineSizes {
		if n <= s {
			size = s
			break
		}
	}
	if m, ok := ev.machines[size]; ok {
		return m, nil
	}
	m, err := compile(ev.expression, size)
	if err != nil {
		return nil, err
	}
	ev.machines[size] = m
	return m, nil
}

// add evaluates the expression on b, adds scale times its loss and gradient to
// res, and returns the inputs it used.
func (ev *evaluator) add(b Batch, weights []float64, scale float64, res *Result) (*units, error) {
	u, at := ev.gather(b, weights)
	grad := make([]float64, len(u.logprob))
	for lo := 0; lo < len(grad); {
		m, err := ev.machine(len(grad) - lo)
		if err != nil {
			return nil, err
		}
		hi := min(lo+m.n, len(grad))
		loss, err := m.run(u, lo, hi, grad)
		if err != nil {
			return nil, err
		}
		res.Loss += scale * loss
		lo = hi
	}
	for k, i := range at {
		res.Grad[i] += scale * grad[k]
	}
	return u, nil
}

// gather collects the units of b and the token each stands for. The gradient of
// a unit's term is that token's: see Expression.Pooled. Pooling stands here
// because Gorgonia has no segment sums.
func (ev *evaluator) gather(b Batch, weights []float64) (u *units, at []int) {
	u, at = newUnits(b)
	for s := range len(b.Offsets) - 1 {
		first := len(at)
		var logprobs, olds float64
		for i := b.Offsets[s]; i < b.Offsets[s+1]; i++ {
			if b.Mask[i] {
				at = append(at, i)
				logprobs += b.Logprobs[i]
				olds += entry(b.RolloutLogprobs, i)
			}
		}
		n := float64(len(at) - first)
		for _, i := range at[first:] {
			logprob, old := b.Logprobs[i], entry(b.RolloutLogprobs, i)
			if ev.expression.Pooled {
				logprob, old = logprobs/n, olds/n
			}
			ev.push(u, logprob, old, entry(b.Advantages, i), weights[i])
		}
	}
	return u, at
}

// newUnits makes room for the trained tokens of b.
func newUnits(b Batch) (*units, []int) {
	n := 0
	for _, m := range b.Mask {
		if m {
			n++
		}
	}
	vector := func() []float64 { return make([]float64, 0, n) }
	return &units{logprob: vector(), old: vector(), advantage: vector(), frozen: vector(), weight: vector()}, make([]int, 0, n)
}

func (ev *evaluator) push(u *units, logprob, old, advantage, weight float64) {
	u.logprob = append(u.logprob, logprob)
	u.old = append(u.old, old)
	u.advantage = append(u.advantage, advantage)
	u.weight = append(u.weight, weight)
	if f := ev.expression.Frozen; f != nil {
		u.frozen = append(u.frozen, f(math.Exp(bound(logprob-old)), advantage))
	}
}

// entry is x[i], 0 where the vector is absent.
func entry(x []float64, i int) float64 {
	if x == nil {
		return 0
	}
	return x[i]
}
