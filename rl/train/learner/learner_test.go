package learner

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

func tiny(t *testing.T, seed uint64) (*Learner, *model.Policy) {
	t.Helper()
	tok, err := token.Train([]string{"a small text to learn from"}, token.TrainOptions{VocabSize: 280})
	if err != nil {
		t.Fatal(err)
	}
	c := model.Config{
		ModelType: "qwen2", VocabSize: 288, Hidden: 16, Intermediate: 32, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8,
		MaxPositions: 64, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
	}
	o := model.Options{Workers: 2}
	p, err := model.New(c, seed, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return New(p, tok, o), p
}

// counting are examples in which each token follows from the one before it.
func counting() []train.Example {
	var es []train.Example
	for k := range 24 {
		e := train.Example{}
		for i := range 8 {
			e.Tokens = append(e.Tokens, int32((3*k+i)%40))
			e.Trained = append(e.Trained, i > 1)
		}
		es = append(es, e)
	}
	return es
}

func settings() train.SFTSettings {
	s := train.DefaultSFTSettings()
	s.Epochs, s.BatchSize, s.TokenBudget, s.CheckpointEvery = 8, 6, 30, 3
	s.Optimizer.LR = 0.03
	return s
}

func logprobs(t *testing.T, p *model.Policy) []float64 {
	t.Helper()
	out, err := p.Logprobs(context.Background(), []int32{3, 4, 5, 6, 7, 8}, []int{0, 6})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestResumedTrainingIsTheSame stops supervised training of a real policy again
// and again, going on each time with a policy that began elsewhere.
func TestResumedTrainingIsTheSame(t *testing.T) {
	l, calm := tiny(t, 1)
	var losses []float64
	_, err := train.SFT(context.Background(), train.SFTOptions{SFTSettings: settings(), Dir: t.TempDir(), OnEvent: func(e train.Event) {
		if e.Metrics != nil {
			losses = append(losses, *e.Metrics.Loss)
		}
	}}, l, counting())
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(losses[0]-math.Log(288)) > 0.5 || losses[len(losses)-1] > 1 {
		t.Errorf("the loss went from %g to %g; ln 288 is %g", losses[0], losses[len(losses)-1], math.Log(288))
	}

	dir := t.TempDir()
	for stops := 0; ; stops++ {
		l, p := tiny(t, uint64(1+stops))
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		_, err := train.SFT(ctx, train.SFTOptions{SFTSettings: settings(), Dir: dir, Resume: stops > 0, OnEvent: func(train.Event) {
			if n++; n == 8 {
				cancel()
			}
		}}, l, counting())
		cancel()
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			continue
		}
		if stops < 3 {
			t.Errorf("only %d stops", stops)
		}
		if a, b := logprobs(t, calm), logprobs(t, p); !slices.Equal(a, b) {
			t.Errorf("log-probabilities %v after stops, %v without", b, a)
		}
		if calm.Version() != p.Version() {
			t.Errorf("version %d after stops, %d without", p.Version(), calm.Version())
		}
		return
	}
}

// TestFailedAccumulateLeavesNothing: an error in a later micro-batch takes the
// gradient of the earlier ones with it.
func TestFailedAccumulateLeavesNothing(t *testing.T) {
	ctx := context.Background()
	batch := rl.Packed{Tokens: []int32{1, 2, 3}, Offsets: []int{0, 3}, Mask: []bool{false, true, true}}
	other := rl.Packed{Tokens: []int32{7, 8, 9}, Offsets: []int{0, 3}, Mask: []bool{false, true, true}}
	ones := func(int, []float64, []float64) ([]float64, error) { return []float64{0, -1, -1}, nil }
	opt := train.DefaultAdamW()
	opt.LR = 0.01

	clean, a := tiny(t, 1)
	if err := clean.Accumulate(ctx, []rl.Packed{batch}, ones); err != nil {
		t.Fatal(err)
	}
	want, err := clean.Step(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	failed, b := tiny(t, 1)
	broken := errors.New("it broke")
	err = failed.Accumulate(ctx, []rl.Packed{other, batch}, func(i int, lp, e []float64) ([]float64, error) {
		if i == 1 {
			return nil, broken
		}
		return ones(i, lp, e)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if err := failed.Accumulate(ctx, []rl.Packed{batch}, ones); err != nil {
		t.Fatal(err)
	}
	got, err := failed.Step(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	if got != want || !slices.Equal(logprobs(t, a), logprobs(t, b)) {
		t.Errorf("gradient norm %g after a failure, %g without", got, want)
	}

	// A gradient too large for a float32 is not applied.
	err = clean.Accumulate(ctx, []rl.Packed{batch}, func(int, []float64, []float64) ([]float64, error) { return []float64{0, 1e39, 1e39}, nil })
	if err != nil {
		t.Fatal(err)
	}
	before := logprobs(t, a)
	if norm, err := clean.Step(ctx, opt); !errors.Is(err, rl.ErrNonFinite) {
		t.Errorf("norm %g, error %v", norm, err)
	}
	if clean.Version() != 1 || !slices.Equal(before, logprobs(t, a)) {
		t.Error("a skipped step changed the policy")
	}
}
