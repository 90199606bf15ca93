package model

import (
	"math"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/torch"
)

func sameBits(a, b []float64) int {
	for i := range a {
		if math.Float64bits(a[i]) != math.Float64bits(b[i]) {
			return i
		}
	}
	return -1
}

func mustLogprobs(t *testing.T, p *Policy, tokens []int32, offsets []int) []float64 {
	t.Helper()
	lp, err := p.Logprobs(t.Context(), tokens, offsets)
	if err != nil {
		t.Fatal(err)
	}
	return lp
}

// TestBatchInvariance holds the contract that a token's log-probability has the
// same bits alone, packed with others in any company, and on any number of
// workers. The second shape is that of the project's figures: a BLAS chooses its
// blocks by size.
func TestBatchInvariance(t *testing.T) {
	for _, c := range []Config{tiny("qwen2", true), tiny("qwen3", true), tiny("llama", false), tiny("mistral", false), tiny("cwm", false), small} {
		c.InitStd = 0.1
		p := random(t, c, Options{Workers: 2})
		lengths := []int{17, 1, 3, 60, 2, 33, 64}
		if c.MaxPositions >= 1000 {
			lengths = []int{17, 1, 300, 40, 513, 2, 900, 129}
		}
		tokens, offsets := packed(c, lengths...)
		together := mustLogprobs(t, p, tokens, offsets)
		for s := range lengths {
			lo, hi := offsets[s], offsets[s+1]
			alone := mustLogprobs(t, p, tokens[lo:hi], []int{0, hi - lo})
			if i := sameBits(alone, together[lo:hi]); i >= 0 {
				t.Errorf("hidden %d, sequence %d, token %d: %v alone, %v packed", c.Hidden, s, i, alone[i], together[lo+i])
			}
			prefix := alone[:(hi-lo+1)/2]
			cut := mustLogprobs(t, p, tokens[lo:lo+len(prefix)], []int{0, len(prefix)})
			if i := sameBits(cut, prefix); i >= 0 {
				t.Errorf("hidden %d, sequence %d, token %d: depends on what follows", c.Hidden, s, i)
			}
		}
		one := random(t, c, Options{Workers: 1})
		if i := sameBits(mustLogprobs(t, one, tokens, offsets), together); i >= 0 {
			t.Errorf("hidden %d: token %d depends on the number of workers", c.Hidden, i)
		}
		err := p.Accumulate(t.Context(), tokens, offsets, func(lp, _ []float64) ([]float64, error) {
			if i := sameBits(lp, together); i >= 0 {
				t.Errorf("hidden %d: token %d scores %v in training, %v in scoring", c.Hidden, i, lp[i], together[i])
			}
			return make([]float64, len(lp)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// gradientOf accumulates one batch and returns the summed gradient.
func gradientOf(t *testing.T, p *Policy, tokens []int32, offsets []int, mask []bool) []float64 {
	t.Helper()
	p.ClearGradient()
	err := p.AccumulateMasked(t.Context(), tokens, offsets, mask, func(lp, _ []float64) ([]float64, error) {
		_, grad := objective(lp)
		for i := range grad {
			if mask != nil && !mask[i] {
				grad[i] = 0
			}
		}
		return grad, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(torch.Data[float64](sumLanes(p)))
}

// TestMaskAndRecompute: leaving out the head where the gradient is zero, and
// computing layers again, change nothing.
func TestMaskAndRecompute(t *testing.T) {
	for _, c := range []Config{tiny("qwen2", true), tiny("qwen3", false)} {
		testMaskAndRecompute(t, c)
	}
}

func testMaskAndRecompute(t *testing.T, c Config) {
	p := random(t, c, Options{DType: torch.Float64, Workers: 2})
	tokens, offsets := packed(c, 30, 21, 9)
	mask := make([]bool, len(tokens))
	for i := range mask {
		mask[i] = i%3 == 1
	}
	masked := gradientOf(t, p, tokens, offsets, mask)

	p.ClearGradient()
	err := p.Accumulate(t.Context(), tokens, offsets, func(lp, entropies []float64) ([]float64, error) {
		_, grad := objective(lp)
		for i := range grad {
			if !mask[i] {
				grad[i] = 0
			}
		}
		return grad, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	full := slices.Clone(torch.Data[float64](sumLanes(p)))
	again := random(t, c, Options{DType: torch.Float64, Workers: 2, Recompute: true})
	recomputed := gradientOf(t, again, tokens, offsets, mask)
	for i := range masked {
		if math.Abs(masked[i]-full[i]) > 1e-12*(1+math.Abs(full[i])) {
			t.Fatalf("gradient %d: %v masked, %v with zeros", i, masked[i], full[i])
		}
		if masked[i] != recomputed[i] {
			t.Fatalf("gradient %d: %v kept, %v recomputed", i, masked[i], recomputed[i])
		}
	}
}

// TestStepsAreDeterministic: two policies take the same steps to the same bits,
// whatever order their workers finish in.
func TestStepsAreDeterministic(t *testing.T) {
	c := tiny("llama", false)
	var first []float32
	for run := range 3 {
		p := random(t, c, Options{Workers: 3})
		tokens, offsets := packed(c, 30, 21, 9, 44, 13, 60, 2)
		for range 4 {
			err := p.Accumulate(t.Context(), tokens, offsets, func(lp, _ []float64) ([]float64, error) {
				_, grad := objective(lp)
				return grad, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Step(AdamW{LR: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
				t.Fatal(err)
			}
		}
		got := slices.Clone(torch.Data[float32](p.flat))
		if run == 0 {
			first = got
		}
		if !slices.Equal(first, got) {
			t.Fatalf("run %d ended with other weights", run)
		}
	}
}

// TestForwardRows: leaving out what no row of interest needs changes no bit, nor does
// a team that shares the products.
func TestForwardRows(t *testing.T) {
	helpers := device.NewPool(3)
	defer helpers.Close()
	for _, o := range []Options{{Workers: 1}, {Workers: 1, DType: torch.BFloat16}} {
		for _, c := range []Config{tiny("qwen2", true), tiny("qwen3", true), tiny("mistral", false)} {
			p := random(t, c, o)
			tokens, offsets := packed(c, 17, 1, 30)
			seg := segments(tokens, offsets, 1, segmentTokens)[0][0]
			arena := torch.NewArena(torch.Activations, torch.Float32)
			s := arena.Scope()
			want := torch.Data[float32](Forward(p, s, tokens, seg.positions, attendWithin(p, seg, nil)))
			for _, rows := range [][]int32{{0, 16, 17, 47}, {30}, {}} {
				check := func(team *device.Team) {
					hidden := ForwardRows(p, s, team, tokens, seg.positions, rows, attendWithin(p, seg, nil))
					got := torch.Data[float32](hidden)
					for i, r := range rows {
						if !slices.Equal(got[i*c.Hidden:(i+1)*c.Hidden], want[int(r)*c.Hidden:(int(r)+1)*c.Hidden]) {
							t.Errorf("%s: row %d of %v has other bits than among all rows, in a team: %v", c.ModelType, r, rows, team != nil)
						}
					}
					all := torch.Data[float32](Logits(p, s, team, hidden))
					alone := torch.Data[float32](Logits(p, s, nil, hidden))
					if !slices.Equal(all, alone) {
						t.Errorf("%s: rows %v: a team computes other logits", c.ModelType, rows)
					}
				}
				check(nil)
				err := helpers.Lead(t.Context(), func(team *device.Team) error {
					check(team)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
			arena.Free()
		}
	}
}
