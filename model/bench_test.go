package model

import (
	"testing"
)

// small is the 2 M-parameter shape that the project's figures are given for.
var small = Config{
	ModelType: "qwen2", VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 4, Heads: 6, KVHeads: 2, HeadDim: 32,
	MaxPositions: 1024, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
}

// BenchmarkStep is one optimizer step over 16 sequences of 512 tokens.
func BenchmarkStep(b *testing.B) {
	p, err := New(small, 1, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	lengths := make([]int, 16)
	for i := range lengths {
		lengths[i] = 512
	}
	tokens, offsets := packed(small, lengths...)
	grad := make([]float64, len(tokens))
	for i := range grad {
		grad[i] = -1 / float64(len(grad))
	}
	n := 0
	for b.Loop() {
		err := p.Accumulate(b.Context(), tokens, offsets, func(_, _ []float64) ([]float64, error) { return grad, nil })
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Step(AdamW{LR: 1e-3, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8}, 1); err != nil {
			b.Fatal(err)
		}
		n += len(tokens)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "tokens/s")
}
