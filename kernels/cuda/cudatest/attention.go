package cudatest

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"github.com/ssr-go/ssr/kernels/cuda"
)

func testAttention(b bench) {
	for _, a := range []cuda.Attention{
		{Heads: 4, KVHeads: 2, Dim: 16, Scale: 0.25},
		{Heads: 3, KVHeads: 3, Dim: 40, Window: 100, Scale: 0.2},
		{Heads: 6, KVHeads: 1, Dim: 64, Window: 300, Scale: 0.125},
	} {
		decode(newPaged(b, cuda.F32, a, 1, 37, 600))
	}
	for _, c := range []struct {
		a       cuda.Attention
		lengths []int
	}{
		{cuda.Attention{Heads: 2, KVHeads: 2, Dim: 64, Scale: 0.125}, []int{1, 15, 16, 17, 127, 128, 129, 257}},
		{cuda.Attention{Heads: 2, KVHeads: 1, Dim: 64, Scale: 0.125}, []int{1100}}, // more blocks than a warp has lanes
		{cuda.Attention{Heads: 2, KVHeads: 2, Dim: 64, Window: 200, Scale: 0.125}, []int{1100}},
		{cuda.Attention{Heads: 4, KVHeads: 2, Dim: 128, Window: 100, Scale: 0.09}, []int{1, 37, 300}},
		{cuda.Attention{Heads: 4, KVHeads: 1, Dim: 64, Window: 16, Scale: 0.125}, []int{1, 130, 144}},
		{cuda.Attention{Heads: 7, KVHeads: 1, Dim: 64, Scale: 0.125}, []int{2, 700}},
		{cuda.Attention{Heads: 8, KVHeads: 1, Dim: 128, Window: 300, Scale: 0.09}, []int{33, 450}},
		{cuda.Attention{Heads: 16, KVHeads: 1, Dim: 64, Scale: 0.125}, []int{3, 140}},
		{cuda.Attention{Heads: 40, KVHeads: 2, Dim: 64, Scale: 0.5}, []int{1, 40}},
	} {
		attend(newPaged(b, cuda.BF16, c.a, c.lengths...))
	}
}

// paged are sequences whose keys and values are in a cache, in blocks out of order.
type paged struct {
	bench
	a       cuda.Attention
	lengths []int
	first   []int       // row of each sequence's first token
	table   []int       // where its blocks begin
	rows    [][]float64 // queries, keys and values of every token, as attention has them
	// On the machine: rows, cache, and numbers of blocks.
	qkv, cache, blocks cuda.Pointer
}

func (p *paged) width() int { return (p.a.Heads + 2*p.a.KVHeads) * p.a.Dim }

// newPaged fills a cache of t through RopeAppend and compares with rotation by complex
// numbers. What the cache holds beside is NaN.
func newPaged(b bench, t cuda.DType, a cuda.Attention, lengths ...int) *paged {
	p := &paged{bench: b, a: a, lengths: lengths}
	all, pages, longest := 0, 0, slices.Max(lengths)
	for _, n := range lengths {
		p.first = append(p.first, all)
		all += n
		pages += (n + cuda.PageTokens - 1) / cuda.PageTokens
	}
	half := a.Dim / 2
	cos, sin := make([]float64, longest*half), make([]float64, longest*half)
	for at := range longest {
		for i := range half {
			angle := float64(at) * math.Pow(10000, -2*float64(i)/float64(a.Dim))
			cos[at*half+i], sin[at*half+i] = math.Cos(angle), math.Sin(angle)
		}
	}
	pc, cos := b.putAs(cuda.F32, cos)
	ps, sin := b.putAs(cuda.F32, sin)
	free := b.rng.Perm(pages + 3)
	var blocks, position, slot []int64
	for _, n := range lengths {
		p.table = append(p.table, len(blocks))
		for i := range n {
			if i%cuda.PageTokens == 0 {
				blocks, free = append(blocks, int64(free[0])), free[1:]
			}
			position = append(position, int64(i))
			slot = append(slot, blocks[len(blocks)-1]*cuda.PageTokens+int64(i%cuda.PageTokens))
		}
	}
	p.blocks = b.put(blocks)
	size := (pages + 3) * a.PageElements() * t.Size()
	nothing := bytes.Repeat([]byte{0xff}, size)
	p.cache = b.put(nothing)
	random := b.normal((all+1)*p.width(), 1)
	for i := range random[all*p.width():] { // a row that is not to be looked at
		random[all*p.width()+i] = math.NaN()
	}
	qkv, values := b.putAs(cuda.F32, random)
	at, to, again := b.put(position), b.put(slot), b.copied(qkv, all*p.width()*4)
	b.ok(cuda.RopeAppend(b.m, t, a, qkv, at, to, pc, ps, p.cache, all))
	p.qkv = qkv
	written := get[byte](b, p.cache, size)

	got := getAs(b, cuda.F32, qkv, all*p.width())
	for i := range all {
		row := values[i*p.width() : (i+1)*p.width()]
		for h := range a.Heads + a.KVHeads {
			v := row[h*a.Dim : (h+1)*a.Dim]
			for d := range half {
				z := complex(v[d], v[d+half]) * complex(cos[int(position[i])*half+d], sin[int(position[i])*half+d])
				v[d], v[d+half] = real(z), imag(z)
			}
		}
		own := got[i*p.width() : (i+1)*p.width()]
		b.near(t, "rotated", own, row)
		p.rows = append(p.rows, own)
		for h := range 2 * a.KVHeads {
			where := int(slot[i])/cuda.PageTokens*a.PageElements() + (h%a.KVHeads*2+h/a.KVHeads)*cuda.PageTokens*a.Dim + int(slot[i])%cuda.PageTokens*a.Dim
			kept := getAs(b, t, p.cache.At(where, t.Size()), a.Dim)
			if !slices.Equal(kept, own[(a.Heads+h)*a.Dim:][:a.Dim]) {
				b.Fatalf("%v %+v: row %d, head %d is another in the cache", t, a, i, h)
			}
		}
	}
	// Rotated first and then written it is the same, and there and back it is what it was.
	heads := a.Heads + a.KVHeads
	unturned := getAs(b, cuda.F32, again, all*p.width())
	b.ok(cuda.Rope(b.m, cuda.F32, again, at, pc, ps, all, heads, a.Dim, p.width(), false))
	turned := b.copied(again, all*p.width()*4)
	b.ok(b.m.Upload(p.cache, nothing))
	b.ok(cuda.RopeAppend(b.m, t, a, again, at, to, 0, 0, p.cache, all))
	if !bytes.Equal(get[byte](b, p.cache, size), written) || !slices.Equal(getAs(b, cuda.F32, again, all*p.width()), got) {
		b.Fatalf("%v %+v: another result where keys are rotated before", t, a)
	}
	b.ok(cuda.Rope(b.m, cuda.F32, turned, at, pc, ps, all, heads, a.Dim, p.width(), true))
	b.near(cuda.F32, "rotated there and back", getAs(b, cuda.F32, turned, all*p.width()), unturned)
	return p
}

// want is the softmax over all keys that token i of a sequence sees: its output for a head,
// the same of the values' sizes, and the log of the denominator.
func (p *paged) want(sequence, i, head int) (out, sizes []float64, lse float64) {
	a, first := p.a, 0
	if a.Window > 0 {
		first = max(0, i+1-a.Window)
	}
	row := func(i int) []float64 { return p.rows[p.first[sequence]+i] }
	key := a.Heads + head/(a.Heads/a.KVHeads)
	out, sizes = make([]float64, a.Dim), make([]float64, a.Dim)
	sum := 0.0
	for j := first; j <= i; j++ {
		dot := 0.0
		for d, x := range row(i)[head*a.Dim:][:a.Dim] {
			dot += x * row(j)[key*a.Dim+d]
		}
		w := math.Exp(dot * a.Scale)
		sum += w
		for d, v := range row(j)[(key+a.KVHeads)*a.Dim:][:a.Dim] {
			out[d] += w * v
			sizes[d] += w * math.Abs(v)
		}
	}
	for d := range out {
		out[d] /= sum
		sizes[d] /= sum
	}
	return out, sizes, math.Log(sum)
}

// last is the row of a sequence's last token.
func (p *paged) last(sequence int) int { return p.first[sequence] + p.lengths[sequence] - 1 }

// results is where attention puts what it gives for all rows, and one row more.
type results struct{ out, lse cuda.Pointer }

func (p *paged) results() results {
	n := len(p.rows) + 1
	return results{p.room(n * p.a.Heads * p.a.Dim * 4), p.room(n * p.a.Heads * 4)}
}

// row downloads that of one.
func (p *paged) row(r results, row int) (out []float64, lse []float32) {
	width := p.a.Heads * p.a.Dim
	return getAs(p.bench, cuda.F32, r.out.At(row*width, 4), width), get[float32](p.bench, r.lse.At(row*p.a.Heads, 4), p.a.Heads)
}

// nearLog compares the log of a denominator, whose scores are rounded to float32.
func (p *paged) nearLog(got float32, want float64) {
	p.Helper()
	if !(math.Abs(float64(got)-want) <= 2e-6*(1+math.Abs(want))) {
		p.Fatalf("%+v: lse is %v, want %v", p.a, got, want)
	}
}

// nothing checks the row past the last, which saw no key.
func (p *paged) nothing(r results) {
	out, lse := p.row(r, len(p.rows))
	if i := slices.IndexFunc(out, func(v float64) bool { return v != 0 }); i >= 0 || !math.IsInf(float64(lse[0]), -1) {
		p.Fatalf("%+v: without a key it is %v, lse %v", p.a, out, lse[0])
	}
}

// decode tests Decode.
func decode(p *paged) {
	longest := slices.Max(p.lengths)
	scratch, r := p.room(cuda.DecodeScratch(p.a, len(p.lengths)+1, longest)), p.results()
	list := []int64{int64(len(p.rows)), 1 << 40, 0} // no keys
	for s := len(p.lengths) - 1; s >= 0; s-- {      // in another order than the rows
		list = append(list, int64(p.last(s)), int64(p.table[s]), int64(p.lengths[s]))
	}
	queries := p.put(list)
	p.ok(cuda.Decode(p.m, p.a, p.qkv, p.width(), p.cache, p.blocks, queries, len(p.lengths)+1, longest, scratch, r.out, r.lse))
	p.nothing(r)
	alone := p.results()
	for s, n := range p.lengths {
		out, lse := p.row(r, p.last(s))
		for h := range p.a.Heads {
			want, _, log := p.want(s, n-1, h)
			p.near(cuda.F32, fmt.Sprintf("%+v: %d keys, head %d", p.a, n, h), out[h*p.a.Dim:][:p.a.Dim], want)
			p.nearLog(lse[h], log)
		}
		// Alone, with room for no more keys than it has, it has the same bits.
		p.ok(cuda.Decode(p.m, p.a, p.qkv, p.width(), p.cache, p.blocks, queries.At(len(p.lengths)-s, cuda.QuerySize), 1, n, scratch, alone.out, 0))
		if got, _ := p.row(alone, p.last(s)); !slices.Equal(got, out) {
			p.Fatalf("%+v: %d keys: other bits alone", p.a, n)
		}
	}
}

// attend tests Attend: one token a sequence, many, and whole sequences, by a warp a split
// and by one for all: the same bits, which the definition bounds.
func attend(p *paged) {
	a, longest := p.a, slices.Max(p.lengths)
	run := func(words []int32, keys int, split bool) results {
		r, n, scratch := p.results(), len(words)/cuda.TileWords, cuda.Pointer(0)
		if split {
			scratch = p.room(cuda.AttendScratch(a, n, keys))
		}
		list := make([]int64, len(words))
		for i, w := range words {
			list[i] = int64(w)
		}
		p.ok(cuda.Attend(p.m, a, p.qkv, p.width(), p.cache, p.blocks, p.put(list), n, keys, scratch, r.out, r.lse))
		return r
	}
	// tokens are the tiles of the last n tokens of a sequence.
	tokens := func(words []int32, s, n int) []int32 {
		n = min(n, p.lengths[s])
		was := len(words)
		words = a.AppendTiles(words, p.last(s)-n+1, n, p.table[s], p.lengths[s]-n+1)
		if got := (len(words) - was) / cuda.TileWords; got != a.Tiles(n) {
			p.Fatalf("%+v: %d tokens have %d tiles, not %d", a, n, got, a.Tiles(n))
		}
		return words
	}
	const several = 21
	single := a.AppendTiles(nil, len(p.rows), 1, 1<<30, 0) // no keys
	var many []int32
	for s := len(p.lengths) - 1; s >= 0; s-- { // in another order than the rows
		single, many = tokens(single, s, 1), tokens(many, s, several)
	}
	decoded := run(single, longest, true)
	p.nothing(decoded)
	p.nothing(run(single[:a.Tiles(1)*cuda.TileWords], 1, false))
	same := func(what string, got, want results, row int) {
		p.Helper()
		out, lse := p.row(want, row)
		o, l := p.row(got, row)
		if !slices.Equal(o, out) || !slices.Equal(l, lse) {
			p.Fatalf("%+v, row %d: other bits %s", a, row, what)
		}
	}
	split, whole := run(many, longest, true), run(many, longest+200, false)
	for s, n := range p.lengths {
		same("among others of its sequence", split, decoded, p.last(s))
		same("alone", run(tokens(nil, s, 1), n, true), decoded, p.last(s))
		for i := max(0, n-several); i < n; i++ {
			row := p.first[s] + i
			same("by one warp for all keys", whole, split, row)
			out, lse := p.row(split, row)
			for h := range a.Heads {
				want, sizes, log := p.want(s, i, h)
				p.nearLog(lse[h], log)
				for d, w := range want {
					// Weights are rounded to 8 bits, which is off by 2⁻⁸ of each at most.
					if got := out[h*a.Dim+d]; !(math.Abs(got-w) <= sizes[d]/256+1e-5) {
						p.Fatalf("%+v: %d keys, head %d: [%d] = %v, want %v within %v", a, i+1, h, d, got, w, sizes[d]/256)
					}
				}
			}
		}
	}
	// A sequence from its beginning: first tokens have other tiles.
	begin := run(a.AppendTiles(nil, p.first[0], p.lengths[0], p.table[0], 1), p.lengths[0], false)
	same("from the beginning", begin, decoded, p.last(0))
}
