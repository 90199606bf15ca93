package engine

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
)

// shapes have all kinds of attention.
func shapes() []model.Config {
	base := model.Config{
		ModelType: "qwen2", VocabSize: vocab, Hidden: 32, Intermediate: 48, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8,
		MaxPositions: 160, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, InitStd: 0.3, BOS: -1,
	}
	qwen3, mistral, cwm := base, base, base
	qwen3.ModelType = "qwen3"
	mistral.ModelType, mistral.Window, mistral.Sliding = "mistral", 20, []bool{true, true}
	cwm.ModelType, cwm.Window, cwm.Sliding, cwm.BOS = "cwm", 33, []bool{false, true}, 1
	return []model.Config{base, qwen3, mistral, cwm}
}

func policyOn(t *testing.T, c model.Config, o model.Options) *model.Policy {
	t.Helper()
	p, err := model.New(c, 7, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// near says whether a completion is another, but for rounding.
func near(t *testing.T, name string, got, want gen.Completion) {
	t.Helper()
	if !slices.Equal(got.Tokens, want.Tokens) || got.Finish != want.Finish {
		t.Errorf("%s: %v, %v; the CPU says %v, %v", name, got.Tokens, got.Finish, want.Tokens, want.Finish)
		return
	}
	for i := range want.Tokens {
		for _, pair := range [][2]float32{{got.Logprobs[i], want.Logprobs[i]}, {got.SamplingLogprobs[i], want.SamplingLogprobs[i]}} {
			if d := math.Abs(float64(pair[0] - pair[1])); !(d <= 2e-5) {
				t.Errorf("%s, token %d: log-probability %v, on the CPU %v", name, i, pair[0], pair[1])
				return
			}
		}
	}
}

// TestDeviceGeneratesAsTheCPU: greedy or sampled, prompts in chunks beside sequences that
// decode, with shared prefixes and with memory to spare or too little for all, the
// tokens are those of the CPU and their log-probabilities within rounding.
func TestDeviceGeneratesAsTheCPU(t *testing.T) {
	reqs := mixed()
	order := rand.New(rand.NewPCG(1, 1)).Perm(len(reqs))
	block := int64(2 * 2 * 2 * 8 * native.BlockTokens * 4) // bytes over both layers
	for _, c := range shapes() {
		cpu := start(t, policyOn(t, c, model.Options{Workers: 1}), Options{})
		p := policyOn(t, c, model.Options{Device: envtest.Device(t, torch.ParseDevice)})
		want := concurrently(t, cpu, reqs, order)
		for name, o := range map[string]Options{
			"roomy": {}, "chunks": {ChunkTokens: 32, StepTokens: 64, MaxSequences: 5}, "tight": {CacheBytes: 8 * block, ChunkTokens: 32},
		} {
			e := start(t, p, o)
			got := concurrently(t, e, reqs, order)
			for i := range reqs {
				near(t, fmt.Sprintf("%s, %s, request %d", c.ModelType, name, i), got[i], want[i])
				if name != "chunks" {
					continue
				}
				// What was sampled is what training will see.
				for j, lp := range rescore(t, p, reqs[i], got[i]) {
					if d := math.Abs(float64(got[i].Logprobs[j]) - lp); !(d <= 2e-5) {
						t.Fatalf("%s, %s, request %d, token %d: sampled at %v, training says %v", c.ModelType, name, i, j, got[i].Logprobs[j], lp)
					}
				}
			}
			if name == "tight" && c.Window == 0 && e.Stats().Preempted == 0 {
				t.Errorf("%s: no sequence lost its memory; the test wants it tighter", c.ModelType)
			}
			e.Close()
		}
	}
}

// TestDeviceUpdatesInPlace: after a step the engine on a device generates from the new
// weights, as the CPU does after the same step, with no copy in between.
func TestDeviceUpdatesInPlace(t *testing.T) {
	var out [2][]gen.Completion
	train := prompt(4, 60)
	for i, o := range []model.Options{{Workers: 1}, {Device: envtest.Device(t, torch.ParseDevice)}} {
		p := policyOn(t, shapes()[1], o)
		e := start(t, p, Options{})
		req := gen.Request{ID: "a", Tokens: prompt(1, 40), MaxTokens: 25, Alternatives: 3}
		for range 3 {
			c := generate(t, e, req)
			out[i] = append(out[i], c)
			req.Tokens = append(slices.Clone(req.Tokens), c.Tokens[:20]...)
			err := p.Accumulate(context.Background(), train, []int{0, len(train)}, func(lp, _ []float64) ([]float64, error) {
				return slices.Repeat([]float64{-1.0 / 60}, len(lp)), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Step(model.AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.99, Eps: 1e-3}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, want := range out[0] {
		got := out[1][i]
		near(t, fmt.Sprint("version ", i), got, want)
		if got.Versions[0] != int64(i) {
			t.Errorf("completion %d is of version %d", i, got.Versions[0])
		}
		for j := range want.Alternatives {
			for k, a := range want.Alternatives[j] {
				if b := got.Alternatives[j][k]; b.Token != a.Token || math.Abs(float64(a.Logprob-b.Logprob)) > 2e-5 {
					t.Errorf("version %d, token %d: alternative %d is %+v, on the CPU %+v", i, j, k, b, a)
				}
			}
		}
	}
	if slices.Equal(out[1][0].Logprobs[:5], out[1][1].Logprobs[:5]) {
		t.Error("two versions gave the same numbers")
	}
}
