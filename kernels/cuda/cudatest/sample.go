package cudatest

import (
	"fmt"
	"math"
	"sort"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// kept is the distribution that Sample draws from, by its definition.
func kept(logits []float64, s cuda.Sampling) []float64 {
	ids := make([]int, len(logits))
	most := math.Inf(-1)
	for i, x := range logits {
		ids[i], most = i, max(most, x)
	}
	sort.SliceStable(ids, func(i, j int) bool { return logits[ids[i]] > logits[ids[j]] })
	weight := func(id int) float64 { return math.Exp((logits[id] - most) / float64(s.Temperature)) }
	if s.TopK > 0 && int(s.TopK) < len(ids) {
		ids = ids[:s.TopK]
	}
	total := func() (sum float64) {
		for _, id := range ids {
			sum += weight(id)
		}
		return sum
	}
	if s.TopP > 0 && s.TopP < 1 {
		goal, sum := float64(s.TopP)*total(), 0.0
		for i, id := range ids {
			if sum += weight(id); sum >= goal {
				ids = ids[:i+1]
				break
			}
		}
	}
	for i, id := range ids {
		if weight(id) < float64(s.MinP) {
			ids = ids[:i]
			break
		}
	}
	p, sum := make([]float64, len(logits)), total()
	for _, id := range ids {
		p[id] = weight(id) / sum
	}
	return p
}

func testSample(b bench) {
	settings := []cuda.Sampling{
		{Temperature: 1}, {Temperature: 0.5}, {Temperature: 1, TopK: 1}, {Temperature: 2, TopK: 40}, {Temperature: 1, TopP: 0.9},
		{Temperature: 1, TopP: 1e-6}, {Temperature: 0.7, TopK: 50, TopP: 0.8}, {Temperature: 1, TopK: 100000, TopP: 1},
		{Temperature: 1, MinP: 0.05}, {Temperature: 1.3, TopK: 30, TopP: 0.95, MinP: 0.1}, {},
		{Temperature: 1, TopK: 20, TopP: 0.999},
	}
	for _, vocab := range []int{1, 33, 613, 614, 3000, 9001} {
		var logits []float64
		var requests []cuda.Sampling
		for _, s := range settings {
			row := b.normal(vocab, 2)
			if vocab == 614 { // of a few values
				for i, x := range row {
					row[i] = math.Round(x)
				}
			} else if vocab > 600 {
				row[600], row[17], row[5] = row[3], row[3], math.Copysign(0, -1) // ties
				row[9], row[11] = math.Inf(-1), 0
			}
			logits = append(logits, row...)
			requests = append(requests, s)
		}
		p, xs := b.putAs(cuda.F32, logits)
		rows := len(requests)
		token, lp, slp := b.room(rows*4), b.room(rows*4), b.room(rows*4)
		for round := range 4 {
			for i := range requests {
				requests[i].Draw = cuda.Uniform([]float64{b.rng.Float64(), 0, b.rng.Float64(), 1 - 1.0/(1<<53)}[round])
			}
			b.ok(cuda.Sample(b.m, p, b.put(requests), rows, vocab, token, lp, slp))
			tokens, lps, slps := get[int32](b, token, rows), get[float32](b, lp, rows), get[float32](b, slp, rows)
			for r, s := range requests {
				row := xs[r*vocab : (r+1)*vocab]
				what := fmt.Sprintf("V=%d %+v", vocab, s)
				want, dist := 0, []float64(nil)
				if s.Temperature == 0 {
					for i, x := range row {
						if x > row[want] {
							want = i
						}
					}
				} else {
					dist = kept(row, s)
					u, at := float64(s.Draw)/(1<<53), 0.0
					for want = range dist {
						if at += dist[want]; at > u {
							break
						}
					}
					if math.Abs(at-u) < 1e-6 || math.Abs(at-dist[want]-u) < 1e-6 {
						continue // rounding may decide either way
					}
				}
				if int(tokens[r]) != want {
					b.Fatalf("%s: drew %d, want %d", what, tokens[r], want)
				}
				sum, most := 0.0, math.Inf(-1)
				for _, x := range row {
					most = max(most, x)
				}
				for _, x := range row {
					sum += math.Exp(x - most)
				}
				wantLP, wantSLP := row[want]-most-math.Log(sum), 0.0
				if dist != nil {
					wantSLP = math.Log(dist[want])
				}
				if math.Abs(float64(lps[r])-wantLP) > 1e-5 || math.Abs(float64(slps[r])-wantSLP) > 1e-5 {
					b.Fatalf("%s: logprob %v, want %v; under sampling %v, want %v", what, lps[r], wantLP, slps[r], wantSLP)
				}
			}
		}
	}
}

func testSampleRefuses(b bench) {
	nan, inf := math.NaN(), math.Inf(1)
	rows := []float64{1, nan, 2 /**/, nan, nan, nan /**/, inf, 1, 2 /**/, -inf, -inf, -inf /**/, -inf, 3, -inf}
	p, _ := b.putAs(cuda.F32, rows)
	n := len(rows) / 3
	token, lp, slp := b.room(n*4), b.room(n*4), b.room(n*4)
	for _, temperature := range []float32{0, 1} {
		requests := make([]cuda.Sampling, n)
		for i := range requests {
			requests[i].Temperature = temperature
		}
		b.ok(cuda.Sample(b.m, p, b.put(requests), n, 3, token, lp, slp))
		want := []int32{-1, -1, -1, -1, 1}
		for i, got := range get[int32](b, token, n) {
			if got != want[i] {
				b.Errorf("temperature %v: row %d (%v) gave %d, want %d", temperature, i, rows[i*3:i*3+3], got, want[i])
			}
		}
	}
}
