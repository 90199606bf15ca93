package engine

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
)

// rescore is what training recomputes for a completion.
func rescore(t *testing.T, p *model.Policy, req gen.Request, c gen.Completion) []float64 {
	t.Helper()
	all := slices.Concat(req.Tokens, c.Tokens)
	lp, err := p.Logprobs(t.Context(), all, []int{0, len(all)})
	if err != nil {
		t.Fatal(err)
	}
	return lp[len(req.Tokens):]
}

func TestSampledLogprobsAreRecomputedExactly(t *testing.T) {
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		// The shape of a real small policy, so that products take their usual paths.
		p, err := model.New(model.Config{
			ModelType: "llama", VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 2, Heads: 6, KVHeads: 2, HeadDim: 32,
			MaxPositions: 512, NormEps: 1e-6, RopeTheta: 10000, InitStd: 0.1, BOS: -1,
		}, 3, model.Options{Workers: 2, DType: dtype})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		e := start(t, p, Options{ChunkTokens: 64})
		var reqs []gen.Request
		for i := range 17 {
			s := gen.Sampling{Temperature: 1}
			if i%2 == 1 {
				s = gen.Sampling{Temperature: 0.6, TopP: 0.95, TopK: 100}
			}
			reqs = append(reqs, gen.Request{ID: fmt.Sprint(i), Tokens: prompt(uint64(i), 1+i*13), MaxTokens: 40, Sampling: s})
		}
		for i, c := range concurrently(t, e, reqs, rand.New(rand.NewPCG(1, 1)).Perm(len(reqs))) {
			for j, lp := range rescore(t, p, reqs[i], c) {
				if float64(c.Logprobs[j]) != lp {
					t.Fatalf("%v: request %d, token %d: sampled at %v, recomputed %v", dtype, i, j, c.Logprobs[j], lp)
				}
				if i%2 == 0 && math.Abs(float64(c.SamplingLogprobs[j])-lp) > 1e-5 {
					t.Fatalf("%v: at temperature 1 the sampling logprob is %v, the policy's %v", dtype, c.SamplingLogprobs[j], lp)
				}
			}
		}
	}
}

// TestGreedyMatchesTransformers: prompts of the golden checkpoints (see
// scripts/reference/model.py) are continued as transformers continues them, the
// prompt in one piece or cut, beyond the window and beyond the context that the
// rotary embeddings were made for.
func TestGreedyMatchesTransformers(t *testing.T) {
	files, err := filepath.Glob("../testdata/*/golden.json")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d golden checkpoints, %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var golden struct{ Greedy [][2][]int32 }
		if err := json.Unmarshal(data, &golden); err != nil || len(golden.Greedy) == 0 {
			t.Fatalf("%s: %d continuations, %v", file, len(golden.Greedy), err)
		}
		p, err := model.Load(filepath.Dir(file), model.Options{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, o := range []Options{{}, {ChunkTokens: 32, StepTokens: 32}} {
			e := start(t, p, o)
			for i, g := range golden.Greedy {
				got := generate(t, e, gen.Request{ID: fmt.Sprint(i), Tokens: g[0], MaxTokens: len(g[1])})
				if !slices.Equal(got.Tokens, g[1]) {
					t.Errorf("%s, prompt %d: continued with %v, transformers with %v", filepath.Dir(file), i, got.Tokens, g[1])
				}
			}
			e.Close()
		}
	}
}

// naive continues greedily by computing everything again for every token.
func naive(t *testing.T, p *model.Policy, tokens []int32, n int) (out []int32) {
	t.Helper()
	arena := torch.NewArena(torch.Activations, torch.Float32)
	defer arena.Free()
	shape := p.Attention(0)
	for range n {
		s := arena.Scope()
		positions := make([]int32, len(tokens))
		for i := range positions {
			positions[i] = int32(i)
		}
		hidden := model.Forward(p, s, tokens, positions, func(_ int, qkv, att *torch.Tensor) {
			q, k, v := model.SplitQKV(p, torch.Data[float32](qkv))
			native.AttentionForward(shape, q, k, v, []int32{0, int32(len(tokens))}, torch.Data[float32](att), nil)
		})
		logits := torch.Data[float32](model.Logits(p, s, nil, hidden))
		last := logits[(len(tokens)-1)*vocab:]
		next := int32(slices.Index(last, slices.Max(last)))
		tokens, out = append(slices.Clone(tokens), next), append(out, next)
		s.Close()
	}
	return out
}

func TestGreedyEqualsNaive(t *testing.T) {
	p := tiny(t, 2)
	e := start(t, p, Options{ChunkTokens: 32})
	for i := range 4 {
		tokens := prompt(uint64(i), 20+i*17)
		c := generate(t, e, gen.Request{ID: fmt.Sprint(i), Tokens: tokens, MaxTokens: 30})
		if want := naive(t, p, tokens, 30); !slices.Equal(c.Tokens, want) {
			t.Errorf("greedy continuation %v, naive %v", c.Tokens, want)
		}
		for j, s := range c.SamplingLogprobs {
			if s != 0 {
				t.Errorf("greedy token %d has sampling logprob %v, want 0", j, s)
			}
		}
	}
}
