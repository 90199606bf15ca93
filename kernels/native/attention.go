package native

// #include "api.h"
import "C"

import (
	"fmt"
	"math"
)

// BlockTokens is the number of tokens in a block of the KV cache.
const BlockTokens = C.SSR_BLOCK

// SpanTokens is the run of keys that a query visits at a time: with a window, the
// first that is read is the last multiple of it at or before the window's first.
const SpanTokens = 4 * BlockTokens

// Attention is the shape of grouped-query causal attention. A token's row of q
// and of the output is [H, D]; of k and v, [K, D]; query head h reads key head
// h/(H/K). Strides are elements from one token to the next, 0 for dense rows;
// gradients have the stride of what they are the gradient of.
type Attention struct {
	Heads, KVHeads, Dim int
	// Scale multiplies the scores; 0 means 1/sqrt(D).
	Scale float64
	// Window is how many tokens a query sees, itself the last of them; 0 means
	// all that precede it.
	Window int

	QStride, KStride, VStride, OutStride int
}

func (a Attention) c(op string) C.ssr_attention {
	if a.Heads <= 0 || a.KVHeads <= 0 || a.Dim <= 0 || a.Heads%a.KVHeads != 0 {
		panic(fmt.Sprintf("native.%s: %d heads over %d key heads of dimension %d", op, a.Heads, a.KVHeads, a.Dim))
	}
	if a.Window < 0 {
		panic(fmt.Sprintf("native.%s: a window of %d tokens", op, a.Window))
	}
	scale := a.Scale
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(a.Dim))
	}
	q, kv := a.Heads*a.Dim, a.KVHeads*a.Dim
	return C.ssr_attention{
		heads: C.long(a.Heads), kv_heads: C.long(a.KVHeads), dim: C.long(a.Dim), window: C.long(a.Window),
		ldq: pick(a.QStride, q), ldk: pick(a.KStride, kv), ldv: pick(a.VStride, kv), ldo: pick(a.OutStride, q),
		scale: C.double(scale),
	}
}

// sequences checks offsets (ascending, one more than there are sequences) and
// returns how many tokens the operands must reach to.
func sequences(op string, offsets []int32) int {
	if len(offsets) == 0 {
		panic("native." + op + ": offsets are empty; want one more than there are sequences")
	}
	last := int32(0)
	for i, o := range offsets {
		if o < last {
			panic(fmt.Sprintf("native.%s: offsets[%d] = %d descends", op, i, o))
		}
		last = o
	}
	return int(last)
}

func needAttention[F Float](op string, s C.ssr_attention, n int, q, k, v, out []F) {
	w, kw := int(s.heads*s.dim), int(s.kv_heads*s.dim)
	need(op, "q", q, n, int(s.ldq), w)
	need(op, "k", k, n, int(s.ldk), kw)
	need(op, "v", v, n, int(s.ldv), kw)
	need(op, "out", out, n, int(s.ldo), w)
}

// AttentionForward computes out[N, H, D] and the logsumexp lse[N, H] (which may
// be nil) of packed sequences: sequence i is tokens [offsets[i], offsets[i+1]).
// Offsets are absolute, so a caller spreads work by passing overlapping ranges
// of them.
func AttentionForward[F Float](a Attention, q, k, v []F, offsets []int32, out, lse []F) {
	const op = "AttentionForward"
	s, n := a.c(op), sequences(op, offsets)
	needAttention(op, s, n, q, k, v, out)
	if lse != nil {
		need(op, "lse", lse, n, a.Heads, a.Heads)
	}
	seqs := C.long(len(offsets) - 1)
	if single[F]() {
		C.ssr_attention_forward_float(&s, f32(q), f32(k), f32(v), i32(offsets), seqs, f32(out), f32(lse))
	} else {
		C.ssr_attention_forward_double(&s, f64(q), f64(k), f64(v), i32(offsets), seqs, f64(out), f64(lse))
	}
}

// AttentionBackward overwrites dq, dk and dv from the operands and results of
// AttentionForward and the gradient dout of its output.
func AttentionBackward[F Float](a Attention, q, k, v, out, lse, dout []F, offsets []int32, dq, dk, dv []F) {
	const op = "AttentionBackward"
	s, n := a.c(op), sequences(op, offsets)
	needAttention(op, s, n, q, k, v, out)
	needAttention(op, s, n, dq, dk, dv, dout)
	need(op, "lse", lse, n, a.Heads, a.Heads)
	seqs := C.long(len(offsets) - 1)
	if single[F]() {
		C.ssr_attention_backward_float(&s, f32(q), f32(k), f32(v), f32(out), f32(lse), f32(dout), i32(offsets), seqs,
			f32(dq), f32(dk), f32(dv))
	} else {
		C.ssr_attention_backward_double(&s, f64(q), f64(k), f64(v), f64(out), f64(lse), f64(dout), i32(offsets), seqs,
			f64(dq), f64(dk), f64(dv))
	}
}

// Segment is a run of new tokens of one sequence in a batch over the KV cache.
type Segment struct {
	// Row is the first row in the batch, Rows how many there are.
	Row, Rows int32
	// Past is the number of tokens of the sequence already in the cache.
	Past int32
	// Table is where the sequence's block numbers begin in the block table;
	// block number i holds its tokens [i·BlockTokens, (i+1)·BlockTokens).
	Table int32
}

// CacheBlock is the number of elements that one block takes in one layer.
func (a Attention) CacheBlock() int { return a.KVHeads * 2 * a.Dim * BlockTokens }

func segments[F Float](op string, a Attention, segs []Segment, table []int32, cache []F) (rows int) {
	blocks := len(cache) / a.CacheBlock()
	for i, s := range segs {
		used := (int(s.Past) + int(s.Rows) + BlockTokens - 1) / BlockTokens
		if s.Row < 0 || s.Rows <= 0 || s.Past < 0 || s.Table < 0 || int(s.Table)+used > len(table) {
			panic(fmt.Sprintf("native.%s: segment %d %+v needs %d blocks of a table of %d", op, i, s, used, len(table)))
		}
		needIDs(op, "table", table[s.Table:], used, blocks)
		rows = max(rows, int(s.Row+s.Rows))
	}
	return rows
}

func csegs(s []Segment) *C.int32_t {
	if len(s) == 0 {
		return nil
	}
	return (*C.int32_t)(&s[0].Row)
}

// CacheAppend writes the keys and values of the segments' rows, at positions
// Past, Past+1, …, into one layer's cache.
func CacheAppend[F Float](a Attention, k, v []F, segs []Segment, table []int32, cache []F) {
	const op = "CacheAppend"
	s, n := a.c(op), segments(op, a, segs, table, cache)
	kw := a.KVHeads * a.Dim
	need(op, "k", k, n, int(s.ldk), kw)
	need(op, "v", v, n, int(s.ldv), kw)
	if single[F]() {
		C.ssr_cache_append_float(&s, f32(k), f32(v), csegs(segs), C.long(len(segs)), i32(table), f32(cache))
	} else {
		C.ssr_cache_append_double(&s, f64(k), f64(v), csegs(segs), C.long(len(segs)), i32(table), f64(cache))
	}
}

// AttentionExtend computes the rows of the segments against the cache, which
// must already hold their own keys and values. A row has the bits that
// AttentionForward gives it. lse[R, H] may be nil.
func AttentionExtend[F Float](a Attention, q []F, segs []Segment, table []int32, cache []F, out, lse []F) {
	const op = "AttentionExtend"
	s, n := a.c(op), segments(op, a, segs, table, cache)
	w := a.Heads * a.Dim
	need(op, "q", q, n, int(s.ldq), w)
	need(op, "out", out, n, int(s.ldo), w)
	if lse != nil {
		need(op, "lse", lse, n, a.Heads, a.Heads)
	}
	if single[F]() {
		C.ssr_attention_extend_float(&s, f32(q), csegs(segs), C.long(len(segs)), i32(table), f32(cache), f32(out), f32(lse))
	} else {
		C.ssr_attention_extend_double(&s, f64(q), csegs(segs), C.long(len(segs)), i32(table), f64(cache), f64(out), f64(lse))
	}
}
