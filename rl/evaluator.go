package rl

import "fmt"

// evaluator runs one expression over batches of any size. Its buffers grow with
// the largest batch seen, and with nothing else.
type evaluator struct {
	expression Expression
	// first is the smallest machine; the inputs of the others are alike.
	first *machine
	tapes map[int]*machine // where first is one: by size

	spans  []span // of trained tokens, in the batch
	tokens Tokens
	// gathered are the buffers of tokens.
	gathered [5][]float64
	zero     []float64 // stands in the place of what a batch does not have; never written
	weight   []float64
	vectors  [][]float64 // one for each input of first
	scratch  [][]float64
}

// span is a run of trained tokens of one sequence, [lo, hi).
type span struct{ lo, hi int }

// newEvaluator compiles the smallest machine at once, so that a faulty
// expression is reported when it is configured.
func newEvaluator(e Expression) (*evaluator, error) {
	m, err := compile(e, machineSizes[0], false)
	if err != nil {
		return nil, err
	}
	return &evaluator{
		expression: e, first: m, tapes: map[int]*machine{machineSizes[0]: m},
		vectors: make([][]float64, len(m.in.feeds)), scratch: make([][]float64, len(m.in.feeds)),
	}, nil
}

// find looks up the trained tokens of a batch.
func (ev *evaluator) find(b Batch) {
	t := &ev.tokens
	ev.spans, t.Offsets, t.Turns = ev.spans[:0], append(t.Offsets[:0], 0), append(t.Turns[:0], 0)
	n := 0
	for s := range len(b.Offsets) - 1 {
		for lo := b.Offsets[s]; lo < b.Offsets[s+1]; {
			if !b.Mask[lo] {
				lo++
				continue
			}
			hi := lo + 1
			for hi < b.Offsets[s+1] && b.Mask[hi] {
				hi++
			}
			ev.spans = append(ev.spans, span{lo, hi})
			n += hi - lo
			t.Turns = append(t.Turns, n)
			lo = hi
		}
		t.Offsets = append(t.Offsets, n)
	}
}

// load gathers the trained tokens that were found in b, whose ratios are taken
// against the old policy or else the sampler, and computes what is fed in. What
// stands in masked places is not read.
func (ev *evaluator) load(b Batch, old bool, aggregation Aggregation, length int) error {
	t := &ev.tokens
	n := t.Offsets[len(t.Offsets)-1]
	ev.weight = resize(ev.weight, n)
	for s := range len(t.Offsets) - 1 {
		trained := ev.weight[t.Offsets[s]:t.Offsets[s+1]]
		if len(trained) == 0 {
			continue
		}
		w, err := aggregation.weight(b, s, len(trained), length)
		if err != nil {
			return err
		}
		for i := range trained {
			trained[i] = w
		}
	}
	if len(ev.zero) < n {
		ev.zero = make([]float64, n)
	}
	for k, v := range []struct {
		name string
		to   *[]float64
		from []float64
	}{
		{"rollout logprobs", &t.Rollouts, b.RolloutLogprobs}, {"old logprobs", &t.Anchors, b.OldLogprobs},
		{"advantages", &t.Advantages, b.Advantages}, {"reference logprobs", &t.References, b.ReferenceLogprobs},
		{"logprobs", &t.Logprobs, b.Logprobs},
	} {
		if v.from == nil {
			*v.to = ev.zero[:n]
			continue
		}
		ev.gathered[k] = resize(ev.gathered[k], n)
		*v.to = ev.gathered[k]
		at := 0
		for _, s := range ev.spans {
			from := v.from[s.lo:s.hi]
			if i := copyFinite((*v.to)[at:], from); i < len(from) {
				return fmt.Errorf("rl: %s of token %d is %v: %w", v.name, s.lo+i, from[i], ErrNonFinite)
			}
			at += len(from)
		}
	}
	if !old {
		t.Anchors = t.Rollouts
	}
	for k, f := range ev.first.in.feeds {
		if f.stored != nil {
			ev.vectors[k] = f.stored(t)
			continue
		}
		ev.scratch[k] = resize(ev.scratch[k], n)
		ev.vectors[k] = ev.scratch[k]
		f.computed(*t, ev.vectors[k])
	}
	return nil
}

// run returns the loss of what was loaded, and shows visit its gradient piece by
// piece, each from lo on, and the ratios to the anchor, nil where they are not known.
func (ev *evaluator) run(visit func(lo int, gradient, ratio []float64)) (float64, error) {
	if p := ev.first.program; p != nil {
		return p.run(ev.vectors, ev.weight, visit), nil
	}
	var loss float64
	for lo := 0; lo < len(ev.weight); {
		m, err := ev.tape(len(ev.weight) - lo)
		if err != nil {
			return 0, err
		}
		hi := min(lo+m.n, len(ev.weight))
		part, gradient, err := m.run(ev.vectors, ev.weight, lo, hi)
		if err != nil {
			return 0, err
		}
		visit(lo, gradient, nil)
		loss += part
		lo = hi
	}
	return loss, nil
}

// tape returns the smallest machine that takes n tokens, or the largest there is.
func (ev *evaluator) tape(n int) (*machine, error) {
	size := machineSizes[len(machineSizes)-1]
	for _, s := range machineSizes {
		if n <= s {
			size = s
			break
		}
	}
	if m, ok := ev.tapes[size]; ok {
		return m, nil
	}
	m, err := compile(ev.expression, size, true)
	if err != nil {
		return nil, err
	}
	ev.tapes[size] = m
	return m, nil
}

// copyFinite copies from to to up to the first entry that is NaN or infinite, and
// returns how many that are.
func copyFinite(to, from []float64) int {
	to = to[:len(from)]
	for i, x := range from {
		if !finite(x) {
			return i
		}
		to[i] = x
	}
	return len(from)
}

// resize returns x with n entries, whatever they hold.
func resize(x []float64, n int) []float64 {
	if cap(x) < n {
		return make([]float64, n)
	}
	return x[:n]
}
