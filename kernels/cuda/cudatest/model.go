package cudatest

import (
	"bytes"
	"fmt"
	"math"

	"github.com/ssr-go/ssr/kernels/cuda"
)

func testAttention(b bench) {
	dtypes(func(t cuda.DType) {
		for _, a := range []cuda.Attention{
			{Heads: 4, KVHeads: 2, Dim: 16, Scale: 0.25},
			{Heads: 3, KVHeads: 3, Dim: 40, Window: 100, Scale: 0.2},
			{Heads: 6, KVHeads: 1, Dim: 64, Window: 300, Scale: 0.125},
		} {
			attention(b, t, a)
		}
	})
}

// attention fills a paged cache through RopeAppend, in blocks out of order, decodes,
// and compares with rotation by complex numbers and a softmax over all keys.
func attention(b bench, t cuda.DType, a cuda.Attention) {
	lengths := []int64{1, 37, 600}
	const maxKeys, ld, pages = 640, 20, 60
	width := (a.Heads + 2*a.KVHeads) * a.Dim
	half := a.Dim / 2
	cos, sin := make([]float64, maxKeys*half), make([]float64, maxKeys*half)
	for p := range maxKeys {
		for i := range half {
			angle := float64(p) * math.Pow(10000, -2*float64(i)/float64(a.Dim))
			cos[p*half+i], sin[p*half+i] = math.Cos(angle), math.Sin(angle)
		}
	}
	pc, cos := b.putAs(cuda.F32, cos)
	ps, sin := b.putAs(cuda.F32, sin)
	free := b.rng.Perm(pages)
	table := make([]int64, len(lengths)*ld)
	cache := b.room(pages * a.PageElements() * t.Size())
	var queries []float64 // rotated, of each sequence's last token
	keys, values := make([][]float64, len(lengths)), make([][]float64, len(lengths))
	qs := make([]float64, 0, len(lengths)*width)
	for s, n := range lengths {
		tokens := int(n)
		for i := 0; i*cuda.PageTokens < tokens; i++ {
			table[s*ld+i], free = int64(free[0]), free[1:]
		}
		qkv, rows := b.putAs(t, b.normal(tokens*width, 1))
		position, slot := make([]int64, tokens), make([]int64, tokens)
		for i := range tokens {
			position[i] = int64(i)
			slot[i] = table[s*ld+i/cuda.PageTokens]*cuda.PageTokens + int64(i%cuda.PageTokens)
		}
		at, to, again := b.put(position), b.put(slot), b.copied(qkv, tokens*width*t.Size())
		b.ok(cuda.RopeAppend(b.m, t, a, qkv, at, to, pc, ps, cache, tokens))
		written := get[byte](b, cache, pages*a.PageElements()*t.Size())
		// Rotated first and then written, there and back, it is the same.
		unturned := get[byte](b, again, tokens*width*t.Size())
		heads := a.Heads + a.KVHeads
		b.ok(cuda.Rope(b.m, t, again, at, pc, ps, tokens, heads, a.Dim, width, false))
		b.ok(cuda.RopeAppend(b.m, t, a, again, at, to, 0, 0, cache, tokens))
		if !bytes.Equal(get[byte](b, cache, len(written)), written) {
			b.Fatalf("%v %+v: another cache where keys are rotated before", t, a)
		}
		b.ok(cuda.Rope(b.m, t, again, at, pc, ps, tokens, heads, a.Dim, width, true))
		back := b.put(unturned)
		b.near(t, "rotated there and back", getAs(b, t, again, tokens*width), getAs(b, t, back, tokens*width))
		got := getAs(b, t, qkv, tokens*width)
		for i := range tokens {
			row := rows[i*width : (i+1)*width]
			for h := range a.Heads + a.KVHeads {
				v := row[h*a.Dim : (h+1)*a.Dim]
				for d := range half {
					z := complex(v[d], v[d+half]) * complex(cos[i*half+d], sin[i*half+d])
					v[d], v[d+half] = real(z), imag(z)
				}
			}
			b.near(t, "rotated queries", got[i*width:][:a.Heads*a.Dim], row[:a.Heads*a.Dim])
			if t == cuda.BF16 {
				for d := range row {
					row[d] = roundBF16(row[d])
				}
			}
			keys[s] = append(keys[s], row[a.Heads*a.Dim:][:a.KVHeads*a.Dim]...)
			values[s] = append(values[s], row[(a.Heads+a.KVHeads)*a.Dim:]...)
		}
		last := rows[(tokens-1)*width:]
		queries = append(queries, last[:a.Heads*a.Dim]...)
		qs = append(qs, got[(tokens-1)*width:]...)
	}
	q, _ := b.putAs(t, qs)
	n := len(lengths)
	scratch, out, lse := b.room(cuda.DecodeScratch(a, n+1, maxKeys)), b.room((n+1)*a.Heads*a.Dim*t.Size()), b.room((n+1)*a.Heads*4)
	var list []int64 // in another order than the rows, and one that has no keys
	for _, s := range []int{n, 2, 0, 1} {
		if s == n {
			list = append(list, int64(n), 1<<40, 0)
		} else {
			list = append(list, int64(s), int64(s*ld), lengths[s])
		}
	}
	ptable, plist := b.put(table), b.put(list)
	b.ok(cuda.Decode(b.m, t, a, q, width, cache, ptable, plist, n+1, maxKeys, scratch, out, lse))
	got, logs := getAs(b, t, out, (n+1)*a.Heads*a.Dim), get[float32](b, lse, (n+1)*a.Heads)
	for i, v := range got[n*a.Heads*a.Dim:] {
		if v != 0 {
			b.Fatalf("%v %+v: [%d] is %v without a key", t, a, i, v)
		}
	}
	kw := a.KVHeads * a.Dim
	for s, length := range lengths {
		for h := range a.Heads {
			k := h / (a.Heads / a.KVHeads) * a.Dim
			query := queries[(s*a.Heads+h)*a.Dim:][:a.Dim]
			first := 0
			if a.Window > 0 {
				first = max(0, int(length)-a.Window)
			}
			want, sum := make([]float64, a.Dim), 0.0
			for j := first; j < int(length); j++ {
				dot := 0.0
				for d, x := range query {
					dot += x * keys[s][j*kw+k+d]
				}
				w := math.Exp(dot * a.Scale)
				sum += w
				for d := range want {
					want[d] += w * values[s][j*kw+k+d]
				}
			}
			for d := range want {
				want[d] /= sum
			}
			b.near(t, "lse", []float64{float64(logs[s*a.Heads+h])}, []float64{math.Log(sum)})
			b.near(t, fmt.Sprintf("%v %+v: %d keys, head %d", t, a, length, h), got[(s*a.Heads+h)*a.Dim:][:a.Dim], want)
		}
	}
	// A sequence alone, with room for no more keys than it has, has the same bits.
	b.ok(cuda.Decode(b.m, t, a, q, width, cache, ptable, plist.At(3, cuda.QuerySize), 1, int(lengths[1]), scratch, out, 0))
	for i, v := range getAs(b, t, out.At(a.Heads*a.Dim, t.Size()), a.Heads*a.Dim) {
		if v != got[a.Heads*a.Dim+i] {
			b.Fatalf("%v %+v: [%d] is %v alone and %v in a batch", t, a, i, v, got[a.Heads*a.Dim+i])
		}
	}
}

// product multiplies on the host, for the head.
type product struct {
	b              bench
	t              cuda.DType
	hidden, weight []float64 // [R, C], [V, C]
	width          int
	dhidden, dw    []float64
}

func (p *product) Logits(out cuda.Pointer, first, n int) error {
	rows := len(p.hidden) / p.width
	x := make([]float64, rows*n)
	for r := range rows {
		for i := range n {
			for c := range p.width {
				x[r*n+i] += p.hidden[r*p.width+c] * p.weight[(first+i)*p.width+c]
			}
		}
	}
	from, _ := p.b.putAs(p.t, x)
	bytes := make([]byte, rows*n*p.t.Size())
	if err := p.b.m.Download(bytes, from); err != nil {
		return err
	}
	return p.b.m.Upload(out, bytes)
}

func (p *product) Backward(dlogits cuda.Pointer, first, n int) error {
	rows := len(p.hidden) / p.width
	for at, g := range getAs(p.b, p.t, dlogits, rows*n) {
		r, i := at/n, at%n
		for c := range p.width {
			p.dhidden[r*p.width+c] += g * p.weight[(first+i)*p.width+c]
			p.dw[(first+i)*p.width+c] += g * p.hidden[r*p.width+c]
		}
	}
	return nil
}

func testHead(b bench) {
	const rows, width, vocab = 5, 7, 130
	for _, chunk := range []int{vocab, 50, 1} {
		p := &product{b: b, t: cuda.F32, hidden: b.normal(rows*width, 1), weight: b.normal(vocab*width, 1), width: width}
		p.dhidden, p.dw = make([]float64, rows*width), make([]float64, vocab*width)
		target := []int64{0, vocab - 1, 49, 50, 77}
		g := []float64{1, -0.5, 0, 2, 0.25}
		// score is the definition: log-probability and entropy of a row.
		score := func(r int) (lp, entropy, lse float64) {
			x, sum := make([]float64, vocab), 0.0
			for i := range x {
				for c := range width {
					x[i] += p.hidden[r*width+c] * p.weight[i*width+c]
				}
				sum += math.Exp(x[i])
			}
			lse = math.Log(sum)
			for _, v := range x {
				entropy -= math.Exp(v-lse) * (v - lse)
			}
			return x[target[r]] - lse, entropy, lse
		}
		var wantLP, wantE, wantL []float64
		for r := range rows {
			lp, e, l := score(r)
			wantLP, wantE, wantL = append(wantLP, lp), append(wantE, e), append(wantL, l)
		}
		pg, _ := b.putAs(cuda.F32, g)
		h := cuda.Head{
			DType: cuda.F32, Rows: rows, Vocab: vocab, Chunk: chunk,
			Logits: b.room(rows * chunk * 4), Stats: b.room(rows * cuda.HeadRowSize), Target: b.put(target),
		}
		lp, entropy, lse := b.room(rows*4), b.room(rows*4), b.room(rows*4)
		b.ok(h.Score(b.m, p, lp, entropy, lse))
		what := fmt.Sprintf("chunks of %d: ", chunk)
		b.near(cuda.F32, what+"logprob", getAs(b, cuda.F32, lp, rows), wantLP)
		b.near(cuda.F32, what+"entropy", getAs(b, cuda.F32, entropy, rows), wantE)
		b.near(cuda.F32, what+"lse", getAs(b, cuda.F32, lse, rows), wantL)

		b.ok(h.Backward(b.m, p, lse, pg))
		loss := func() (sum float64) {
			for r := range rows {
				lp, _, _ := score(r)
				sum += g[r] * lp
			}
			return sum
		}
		for _, v := range []struct {
			name    string
			at, got []float64
		}{{"dhidden", p.hidden, p.dhidden}, {"dW", p.weight[:20*width], p.dw[:20*width]}} {
			want := make([]float64, len(v.at))
			for i := range v.at {
				const step = 1e-5
				x := v.at[i]
				v.at[i] = x + step
				up := loss()
				v.at[i] = x - step
				want[i] = (up - loss()) / (2 * step)
				v.at[i] = x
			}
			b.near(cuda.F32, what+v.name, v.got, want)
		}
	}
}
