package model

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSegmentsShareTheWork: every token is in one segment, no segment is larger than it
// may be, and no worker has more than another by more than a segment.
func TestSegmentsShareTheWork(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		n, size := 1+rng.IntN(5), 1+rng.IntN(60)
		offsets, longest := []int{0}, 0
		for range rng.IntN(30) {
			length := rng.IntN(40)
			offsets, longest = append(offsets, offsets[len(offsets)-1]+length), max(longest, length)
		}
		tokens := make([]int32, offsets[len(offsets)-1])
		for i := range tokens {
			tokens[i] = int32(i)
		}
		var seen []int32
		var load []int
		most := 0
		for _, own := range segments(tokens, offsets, n, size) {
			sum := 0
			for _, s := range own {
				if len(s.tokens) > max(size, longest) || int(s.offsets[len(s.offsets)-1]) != len(s.tokens) || len(s.positions) != len(s.tokens) {
					t.Fatalf("a segment of %d tokens, offsets %v, %d positions; size %d, longest sequence %d",
						len(s.tokens), s.offsets, len(s.positions), size, longest)
				}
				seen = append(seen, s.tokens...)
				sum, most = sum+s.work(), max(most, s.work())
			}
			load = append(load, sum)
		}
		slices.Sort(seen)
		if !slices.Equal(seen, tokens) {
			t.Fatalf("%d workers of %d tokens see %v of %d", n, size, seen, len(tokens))
		}
		if len(load) != n || slices.Max(load)-slices.Min(load) > most {
			t.Fatalf("%d workers have %v to do, where a segment is %d", n, load, most)
		}
	}
}

// TestSmallBatchesAreShared: a batch that one segment could hold still gives all workers
// the same to do.
func TestSmallBatchesAreShared(t *testing.T) {
	for _, lengths := range [][]int{{128, 128}, {100, 100, 100, 100, 100, 100}, {600, 600, 600, 600}} {
		offsets := []int{0}
		for _, n := range lengths {
			offsets = append(offsets, offsets[len(offsets)-1]+n)
		}
		total := offsets[len(lengths)]
		for worker, own := range segments(make([]int32, total), offsets, 2, segmentTokens) {
			n := 0
			for _, s := range own {
				n += len(s.tokens)
			}
			if n != total/2 {
				t.Errorf("lengths %v: worker %d has %d of %d tokens", lengths, worker, n, total)
			}
		}
	}
}
