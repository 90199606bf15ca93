package model

import (
	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// A page of kernels/cuda is a block of the cache.
const _ = uint(native.BlockTokens-cuda.PageTokens) + uint(cuda.PageTokens-native.BlockTokens)

// scratchBytes bounds what the splits of an attention launch leave to be joined, unless
// those of one query are more.
const scratchBytes = 64 << 20

// attentionOf is the attention of a layer without a window.
func attentionOf(c Config) cuda.Attention {
	return cuda.Attention{Heads: c.Heads, KVHeads: c.KVHeads, Dim: c.HeadDim}
}

// tensorCores says whether attention over a cache, which is then of bfloat16, is that of
// tensor cores.
func (o Options) tensorCores(c Config) bool {
	return o.Kernels != nil && o.DType == torch.BFloat16 && attentionOf(c).TensorCores()
}

// scratch is how many words of memory the splits of n queries are joined in.
func (o Options) scratch(c Config, n, keys int) int {
	one := cuda.DecodeScratch
	if o.tensorCores(c) {
		one = cuda.AttendScratch
	}
	least := one(attentionOf(c), 1, max(keys, 1))
	return max(least, min(n*least, scratchBytes)) / 4
}

// queryWords is how many words of queries a token has at most.
func (o Options) queryWords(c Config) int {
	if o.tensorCores(c) {
		return attentionOf(c).Tiles(1) * cuda.TileWords
	}
	return cuda.QuerySize / 8
}

// queries are what the attention kernel takes of tokens: cuda.QuerySize each, or tiles of
// them, cuda.TileSize each.
type queries struct {
	device *torch.Tensor
	n      int
	keys   int // of a token, at most
}

// appendQueries appends those of consecutive tokens of a sequence, the first of which is in
// that row and sees so many keys.
func (k *onKernels) appendQueries(words []int32, row, tokens, table, keys int32) []int32 {
	if k.tiled {
		return attentionOf(k.p.config).AppendTiles(words, int(row), int(tokens), int(table), int(keys))
	}
	for i := range tokens {
		words = append(words, row+i, table, keys+i)
	}
	return words
}

// queries of all rows of segments; device makes them a tensor.
func (k *onKernels) queries(segs []native.Segment, device func([]int32) *torch.Tensor) (q queries) {
	var words []int32
	for _, seg := range segs {
		words = k.appendQueries(words, seg.Row, seg.Rows, seg.Table, seg.Past+1)
		q.keys = max(q.keys, int(seg.Past+seg.Rows))
	}
	q.device, q.n = device(words), len(words)*8/k.querySize()
	return q
}

func (k *onKernels) querySize() int {
	if k.tiled {
		return cuda.TileSize
	}
	return cuda.QuerySize
}

// attend gives out [T, H·D], and lse [T, H] unless it is nil, the rows of queries.
func (k *onKernels) attend(h torch.Heads, qkv, cache, table *torch.Tensor, q queries, scratch, out, lse *torch.Tensor) {
	if q.n == 0 {
		return
	}
	a := attentionOf(k.p.config)
	a.Window, a.Scale = h.Window, h.Scale
	room, size := scratch, scratch.Len()/k.p.options.scratch(k.p.config, 1, q.keys)
	if k.tiled && !a.Splits(q.n) {
		room, size = nil, q.n
	}
	for first := 0; first < q.n; first += size {
		list, n := at(q.device).At(first, k.querySize()), min(size, q.n-first)
		if k.tiled {
			must("Attend", cuda.Attend(k.m, a, at(qkv), qkv.Shape()[1], at(cache), at(table), list, n, q.keys, at(room), at(out), at(lse)))
		} else {
			must("Decode", cuda.Decode(k.m, a, at(qkv), qkv.Shape()[1], at(cache), at(table), list, n, q.keys, at(room), at(out), at(lse)))
		}
	}
}

// appendRows writes the keys and values of all rows to their slots, rotated here where
// positions are given, and leaves qkv as attention sees it.
func (k *onKernels) appendRows(qkv, positions, slots, cache *torch.Tensor) {
	var cos, sin cuda.Pointer
	if positions != nil {
		cos, sin = at(k.cos), at(k.sin)
	}
	dtype := map[bool]cuda.DType{false: cuda.F32, true: cuda.BF16}[k.tiled]
	must("RopeAppend", cuda.RopeAppend(k.m, dtype, attentionOf(k.p.config), at(qkv), at(positions), at(slots), cos, sin, at(cache), qkv.Shape()[0]))
}

// attention is libtorch's, or, where rows must not depend on each other, that over a cache,
// with pages that are made for the purpose.
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
	o, c := k.p.options, k.p.config
	q, to, pages := k.queries(segs, o.Device.Indices), o.Device.Indices(slots), o.Device.Indices(table)
	defer q.device.Free()
	defer to.Free()
	defer pages.Free()
	cache := o.Device.Empty(torch.Activations, o.cacheType(c), len(table)*k.p.Attention(layer).CacheBlock())
	defer cache.Free()
	scratch := k.words(o.scratch(c, q.n, q.keys))
	defer scratch.Free()
	k.appendRows(qkv, nil, to, cache)
	k.attend(k.heads(layer), qkv, cache, pages, q, scratch, out, lse)
}

func (*onKernels) rotatesCached() bool { return true }

func (k *onKernels) attendCached(s *torch.Scope, cache *Cache, segs, last []native.Segment, table []int32) Attend {
	const size = native.BlockTokens
	var positions, slots []int32
	for _, seg := range segs {
		for at := seg.Past; at < seg.Past+seg.Rows; at++ {
			positions = append(positions, at)
			slots = append(slots, table[seg.Table+at/size]*size+at%size)
		}
	}
	on := func(of []int32) *torch.Tensor { return k.indices(s, of).device }
	where, to, pages := on(positions), on(slots), on(table)
	single, runs := segs, []native.Segment(nil)
	if !k.invariant && !k.tiled { // several new tokens of a sequence share their keys in libtorch's products
		runs, single = split(segs)
	}
	all, final := k.queries(single, on), k.queries(last, on)
	windows := map[int]paging{}
	return func(layer int, qkv, out *torch.Tensor) {
		h, in := k.heads(layer), cache.layers[layer]
		k.appendRows(qkv, where, to, in)
		if layer == k.p.config.Layers-1 {
			k.attend(h, qkv, in, pages, final, cache.scratch, out, nil)
			return
		}
		k.attend(h, qkv, in, pages, all, cache.scratch, out, nil)
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
