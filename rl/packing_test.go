package rl

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// lengths are sequences of so many tokens.
func lengths(of ...int) (seqs []Sequence) {
	for k, n := range of {
		seqs = append(seqs, Sequence{ID: fmt.Sprintf("%02d", k), Tokens: make([]int32, n), Trained: make([]bool, n)})
	}
	return seqs
}

// TestPackEvenly: n replicas have as many micro-batches each, or there are fewer
// sequences than that; whatever the order of sequences; within the budget; and no two
// micro-batches are further apart than the longest sequence.
func TestPackEvenly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		budget, n := rapid.IntRange(4, 60).Draw(t, "budget"), rapid.IntRange(2, 5).Draw(t, "replicas")
		seqs := lengths(rapid.SliceOfN(rapid.IntRange(1, 50), 0, 20).Draw(t, "lengths")...)
		packed, err := PackEvenly(seqs, budget, n)
		if err != nil {
			t.Fatal(err)
		}
		mixed := slices.Clone(seqs)
		rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		again, err := PackEvenly(mixed, budget, n)
		if err != nil || cmp.Diff(packed, again) != "" {
			t.Fatalf("depends on the order: %s (%v)", cmp.Diff(packed, again), err)
		}
		if len(packed)%n != 0 && len(packed) != len(seqs) {
			t.Fatalf("%d micro-batches of %d sequences for %d replicas", len(packed), len(seqs), n)
		}
		var ids []string
		var loads []int
		for _, p := range packed {
			if len(p.Tokens) > budget && len(p.IDs) > 1 {
				t.Fatalf("%d tokens of %d sequences exceed %d", len(p.Tokens), len(p.IDs), budget)
			}
			ids, loads = append(ids, p.IDs...), append(loads, len(p.Tokens))
		}
		longest := 0
		for _, s := range seqs {
			longest = max(longest, len(s.Tokens))
			if !slices.Contains(ids, s.ID) {
				t.Fatalf("%s is in no micro-batch", s.ID)
			}
		}
		if len(ids) != len(seqs) || len(loads) > 0 && slices.Max(loads)-slices.Min(loads) > longest {
			t.Fatalf("%d of %d sequences, loads %v", len(ids), len(seqs), loads)
		}
	})
}

// TestPackEvenlyByHand: three sequences that first fit would put into three micro-batches
// of half the tokens are two, and one replica has what Pack makes.
func TestPackEvenlyByHand(t *testing.T) {
	for _, tc := range []struct {
		lengths   []int
		budget, n int
		want      []int
	}{
		{[]int{4, 4, 4}, 100, 2, []int{8, 4}},
		{[]int{7, 5, 4, 3, 2, 1}, 100, 2, []int{11, 11}},
		{[]int{7, 5, 4, 3, 2, 1}, 11, 2, []int{11, 11}},
		{[]int{7, 5, 4, 3, 2, 1}, 10, 2, []int{7, 5, 5, 5}},
		{[]int{9, 9, 2}, 8, 2, []int{9, 9, 2}}, // longer than the budget
		{[]int{5, 3}, 100, 3, []int{5, 3}},
		{[]int{4, 4, 4}, 8, 1, []int{8, 4}},
		{nil, 8, 2, nil},
	} {
		packed, err := PackEvenly(lengths(tc.lengths...), tc.budget, tc.n)
		var got []int
		for _, p := range packed {
			got = append(got, len(p.Tokens))
		}
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%v into %d for %d: %v, want %v (%v)", tc.lengths, tc.budget, tc.n, got, tc.want, err)
		}
	}
	if _, err := PackEvenly(lengths(1), 0, 2); err == nil {
		t.Error("a budget of 0 is taken")
	}
}
