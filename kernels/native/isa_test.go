package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// outputs runs every kernel over shapes with all remainders of a vector and gives
// what each wrote, in order.
func outputs[F Float](note func(what string, got []F)) {
	rng := rand.New(rand.NewPCG(11, 12))
	draw := func(n int) []F { return random[F](rng, n) }
	for d := 1; d <= 70; d++ {
		const rows, pad = 5, 3
		ld := d + pad
		x, w, y, rstd, dw := draw(rows*ld), draw(d), draw(rows*ld), make([]F, rows), draw(d)
		RMSNorm(x, w, rows, ld, ld, 1e-6, y, rstd)
		note(fmt.Sprint("rmsnorm ", d), append(y, rstd...))
		dx := draw(rows * ld)
		RMSNormBackward(x, w, rstd, draw(rows*ld), rows, ld, ld, dx, dw)
		note(fmt.Sprint("rmsnorm backward ", d), append(dx, dw...))

		gate := draw(rows * 2 * d)
		for i := range gate {
			gate[i] *= 8
		}
		act := make([]F, rows*d)
		SwiGLU(gate, gate[d:], rows, d, 2*d, 0, act)
		note(fmt.Sprint("swiglu ", d), act)
		SwiGLUBackward(gate, gate[d:], draw(rows*d), rows, d, 2*d, 0, gate, gate[d:])
		note(fmt.Sprint("swiglu backward ", d), gate)

		heads, turned := 3, draw(rows*(3*2*d+pad))
		cos, sin := draw(8*d), draw(8*d)
		Rope(turned, []int32{3, 0, 7, 5, 2}, cos, sin, heads, 2*d, heads*2*d+pad)
		note(fmt.Sprint("rope ", d), turned)
		RopeInverse(turned, []int32{3, 0, 7, 5, 2}, cos, sin, heads, 2*d, heads*2*d+pad)
		note(fmt.Sprint("rope back ", d), turned)

		p, m, v := draw(d), draw(d), draw(d)
		for i := range v {
			v[i] *= v[i]
		}
		Update(AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, GradScale: 0.5, Step: 3}, p, draw(d), m, v)
		note(fmt.Sprint("adamw ", d), append(append(p, m...), v...))
		note(fmt.Sprint("sum of squares ", d), []F{F(SumSquares(p))})
	}
	for _, k := range []int{1, 7, 33, 192, 385} {
		for _, n := range []int{1, 7, 8, 9, 15, 16, 17, 31, 33, 40, 65, 100} {
			for _, rows := range []int{1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 18, 23, 97} {
				x, bias, y, packed := draw(rows*k), draw(n), draw(rows*n), make([]F, PackedLen(k, n))
				Pack(draw(n*k), n, k, packed)
				Linear(x, packed, bias, rows, k, n, 0, 0, y, false)
				note(fmt.Sprintf("linear %d×%d×%d", rows, k, n), y)
				Linear(x, packed, nil, rows, k, n, 0, 0, y, true)
				note(fmt.Sprintf("linear %d×%d×%d added", rows, k, n), y)
				if single[F]() {
					half := make([]uint16, PackedLen(k, n))
					PackBFloat16(any(draw(n*k)).([]float32), n, k, half)
					LinearBFloat16(any(x).([]float32), half, any(bias).([]float32), rows, k, n, 0, 0, any(y).([]float32), false)
					note(fmt.Sprintf("linear of bfloat16 %d×%d×%d", rows, k, n), y)
				}
			}
		}
	}
	more := []Attention{{Heads: 8, KVHeads: 1, Dim: 128}, {Heads: 5, KVHeads: 1, Dim: 33}, {Heads: 2, KVHeads: 2, Dim: 47, Window: 40}, {Heads: 12, KVHeads: 1, Dim: 17}}
	for _, a := range append(more, shapes...) {
		const n = 290
		offsets := []int32{0, 1, 1, 34, 98, n}
		qw, kw := a.Heads*a.Dim, a.KVHeads*a.Dim
		q, k, v, out, lse := draw(n*qw), draw(n*kw), draw(n*kw), make([]F, n*qw), make([]F, n*a.Heads)
		AttentionForward(a, q, k, v, offsets, out, lse)
		note(fmt.Sprintf("attention %+v", a), append(out, lse...))
		dq, dk, dv := zeros(q), zeros(k), zeros(v)
		AttentionBackward(a, q, k, v, out, lse, draw(n*qw), offsets, dq, dk, dv)
		note(fmt.Sprintf("attention backward %+v", a), append(append(dq, dk...), dv...))
		cache, table := draw(20*a.CacheBlock()), make([]int32, 20)
		for i := range table {
			table[i] = int32(i * 7 % 20)
		}
		segs := []Segment{{Row: 0, Rows: 1, Past: 100}, {Row: 1, Rows: 2, Past: 150, Table: 6}, {Row: 3, Rows: 60, Past: 131, Table: 12}}
		CacheAppend(a, k, v, segs, table, cache)
		AttentionExtend(a, q, segs, table, cache, out[:63*qw], lse[:63*a.Heads])
		note(fmt.Sprintf("attention extend %+v", a), append(append(out[:63*qw], lse[:63*a.Heads]...), cache...))
	}
	for _, vocab := range []int{1, 5, 9, 16, 23, 255, 257, 513, 529, 2048} {
		x := draw(2 * vocab)
		for i := range x {
			x[i] *= 5
		}
		if vocab > 50 {
			x[7], x[vocab+9] = F(math.Inf(-1)), 60
		}
		targets := []int32{0, int32(vocab - 1)}
		lp, entropy, lse := make([]F, 2), make([]F, 2), make([]F, 2)
		Logprob(x, targets, vocab, lp, entropy, lse)
		note(fmt.Sprint("logprob ", vocab), append(append(lp, entropy...), lse...))
		if logits, ok := any(x[:vocab]).([]float32); ok {
			for _, s := range []Sampling{{Temperature: 1}, {Temperature: 0.6}, {Temperature: 1, TopP: 0.9}, {Temperature: 1.5, TopK: 9, TopP: 0.95, MinP: 0.02}} {
				for _, u := range []float64{0, 0.3, 0.9, 0.999999} {
					token, l, sl := Sample(logits, s, u)
					note(fmt.Sprintf("sample %d %+v", vocab, s), []F{F(token), F(l), F(sl)})
				}
			}
		}
		LogprobBackward(x, targets, vocab, lse, []F{0.5, -2})
		note(fmt.Sprint("logprob backward ", vocab), x)
	}
}

func testSameBits[F Float](t *testing.T) {
	defer forceISA(ISA())
	var want [][]F
	forceISA("avx2")
	outputs(func(_ string, got []F) { want = append(want, append([]F(nil), got...)) })
	forceISA("avx512")
	at := 0
	outputs(func(what string, got []F) {
		same(t, what, got, want[at])
		at++
	})
}

// Results follow from seeds alone, whichever of the two a processor has.
func TestAVX512HasTheBitsOfAVX2(t *testing.T) {
	if ISA() != "avx512" {
		t.Skip("runs with avx512 only")
	}
	t.Run("float32", testSameBits[float32])
	t.Run("float64", testSameBits[float64])
}
