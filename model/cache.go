package model

import (
	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// Cache holds the keys and values of tokens of several sequences, in blocks of
// native.BlockTokens, on the policy's device.
type Cache struct {
	p      *Policy
	memory *torch.Arena
	scope  *torch.Scope
	layers []*torch.Tensor // [blocks, elements of a block]
	// scratch is where the kernels join splits of attention, of any step: one computes at a
	// time. nil without kernels.
	scratch *torch.Tensor
	// repeats are recorded steps; nil where nothing records.
	repeats *repeater
}

// NewCache takes the memory of a cache of so many blocks, for steps of at most so many
// sequences. Free gives it back.
func (p *Policy) NewCache(blocks, sequences int) *Cache {
	c := &Cache{p: p, memory: p.options.Device.NewArena(torch.Cache, p.options.cacheType(p.config))}
	c.scope = c.memory.Scope()
	for range p.config.Layers {
		t := c.scope.Empty(blocks * p.Attention(0).CacheBlock())
		if p.options.Device != torch.CPU {
			t.Zero() // what no query sees is multiplied by 0 there
		}
		c.layers = append(c.layers, t)
	}
	if k, ok := p.ops.(*onKernels); ok {
		c.scratch = k.words(p.options.stepScratch(p.config))
		c.repeats = newRepeater(k, c, sequences)
	}
	return c
}

// Free ends the cache.
func (c *Cache) Free() {
	if c.repeats != nil {
		c.repeats.free()
	}
	if c.scratch != nil {
		c.scratch.Free()
	}
	c.scope.Close()
	c.memory.Free()
}

// Attend is attention for Forward whose rows are those of segs: it adds their keys and
// values to the cache and attends to all that is there of their sequences. In the last
// layer it gives the rows of last alone. table is of numbers of blocks, see
// native.Segment. It is valid while s is open. team is as ForwardRows has it.
func (c *Cache) Attend(s *torch.Scope, team *device.Team, segs, last []native.Segment, table []int32) Attend {
	return c.p.shared(team).ops.attendCached(s, c, segs, last, table)
}

// Repeats says whether the policy's device can repeat recorded work, which Decode does.
func (c *Cache) Repeats() bool { return c.repeats != nil }

// Decode is a whole step of generation for sequences of one new token each, which is
// row i in segment i: it adds the tokens' keys and values to the cache and draws what
// follows.
func (c *Cache) Decode(tokens []int32, segs []native.Segment, table []int32, draws []Draw) (next []int32, logprobs, sampled []float32) {
	return c.repeats.step(tokens, segs, table, draws)
}

// Draw is how one row of logits is sampled, at U in [0, 1).
type Draw struct {
	native.Sampling
	U float64
}

// Sample draws a token for each row of logits [R, V], as native.Sample does. team is as
// ForwardRows has it.
func (p *Policy) Sample(team *device.Team, logits *torch.Tensor, draws []Draw) (tokens []int32, logprobs, sampled []float32) {
	return p.shared(team).ops.sample(logits, draws)
}

// Row copies row i of float32 logits.
func Row(logits *torch.Tensor, i int) []float32 {
	row := logits.Rows(i, i+1)
	defer row.Free()
	out := make([]float32, row.Len())
	onHost(row, false, func(t *torch.Tensor) { copy(out, torch.Data[float32](t)) })
	return out
}

// NewArena is scratch memory for Forward on the policy's device, one for each
// goroutine. Free gives it back.
func (p *Policy) NewArena() *torch.Arena {
	return p.options.Device.NewArena(torch.Activations, p.flat.DType())
}

const deviceElements = 16 << 20

// pick chooses a size by where the policy is.
func (o Options) pick(cpu, device int) int {
	if o.Device == torch.CPU {
		return cpu
	}
	return device
}
