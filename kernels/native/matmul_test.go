package native

import (
	"fmt"
	"math"
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

// Weights stored as bfloat16 give the bits of the same weights in float32.
func TestLinearBFloat16(t *testing.T) {
	for _, s := range [][2]int{{1, 1}, {5, 7}, {16, 32}, {33, 17}, {192, 64}, {900, 40}} {
		in, out := s[0], s[1]
		rng := rand.New(rand.NewPCG(uint64(in), uint64(out)))
		const rows = 101
		x, w, bias := random[float32](rng, rows*in), random[float32](rng, out*in), random[float32](rng, out)
		packed := make([]uint16, PackedLen(in, out))
		PackBFloat16(w, out, in, packed)
		rounded := make([]float32, len(w))
		for i, v := range w {
			low := math.Float32frombits(math.Float32bits(v) &^ 0xffff)
			high := math.Float32frombits(math.Float32bits(low) + 0x10000) // the neighbour away from 0
			rounded[i] = low
			if math.Abs(float64(v)-float64(high)) < math.Abs(float64(v)-float64(low)) {
				rounded[i] = high
			}
		}
		exact := make([]float32, PackedLen(in, out))
		Pack(rounded, out, in, exact)
		got, want := make([]float32, rows*out), make([]float32, rows*out)
		for _, m := range []int{1, 2, 5, 12, 13, rows} {
			for _, add := range []bool{false, true} {
				LinearBFloat16(x, packed, bias, m, in, out, 0, 0, got, add)
				Linear(x, exact, bias, m, in, out, 0, 0, want, add)
				same(t, fmt.Sprintf("%v, %d rows, added: %v", s, m, add), got[:m*out], want[:m*out])
			}
		}
	}
	packed := make([]uint16, PackedLen(2, 1))
	PackBFloat16([]float32{math.Float32frombits(0x7f800001), 1 + 1./256}, 1, 2, packed)
	if math.IsNaN(float64(math.Float32frombits(uint32(packed[0])<<16))) != true || packed[PanelColumns] != 0x3f80 {
		t.Errorf("NaN and a tie are packed as %x and %x", packed[0], packed[PanelColumns])
	}
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
