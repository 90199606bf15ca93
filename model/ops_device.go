package model

import (
	"cmp"
	"math"
	"slices"

	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// onDevice computes with libtorch's operations, on any device. A row's bits may depend
// on what else is in the batch.
type onDevice struct {
	p        *Policy
	cos, sin *torch.Tensor // [positions, HeadDim/2]
	half     bool          // products are of bfloat16
}

// newOnDevice takes memory; the policy frees it.
func newOnDevice(p *Policy) *onDevice {
	o := &onDevice{p: p, half: p.options.DType == torch.BFloat16}
	table := newRotary[float64](p.config)
	put := func(from []float64) *torch.Tensor {
		t := p.options.Device.New(torch.Weights, p.flat.DType(), p.config.MaxPositions, p.config.HeadDim/2)
		i := -1
		fill(t, func() float64 { i++; return from[i] })
		return t
	}
	o.cos, o.sin = put(table.cos), put(table.sin)
	return o
}

func (o *onDevice) free() {
	o.cos.Free()
	o.sin.Free()
}

func (o *onDevice) shared(*device.Team) operations { return o }

func (o *onDevice) indices(s *torch.Scope, of []int32) indices {
	return indices{of, s.Own(o.p.options.Device.Indices(of))}
}

func (*onDevice) gather(out, from *torch.Tensor, rows indices) { torch.Gather(out, from, rows.device) }
func (*onDevice) scatter(to, from *torch.Tensor, rows indices) { torch.Scatter(to, from, rows.device) }
func (*onDevice) scatterAdd(to, from *torch.Tensor, rows indices) {
	torch.ScatterAdd(to, from, rows.device)
}
func (*onDevice) addColumns(sum, m *torch.Tensor) { torch.AddColumns(sum, m) }

// matrix is what products are computed with.
func (o *onDevice) matrix(l Linear) *torch.Tensor {
	if o.half {
		return l.packed
	}
	return l.W
}

func (o *onDevice) linear(l Linear, x, y *torch.Tensor, add bool) {
	w := o.matrix(l).T()
	defer w.Free()
	torch.Product(y, x, w, l.Bias, add, o.half)
}

func (o *onDevice) inputGradient(l Linear, dy, dx *torch.Tensor) {
	torch.Product(dx, dy, o.matrix(l), nil, false, o.half)
}

func (o *onDevice) weightGradient(dw, dy, x *torch.Tensor) {
	t := dy.T()
	defer t.Free()
	torch.Product(dw, t, x, nil, true, o.half)
}

func (o *onDevice) operand(s *torch.Scope, x *torch.Tensor) *torch.Tensor {
	if !o.half {
		return x
	}
	half := s.Own(o.p.options.Device.Empty(torch.Activations, torch.BFloat16, x.Shape()...))
	torch.Copy(half, x)
	return half
}

func (o *onDevice) repack(l *Linear) {
	if o.half {
		torch.Copy(l.packed, l.W)
	}
}

func (o *onDevice) rms(x, weight, y, rstd *torch.Tensor) {
	torch.RMSNorm(x, y, 0, 1, weight, rstd, o.p.config.NormEps)
}

func (*onDevice) rmsBackward(_ *torch.Scope, x, weight, rstd, dy, dx, dweight *torch.Tensor) {
	torch.RMSNormBackward(x, weight, rstd, dy, dx, dweight, 0, 1)
}

// eachKind calls f for the query heads and for the key heads, with the rows of rstd
// [H+K, T], if that is not nil, that are theirs.
func (o *onDevice) eachKind(rstd *torch.Tensor, f func(first, n int, rstd *torch.Tensor)) {
	c := o.p.config
	for _, kind := range [][2]int{{0, c.Heads}, {c.Heads, c.KVHeads}} {
		var r *torch.Tensor
		if rstd != nil {
			r = rstd.Rows(kind[0], kind[0]+kind[1])
			defer r.Free()
		}
		f(kind[0], kind[1], r)
	}
}

func (o *onDevice) normHeads(w *Layer, a *activations) {
	o.eachKind(a.rstdHeads, func(first, n int, rstd *torch.Tensor) {
		torch.RMSNorm(a.qkv, a.qkv, first, n, w.headNorm(o.p.config, first), rstd, o.p.config.NormEps)
	})
}

func (o *onDevice) normHeadsBackward(_ *torch.Scope, w, g *Layer, a *activations, dqkv *torch.Tensor) {
	o.eachKind(a.rstdHeads, func(first, n int, rstd *torch.Tensor) {
		c := o.p.config
		torch.RMSNormBackward(a.raw, w.headNorm(c, first), rstd, dqkv, dqkv, g.headNorm(c, first), first, n)
	})
}

func (o *onDevice) rotate(qkv *torch.Tensor, positions indices, inverse bool) {
	c := o.p.config
	torch.Rope(qkv, c.Heads+c.KVHeads, c.HeadDim, positions.device, o.cos, o.sin, inverse)
}

func (*onDevice) swiglu(gateUp, act *torch.Tensor)          { torch.SwiGLU(gateUp, act) }
func (*onDevice) swigluBackward(gateUp, dact *torch.Tensor) { torch.SwiGLUBackward(gateUp, dact) }

func (o *onDevice) heads(layer int) torch.Heads {
	c := o.p.config
	return torch.Heads{
		Heads: c.Heads, KVHeads: c.KVHeads, Dim: c.HeadDim, Window: c.window(layer), Scale: 1 / math.Sqrt(float64(c.HeadDim)),
		Fused: o.half && !o.p.options.Determinism,
	}
}

func (o *onDevice) attention(layer int, qkv *torch.Tensor, offsets []int32, out, lse *torch.Tensor) {
	torch.Attention(o.heads(layer), qkv, offsets, out, lse)
}

func (o *onDevice) attentionBackward(layer int, qkv, out, lse, dout *torch.Tensor, offsets []int32, dqkv *torch.Tensor) {
	torch.AttentionBackward(o.heads(layer), qkv, out, lse, dout, offsets, dqkv)
}

func (*onDevice) round(*torch.Tensor) {}

func (*onDevice) logprob(logits *torch.Tensor, targets indices, logprobs, entropies, lse *torch.Tensor) {
	torch.Logprob(logits, targets.device, logprobs, entropies, lse)
}

func (*onDevice) logprobBackward(logits *torch.Tensor, targets indices, lse, g *torch.Tensor) {
	torch.LogprobBackward(logits, targets.device, lse, g)
}

func (*onDevice) squares(t *torch.Tensor) float64 { return torch.SumSquares(t) }

func (*onDevice) adamw(u native.AdamW, w, g, m, v *torch.Tensor, lo, hi int) {
	var part [4]*torch.Tensor
	for i, t := range []*torch.Tensor{w, g, m, v} {
		part[i] = t.Rows(lo, hi)
		defer part[i].Free()
	}
	torch.AdamWStep(torch.AdamW(u), part[0], part[1], part[2], part[3])
}

func (*onDevice) follow(mean, w *torch.Tensor, decay float64, lo, hi int) {
	to, from := mean.Rows(lo, hi), w.Rows(lo, hi)
	defer to.Free()
	defer from.Free()
	torch.Lerp(to, from, 1-decay)
}

// batch is a number of sequences with one new token each, and where their keys are.
type batch struct{ rows, pages, base, length *torch.Tensor }

// run is several new tokens of one sequence.
type run struct {
	native.Segment
	pages *torch.Tensor
	base  int
}

// paging is where the queries of a step find their keys, under one window.
type paging struct {
	batches []batch
	runs    []run
}

// pagedElements bounds the keys and values that are gathered from the cache at a time,
// unless those of one sequence are more.
const pagedElements = 32 << 20

// page readies segments under a window.
func (o *onDevice) page(s *torch.Scope, segs []native.Segment, table []int32, window int) (p paging) {
	const size = native.BlockTokens
	ready := func(of []int32) *torch.Tensor { return o.indices(s, of).device }
	// blocks are those of a segment that a query sees, and the position of the first.
	blocks := func(seg native.Segment) (pages []int32, base int) {
		first, end := 0, int(seg.Past+seg.Rows)
		if window > 0 {
			first = max(0, int(seg.Past)-window+1) / size
		}
		return table[int(seg.Table)+first : int(seg.Table)+(end+size-1)/size], first * size
	}
	var single []native.Segment
	for _, seg := range segs {
		if seg.Rows == 1 {
			single = append(single, seg)
			continue
		}
		pages, base := blocks(seg)
		p.runs = append(p.runs, run{seg, ready(pages), base})
	}
	// Sequences of like length are padded least.
	slices.SortStableFunc(single, func(a, b native.Segment) int { return cmp.Compare(b.Past, a.Past) })
	block := o.p.Attention(0).CacheBlock()
	for len(single) > 0 {
		widest := 0
		for _, seg := range single {
			pages, _ := blocks(seg)
			widest = max(widest, len(pages))
		}
		n := min(len(single), max(1, pagedElements/(widest*block)))
		pages := make([]int32, n*widest)
		var rows, bases, lengths []int32
		for i, seg := range single[:n] {
			own, base := blocks(seg)
			copy(pages[i*widest:], own)
			rows, bases, lengths = append(rows, seg.Row), append(bases, int32(base)), append(lengths, seg.Past+1)
		}
		p.batches = append(p.batches, batch{ready(rows), ready(pages), ready(bases), ready(lengths)})
		single = single[n:]
	}
	return p
}

func (*onDevice) rotatesCached() bool { return false }

func (o *onDevice) attendCached(s *torch.Scope, cache *Cache, segs, last []native.Segment, table []int32) Attend {
	const size = native.BlockTokens
	var slots []int32
	for _, seg := range segs {
		for at := seg.Past; at < seg.Past+seg.Rows; at++ {
			slots = append(slots, table[seg.Table+at/size]*size+at%size)
		}
	}
	to := o.indices(s, slots).device
	type kind struct {
		window int
		last   bool
	}
	ready := map[kind]paging{}
	return func(layer int, qkv, out *torch.Tensor) {
		h, in := o.heads(layer), cache.layers[layer]
		torch.CacheAppend(h, qkv, to, in, size)
		k, queries := kind{h.Window, layer == o.p.config.Layers-1}, segs
		if k.last {
			queries = last
		}
		p, ok := ready[k]
		if !ok {
			p = o.page(s, queries, table, h.Window)
			ready[k] = p
		}
		for _, b := range p.batches {
			torch.AttentionDecode(h, qkv, b.rows, b.pages, b.base, b.length, in, size, out)
		}
		for _, r := range p.runs {
			torch.AttentionExtend(h, qkv, int(r.Row), int(r.Rows), int(r.Past), r.pages, r.base, in, size, out)
		}
	}
}

func (*onDevice) sample(logits *torch.Tensor, draws []Draw) (tokens []int32, logprobs, sampled []float32) {
	all := make([]torch.Draw, len(draws))
	for i, d := range draws {
		all[i] = torch.Draw{Temperature: d.Temperature, TopP: d.TopP, MinP: d.MinP, TopK: d.TopK, U: d.U}
	}
	return torch.Sample(logits, all)
}
