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

// TestIdle: of every objective that has no use for sequences without an advantage, the
// gradients of the others are the same, bit for bit, with and without them, and theirs
// are 0; so is their part of the loss.
func TestIdle(t *testing.T) {
	selective := 0
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			s, err := Defaults(name)
			if err != nil {
				t.Fatal(err)
			}
			s.KLCoef = 0
			if s.Length > 0 {
				s.Length = 100
			}
			o, err := New(name, s)
			if err != nil {
				t.Fatal(err)
			}
			if !o.(Selective).Idle(Sequence{}) {
				return
			}
			selective++
			for seed := range uint64(20) {
				testIdle(t, o, seed)
			}
		})
	}
	if selective < 10 {
		t.Errorf("only %d objectives can leave sequences out", selective)
	}
	for name, change := range map[string]func(*Settings){
		"a penalty": func(s *Settings) { s.KLCoef = 0.1 }, "a bonus": func(s *Settings) { s.EntropyCoef = 0.1 },
	} {
		s, err := Defaults("clip")
		if err != nil {
			t.Fatal(err)
		}
		change(&s)
		if o, err := New("clip", s); err != nil || o.(Selective).Idle(Sequence{}) {
			t.Errorf("with %s sequences without an advantage are left out (%v)", name, err)
		}
	}
	o, err := New("clip", Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: TokenMean})
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[bool][]Sequence{
		true:  {{Advantage: 1, Advantages: []float64{0, 0}}},
		false: {{Advantage: -1}, {Advantages: []float64{0, 2}}},
	} {
		for _, s := range s {
			if got := o.(Selective).Idle(s); got != want {
				t.Errorf("%+v is idle: %v", s, got)
			}
		}
	}
}

func testIdle(t *testing.T, o Objective, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	var seqs []Sequence
	logprobs := map[string][]float64{}
	for k := range 9 {
		s := Sequence{ID: fmt.Sprint(k), Group: fmt.Sprint(k % 3)}
		if k%2 == 0 || seed%2 == 0 && k < 5 { // none at all of some prompts
			s.Advantage = r.NormFloat64()
		}
		for i := range 2 + r.IntN(40) {
			s.Tokens, s.Trained = append(s.Tokens, 1), append(s.Trained, i == 1 || r.IntN(3) > 0)
			lp := -3 * r.Float64()
			s.Logprobs, s.OldLogprobs = append(s.Logprobs, float32(lp+r.NormFloat64()/3)), append(s.OldLogprobs, lp+r.NormFloat64()/5)
			logprobs[s.ID] = append(logprobs[s.ID], lp)
		}
		seqs = append(seqs, s)
	}
	evaluate := func(seqs []Sequence, totals Totals) (loss float64, grads map[string][]float64) {
		packed, err := Pack(seqs, 1000)
		if err != nil {
			t.Fatal(err)
		}
		p := packed[0]
		var now []float64
		for _, id := range p.IDs {
			now = append(now, logprobs[id]...)
		}
		res, err := o.Evaluate(p.Batch(now, totals))
		if err != nil {
			t.Fatal(err)
		}
		grads = map[string][]float64{}
		for i, id := range p.IDs {
			grads[id] = res.Grad[p.Offsets[i]:p.Offsets[i+1]]
		}
		return res.Loss, grads
	}
	totals := TotalsOf(seqs)
	loss, want := evaluate(seqs, totals)
	busy, idle := Divide(o, seqs)
	if len(busy) == 0 || len(idle) == 0 {
		t.Fatalf("%d sequences are busy and %d idle", len(busy), len(idle))
	}
	totals.Idle = TotalsOf(idle).Tokens
	without, got := evaluate(busy, totals)
	near(t, "loss", without, loss, 1e-12)
	for _, s := range seqs {
		if got[s.ID] == nil {
			if slices.ContainsFunc(want[s.ID], func(g float64) bool { return g != 0 }) {
				t.Fatalf("seed %d: sequence %s, without an advantage, has the gradient %v", seed, s.ID, want[s.ID])
			}
		} else if !slices.Equal(got[s.ID], want[s.ID]) {
			t.Fatalf("seed %d: sequence %s has the gradient %v without the idle ones, %v with them", seed, s.ID, got[s.ID], want[s.ID])
		}
	}
	if n := TotalsOf(busy).Tokens + totals.Idle; n != totals.Tokens {
		t.Fatalf("%d busy and idle tokens of %d", n, totals.Tokens)
	}
}
