package model

import (
	"cmp"
	"fmt"
	"slices"
)

// How many tokens go through the layers together: on a CPU enough rows for the matrix
// products, few enough that a layer's rows stay in the cache; on a device enough to
// fill it. A longer sequence is a segment by itself.
const (
	segmentTokens = 512
	deviceSegment = 4096
)

func (o Options) segmentTokens() int { return o.pick(segmentTokens, deviceSegment) }

// segment is a run of whole sequences of a packed batch.
type segment struct {
	first     int     // its first token in the batch
	tokens    []int32 // of the batch, not a copy
	positions []int32 // from 0 in each sequence
	offsets   []int32 // of its sequences, relative to first
}

// checkPacked says what is wrong with a packed batch.
func (p *Policy) checkPacked(tokens []int32, offsets []int) error {
	if len(offsets) == 0 || offsets[0] != 0 || offsets[len(offsets)-1] != len(tokens) {
		return fmt.Errorf("model: offsets must begin at 0 and end at the %d tokens; got %v", len(tokens), offsets)
	}
	for i := 1; i < len(offsets); i++ {
		switch n := offsets[i] - offsets[i-1]; {
		case n < 0:
			return fmt.Errorf("model: offsets[%d] = %d descends", i, offsets[i])
		case n > p.config.MaxPositions:
			return fmt.Errorf("model: sequence %d has %d tokens; the context window is %d", i-1, n, p.config.MaxPositions)
		}
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= p.config.VocabSize {
			return fmt.Errorf("model: tokens[%d] = %d is outside the vocabulary of %d", i, t, p.config.VocabSize)
		}
	}
	return nil
}

// segments cuts a packed batch into segments of at most size tokens, or one sequence,
// and deals them to n workers. A batch that is no multiple of n·size tokens is cut
// smaller, so that all workers have as much to do. It depends on nothing but its
// arguments.
func segments(tokens []int32, offsets []int, n, size int) [][]segment {
	pieces := n * max(1, ceilDiv(len(tokens), n*size))
	size = ceilDiv(len(tokens), pieces)
	var all []segment
	for i := 0; i+1 < len(offsets); i++ {
		lo, hi := offsets[i], offsets[i+1]
		if lo == hi {
			continue
		}
		if len(all) == 0 || len(all[len(all)-1].tokens)+hi-lo > size {
			all = append(all, segment{first: lo, offsets: []int32{0}})
		}
		s := &all[len(all)-1]
		s.tokens = tokens[s.first:hi]
		s.offsets = append(s.offsets, int32(hi-s.first))
		for pos := range hi - lo {
			s.positions = append(s.positions, int32(pos))
		}
	}
	work := make([]int, len(all))
	for i, s := range all {
		work[i] = s.work()
	}
	dealt := make([][]segment, n)
	for worker, own := range deal(work, n) {
		for _, i := range own {
			dealt[worker] = append(dealt[worker], all[i])
		}
	}
	return dealt
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// deal gives each of n workers the numbers of some jobs: the most work first, each to the
// worker with the least.
func deal(work []int, n int) [][]int {
	order := make([]int, len(work))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(work[b], work[a]) })
	dealt, load := make([][]int, n), make([]int, n)
	for _, i := range order {
		least := slices.Index(load, slices.Min(load))
		dealt[least] = append(dealt[least], i)
		load[least] += work[i]
	}
	return dealt
}

// work estimates a segment's cost in arbitrary units: products grow with the
// tokens, attention with the square of each sequence.
func (s segment) work() int {
	w := 0
	for i := 1; i < len(s.offsets); i++ {
		n := int(s.offsets[i] - s.offsets[i-1])
		w += n * (4096 + n)
	}
	return w
}

// predicted lists the rows whose hidden state predicts a token that want admits
// (nil: every token but a sequence's first), and those tokens.
func (s segment) predicted(want []bool) (rows, targets []int32) {
	for i := 1; i < len(s.tokens); i++ {
		if s.positions[i] > 0 && (want == nil || want[s.first+i]) {
			rows = append(rows, int32(i-1))
			targets = append(targets, s.tokens[i])
		}
	}
	return rows, targets
}
