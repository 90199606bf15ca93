package budget

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
)

// small has 3 million weights.
var small = model.Config{
	ModelType: "qwen2", VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 6, Heads: 6, KVHeads: 2, HeadDim: 32,
	MaxPositions: 2048, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
}

// run is of n replicas of two workers that generate and train.
func run(n int) Run {
	return Run{
		Model: small, Options: model.Options{Workers: 2, Shard: model.Shard{Of: n}}, Replicas: n, MicroBatch: 600, Longest: 300,
		Engine: &engine.Options{CacheBytes: 96 << 20, MaxSequences: 8}, Reference: n == 1, Rescores: n == 2,
	}
}

// TestRealUse holds plans against what tensors own over a step of all replicas, their
// engines and the reference; last with shards of the gradient.
func TestRealUse(t *testing.T) {
	for i, n := range []int{1, 2, 2} {
		r := run(n)
		r.Options.ShardGradient = i == 2
		plan, err := Make(r)
		if err != nil {
			t.Fatal(err)
		}
		before := torch.Allocated()
		torch.ResetPeak()
		owned := torch.Peak()
		var closers []func()
		for i := range n {
			o := r.Options
			o.Shard.Index = i
			p, err := model.New(small, 1, o)
			if err != nil {
				t.Fatal(err)
			}
			e, err := engine.New(p, *r.Engine)
			if err != nil {
				t.Fatal(err)
			}
			closers = append(closers, e.Close, p.Close)
			tokens := make([]int32, r.MicroBatch)
			for i := range tokens {
				tokens[i] = int32(i * 31 % small.VocabSize)
			}
			if _, err := e.Generate(t.Context(), gen.Request{ID: "a", Tokens: tokens[:r.Longest-1], MaxTokens: 1}); err != nil {
				t.Fatal(err)
			}
			offsets := []int{0, r.Longest, r.MicroBatch}
			if r.Rescores {
				if _, err := p.Logprobs(t.Context(), tokens, offsets); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Prepare(); err != nil {
				t.Fatal(err)
			}
			told, reduced := make(chan int, r.Model.Layers+2), make(chan error, 1)
			go func() { reduced <- reduce(p, told) }()
			err = p.AccumulateLast(t.Context(), tokens, offsets, nil, func(logprobs, _ []float64) ([]float64, error) {
				return logprobs, nil
			}, func(from int) { told <- from })
			if err := errors.Join(err, <-reduced); err != nil {
				t.Fatal(err)
			}
		}
		if r.Reference {
			frozen, err := model.New(small, 1, model.Options{Workers: r.Options.Workers})
			if err != nil {
				t.Fatal(err)
			}
			closers = append(closers, frozen.Close)
			if _, err := frozen.Logprobs(t.Context(), make([]int32, r.MicroBatch), []int{0, r.Longest, r.MicroBatch}); err != nil {
				t.Fatal(err)
			}
		}
		after := torch.Allocated()
		for purpose, want := range map[torch.Purpose]int64{
			torch.Gradients: int64(n) * plan.Gradients, torch.Optimizer: int64(n) * plan.Optimizer, torch.Cache: int64(n) * plan.Cache,
		} {
			used := after[purpose] - before[purpose]
			t.Logf("%d replicas, %v: %d bytes, planned %d", n, purpose, used, want)
			if used > want+want/20 || used < want-want/20 {
				t.Errorf("%d replicas, %v: %d bytes, planned %d", n, purpose, used, want)
			}
		}
		// Not all that generation may need was used.
		peak := torch.Peak() - owned
		all := plan.All() + int64(n)*plan.Reserved
		t.Logf("%d replicas: peak %d bytes, planned %d", n, peak, all)
		if peak > all || peak < all*85/100 {
			t.Errorf("%d replicas: peak %d bytes, planned %d", n, peak, all)
		}
		for _, c := range closers {
			c()
		}
	}
}

// reduce takes the pieces of a gradient as they are told to be final.
func reduce(p *model.Policy, told <-chan int) error {
	_, _, hi := p.Shard()
	pieces := p.Pieces()
	for from := hi; from > 0; {
		from = <-told
		for len(pieces) > 0 && pieces[len(pieces)-1] >= from {
			lo := pieces[len(pieces)-1]
			if err := p.Reduce(lo, hi, func(*torch.Tensor) error { return nil }); err != nil {
				return err
			}
			pieces, hi = pieces[:len(pieces)-1], lo
		}
	}
	return nil
}

// TestShards is the shape of Qwen2.5-7B, which has 7,615,616,512 weights (its model
// card and config.json): eight replicas keep an eighth of the optimizer's state each. If
// they keep an eighth of the gradient, too, they have beside it two layers, of 233,057,792
// weights, and the head of 152,064 rows of 3,584.
func TestShards(t *testing.T) {
	const weights = 7_615_616_512
	r := Run{
		Model: model.Config{
			ModelType: "qwen2", VocabSize: 152064, Hidden: 3584, Intermediate: 18944, Layers: 28, Heads: 28, KVHeads: 4, HeadDim: 128,
			MaxPositions: 32768, NormEps: 1e-6, RopeTheta: 1e6, BOS: -1,
		},
		Options: model.Options{Workers: 1, Recompute: true}, MicroBatch: 8192, Longest: 8192,
	}
	const layer, head = 233_057_792, 152_064 * 3_584
	for n, gradients := range map[int64]int64{1: weights, 8: weights, -8: weights/8 + 2*layer + head} {
		if r.Options.ShardGradient = n < 0; n < 0 {
			n = -n
		}
		r.Replicas, r.Options.Shard = int(n), model.Shard{Of: int(n)}
		p, err := Make(r)
		if err != nil {
			t.Fatal(err)
		}
		for name, pair := range map[string][2]int64{"gradients": {p.Gradients, 4 * gradients}, "optimizer": {p.Optimizer, 8 * weights / n}} {
			if off := float64(pair[0])/float64(pair[1]) - 1; off < -1e-4 || off > 1e-4 {
				t.Errorf("%d replicas, %s: %d bytes, want %d", n, name, pair[0], pair[1])
			}
		}
	}
}

// TestCacheGetsWhatIsLeft: on a device whose memory is known a plan that is made fits
// and wastes less than a block; one that is refused fits where it says it would, and
// not with a byte less.
func TestCacheGetsWhatIsLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string) int { return rapid.IntRange(1, 8).Draw(t, name) }
		r := run(n("replicas"))
		r.Engine = &engine.Options{MaxSequences: n("sequences")}
		r.Longest, r.MicroBatch, r.Reference = 50*n("longest"), 100*n("tokens"), rapid.Bool().Draw(t, "reference")
		r.Device = rapid.Int64Range(1, 1<<30).Draw(t, "device")
		block := model.CacheBlock(small, model.Options{})
		p, err := Make(r)
		if err != nil {
			if !errors.Is(err, ErrTooLarge) || p.device() <= r.Device {
				t.Fatalf("%v; a device of %d for %d", err, r.Device, p.device())
			}
			r.Device = p.device()
			if again, err := Make(r); err != nil || again != p {
				t.Fatalf("%v, then %v (%v)", p, again, err)
			}
			r.Device--
			if _, err := Make(r); !errors.Is(err, ErrTooLarge) {
				t.Fatalf("a byte less: %v", err)
			}
			return
		}
		if used := p.device(); used > r.Device || r.Device-used >= block || p.Cache%block != 0 {
			t.Fatalf("%d of %d bytes used, blocks of %d", used, r.Device, block)
		}
		// What is asked for is given, or refused.
		r.Engine.CacheBytes = p.Cache
		if asked, err := Make(r); err != nil || asked != p {
			t.Fatalf("%v, asked for: %v (%v)", p, asked, err)
		}
		r.Engine.CacheBytes += block
		if _, err := Make(r); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("a block more: %v", err)
		}
	})
}

// TestCacheBlock: two layers of one head of four elements, keys and values of a block
// of tokens, in float32, and in bfloat16 where kernels attend over that.
func TestCacheBlock(t *testing.T) {
	c := small
	c.Layers, c.KVHeads, c.HeadDim = 2, 1, 4
	if got, want := model.CacheBlock(c, model.Options{}), int64(2*1*4*2*4*32); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
	c.HeadDim = 64
	for _, tc := range []struct {
		o    model.Options
		size int64
	}{
		{model.Options{DType: torch.BFloat16, Device: torch.Generic}, 4},
		{model.Options{Device: torch.Generic, Kernels: kernels{}}, 4},
		{model.Options{DType: torch.BFloat16, Device: torch.Generic, Kernels: kernels{}}, 2},
	} {
		if got, want := model.CacheBlock(c, tc.o), 2*1*64*2*32*tc.size; got != want {
			t.Errorf("%v: %d bytes, want %d", tc.o.DType, got, want)
		}
	}
}

// kernels stand for a device's in plans.
type kernels struct{ cuda.Recorder }

func TestRefusesNonsense(t *testing.T) {
	r := run(1)
	r.Replicas = 0
	if _, err := Make(r); err == nil || !strings.Contains(err.Error(), "0 replicas") {
		t.Error(err)
	}
}
