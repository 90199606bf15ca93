package model

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
)

// tiny is a shape with everything in it: grouped queries, a head dimension that
// is not hidden/heads, and sizes that are no multiple of a vector.
func tiny(modelType string, tied bool) Config {
	c := Config{
		ModelType: modelType, VocabSize: 37, Hidden: 20, Intermediate: 27, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 6,
		MaxPositions: 64, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: tied, InitStd: 0.3, BOS: -1,
	}
	switch modelType {
	case "llama":
		c.RopeScaling = &RopeScaling{Type: llama3Rope, Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPosns: 32}
	case "qwen3":
		c.RopeScaling = &RopeScaling{Type: yarnRope, Factor: 2, OriginalMaxPosns: 32}
	case "mistral":
		c.Window, c.Sliding = 7, []bool{true, true}
		c.RopeScaling = &RopeScaling{Type: linearRope, Factor: 2}
	case "cwm":
		c.Window, c.Sliding, c.BOS = 11, []bool{false, true}, 1
	}
	return c
}

// sumLanes is the whole gradient, of all lanes.
func sumLanes(p *Policy) *torch.Tensor {
	p.sumLanes(0, p.live.Len())
	return p.lanes[0].grad[0]
}

// random replaces biases and norms too, which New leaves at 0 and 1.
func random(t *testing.T, c Config, o Options) *Policy {
	t.Helper()
	p, err := New(c, 7, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	r := rand.New(rand.NewPCG(1, 2))
	for _, param := range p.Parameters() {
		if !param.Decay {
			p.fill(param.Tensor, func() float64 { return 1 + 0.3*r.NormFloat64() })
		}
	}
	if err := p.Refresh(); err != nil {
		t.Fatal(err)
	}
	return p
}

// packed draws sequences of the given lengths.
func packed(c Config, lengths ...int) (tokens []int32, offsets []int) {
	r := rand.New(rand.NewPCG(3, 4))
	offsets = []int{0}
	for _, n := range lengths {
		for range n {
			tokens = append(tokens, int32(r.IntN(c.VocabSize)))
		}
		offsets = append(offsets, len(tokens))
	}
	return tokens, offsets
}

// objective is a smooth function of the log-probabilities with a gradient that
// differs for every token.
func objective(logprobs []float64) (loss float64, grad []float64) {
	grad = make([]float64, len(logprobs))
	for i, lp := range logprobs {
		a, b := math.Sin(float64(i)), 0.1*float64(i%3)
		loss += a*lp + b*lp*lp
		grad[i] = a + 2*b*lp
	}
	return loss, grad
}

// TestGradient compares the gradient of every kind of parameter with central
// differences of the loss.
func TestGradient(t *testing.T) {
	// With this vocabulary the head runs in chunks of 16 rows and keeps no logits.
	wide := tiny("qwen2", true)
	wide.VocabSize = 40_000
	for _, tc := range []struct {
		name string
		c    Config
		o    Options
	}{
		{"qwen2 tied", tiny("qwen2", true), Options{Workers: 2}},
		{"qwen2 recompute", tiny("qwen2", false), Options{Workers: 1, Recompute: true}},
		{"llama", tiny("llama", false), Options{Workers: 3}},
		{"qwen3", tiny("qwen3", true), Options{Workers: 2}},
		{"qwen3 recompute", tiny("qwen3", false), Options{Workers: 1, Recompute: true}},
		{"mistral", tiny("mistral", false), Options{Workers: 2}},
		{"cwm", tiny("cwm", false), Options{Workers: 1}},
		{"wide", wide, Options{Workers: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.DType = torch.Float64
			p := random(t, tc.c, tc.o)
			tokens, offsets := packed(tc.c, 9, 1, 14, 5)
			err := p.Accumulate(t.Context(), tokens, offsets, func(lp, _ []float64) ([]float64, error) {
				_, grad := objective(lp)
				return grad, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			grad := torch.Data[float64](sumLanes(p))
			r := rand.New(rand.NewPCG(5, 6))
			for _, param := range p.Parameters() {
				w := torch.Data[float64](param.Tensor)
				for range 4 {
					i := r.IntN(len(w))
					if param.Name == "model.embed_tokens.weight" {
						i = int(tokens[r.IntN(len(tokens))])*tc.c.Hidden + i%tc.c.Hidden
					}
					const h = 1e-5
					at := func(x float64) float64 {
						keep := w[i]
						defer func() { w[i] = keep }()
						w[i] += x
						if err := p.Refresh(); err != nil {
							t.Fatal(err)
						}
						lp, err := p.Logprobs(context.Background(), tokens, offsets)
						if err != nil {
							t.Fatal(err)
						}
						loss, _ := objective(lp)
						return loss
					}
					want := (at(h) - at(-h)) / (2 * h)
					got := grad[param.offset+i]
					if math.Abs(got-want) > 1e-6*(1+math.Abs(want)) {
						t.Errorf("%s[%d]: gradient %.9g, central difference %.9g", param.Name, i, got, want)
					}
				}
			}
		})
	}
}
