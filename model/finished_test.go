package model

import (
	"fmt"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
)

// TestFinalIsFinal: what AccumulateLast tells to be final is not touched any more, grows
// layer by layer to the whole, and is in the end what the batches add up to when nobody is
// told, bit for bit.
func TestFinalIsFinal(t *testing.T) {
	for name, o := range map[string]Options{
		"float32": {Workers: 1}, "three workers": {Workers: 3}, "recompute": {Workers: 2, Recompute: true},
		"frozen": {Workers: 2, FreezeLayers: 1}, "adapters": {Workers: 2, LoRA: &LoRA{Rank: 3}},
		"float64": {Workers: 2, DType: torch.Float64}, "device": {Device: torch.Generic},
	} {
		for _, c := range []Config{tiny("qwen2", true), tiny("qwen3", false)} {
			t.Run(fmt.Sprint(name, " ", c.ModelType), func(t *testing.T) { testFinal(t, c, o) })
		}
	}
}

func testFinal(t *testing.T, c Config, o Options) {
	c.Layers = 3
	accumulate := func(p *Policy, final func(int)) {
		var tokens []int32
		offsets := []int{0}
		for i, n := range []int{9, 2, 17, 5, 1, 12, 30} { // of sequences
			for k := range n {
				tokens = append(tokens, int32((7*i+k*k)%c.VocabSize))
			}
			offsets = append(offsets, len(tokens))
		}
		for batch := range 2 {
			last := final
			if batch == 0 {
				last = nil
			}
			err := p.AccumulateLast(t.Context(), tokens, offsets, nil, func(lp, _ []float64) ([]float64, error) {
				_, grad := objective(lp)
				if batch == 1 { // some sequences have no gradient
					clear(grad[offsets[2]:offsets[4]])
				}
				return grad, nil
			}, last)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	calm := random(t, c, o)
	accumulate(calm, nil)
	want := read(sumLanes(calm))

	p := random(t, c, o)
	g, err := p.Gradient()
	if err != nil {
		t.Fatal(err)
	}
	var from []int
	var seen [][]float64
	accumulate(p, func(lo int) {
		part := g.Rows(lo, g.Len())
		from, seen = append(from, lo), append(seen, read(part))
		part.Free()
	})
	got := read(g)
	if i := sameBits(got, want); i >= 0 {
		t.Errorf("element %d of the gradient is %v, %v where nobody is told", i, got[i], want[i])
	}
	least := 1
	if o.Workers <= 1 { // with more it depends on how far the last one is
		least = c.Layers
	}
	if !slices.IsSortedFunc(from, func(a, b int) int { return b - a }) || from[len(from)-1] != 0 || len(from) < least {
		t.Errorf("final from %v of %d", from, g.Len())
	}
	for k, lo := range from {
		if i := sameBits(seen[k], got[lo:]); i >= 0 {
			t.Errorf("element %d changed after it was final", lo+i)
		}
	}
}
