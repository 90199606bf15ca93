package native

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// bruteLinear is x[R, k]·B[k, n] in float64, with B given as an index function.
func bruteLinear(x []float64, rows, k, n int, b func(k, n int) float64) []float64 {
	y := make([]float64, rows*n)
	for r := range rows {
		for j := range n {
			for i := range k {
				y[r*n+j] += x[r*k+i] * b(i, j)
			}
		}
	}
	return y
}

func testLinear[F Float](t *testing.T) {
	for _, s := range [][2]int{{1, 1}, {5, 7}, {16, 32}, {33, 17}, {192, 64}, {900, 40}} {
		in, out := s[0], s[1]
		rng := rand.New(rand.NewPCG(uint64(in), uint64(out)))
		const rows = 101
		x, w, bias := random[F](rng, rows*in), random[F](rng, out*in), random[F](rng, out)
		W := wide(w)
		packed := make([]F, PackedLen(in, out))
		Pack(w, out, in, packed)
		y := make([]F, rows*out)
		Linear(x, packed, bias, rows, in, out, 0, 0, y, false)
		want := bruteLinear(wide(x), rows, in, out, func(k, n int) float64 { return W[n*in+k] })
		for i := range want {
			want[i] += float64(bias[i%out])
		}
		near(t, fmt.Sprint("y ", s), y, want)

		// Any number of rows at a time gives the same bits.
		for at := 0; at < rows; {
			m := min(1+rng.IntN(20), rows-at)
			part := make([]F, m*out)
			Linear(x[at*in:], packed, bias, m, in, out, 0, 0, part, false)
			same(t, fmt.Sprint("rows apart ", s), part, y[at*out:(at+m)*out])
			at += m
		}

		Linear(x, packed, bias, rows, in, out, 0, 0, y, true)
		for i := range want {
			want[i] *= 2
		}
		near(t, fmt.Sprint("y added ", s), y, want)
	}
}

func TestLinear(t *testing.T) {
	t.Run("float32", testLinear[float32])
	t.Run("float64", testLinear[float64])
}

func BenchmarkLinear(b *testing.B) {
	for _, s := range [][3]int{{1, 192, 2048}, {64, 192, 320}, {64, 192, 2048}, {4096, 192, 1024}, {4096, 512, 192}} {
		rows, in, out := s[0], s[1], s[2]
		rng := rand.New(rand.NewPCG(1, 1))
		x, w, y, packed := random[float32](rng, rows*in), random[float32](rng, out*in), make([]float32, rows*out), make([]float32, PackedLen(in, out))
		Pack(w, out, in, packed)
		flop := 2 * float64(rows*in*out)
		b.Run(fmt.Sprintf("%d×%d×%d", rows, in, out), func(b *testing.B) {
			for b.Loop() {
				Linear(x, packed, nil, rows, in, out, 0, 0, y, false)
			}
			b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
