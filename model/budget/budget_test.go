package budget

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// small is a model whose sums can be done by hand.
var small = Model{Params: 1000, Layers: 2, Hidden: 8, Intermediate: 16, Heads: 4, KVHeads: 2, Dim: 2}

var layout = Layout{
	WeightBytes: 2, GradBytes: 4, ActivationBytes: 4, CacheBytes: 2, StateBytes: 12, Shards: 1,
	MicroBatch: 10, HeadRows: 5, HeadVocab: 50, PageTokens: 32, Sequences: 2, Context: 33, Reserve: 7,
}

func TestByHand(t *testing.T) {
	// A layer keeps 2·8 + 16 (qkv) + 8 + 2·16 + 2 + 4 = 78 of a token; the ends 25;
	// a layer's backward pass needs 2·8 + 2·16 + 8 + 16 = 72 beside it.
	want := Plan{Weights: 2000, Gradients: 4000, Optimizer: 12000, Activations: 10 * (2*78 + 25 + 72) * 4, Logits: 5 * 50 * 4, Reserve: 7}
	// A block holds 2 layers of 2 heads' keys and values: 2·2·2·2·32·2 = 1024 bytes, and
	// two sequences of 33 tokens need four.
	taken := want.taken()
	want.Blocks, want.Cache = 4, 4096
	got, err := Make(taken+4096+1023, small, layout)
	if err != nil || got != want {
		t.Errorf("%+v, want %+v (%v)", got, want, err)
	}
	_, err = Make(taken+4095, small, layout)
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "optimizer 0.00 GiB") {
		t.Errorf("one byte short: %v", err)
	}
	again := layout
	again.Recompute = true
	got, err = Make(1<<20, small, again)
	if want := int64(10 * (2*8 + 25 + 78 + 8 + 72) * 4); err != nil || got.Activations != want {
		t.Errorf("recomputed: %d bytes of activations, want %d (%v)", got.Activations, want, err)
	}
}

// TestSevenBillion is the shape of Qwen2.5-7B (its config.json) on a device of 80 GB:
// bfloat16 weights with a float32 copy do not fit one, and fit eight.
func TestSevenBillion(t *testing.T) {
	m := Model{Params: 7_615_616_512, Layers: 28, Hidden: 3584, Intermediate: 18944, Heads: 28, KVHeads: 4, Dim: 128}
	l := Layout{
		WeightBytes: 2, GradBytes: 4, ActivationBytes: 2, CacheBytes: 2, StateBytes: 12, Shards: 1,
		MicroBatch: 8192, Recompute: true, HeadRows: 8192, HeadVocab: 8192, PageTokens: 32, Sequences: 1, Context: 8192,
	}
	if p, err := Make(80e9, m, l); !errors.Is(err, ErrTooLarge) || p.Optimizer != 91_387_398_144 {
		t.Errorf("one device: %v, %v", p, err)
	}
	l.Shards = 8
	p, err := Make(80e9, m, l)
	if err != nil || p.Optimizer != 11_423_424_768 || p.Cache < 10e9 {
		t.Errorf("eight devices: %v, %v", p, err)
	}
}

// TestNothingIsLost: a plan that is made fits, and wastes less than a block.
func TestNothingIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string) int { return rapid.IntRange(1, 64).Draw(t, name) }
		m := Model{
			Params: int64(n("params")) * 1000, Layers: n("layers"), Hidden: n("hidden"), Intermediate: n("inter"),
			Heads: n("heads"), KVHeads: n("kv"), Dim: n("dim"), QKNorm: rapid.Bool().Draw(t, "norm"),
		}
		l := Layout{
			WeightBytes: 2, GradBytes: 4, ActivationBytes: 2, CacheBytes: 2, StateBytes: 12, Shards: n("shards"), MicroBatch: n("tokens"),
			Recompute: rapid.Bool().Draw(t, "recompute"), HeadRows: n("rows"), HeadVocab: n("columns"), PageTokens: 32,
			Sequences: n("sequences"), Context: n("context"), Reserve: int64(n("reserve")),
		}
		free := int64(rapid.IntRange(0, 1<<30).Draw(t, "free"))
		p, err := Make(free, m, l)
		if err != nil {
			if !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		used := p.taken() + p.Cache
		block := p.Cache / int64(p.Blocks)
		if used > free || free-used >= block {
			t.Fatalf("%d of %d bytes used, blocks of %d", used, free, block)
		}
		l.MicroBatch++
		if more, err := Make(free, m, l); err == nil && (more.Activations <= p.Activations || more.Cache > p.Cache) {
			t.Fatalf("a larger micro-batch takes less: %v, then %v", p, more)
		}
	})
}

func TestRefusesNonsense(t *testing.T) {
	bad := layout
	bad.Shards = 0
	if _, err := Make(1<<30, small, bad); err == nil || !strings.Contains(err.Error(), "shards is 0") {
		t.Error(err)
	}
}
