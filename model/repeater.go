package model

import (
	"encoding/binary"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// repeater computes steps of one new token a sequence by repeating recorded ones: a step
// of many small launches then takes the host one call. There is a recording for each
// bucket of rows and keys, made when it is first needed. It reads its input from memory
// of its own, which each step fills, and weights and cache where they are: an update in
// place needs no other recording. Rows that a bucket has beyond the step's keep nothing
// and see nothing.
type repeater struct {
	k       *onKernels
	m       cuda.Recorder
	cache   *Cache
	arena   *torch.Arena // of all buckets, of which one at a time computes
	buckets map[size]*bucket
}

// size is that of a bucket: how many rows, and how many keys each may have.
type size struct{ rows, keys int }

// bucketKeys is the least number of keys, what one block of the decoding kernel visits.
const bucketKeys = 256

// sizeOf is the smallest bucket for so many rows and keys: powers of two.
func sizeOf(rows, keys int) size {
	s := size{1, bucketKeys}
	for s.rows < rows {
		s.rows *= 2
	}
	for s.keys < keys {
		s.keys *= 2
	}
	return s
}

// pages is how many blocks of the cache a row may have.
func (s size) pages() int { return s.keys / native.BlockTokens }

// words is how many indices a bucket reads: a token, position, slot and so many words of
// queries for each row, and its blocks.
func (s size) words(query int) int { return s.rows * (3 + query + s.pages()) }

// newRepeater is nil where the machine does not record. What steps of so many sequences
// compute in is taken here, for recordings have its addresses.
func newRepeater(k *onKernels, cache *Cache, sequences int) *repeater {
	m, ok := k.m.(cuda.Recorder)
	if !ok {
		return nil
	}
	d := &repeater{k: k, m: m, cache: cache, arena: k.p.NewArena(), buckets: map[size]*bucket{}}
	d.arena.Reserve(stepMeter(k.p.config, k.p.options, sizeOf(sequences, 1).rows).Meter)
	return d
}

func (d *repeater) free() {
	for _, b := range d.buckets {
		b.free()
	}
	d.arena.Free()
}

// step is Cache.Decode.
func (d *repeater) step(tokens []int32, segs []native.Segment, table []int32, draws []Draw) (next []int32, logprobs, sampled []float32) {
	keys := 0
	for _, seg := range segs {
		keys = max(keys, int(seg.Past)+1)
	}
	s := sizeOf(len(tokens), keys)
	b := d.buckets[s]
	if b == nil {
		b = d.newBucket(s)
		d.buckets[s] = b
	}
	bytes := make([]byte, 0, 8*b.input.Len())
	for _, word := range s.layOut(d.k, tokens, segs, table) {
		bytes = binary.LittleEndian.AppendUint64(bytes, uint64(word))
	}
	err := d.m.Upload(at(b.input), d.k.appendRequests(bytes, draws))
	must("Decode", err)
	if b.work != nil {
		err = b.work.Replay()
	} else {
		b.work, err = d.m.Record(func() error { return b.compute(d) })
	}
	must("Decode", err)
	return b.drawn.read(d.k, len(tokens))
}

// layOut is the input of a step, padded to the bucket.
func (s size) layOut(k *onKernels, tokens []int32, segs []native.Segment, table []int32) []int32 {
	const block = native.BlockTokens
	width := k.p.options.queryWords(k.p.config)
	words := make([]int32, s.words(width))
	part := func(first, width int) []int32 { return words[first*s.rows:][:width*s.rows] }
	position, slot, query, pages := part(1, 1), part(2, 1), part(3, width)[:0], words[(3+width)*s.rows:]
	copy(words, tokens)
	for i := range s.rows {
		keys := int32(0)
		slot[i] = -1
		if i < len(segs) {
			past, own := segs[i].Past, table[segs[i].Table:]
			position[i], keys = past, past+1
			slot[i] = own[past/block]*block + past%block
			copy(pages[i*s.pages():], own[:past/block+1])
		}
		query = k.appendQueries(query, int32(i), 1, int32(i*s.pages()), keys)
	}
	return words
}

// bucket is the memory of steps of one size, and their recording.
type bucket struct {
	size
	input  *torch.Tensor // all of the following, in their order, and what is asked of the draws
	tokens indices
	parts  [4]*torch.Tensor // positions, slots, queries, blocks
	drawn  sampling
	work   cuda.Recording // nil until it is recorded
}

func (d *repeater) newBucket(s size) *bucket {
	width := d.k.p.options.queryWords(d.k.p.config)
	b := &bucket{size: s, input: d.k.p.options.Device.New(torch.Activations, torch.Int64, s.words(width)+s.rows*cuda.SamplingSize/8)}
	b.tokens = indices{make([]int32, s.rows), b.input.View(0, s.rows)}
	first := s.rows
	for i, n := range []int{s.rows, s.rows, width * s.rows, s.rows * s.pages()} {
		b.parts[i] = b.input.View(first, n)
		first += n
	}
	b.drawn = sampling{b.input.View(first, b.input.Len()-first), d.k.words(3 * s.rows)}
	return b
}

func (b *bucket) free() {
	if b.work != nil {
		b.work.Free()
	}
	b.drawn.free()
	for _, t := range append(b.parts[:], b.tokens.device, b.input) {
		t.Free()
	}
}

// compute queues a step: always the same operations on the same memory.
func (b *bucket) compute(d *repeater) (err error) {
	defer torch.Catch(&err)
	p, k := d.k.p, d.k
	s := d.arena.Scope()
	defer s.Close()
	list := queries{b.parts[2], b.parts[2].Len() * 8 / k.querySize(), b.keys}
	attend := func(layer int, qkv, out *torch.Tensor) {
		in := d.cache.layers[layer]
		k.appendRows(qkv, b.parts[0], b.parts[1], in)
		k.attend(k.heads(layer), qkv, in, b.parts[3], list, d.cache.scratch, out, nil)
	}
	x := p.embed(s, b.tokens)
	for i := range p.weights.Layers {
		inner := s.Nest()
		layerForward(p, inner, i, x, indices{}, attend, p.newActivations(inner, b.rows, false))
		inner.Close()
	}
	k.rms(x, p.weights.Norm, x, nil)
	for lo, rows := 0, p.LogitRows(); lo < b.rows; lo += rows {
		hi := min(lo+rows, b.rows)
		inner := s.Nest()
		logits := inner.Empty(hi-lo, p.config.VocabSize)
		p.project(logits, inner.Own(x.Rows(lo, hi)))
		b.drawn.queue(k, logits, lo)
		inner.Close()
	}
	return nil
}
