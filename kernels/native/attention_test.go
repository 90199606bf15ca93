package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// bruteAttention is attention as it is defined, in float64 over dense rows.
func bruteAttention(a Attention, q, k, v []float64, offsets []int32) (out, lse []float64) {
	H, K, D := a.Heads, a.KVHeads, a.Dim
	n := int(offsets[len(offsets)-1])
	out, lse = make([]float64, n*H*D), make([]float64, n*H)
	for s := range len(offsets) - 1 {
		lo, hi := int(offsets[s]), int(offsets[s+1])
		for i := lo; i < hi; i++ {
			for h := range H {
				kh, first := h/(H/K), lo
				if a.Window > 0 {
					first = max(lo, i+1-a.Window)
				}
				w := make([]float64, i-first+1)
				for j := range w {
					w[j] = dot(q[(i*H+h)*D:][:D], k[((first+j)*K+kh)*D:][:D]) / math.Sqrt(float64(D))
				}
				m, sum := slices.Max(w), 0.0
				for j := range w {
					w[j] = math.Exp(w[j] - m)
					sum += w[j]
				}
				for j := range w {
					for d := range D {
						out[(i*H+h)*D+d] += w[j] / sum * v[((first+j)*K+kh)*D+d]
					}
				}
				lse[i*H+h] = m + math.Log(sum)
			}
		}
	}
	return out, lse
}

var shapes = []Attention{
	{Heads: 6, KVHeads: 2, Dim: 32},
	{Heads: 4, KVHeads: 4, Dim: 64},
	{Heads: 2, KVHeads: 1, Dim: 6},
	{Heads: 1, KVHeads: 1, Dim: 24},
	{Heads: 64, KVHeads: 1, Dim: 8}, // more heads share a key head than fit a tile
	{Heads: 14, KVHeads: 2, Dim: 80},
	{Heads: 4, KVHeads: 2, Dim: 16, Window: 1},
	{Heads: 3, KVHeads: 1, Dim: 10, Window: 7},
	{Heads: 6, KVHeads: 2, Dim: 32, Window: 33},
	{Heads: 2, KVHeads: 2, Dim: 8, Window: 128},
	{Heads: 26, KVHeads: 1, Dim: 8, Window: 150},
}

func testForward[F Float](t *testing.T) {
	for _, a := range shapes {
		rng := rand.New(rand.NewPCG(1, 2))
		offsets := []int32{0, 1, 1, 34, 98, 198}
		n := 198
		q, k, v := random[F](rng, n*a.Heads*a.Dim), random[F](rng, n*a.KVHeads*a.Dim), random[F](rng, n*a.KVHeads*a.Dim)
		for i := range q {
			q[i] *= 3 // scores that move the running maximum
		}
		out, lse := zeros(q), make([]F, n*a.Heads)
		AttentionForward(a, q, k, v, offsets, out, lse)
		wout, wlse := bruteAttention(a, wide(q), wide(k), wide(v), offsets)
		near(t, fmt.Sprintf("%+v out", a), out, wout)
		near(t, fmt.Sprintf("%+v lse", a), lse, wlse)
	}
}

func TestAttentionForward(t *testing.T) {
	t.Run("float32", testForward[float32])
	t.Run("float64", testForward[float64])
}

func TestAttentionBackwardCentralDifferences(t *testing.T) {
	for _, a := range []Attention{
		{Heads: 4, KVHeads: 2, Dim: 4}, {Heads: 1, KVHeads: 1, Dim: 6}, {Heads: 49, KVHeads: 1, Dim: 2},
		{Heads: 4, KVHeads: 2, Dim: 4, Window: 3}, {Heads: 1, KVHeads: 1, Dim: 6, Window: 1}, {Heads: 2, KVHeads: 1, Dim: 4, Window: 33},
	} {
		rng := rand.New(rand.NewPCG(3, 4))
		offsets := []int32{0, 1, 6, 41}
		if a.Heads > 8 {
			offsets = []int32{0, 5}
		}
		n := int(offsets[len(offsets)-1])
		q, k, v := random[float64](rng, n*a.Heads*a.Dim), random[float64](rng, n*a.KVHeads*a.Dim), random[float64](rng, n*a.KVHeads*a.Dim)
		dout := random[float64](rng, len(q))
		out, lse := zeros(q), make([]float64, n*a.Heads)
		loss := func() float64 {
			AttentionForward(a, q, k, v, offsets, out, nil)
			return dot(out, dout)
		}
		wq, wk, wv := numeric(q, loss), numeric(k, loss), numeric(v, loss)
		AttentionForward(a, q, k, v, offsets, out, lse)
		dq, dk, dv := zeros(q), zeros(k), zeros(v)
		AttentionBackward(a, q, k, v, out, lse, dout, offsets, dq, dk, dv)
		close64(t, "dq", dq, wq)
		close64(t, "dk", dk, wk)
		close64(t, "dv", dv, wv)
	}
}

// float32 gradients agree with float64 ones, which the test above checks.
func TestAttentionBackwardSingle(t *testing.T) {
	for _, a := range shapes {
		rng := rand.New(rand.NewPCG(5, 6))
		offsets := []int32{0, 33, 33, 150}
		n := 150
		q, k, v := random[float32](rng, n*a.Heads*a.Dim), random[float32](rng, n*a.KVHeads*a.Dim), random[float32](rng, n*a.KVHeads*a.Dim)
		dout := random[float32](rng, len(q))
		out, lse, dq, dk, dv := zeros(q), make([]float32, n*a.Heads), zeros(q), zeros(k), zeros(v)
		AttentionForward(a, q, k, v, offsets, out, lse)
		AttentionBackward(a, q, k, v, out, lse, dout, offsets, dq, dk, dv)
		Q, K, V, O := wide(q), wide(k), wide(v), wide(out)
		L, DQ, DK, DV := wide(lse), zeros(Q), zeros(K), zeros(V)
		AttentionForward(a, Q, K, V, offsets, O, L)
		AttentionBackward(a, Q, K, V, O, L, wide(dout), offsets, DQ, DK, DV)
		near(t, "dq", dq, DQ)
		near(t, "dk", dk, DK)
		near(t, "dv", dv, DV)
	}
}

// Operands inside one fused row of q, k and v give the bits of dense operands.
func TestAttentionStrides(t *testing.T) {
	a := Attention{Heads: 4, KVHeads: 2, Dim: 16}
	rng := rand.New(rand.NewPCG(7, 8))
	n, w := 70, (4+2+2)*16
	fused, offsets := random[float32](rng, n*w), []int32{0, 30, 70}
	q, k, v := make([]float32, n*64), make([]float32, n*32), make([]float32, n*32)
	for i := range n {
		copy(q[i*64:], fused[i*w:][:64])
		copy(k[i*32:], fused[i*w+64:][:32])
		copy(v[i*32:], fused[i*w+96:][:32])
	}
	dout := random[float32](rng, n*64)
	out, lse, dq, dk, dv := zeros(q), make([]float32, n*4), zeros(q), zeros(k), zeros(v)
	AttentionForward(a, q, k, v, offsets, out, lse)
	AttentionBackward(a, q, k, v, out, lse, dout, offsets, dq, dk, dv)

	a.QStride, a.KStride, a.VStride = w, w, w
	fout, flse, grad := zeros(q), make([]float32, n*4), zeros(fused)
	AttentionForward(a, fused, fused[64:], fused[96:], offsets, fout, flse)
	AttentionBackward(a, fused, fused[64:], fused[96:], fout, flse, dout, offsets, grad, grad[64:], grad[96:])
	same(t, "out", fout, out)
	same(t, "lse", flse, lse)
	for i := range n {
		same(t, "dq", grad[i*w:][:64], dq[i*64:][:64])
		same(t, "dk", grad[i*w+64:][:32], dk[i*32:][:32])
		same(t, "dv", grad[i*w+96:][:32], dv[i*32:][:32])
	}
}

// However a sequence is cut into cached extensions, alone or beside others, its
// rows have the bits of the packed forward pass.
func TestAttentionBatchInvariance(t *testing.T) {
	for _, a := range shapes {
		rng := rand.New(rand.NewPCG(9, 10))
		lengths := []int{1, 31, 32, 33, 100, 161}
		offsets := []int32{0}
		for _, l := range lengths {
			offsets = append(offsets, offsets[len(offsets)-1]+int32(l))
		}
		n := int(offsets[len(lengths)])
		qw, kw := a.Heads*a.Dim, a.KVHeads*a.Dim
		q, k, v := random[float32](rng, n*qw), random[float32](rng, n*kw), random[float32](rng, n*kw)
		want, wlse := zeros(q), make([]float32, n*a.Heads)
		AttentionForward(a, q, k, v, offsets, want, wlse)
		for s := range lengths { // alone
			lo, hi := int(offsets[s]), int(offsets[s+1])
			out := make([]float32, (hi-lo)*qw)
			AttentionForward(a, q[lo*qw:hi*qw], k[lo*kw:hi*kw], v[lo*kw:hi*kw], []int32{0, int32(hi - lo)}, out, nil)
			same(t, "alone", out, want[lo*qw:hi*qw])
		}

		blocks := 0
		var table []int32
		starts := make([]int32, len(lengths))
		for s, l := range lengths {
			starts[s] = int32(len(table))
			for range (l + BlockTokens - 1) / BlockTokens {
				table = append(table, int32(blocks))
				blocks++
			}
		}
		perm := rng.Perm(blocks)
		for i, b := range table {
			table[i] = int32(perm[b])
		}
		cache := make([]float32, blocks*a.CacheBlock())
		for i := range cache {
			cache[i] = float32(math.NaN()) // what was never written must not be read
		}
		done := make([]int, len(lengths))
		for {
			var segs []Segment
			var bq, bk, bv, bw, bl []float32
			row := int32(0)
			for _, s := range rng.Perm(len(lengths)) {
				left := lengths[s] - done[s]
				if left == 0 || rng.IntN(3) == 0 {
					continue
				}
				m := 1
				if rng.IntN(2) == 0 {
					m = 1 + rng.IntN(left)
				}
				lo := int(offsets[s]) + done[s]
				segs = append(segs, Segment{Row: row, Rows: int32(m), Past: int32(done[s]), Table: starts[s]})
				bq = append(bq, q[lo*qw:][:m*qw]...)
				bk = append(bk, k[lo*kw:][:m*kw]...)
				bv = append(bv, v[lo*kw:][:m*kw]...)
				bw = append(bw, want[lo*qw:][:m*qw]...)
				bl = append(bl, wlse[lo*a.Heads:][:m*a.Heads]...)
				row += int32(m)
				done[s] += m
			}
			CacheAppend(a, bk, bv, segs, table, cache)
			out, lse := zeros(bq), zeros(bl)
			AttentionExtend(a, bq, segs, table, cache, out, lse)
			same(t, fmt.Sprintf("%+v extend", a), out, bw)
			same(t, fmt.Sprintf("%+v extend lse", a), lse, bl)
			if slices.Equal(done, lengths) {
				break
			}
		}
	}
}

func TestShapesPanic(t *testing.T) {
	for name, f := range map[string]func(){
		"short q": func() {
			AttentionForward(Attention{Heads: 1, KVHeads: 1, Dim: 4}, make([]float32, 3), make([]float32, 4), make([]float32, 4), []int32{0, 1}, make([]float32, 4), nil)
		},
		"heads": func() {
			AttentionForward[float32](Attention{Heads: 3, KVHeads: 2, Dim: 4}, nil, nil, nil, []int32{0}, nil, nil)
		},
		"offsets": func() {
			AttentionForward[float32](Attention{Heads: 1, KVHeads: 1, Dim: 4}, nil, nil, nil, []int32{0, 2, 1}, nil, nil)
		},
		"table": func() {
			a := Attention{Heads: 1, KVHeads: 1, Dim: 4}
			CacheAppend(a, make([]float32, 4), make([]float32, 4), []Segment{{Rows: 1, Past: 32}}, []int32{0, 1}, make([]float32, a.CacheBlock()))
		},
		"target": func() { Logprob(make([]float32, 4), []int32{4}, 4, make([]float32, 1), nil, nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func BenchmarkAttention(b *testing.B) {
	for _, a := range []Attention{{Heads: 6, KVHeads: 2, Dim: 32}, {Heads: 6, KVHeads: 6, Dim: 64}} {
		for _, n := range []int{512, 1500} {
			rng := rand.New(rand.NewPCG(1, 1))
			q, k, v := random[float32](rng, n*a.Heads*a.Dim), random[float32](rng, n*a.KVHeads*a.Dim), random[float32](rng, n*a.KVHeads*a.Dim)
			out, lse, dq, dk, dv := zeros(q), make([]float32, n*a.Heads), zeros(q), zeros(k), zeros(v)
			off := []int32{0, int32(n)}
			flop := 4 * float64(n) * float64(n+1) / 2 * float64(a.Heads*a.Dim)
			b.Run(fmt.Sprintf("forward/D%d/T%d", a.Dim, n), func(b *testing.B) {
				for b.Loop() {
					AttentionForward(a, q, k, v, off, out, lse)
				}
				b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
			b.Run(fmt.Sprintf("backward/D%d/T%d", a.Dim, n), func(b *testing.B) {
				for b.Loop() {
					AttentionBackward(a, q, k, v, out, lse, q, off, dq, dk, dv)
				}
				b.ReportMetric(2.5*flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}

// One decode step of 64 sequences of 192 tokens.
func BenchmarkDecode(b *testing.B) {
	a := Attention{Heads: 6, KVHeads: 2, Dim: 32}
	const seqs, past = 64, 191
	rng := rand.New(rand.NewPCG(1, 1))
	q := random[float32](rng, seqs*192)
	cache := random[float32](rng, seqs*6*a.CacheBlock())
	table, segs := make([]int32, seqs*6), make([]Segment, seqs)
	for i := range table {
		table[i] = int32(i)
	}
	for i := range segs {
		segs[i] = Segment{Row: int32(i), Rows: 1, Past: past, Table: int32(i * 6)}
	}
	out := zeros(q)
	for b.Loop() {
		AttentionExtend(a, q, segs, table, cache, out, nil)
	}
	b.ReportMetric(4*192*192*seqs*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}
