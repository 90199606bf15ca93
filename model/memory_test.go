package model

import (
	"math"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
)

// TestTrainingMemory compares what is foretold with what tensors own at most over
// a step.
func TestTrainingMemory(t *testing.T) {
	wide := small
	wide.VocabSize, wide.TieEmbeddings = 8_000, false
	qwen3 := small
	qwen3.ModelType = "qwen3"
	lengths := []int{900, 700, 400, 300, 300, 300, 80, 20}
	for name, tc := range map[string]struct {
		c Config
		o Options
	}{
		"small":     {small, Options{Workers: 2}},
		"wide":      {wide, Options{Workers: 1}},
		"recompute": {qwen3, Options{Workers: 2, Recompute: true, EMA: 0.9}},
		"bfloat16":  {small, Options{Workers: 1, DType: torch.BFloat16}},
		"frozen":    {qwen3, Options{Workers: 2, FreezeLayers: 3}},
		"adapters":  {small, Options{Workers: 2, LoRA: &LoRA{Rank: 8}}},
		"half":      {small, Options{Workers: 1, DType: torch.BFloat16, LoRA: &LoRA{Rank: 8}}},
	} {
		before := torch.Allocated()
		torch.ResetPeak()
		owned := torch.Peak()
		p, err := New(tc.c, 1, tc.o)
		if err != nil {
			t.Fatal(err)
		}
		tokens, offsets := packed(tc.c, lengths...)
		accumulateAll(t, p, tokens, offsets)
		if _, err := p.Step(AdamW{LR: 1e-4, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
			t.Fatal(err)
		}
		f, err := TrainingMemory(tc.c, tc.o, p.Workers().Size(), lengths)
		if err != nil {
			t.Fatal(err)
		}
		after := torch.Allocated()
		for purpose, want := range map[torch.Purpose]int64{
			torch.Weights: f.Weights, torch.Gradients: f.Gradients, torch.Optimizer: f.Optimizer, torch.Activations: f.Activations + f.Reserved,
		} {
			near(t, name+", "+purpose.String(), after[purpose]-before[purpose], want)
		}
		near(t, name+", peak", torch.Peak()-owned, f.Total()+f.Reserved)
		p.Close()
	}
}

// TestScoringMemory compares what is foretold with what scoring takes at most.
func TestScoringMemory(t *testing.T) {
	wide := small
	wide.VocabSize, wide.TieEmbeddings = 8_000, false
	for name, tc := range map[string]struct {
		c       Config
		o       Options
		lengths []int
	}{
		"small": {small, Options{Workers: 2}, []int{900, 700, 400, 300, 300, 300, 80, 20}},
		"wide":  {wide, Options{Workers: 1, DType: torch.BFloat16}, []int{1000, 1000}},
	} {
		p, err := New(tc.c, 1, tc.o)
		if err != nil {
			t.Fatal(err)
		}
		before := torch.Allocated()[torch.Activations]
		tokens, offsets := packed(tc.c, tc.lengths...)
		mustLogprobs(t, p, tokens, offsets)
		used, reserved := ScoringMemory(tc.c, tc.o, p.Workers().Size(), tc.lengths)
		near(t, name, torch.Allocated()[torch.Activations]-before, used+reserved)
		p.Close()
	}
}

// TestMatrixBytes: small has 1,966,080 weights in matrices, of which bfloat16 ones are
// read in half the bytes.
func TestMatrixBytes(t *testing.T) {
	for dtype, want := range map[torch.DType]int{torch.Float32: 4 * 1_966_080, torch.BFloat16: 2 * 1_966_080} {
		p, err := New(small, 1, Options{Workers: 1, DType: dtype})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.MatrixBytes(); got != want {
			t.Errorf("%v: %d bytes, want %d", dtype, got, want)
		}
		p.Close()
	}
}

func near(t *testing.T, name string, measured, foretold int64) {
	t.Helper()
	off := float64(foretold)/float64(measured) - 1
	t.Logf("%s: %.1f MB, foretold %.1f (%+.1f%%)", name, float64(measured)/1e6, float64(foretold)/1e6, 100*off)
	if math.Abs(off) > 0.1 {
		t.Errorf("%s: %d bytes, foretold %d", name, measured, foretold)
	}
}
