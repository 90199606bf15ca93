package cudatest

import (
	"fmt"
	"math"

	"github.com/ssr-go/ssr/kernels/cuda"
)

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

// there is a Product whose logits are where they should be.
type there struct{}

func (there) Logits(cuda.Pointer, int, int) error   { return nil }
func (there) Backward(cuda.Pointer, int, int) error { return nil }

// testHeadLong takes rows that a block reads in several rounds, one of them ascending and
// with logits of -∞, and compares the log-probability with that of Sample bit for bit.
func testHeadLong(b bench) {
	dtypes(func(t cuda.DType) {
		for _, vocab := range []int{5000, 9001} {
			const rows = 3
			logits, g := b.normal(rows*vocab, 3), []float64{1, -0.5, 2}
			for i := range vocab {
				logits[vocab+i] = float64(i)/100 - 50
			}
			logits[2*vocab], logits[2*vocab+700], logits[2*vocab+vocab-1] = math.Inf(-1), math.Inf(-1), math.Inf(-1)
			p, x := b.putAs(t, logits)
			target := []int64{77, int64(vocab) - 1, 4096}
			var wantLP, wantE, wantL, want []float64
			for r := range rows {
				row, sum, entropy := x[r*vocab:(r+1)*vocab], 0.0, 0.0
				for _, v := range row {
					sum += math.Exp(v)
				}
				lse := math.Log(sum)
				for i, v := range row {
					q := math.Exp(v - lse)
					if q > 0 {
						entropy -= q * (v - lse)
					}
					if int64(i) == target[r] {
						want = append(want, g[r]*(1-q))
					} else {
						want = append(want, -g[r]*q)
					}
				}
				wantLP, wantE, wantL = append(wantLP, row[target[r]]-lse), append(wantE, entropy), append(wantL, lse)
			}
			pg, _ := b.putAs(cuda.F32, g)
			h := cuda.Head{DType: t, Rows: rows, Vocab: vocab, Chunk: vocab, Logits: p, Stats: b.room(rows * cuda.HeadRowSize), Target: b.put(target)}
			lp, entropy, lse := b.room(rows*4), b.room(rows*4), b.room(rows*4)
			what := fmt.Sprintf("%v, vocabulary of %d: ", t, vocab)
			b.ok(h.Score(b.m, there{}, lp, entropy, lse))
			b.near(cuda.F32, what+"logprob", getAs(b, cuda.F32, lp, rows), wantLP)
			b.near(cuda.F32, what+"entropy", getAs(b, cuda.F32, entropy, rows), wantE)
			b.near(cuda.F32, what+"lse", getAs(b, cuda.F32, lse, rows), wantL)
			if t == cuda.F32 {
				token, sampled, other := b.room(rows*4), b.room(rows*4), b.room(rows*4)
				b.ok(cuda.Sample(b.m, p, b.put(make([]cuda.Sampling, rows)), rows, vocab, token, sampled, other))
				drawn := make([]int64, rows)
				for r, id := range get[int32](b, token, rows) {
					drawn[r] = int64(id)
				}
				again := h
				again.Target = b.put(drawn)
				b.ok(again.Score(b.m, there{}, lp, entropy, lse))
				if i := differs(getAs(b, cuda.F32, lp, rows), getAs(b, cuda.F32, sampled, rows)); i >= 0 {
					b.Fatalf("%srow %d has another log-probability where it is sampled", what, i)
				}
			}
			b.ok(h.Backward(b.m, there{}, lse, pg))
			b.near(t, what+"gradient", getAs(b, t, p, rows*vocab), want)
		}
	})
}
