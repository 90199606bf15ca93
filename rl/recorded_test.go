package rl

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRecorded(t *testing.T) {
	r, err := ParseRecorded([]byte(`{"lengths": [3, 2], "logprobs": [0, -1, -2, 0, -3], "rollout_logprobs": [0, -1, -2, 0, -3],
		"rewards": [1, -1], "groups": [7, 7], "mask": [0, 1, true, false, 1]}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Batch(GroupEstimator(GroupMean))
	if err != nil {
		t.Fatal(err)
	}
	want := Batch{
		Logprobs: []float64{0, -1, -2, 0, -3}, RolloutLogprobs: []float64{0, -1, -2, 0, -3}, Advantages: []float64{1, 1, 1, -1, -1},
		Mask: []bool{false, true, true, false, true}, Offsets: []int{0, 3, 5}, Prompts: []string{"7", "7"},
		Totals: Totals{Tokens: 3, Sequences: 2, Prompts: map[string]int{"7": 3}},
	}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Error(diff)
	}
	for name, text := range map[string]string{
		"per sequence": `{"lengths": [3, 2], "logprobs": [0, -1, -2, 0, -3], "advantages": [2, -1]}`,
		"per token":    `{"lengths": [3, 2], "logprobs": [0, -1, -2, 0, -3], "advantages": [2, 2, 2, -1, -1]}`,
	} {
		if r, err = ParseRecorded([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err = r.Batch(nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]float64{2, 2, 2, -1, -1}, b.Advantages); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff([]bool{false, true, true, false, true}, b.Mask); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for want, text := range map[string]string{
		"2 logprobs":  `{"lengths": [3], "logprobs": [0, 1]}`,
		"length 0":    `{"lengths": [-3], "logprobs": []}`,
		"unknown":     `{"lengths": [], "logprob": []}`,
		"entry 1":     `{"lengths": [2], "logprobs": [0, 0], "mask": [0, 2]}`,
		"neither":     `{"lengths": [2], "logprobs": [0, 0], "groups": [null]}`,
		"after":       `{"lengths": [], "logprobs": []} {}`,
		"3 rewards":   `{"lengths": [2], "logprobs": [0, 0], "rewards": [1, 2, 3]}`,
		"unexpected":  `{"lengths": [2`,
		"2 sequences": `{"lengths": [2, 1], "logprobs": [0, 0, 0], "advantages": [1]}`,
	} {
		if _, err := ParseRecorded([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
}

// TestRecord: what is recorded of the micro-batches of a step, written and read
// back, has the loss of the step.
func TestRecord(t *testing.T) {
	o, err := New("grpo", Settings{ClipLow: 0.2, ClipHigh: 0.2, KLCoef: 0.1, Aggregation: PromptMean})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := batchGen(6, 1).Draw(t, "batch")
		b.Totals = CountTotals(b.Mask, b.Offsets, b.Prompts)
		whole, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		var parts []Batch
		for s := range len(b.Offsets) - 1 {
			parts = append(parts, part(b, s))
		}
		data, err := json.Marshal(Record(parts))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRecorded(data)
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.Batch(nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := o.Evaluate(again)
		if err != nil {
			t.Fatal(err)
		}
		if res.Loss != whole.Loss {
			t.Fatalf("loss %g, was %g", res.Loss, whole.Loss)
		}
	})
}

func TestEffectiveSampleSize(t *testing.T) {
	b := Batch{Logprobs: []float64{9, 0, math.Log(3)}, RolloutLogprobs: []float64{0, 0, 0}, Mask: []bool{false, true, true}}
	near(t, "effective sample size", b.EffectiveSampleSize(), 16.0/20, 1e-12)
}

// FuzzRecorded: whatever a file holds, it is refused or makes a batch that an
// objective evaluates or refuses.
func FuzzRecorded(f *testing.F) {
	f.Add(`{"lengths": [3, 2], "logprobs": [0, -1, -2, 0, -3], "rollout_logprobs": [0, -1, -2, 0, -3], "rewards": [1, -1], "groups": [7, 7], "mask": [0, 1, true, false, 1]}`)
	f.Add(`{"lengths": [1, 1], "logprobs": [0, 0], "advantages": [1, 2], "roles": ["a", 1e3]}`)
	f.Add(`{"lengths": [], "logprobs": null, "mask": []}`)
	f.Add(`{"lengths": [1, 1], "logprobs": [0, 0], "advantages": []}`)
	o, err := New("ppo", Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: PromptMean})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRecorded([]byte(text))
		if err != nil {
			return
		}
		b, err := r.Batch(GroupEstimator(GroupMean))
		if err != nil {
			return
		}
		if _, err := o.Evaluate(b); err == nil && len(b.Mask) != len(b.Logprobs) {
			t.Errorf("a mask of %d for %d tokens was accepted", len(b.Mask), len(b.Logprobs))
		}
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRecorded(data); err != nil {
			t.Errorf("what was read does not read back: %v", err)
		}
	})
}
