package model

import (
	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// A page of kernels/cuda is a block of the cache.
const _ = uint(native.BlockTokens-cuda.PageTokens) + uint(cuda.PageTokens-native.BlockTokens)

// scratchBytes bounds what the splits of a decoding launch leave to be joined, unless
// those of one query are more.
const scratchBytes = 64 << 20

// decoding is a layer's attention as the decoding kernel has it.
func decoding(h torch.Heads) cuda.Attention {
	return cuda.Attention{Heads: h.Heads, KVHeads: h.KVHeads, Dim: h.Dim, Window: h.Window, Scale: h.Scale}
}

// queries are tokens that attend to pages; see cuda.QuerySize.
type queries struct {
	device *torch.Tensor // [n, 3]
	n      int
	keys   int // at most
}

// queryWords are a query for every row of segments, and the most keys of one.
func queryWords(segs []native.Segment) (words []int32, keys int) {
	for _, seg := range segs {
		for i := range seg.Rows {
			words = append(words, seg.Row+i, seg.Table, seg.Past+i+1)
		}
		keys = max(keys, int(seg.Past+seg.Rows))
	}
	return words, keys
}

func (k *onKernels) queries(s *torch.Scope, segs []native.Segment) queries {
	words, keys := queryWords(segs)
	return queries{k.indices(s, words).device, len(words) / 3, keys}
}

// scratch is how many words of memory the splits of queries are joined in.
func (k *onKernels) scratch(n, keys int) int {
	one := cuda.DecodeScratch(decoding(k.heads(0)), 1, max(keys, 1))
	return max(one, min(n*one, scratchBytes)) / 4
}

// decode gives out [T, H·D], and lse [T, H] unless it is nil, the rows of queries.
func (k *onKernels) decode(h torch.Heads, qkv, cache, table *torch.Tensor, q queries, scratch, out, lse *torch.Tensor) {
	if q.n == 0 {
		return
	}
	a := decoding(h)
	size := scratch.Len() * 4 / cuda.DecodeScratch(a, 1, q.keys)
	for first := 0; first < q.n; first += size {
		must("Decode", cuda.Decode(k.m, a, at(qkv), qkv.Shape()[1], at(cache), at(table), at(q.device).At(first, cuda.QuerySize),
			min(size, q.n-first), q.keys, at(scratch), at(out), at(lse)))
	}
}

// appendRows writes the keys and values of all rows to their slots, rotated here where
// positions are given.
func (k *onKernels) appendRows(h torch.Heads, qkv, positions, slots, cache *torch.Tensor) {
	var cos, sin cuda.Pointer
	if positions != nil {
		cos, sin = at(k.cos), at(k.sin)
	}
	must("RopeAppend", cuda.RopeAppend(k.m, cuda.F32, decoding(h), at(qkv), at(positions), at(slots), cos, sin, at(cache), qkv.Shape()[0]))
}

// attention is libtorch's, or, where rows must not depend on each other, that of
// decoding: every token a query over pages that are made for the purpose.
func (k *onKernels) attention(layer int, qkv *torch.Tensor, offsets []int32, out, lse *torch.Tensor) {
	if !k.invariant {
		k.onDevice.attention(layer, qkv, offsets, out, lse)
		return
	}
	const size = native.BlockTokens
	if qkv.Shape()[0] == 0 {
		return
	}
	var segs []native.Segment
	var table, slots []int32
	for i, lo := range offsets[:len(offsets)-1] {
		seg := native.Segment{Row: lo, Rows: offsets[i+1] - lo, Table: int32(len(table))}
		for t := range seg.Rows {
			if t%size == 0 {
				table = append(table, int32(len(table)))
			}
			slots = append(slots, table[seg.Table+t/size]*size+t%size)
		}
		segs = append(segs, seg)
	}
	words, keys := queryWords(segs)
	on := k.p.options.Device
	q := queries{on.Indices(words), len(words) / 3, keys}
	defer q.device.Free()
	to, pages := on.Indices(slots), on.Indices(table)
	defer to.Free()
	defer pages.Free()
	cache, scratch := k.words(len(table)*k.p.Attention(layer).CacheBlock()), k.words(k.scratch(q.n, keys))
	defer cache.Free()
	defer scratch.Free()
	h := k.heads(layer)
	k.appendRows(h, qkv, nil, to, cache)
	k.decode(h, qkv, cache, pages, q, scratch, out, lse)
}

func (*onKernels) rotatesCached() bool { return true }

func (k *onKernels) attendCached(s *torch.Scope, cache []*torch.Tensor, segs, last []native.Segment, table []int32) Attend {
	const size = native.BlockTokens
	var positions, slots []int32
	for _, seg := range segs {
		for at := seg.Past; at < seg.Past+seg.Rows; at++ {
			positions = append(positions, at)
			slots = append(slots, table[seg.Table+at/size]*size+at%size)
		}
	}
	where, to, pages := k.indices(s, positions).device, k.indices(s, slots).device, k.indices(s, table).device
	single, runs := segs, []native.Segment(nil)
	if !k.invariant { // several new tokens of a sequence share their keys in libtorch's products
		runs, single = split(segs)
	}
	all, final := k.queries(s, single), k.queries(s, last)
	scratch := s.Empty(max(k.scratch(all.n, all.keys), k.scratch(final.n, final.keys)))
	windows := map[int]paging{}
	return func(layer int, qkv, out *torch.Tensor) {
		h, in := k.heads(layer), cache[layer]
		k.appendRows(h, qkv, where, to, in)
		if layer == k.p.config.Layers-1 {
			k.decode(h, qkv, in, pages, final, scratch, out, nil)
			return
		}
		k.decode(h, qkv, in, pages, all, scratch, out, nil)
		p, ok := windows[h.Window]
		if !ok {
			p = k.page(s, runs, table, h.Window)
			windows[h.Window] = p
		}
		for _, r := range p.runs {
			torch.AttentionExtend(h, qkv, int(r.Row), int(r.Rows), int(r.Past), r.pages, r.base, in, size, out)
		}
	}
}

// split parts segments of several rows from those of one.
func split(segs []native.Segment) (several, single []native.Segment) {
	for _, seg := range segs {
		if seg.Rows == 1 {
			single = append(single, seg)
		} else {
			several = append(several, seg)
		}
	}
	return several, single
}
