package rl

// evaluator runs one expression over batches of any size. Its buffers grow with
// the largest batch seen, and with nothing else.
type evaluator struct {
	expression Expression
	machines   map[int]*machine
	// in are the inputs of the smallest machine; those of the others are alike.
	in *Inputs

	tokens  Tokens
	at      []int // the place in the batch of each trained token
	weight  []float64
	grad    []float64
	vectors [][]float64 // one for each of in.feeds
	scratch [][]float64
}

// newEvaluator compiles the smallest machine at once, so that a faulty
// expression is reported when it is configured.
func newEvaluator(e Expression) (*evaluator, error) {
	ev := &evaluator{expression: e, machines: map[int]*machine{}}
	m, err := ev.machine(1)
	if err != nil {
		return nil, err
	}
	ev.in = m.in
	ev.vectors, ev.scratch = make([][]float64, len(m.in.feeds)), make([][]float64, len(m.in.feeds))
	return ev, nil
}

// machine returns the smallest one that takes n tokens, or the largest there is.
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

// load gathers the trained tokens of b, whose ratios are taken against anchors,
// and computes what is fed in. What stands in masked places never reaches a graph.
func (ev *evaluator) load(b Batch, anchors, weights []float64) {
	t := &ev.tokens
	ev.at, ev.weight, t.Offsets = ev.at[:0], ev.weight[:0], append(t.Offsets[:0], 0)
	for s := range len(b.Offsets) - 1 {
		for i := b.Offsets[s]; i < b.Offsets[s+1]; i++ {
			if b.Mask[i] {
				ev.at = append(ev.at, i)
				ev.weight = append(ev.weight, weights[i])
			}
		}
		t.Offsets = append(t.Offsets, len(ev.at))
	}
	for _, v := range []struct {
		to   *[]float64
		from []float64
	}{
		{&t.Logprobs, b.Logprobs}, {&t.Anchors, anchors}, {&t.Rollouts, b.RolloutLogprobs},
		{&t.References, b.ReferenceLogprobs}, {&t.Advantages, b.Advantages},
	} {
		*v.to = resize(*v.to, len(ev.at))
		clear(*v.to)
		if v.from != nil {
			for k, i := range ev.at {
				(*v.to)[k] = v.from[i]
			}
		}
	}
	for k, f := range ev.in.feeds {
		if f.stored != nil {
			ev.vectors[k] = f.stored(t)
			continue
		}
		ev.scratch[k] = resize(ev.scratch[k], len(ev.at))
		ev.vectors[k] = ev.scratch[k]
		f.computed(*t, ev.vectors[k])
	}
}

// run returns the loss of what was loaded, and leaves its gradient in ev.grad.
func (ev *evaluator) run() (float64, error) {
	ev.grad = resize(ev.grad, len(ev.at))
	var loss float64
	for lo := 0; lo < len(ev.grad); {
		m, err := ev.machine(len(ev.grad) - lo)
		if err != nil {
			return 0, err
		}
		hi := min(lo+m.n, len(ev.grad))
		part, err := m.run(ev.vectors, ev.weight, lo, hi, ev.grad)
		if err != nil {
			return 0, err
		}
		loss += part
		lo = hi
	}
	return loss, nil
}

// resize returns x with n entries, whatever they hold.
func resize(x []float64, n int) []float64 {
	if cap(x) < n {
		return make([]float64, n)
	}
	return x[:n]
}
