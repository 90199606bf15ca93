package rl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Recorded is a batch as a JSON file: one object with the fields below. Vectors
// with one entry per token lie sequence after sequence, as in Batch; what stands
// in masked places is not read.
type Recorded struct {
	// Lengths are the tokens of each sequence, the first of which nothing predicts.
	Lengths []int `json:"lengths"`
	// Mask marks the trained tokens, as booleans or as 0 and 1. Without it every
	// token but the first of each sequence is trained.
	Mask              flags     `json:"mask,omitempty"`
	Logprobs          []float64 `json:"logprobs"`
	RolloutLogprobs   []float64 `json:"rollout_logprobs,omitempty"`
	OldLogprobs       []float64 `json:"old_logprobs,omitempty"`
	ReferenceLogprobs []float64 `json:"reference_logprobs,omitempty"`
	// Advantages have one entry per token or one per sequence.
	Advantages []float64 `json:"advantages,omitempty"`
	// Rewards, Groups and Roles have one entry per sequence; where there are no
	// advantages, they are estimated from these. A group is a prompt.
	Rewards []float64 `json:"rewards,omitempty"`
	Groups  []label   `json:"groups,omitempty"`
	Roles   []label   `json:"roles,omitempty"`
}

// Record joins the micro-batches of a step. Masked places are zero.
func Record(batches []Batch) *Recorded {
	r := &Recorded{}
	for _, b := range batches {
		for s := range len(b.Offsets) - 1 {
			r.Lengths = append(r.Lengths, b.Offsets[s+1]-b.Offsets[s])
		}
		for _, p := range b.Prompts {
			r.Groups = append(r.Groups, label(p))
		}
		r.Mask = append(r.Mask, b.Mask...)
		for _, v := range []struct {
			to   *[]float64
			from []float64
		}{
			{&r.Logprobs, b.Logprobs}, {&r.RolloutLogprobs, b.RolloutLogprobs}, {&r.OldLogprobs, b.OldLogprobs},
			{&r.ReferenceLogprobs, b.ReferenceLogprobs}, {&r.Advantages, b.Advantages},
		} {
			for i, x := range v.from {
				if !b.Mask[i] {
					x = 0
				}
				*v.to = append(*v.to, x)
			}
		}
	}
	return r
}

// ParseRecorded reads a recorded batch and checks its lengths.
func ParseRecorded(data []byte) (*Recorded, error) {
	var r Recorded
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("rl: recorded batch: %w", err)
	}
	if d.More() {
		return nil, errors.New("rl: recorded batch: there is text after the object")
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("rl: recorded batch: %w", err)
	}
	return &r, nil
}

func (r *Recorded) check() error {
	tokens, sequences := 0, len(r.Lengths)
	for s, n := range r.Lengths {
		if n < 0 || n > math.MaxInt32 {
			return fmt.Errorf("length %d is %d", s, n)
		}
		tokens += n
	}
	for _, v := range []struct {
		name    string
		given   bool
		n       int
		allowed []int
	}{
		{"logprobs", true, len(r.Logprobs), []int{tokens}},
		{"rollout_logprobs", r.RolloutLogprobs != nil, len(r.RolloutLogprobs), []int{tokens}},
		{"old_logprobs", r.OldLogprobs != nil, len(r.OldLogprobs), []int{tokens}},
		{"reference_logprobs", r.ReferenceLogprobs != nil, len(r.ReferenceLogprobs), []int{tokens}},
		{"mask", r.Mask != nil, len(r.Mask), []int{tokens}},
		{"advantages", r.Advantages != nil, len(r.Advantages), []int{tokens, sequences}},
		{"rewards", r.Rewards != nil, len(r.Rewards), []int{sequences}},
		{"groups", r.Groups != nil, len(r.Groups), []int{sequences}},
		{"roles", r.Roles != nil, len(r.Roles), []int{sequences}},
	} {
		if v.given && !slices.Contains(v.allowed, v.n) {
			return fmt.Errorf("%d %s, but lengths are of %d sequences and %d tokens", v.n, v.name, sequences, tokens)
		}
	}
	return nil
}

// Episodes are the sequences by group, in the order of their first one, and the
// sequence that each stands for. Without groups each sequence is a group of its
// own; without roles all have one.
func (r *Recorded) Episodes() (groups [][]Episode, at [][]int, err error) {
	if len(r.Rewards) != len(r.Lengths) {
		return nil, nil, errors.New("rl: recorded batch: there are no rewards to estimate advantages from")
	}
	b := r.layout()
	index := map[string]int{}
	for s, reward := range r.Rewards {
		name := r.prompt(s)
		g, ok := index[name]
		if !ok {
			g = len(groups)
			index[name] = g
			groups, at = append(groups, nil), append(at, nil)
		}
		e := Episode{Reward: reward, Length: countTrue(b.Mask[b.Offsets[s]:b.Offsets[s+1]])}
		if r.Roles != nil {
			e.Role = string(r.Roles[s])
		}
		groups[g], at[g] = append(groups[g], e), append(at[g], s)
	}
	return groups, at, nil
}

func (r *Recorded) prompt(s int) string {
	if r.Groups == nil {
		return fmt.Sprint(s)
	}
	return string(r.Groups[s])
}

// Batch is the whole of a step. Where there are no advantages, e estimates them;
// where there are no rewards either, it has none.
func (r *Recorded) Batch(e Estimator) (Batch, error) {
	b := r.layout()
	b.Logprobs, b.RolloutLogprobs, b.OldLogprobs, b.ReferenceLogprobs = r.Logprobs, r.RolloutLogprobs, r.OldLogprobs, r.ReferenceLogprobs
	b.Totals = CountTotals(b.Mask, b.Offsets, b.Prompts)
	switch bySequence := r.Advantages; {
	case r.Advantages != nil && len(r.Advantages) == len(b.Mask):
		b.Advantages = r.Advantages
	case r.Advantages == nil && r.Rewards == nil:
	case r.Advantages == nil:
		groups, at, err := r.Episodes()
		if err != nil {
			return Batch{}, err
		}
		bySequence = make([]float64, len(r.Lengths))
		for g, advantages := range e.Estimate(groups) {
			for k, a := range advantages {
				bySequence[at[g][k]] = a
			}
		}
		fallthrough
	default:
		for s, n := range r.Lengths {
			for range n {
				b.Advantages = append(b.Advantages, bySequence[s])
			}
		}
	}
	return b, nil
}

// layout is the batch without its figures.
func (r *Recorded) layout() Batch {
	b := Batch{Offsets: []int{0}, Mask: r.Mask}
	for s, n := range r.Lengths {
		b.Offsets = append(b.Offsets, b.Offsets[s]+n)
		b.Prompts = append(b.Prompts, r.prompt(s))
	}
	if r.Mask == nil {
		b.Mask = make([]bool, b.Offsets[len(r.Lengths)])
		for s, n := range r.Lengths {
			for i := 1; i < n; i++ {
				b.Mask[b.Offsets[s]+i] = true
			}
		}
	}
	return b
}

// EffectiveSampleSize is the share of trained tokens that an average weighted by
// the ratio to the sampler is worth, (Σr)² / (n Σr²); 0 where there is no sampler.
func (b Batch) EffectiveSampleSize() float64 {
	var n, sum, ss float64
	for i, trained := range b.Mask {
		if trained && b.RolloutLogprobs != nil {
			r := math.Exp(bound(b.Logprobs[i] - b.RolloutLogprobs[i]))
			n, sum, ss = n+1, sum+r, ss+r*r
		}
	}
	if n == 0 {
		return 0
	}
	return sum * sum / (n * ss)
}

// flags read from booleans or from 0 and 1.
type flags []bool

func (f *flags) UnmarshalJSON(data []byte) error {
	var all []any
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	*f = make(flags, len(all))
	for i, v := range all {
		switch v {
		case true, 1.0:
			(*f)[i] = true
		case false, 0.0:
		default:
			return fmt.Errorf("entry %d of the mask is %v; want true, false, 1 or 0", i, v)
		}
	}
	return nil
}

// label reads from a string or a number.
type label string

func (l *label) UnmarshalJSON(data []byte) error {
	var v any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		*l = label(v)
	case json.Number:
		*l = label(v)
	default:
		return fmt.Errorf("%s is neither a name nor a number", data)
	}
	return nil
}
