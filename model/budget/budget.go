// Package budget plans a device's memory before anything is allocated: weights,
// gradients, optimizer state, activations and the KV cache are one sum. What
// training needs is exact from the model's shape; the KV cache takes what is left.
// There is no utilisation fraction to guess, and what does not fit is refused with
// the list of what takes how much.
package budget

import (
	"errors"
	"fmt"
	"strings"
)

// Model is the shape of a policy.
type Model struct {
	// Params counts all weights; a tied head counts once.
	Params                                            int64
	Layers, Hidden, Intermediate, Heads, KVHeads, Dim int
	// QKNorm says that heads are normalised, which keeps their raw values, too.
	QKNorm bool
}

// Layout says how the policy is kept and trained.
type Layout struct {
	// Bytes of an element of the weights that compute, of the gradient, of
	// activations, and of the KV cache.
	WeightBytes, GradBytes, ActivationBytes, CacheBytes int
	// StateBytes is what the optimizer keeps for a weight: 8 for two float32 moments,
	// 12 with a float32 copy of bfloat16 weights.
	StateBytes int
	// Shards is the number of devices that the optimizer's state is split over.
	Shards int
	// MicroBatch is the most tokens of one forward and backward pass.
	MicroBatch int
	// Recompute keeps only each layer's input until the backward pass.
	Recompute bool
	// HeadRows × HeadVocab bounds the logits that exist at a time.
	HeadRows, HeadVocab int
	// Reserve is what the driver and libraries take beside all this; it is measured,
	// as free memory before and after they start, not assumed.
	Reserve int64
	// PageTokens is the tokens of a KV block; Sequences × Context is the least that
	// generation must be able to hold at once.
	PageTokens         int
	Sequences, Context int
}

// Plan is bytes by purpose.
type Plan struct {
	Weights, Gradients, Optimizer, Activations, Logits, Reserve int64
	// Cache is what is left for the KV cache, in whole Blocks.
	Cache  int64
	Blocks int
}

// ErrTooLarge is what Make wraps where the parts do not fit.
var ErrTooLarge = errors.New("budget: more memory is needed than is free")

// Make plans free bytes of a device.
func Make(free int64, m Model, l Layout) (Plan, error) {
	if err := check(m, l); err != nil {
		return Plan{}, err
	}
	p := Plan{
		Weights:     m.Params * int64(l.WeightBytes),
		Gradients:   m.Params * int64(l.GradBytes),
		Optimizer:   (m.Params + int64(l.Shards) - 1) / int64(l.Shards) * int64(l.StateBytes),
		Activations: int64(l.MicroBatch) * activations(m, l.Recompute) * int64(l.ActivationBytes),
		Logits:      int64(l.HeadRows) * int64(l.HeadVocab) * int64(l.ActivationBytes),
		Reserve:     l.Reserve,
	}
	block := int64(m.Layers) * 2 * int64(m.KVHeads) * int64(m.Dim) * int64(l.PageTokens) * int64(l.CacheBytes)
	least := int64(l.Sequences) * int64((l.Context+l.PageTokens-1)/l.PageTokens)
	left := free - p.taken()
	p.Blocks = int(max(left, 0) / block)
	p.Cache = int64(p.Blocks) * block
	if left < least*block {
		return p, fmt.Errorf("%w: %s free; %s; and the KV cache of %d sequences of %d tokens needs %s. "+
			"Lower the micro-batch or the sequences, recompute activations, or shard over more devices",
			ErrTooLarge, size(free), p.list(), l.Sequences, l.Context, size(least*block))
	}
	return p, nil
}

// activations is elements a token between the forward and the backward pass, and
// the most that a layer needs beside them while it runs; see model/forward.go and
// model/backward.go, which this follows name by name.
func activations(m Model, recompute bool) int64 {
	qkv := int64(m.Heads+2*m.KVHeads) * int64(m.Dim)
	att := int64(m.Heads) * int64(m.Dim)
	hidden, inter := int64(m.Hidden), int64(m.Intermediate)
	layer := 2*hidden + qkv + att + 2*inter + 2 + int64(m.Heads) // input, middle, qkv, att, gate and up, norms, denominators
	if m.QKNorm {
		layer += qkv + int64(m.Heads+m.KVHeads)
	}
	// Backward: two normalised inputs and their gradient, the activation and its
	// gradient, the gradients of attention and of qkv.
	working := 2*hidden + 2*inter + att + qkv
	ends := 3*hidden + 1 // last, hidden states and their gradient, norm
	if recompute {
		return int64(m.Layers)*hidden + ends + layer + hidden + working
	}
	return int64(m.Layers)*layer + ends + working
}

func (p Plan) taken() int64 {
	return p.Weights + p.Gradients + p.Optimizer + p.Activations + p.Logits + p.Reserve
}

func (p Plan) list() string {
	var parts []string
	for _, part := range []struct {
		name  string
		bytes int64
	}{
		{"weights", p.Weights}, {"gradients", p.Gradients}, {"optimizer", p.Optimizer}, {"activations", p.Activations},
		{"logits", p.Logits}, {"reserve", p.Reserve},
	} {
		if part.bytes > 0 {
			parts = append(parts, part.name+" "+size(part.bytes))
		}
	}
	return strings.Join(parts, ", ")
}

// String lists the parts.
func (p Plan) String() string {
	return fmt.Sprintf("%s, KV cache %s in %d blocks", p.list(), size(p.Cache), p.Blocks)
}

func size(bytes int64) string { return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30)) }

func check(m Model, l Layout) error {
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"parameters", m.Params}, {"layers", int64(m.Layers)}, {"hidden width", int64(m.Hidden)},
		{"heads", int64(m.Heads)}, {"key heads", int64(m.KVHeads)}, {"head dimension", int64(m.Dim)},
		{"bytes of a weight", int64(l.WeightBytes)}, {"bytes of a cache element", int64(l.CacheBytes)},
		{"shards", int64(l.Shards)}, {"tokens of a KV block", int64(l.PageTokens)},
	} {
		if v.value <= 0 {
			return fmt.Errorf("budget: %s is %d; it must be positive", v.name, v.value)
		}
	}
	return nil
}
