package learner

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

func fresh(t *testing.T) *Learner { return freshWith(t, model.Options{Workers: 2}) }

func freshWith(t *testing.T, o model.Options) *Learner {
	t.Helper()
	tok, err := tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	p, err := model.New(model.Config{
		ModelType: "qwen2", VocabSize: 259, Hidden: 16, Intermediate: 24, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8,
		MaxPositions: 64, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
	}, 1, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return New(p, tok)
}

var batches = []rl.Packed{
	{Tokens: []int32{5, 6, 7, 8, 9, 10}, Offsets: []int{0, 4, 6}, Mask: []bool{false, true, true, false, false, true}},
	{Tokens: []int32{20, 21, 22}, Offsets: []int{0, 3}, Mask: []bool{false, false, true}},
}

// likelihood is the gradient that raises the masked tokens' log-probability.
func likelihood(seen map[int][]float64) train.GradientFunc {
	return func(i int, logprobs, _ []float64) ([]float64, error) {
		seen[i] = slices.Clone(logprobs)
		g := make([]float64, len(logprobs))
		for k := range g {
			if batches[i].Mask[k] {
				g[k] = -1
			}
		}
		return g, nil
	}
}

func step(t *testing.T, l *Learner) map[int][]float64 {
	t.Helper()
	seen := map[int][]float64{}
	if err := l.Accumulate(context.Background(), batches, likelihood(seen)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Step(context.Background(), train.AdamW{LR: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}); err != nil {
		t.Fatal(err)
	}
	return seen
}

// A learner that goes on from what was saved does exactly what one that never
// stopped does: weights, both moments and the version are back.
func TestSaveAndLoadAreExact(t *testing.T) {
	for name, o := range map[string]model.Options{
		"float32": {Workers: 2}, "bfloat16": {Workers: 2, DType: torch.BFloat16, EMA: 0.9},
		"adapters": {Workers: 2, EMA: 0.5, LoRA: &model.LoRA{Rank: 2}}, "frozen": {Workers: 2, FreezeLayers: 1},
		"device": {Device: torch.Generic, EMA: 0.9}, "half products": {Device: torch.Generic, DType: torch.BFloat16},
	} {
		t.Run(name, func(t *testing.T) { testSaveAndLoad(t, o) })
	}
}

func testSaveAndLoad(t *testing.T, o model.Options) {
	l, dir := freshWith(t, o), t.TempDir()
	before := step(t, l)
	if err := l.Save(dir); err != nil {
		t.Fatal(err)
	}
	want := []map[int][]float64{step(t, l), step(t, l)}
	if !(want[1][0][1] > before[0][1]) {
		t.Errorf("training on a token took its log-probability from %g to %g", before[0][1], want[1][0][1])
	}
	again := freshWith(t, o)
	step(t, again) // a state to be forgotten
	step(t, again)
	if err := again.Load(dir); err != nil {
		t.Fatal(err)
	}
	if again.Version() != 1 {
		t.Errorf("version %d, want 1", again.Version())
	}
	for i := range want {
		got := step(t, again)
		for b := range batches {
			if !slices.Equal(got[b], want[i][b]) {
				t.Errorf("step %d, batch %d: %v, want %v", i, b, got[b], want[i][b])
			}
		}
	}
	if _, err := token.Load(dir); err != nil {
		t.Errorf("a checkpoint is not a whole model: %v", err)
	}
	if p, err := model.Load(dir, model.Options{}); err != nil {
		t.Errorf("a checkpoint is not a whole model: %v", err)
	} else {
		p.Close()
	}
}

// After an error nothing is left of the gradient.
func TestAccumulateLeavesNothingBehind(t *testing.T) {
	l, calm := fresh(t), fresh(t)
	boom := errors.New("boom")
	err := l.Accumulate(context.Background(), batches, func(i int, logprobs, e []float64) ([]float64, error) {
		if i == 1 {
			return nil, boom
		}
		return likelihood(map[int][]float64{})(i, logprobs, e)
	})
	if !errors.Is(err, boom) {
		t.Fatalf("error %v, want %v", err, boom)
	}
	step(t, l)
	step(t, calm)
	if got, want := step(t, l), step(t, calm); !slices.Equal(got[0], want[0]) {
		t.Errorf("%v, want %v", got[0], want[0])
	}
}

func TestNonFiniteGradientIsSaid(t *testing.T) {
	l := fresh(t)
	err := l.Accumulate(context.Background(), batches[:1], func(_ int, logprobs, _ []float64) ([]float64, error) {
		g := make([]float64, len(logprobs))
		g[1] = math.MaxFloat32 * 1e30
		return g, nil
	})
	if err == nil {
		_, err = l.Step(context.Background(), train.AdamW{LR: 1, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8})
	}
	if !errors.Is(err, rl.ErrNonFinite) {
		t.Errorf("error %v, want one that wraps ErrNonFinite", err)
	}
	if l.Version() != 0 {
		t.Errorf("version %d after a refused step", l.Version())
	}
}
