package main

import (
	"testing"

	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl"
)

// TestCopiedBytes: a policy that is trained itself has nothing copied, another of equal
// weights all of them.
func TestCopiedBytes(t *testing.T) {
	shape := model.Config{
		ModelType: "qwen2", VocabSize: 10, Hidden: 8, Intermediate: 6, Layers: 1, Heads: 2, KVHeads: 1, HeadDim: 4,
		MaxPositions: 16, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
	}
	var both [2]*model.Policy
	for i := range both {
		var err error
		if both[i], err = model.New(shape, 1, model.Options{Workers: 1}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(both[i].Close)
	}
	// Embedding; queries, keys and values with their biases; output; MLP; three norms.
	const weights = 10*8 + (8+4+4)*(8+1) + 8*8 + 3*6*8 + 3*8
	for _, c := range []struct {
		trained []*model.Policy
		want    int64
	}{{both[:1], 0}, {both[1:], 4 * weights}, {both[:], 0}} {
		if got := copiedBytes(both[0], c.trained); got != c.want {
			t.Errorf("%d trained: %d bytes, want %d", len(c.trained), got, c.want)
		}
	}
}

// TestAgreement compares what is trained on alone, over all micro-batches.
func TestAgreement(t *testing.T) {
	var l watchedLearner
	l.compare(rl.Packed{Mask: []bool{false, true, true}, RolloutLogprobs: []float64{0, -2, -3}}, []float64{9, -2.5, -3})
	l.compare(rl.Packed{Mask: []bool{true}, RolloutLogprobs: []float64{-1}}, []float64{0.25})
	if want := (agreement{Largest: 1.25, Mean: 1.75, Tokens: 3}); l.agreement != want { // of which the mean is still a sum
		t.Errorf("%+v, want %+v", l.agreement, want)
	}
}
