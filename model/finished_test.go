package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
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
	calm := random(t, c, o)
	accumulateTwice(t, calm, nil)
	want := read(sumLanes(calm))

	p := random(t, c, o)
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	_, _, n := p.Shard()
	at := func(lo int) (values []float64) {
		err := p.Reduce(lo, n, func(part *torch.Tensor) error { values = read(part); return nil })
		if err != nil {
			t.Error(err)
		}
		return values
	}
	var from []int
	var seen [][]float64
	accumulateTwice(t, p, func(lo int) { from, seen = append(from, lo), append(seen, at(lo)) })
	got := at(0)
	if i := sameBits(got, want); i >= 0 {
		t.Errorf("element %d of the gradient is %v, %v where nobody is told", i, got[i], want[i])
	}
	if !slices.IsSortedFunc(from, func(a, b int) int { return b - a }) || from[len(from)-1] != 0 || len(from) < c.Layers-o.FreezeLayers {
		t.Errorf("final from %v of %d", from, n)
	}
	for k, lo := range from {
		if i := sameBits(seen[k], got[lo:]); i >= 0 {
			t.Errorf("element %d changed after it was final", lo+i)
		}
	}
}

// accumulateTwice adds two batches' gradients and tells of the last, or with
// Options.ShardGradient of each.
func accumulateTwice(t *testing.T, p *Policy, final func(from int)) {
	t.Helper()
	for batch := range 2 {
		last := final
		if batch == 0 && !p.options.ShardGradient {
			last = nil
		}
		if err := accumulateLast(t.Context(), p, batch, last); err != nil {
			t.Fatal(err)
		}
	}
}

func accumulateLast(ctx context.Context, p *Policy, batch int, final func(from int)) error {
	var tokens []int32
	offsets := []int{0}
	for i, n := range []int{9, 2, 17, 5, 1, 12, 30} { // of sequences
		for k := range n {
			tokens = append(tokens, int32((7*i+k*k)%p.config.VocabSize))
		}
		offsets = append(offsets, len(tokens))
	}
	return p.AccumulateLast(ctx, tokens, offsets, nil, func(lp, _ []float64) ([]float64, error) {
		_, grad := objective(lp)
		if batch == 1 { // some sequences have no gradient
			clear(grad[offsets[2]:offsets[4]])
		}
		return grad, nil
	}, final)
}

// reducing calls Reduce for all pieces of some passes, in halves, as final is told of
// them, but not before a pass has come to hold.
type reducing struct {
	told  chan int
	ended chan error
}

func newReducing(p *Policy, passes, hold int, sum func(part *torch.Tensor) error) *reducing {
	r := &reducing{make(chan int, 100), make(chan error, 1)}
	go func() {
		pieces := p.Pieces()
		_, _, n := p.Shard()
		from := n
		for range passes {
			for from > hold {
				from = <-r.told
			}
			for i, hi := len(pieces)-1, n; i >= 0; i, hi = i-1, pieces[i] {
				for from > pieces[i] {
					from = <-r.told
				}
				middle := (pieces[i] + hi) / 2
				if err := errors.Join(p.Reduce(middle, hi, sum), p.Reduce(pieces[i], middle, sum)); err != nil {
					r.ended <- err
					return
				}
			}
			from = n
		}
		r.ended <- nil
	}()
	return r
}

func (r *reducing) final(from int) { r.told <- from }

// double is the sum over two replicas that have the same batches.
func double(part *torch.Tensor) error {
	other := part.Device().New(torch.Gradients, part.DType(), part.Len())
	defer other.Free()
	torch.Copy(other, part)
	part.Add(other)
	return nil
}

// TestShardGradient: a policy that keeps a shard of the gradient has in it what one has
// that keeps the whole, of one batch bit for bit and of two but for rounding, in the
// memory that TrainingMemory says.
func TestShardGradient(t *testing.T) {
	for name, o := range map[string]Options{
		"float32": {Workers: 1}, "three workers": {Workers: 3}, "recompute": {Workers: 2, Recompute: true},
		"frozen": {Workers: 2, FreezeLayers: 1}, "all frozen": {Workers: 1, FreezeLayers: 4}, "adapters": {Workers: 2, LoRA: &LoRA{Rank: 3}},
		"float64": {Workers: 2, DType: torch.Float64}, "device": {Device: torch.Generic},
	} {
		for _, c := range []Config{tiny("qwen2", true), tiny("qwen3", false)} {
			t.Run(fmt.Sprint(name, " ", c.ModelType), func(t *testing.T) {
				c.Layers = 4
				o := o
				whole := random(t, c, o)
				o.ShardGradient = true
				for shard := range 3 {
					o.Shard = Shard{shard, 3}
					p := random(t, c, o)
					before := torch.Allocated()[torch.Gradients]
					if err := p.Prepare(); err != nil {
						t.Fatal(err)
					}
					f, err := TrainingMemory(c, o, max(o.Workers, 1), []int{76})
					if used := torch.Allocated()[torch.Gradients] - before; err != nil || used != f.Gradients {
						t.Errorf("%d bytes of gradients, foretold %d (%v)", used, f.Gradients, err)
					}
					lo, hi, n := p.Shard()
					for passes := 1; passes <= 2; passes++ {
						whole.ClearGradient()
						p.ClearGradient()
						hold, _ := p.begins(layerName(2)) // there is memory for two layers
						r := newReducing(p, passes, hold, double)
						for batch := range passes {
							for _, q := range []struct {
								p     *Policy
								final func(int)
							}{{whole, nil}, {p, r.final}} {
								if err := accumulateLast(t.Context(), q.p, batch, q.final); err != nil {
									t.Fatal(err)
								}
							}
						}
						if err := <-r.ended; err != nil {
							t.Fatal(err)
						}
						got, want := read(p.sum), read(sumLanes(whole))
						bound := 1e-6 // of the largest element; another order of sums
						if o.DType == torch.Float64 {
							bound = 1e-14
						}
						bound *= max(slices.Max(want), -slices.Min(want))
						for i, w := range want[lo:hi] {
							if g := got[i] / 2; passes == 1 && g != w || !(math.Abs(g-w) <= bound) {
								t.Fatalf("%d batches, shard %d: element %d of %d is %v, of the whole %v", passes, shard, lo+i, n, g, w)
							}
						}
					}
				}
			})
		}
	}
}

// TestShardGradientWaits: the backward pass waits for memory that others have not
// reduced, until it is told not to; after ClearGradient it is as if it had not been.
func TestShardGradientWaits(t *testing.T) {
	c := tiny("qwen2", true)
	c.Layers = 3
	want := sharded(t, random(t, c, Options{Workers: 2, ShardGradient: true}))
	p := random(t, c, Options{Workers: 2, ShardGradient: true})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the others are gone")
	second, _ := p.begins(layerName(1))
	last := 0
	err := accumulateLast(ctx, p, 0, func(from int) {
		if last = from; from == second { // the first layer has to wait for the third's memory
			cancel(gone)
		}
	})
	if !errors.Is(err, gone) || last != second {
		t.Errorf("final from %d, then %v", last, err)
	}
	p.ClearGradient()
	if i := sameBits(sharded(t, p), want); i >= 0 {
		t.Errorf("element %d differs after that", i)
	}
	if err := p.Accumulate(t.Context(), []int32{1, 2}, []int{0, 2}, nil); err == nil {
		t.Error("a batch whose gradient nobody reduces was taken")
	}
}

// sharded is the gradient of a batch, of a policy that has all of it as its shard.
func sharded(t *testing.T, p *Policy) []float64 {
	t.Helper()
	r := newReducing(p, 1, p.live.Len(), func(*torch.Tensor) error { return nil })
	if err := accumulateLast(t.Context(), p, 0, r.final); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	return read(p.sum)
}

// failing are operations of which one, once, ends as libtorch's do that fail.
type failing struct {
	operations
	failed atomic.Bool
}

func (f *failing) swigluBackward(gateUp, dact *torch.Tensor) {
	if f.failed.CompareAndSwap(false, true) {
		panic(&torch.Error{Op: "swigluBackward", Detail: "no memory"})
	}
	f.operations.swigluBackward(gateUp, dact)
}

// TestFailedWorker: where one worker fails, those that would wait for what it has not
// computed do not.
func TestFailedWorker(t *testing.T) {
	c := tiny("qwen2", true)
	c.Layers = 4
	p := random(t, c, Options{Workers: 3, ShardGradient: true})
	p.ops = &failing{operations: p.ops}
	err := accumulateLast(t.Context(), p, 0, func(int) {})
	if err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Error(err)
	}
}
