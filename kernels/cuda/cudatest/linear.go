package cudatest

import (
	"fmt"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// tilings are those of products of bfloat16 that cuda.TilingOf chooses from.
var tilings = []cuda.Tiling{
	{Rows: 16, Columns: 8, Parts: 1}, {Rows: 16, Columns: 16, Parts: 1}, {Rows: 16, Columns: 32, Parts: 1},
	{Rows: 64, Columns: 64, Parts: 1}, {Rows: 64, Columns: 64, Parts: 3}, {Rows: 64, Columns: 64, Parts: cuda.LinearChains},
	{Rows: 128, Columns: 128, Parts: 1}, {Rows: 128, Columns: 128, Parts: 2},
}

// tolerance is relative to the largest element of a product. Tensor cores cut what their
// sums do not hold, where floats round (Fasi et al., Numerical behavior of NVIDIA tensor
// cores, PeerJ Computer Science 7:e330, 2021).
func tolerance(t cuda.DType) float64 { return [...]float64{2e-6, 1e-5}[t] }

// factors are those of a product, on the machine and as numbers.
type factors struct {
	rows, n, c       int
	x, w, bias, y    cuda.Pointer
	want, added, was []float64 // x·wᵀ; with the bias, added to was
}

func (b bench) factors(t cuda.DType, rows, n, c int) factors {
	f := factors{rows: rows, n: n, c: c}
	var xs, ws, bias []float64
	f.x, xs = b.putAs(cuda.F32, b.normal(rows*c, 1))
	f.w, ws = b.putAs(t, b.normal(n*c, 1))
	f.bias, bias = b.putAs(cuda.F32, b.normal(n, 1))
	f.y, f.was = b.putAs(cuda.F32, b.normal(rows*n, 1))
	f.want, f.added = make([]float64, rows*n), make([]float64, rows*n)
	if t == cuda.BF16 {
		for i, v := range xs {
			xs[i] = roundBF16(v)
		}
	}
	for i := range f.want {
		for k := range c {
			f.want[i] += xs[i/n*c+k] * ws[i%n*c+k]
		}
		f.added[i] = f.want[i] + bias[i%n] + f.was[i]
	}
	return f
}

// linear is cuda.Linear, by a tiling unless it is none. The scratch holds NaNs in the
// emulator.
func (b bench) linear(t, of cuda.DType, tiling cuda.Tiling, x, w, bias, y cuda.Pointer, rows, n, c int, add bool) {
	b.Helper()
	bytes := cuda.LinearScratch(t, of, rows, n, c)
	if tiling.Rows > 0 {
		bytes = tiling.Scratch(of, rows, n, c)
	}
	var scratch cuda.Pointer
	if bytes > 0 {
		var err error
		scratch, err = b.m.Alloc(bytes)
		b.ok(err)
		defer b.m.Free(scratch)
	}
	if tiling.Rows > 0 {
		b.ok(tiling.Linear(b.m, of, x, w, bias, y, rows, n, c, add, scratch))
	} else {
		b.ok(cuda.Linear(b.m, t, of, x, w, bias, y, rows, n, c, add, scratch))
	}
}

func testLinear(b bench) {
	for _, shape := range [][3]int{{1, 1, 1}, {3, 70, 33}, {17, 60, 300}, {130, 65, 40}, {130, 2816, 24}, {700, 2700, 17}} {
		dtypes(func(t cuda.DType) {
			if t == cuda.BF16 && shape[0]*shape[1] > 1<<16 {
				return // testLinearTilings takes large tiles of few
			}
			f := b.factors(t, shape[0], shape[1], shape[2])
			what := fmt.Sprintf("%v %v: ", t, shape)
			b.linear(t, cuda.F32, cuda.Tiling{}, f.x, f.w, f.bias, f.y, f.rows, f.n, f.c, true)
			b.within(tolerance(t), what+"added", getAs(b, cuda.F32, f.y, f.rows*f.n), f.added)
			b.linear(t, cuda.F32, cuda.Tiling{}, f.x, f.w, 0, f.y, f.rows, f.n, f.c, false)
			got := getAs(b, cuda.F32, f.y, f.rows*f.n)
			b.within(tolerance(t), what+"y", got, f.want)
			// The last row alone has the same bits.
			b.linear(t, cuda.F32, cuda.Tiling{}, f.x.At((f.rows-1)*f.c, 4), f.w, 0, f.y, 1, f.n, f.c, false)
			if i := differs(getAs(b, cuda.F32, f.y, f.n), got[(f.rows-1)*f.n:]); i >= 0 {
				b.Fatalf("%s[%d] has other bits alone", what, i)
			}
		})
	}
}

// differs is the first place where got is not what want begins with, or -1.
func differs(got, want []float64) int {
	for i, v := range got {
		if v != want[i] {
			return i
		}
	}
	return -1
}

// testLinearTilings: a product of bfloat16 has the same bits by every tiling, from
// factors at any address, whoever rounds x, and for a part of its rows.
func testLinearTilings(b bench) {
	for _, shape := range [][3]int{{1, 9, 31}, {5, 40, 264}, {16, 70, 600}, {17, 65, 520}, {64, 33, 1100}, {200, 140, 72}} {
		f := b.factors(cuda.BF16, shape[0], shape[1], shape[2])
		size := f.rows * f.n
		start := get[byte](b, f.y, size*4)
		var plain, added []float64
		for _, t := range tilings {
			what := fmt.Sprintf("%v by %+v: ", shape, t)
			b.linear(cuda.BF16, cuda.F32, t, f.x, f.w, 0, f.y, f.rows, f.n, f.c, false)
			got := getAs(b, cuda.F32, f.y, size)
			b.ok(b.m.Upload(f.y, start))
			b.linear(cuda.BF16, cuda.F32, t, f.x, f.w, f.bias, f.y, f.rows, f.n, f.c, true)
			gotAdded := getAs(b, cuda.F32, f.y, size)
			if plain == nil {
				plain, added = got, gotAdded
				b.within(tolerance(cuda.BF16), what+"y", got, f.want)
				b.within(tolerance(cuda.BF16), what+"added", gotAdded, f.added)
			}
			if i, j := differs(got, plain), differs(gotAdded, added); i >= 0 || j >= 0 {
				b.Fatalf("%sother bits at %d, or added at %d, than by %+v", what, i, j, tilings[0])
			}
		}
		for _, some := range [][2]int{{0, 1}, {f.rows - 1, 1}, {f.rows / 3, f.rows / 2}, {0, min(16, f.rows)}, {f.rows / 4, min(64, f.rows-f.rows/4)}} {
			if first, rows := some[0], some[1]; rows > 0 {
				b.linear(cuda.BF16, cuda.F32, cuda.Tiling{}, f.x.At(first*f.c, 4), f.w, 0, f.y, rows, f.n, f.c, false)
				if i := differs(getAs(b, cuda.F32, f.y, rows*f.n), plain[first*f.n:]); i >= 0 {
					b.Fatalf("%v: [%d] of %d rows from %d on has other bits than among all", shape, i, rows, first)
				}
			}
		}
		if f.rows > 100 {
			continue // the emulator is slow
		}
		half, _ := b.putAs(cuda.BF16, getAs(b, cuda.F32, f.x, f.rows*f.c))
		same := func(what string, t cuda.Tiling, of cuda.DType, x, w cuda.Pointer) {
			b.linear(cuda.BF16, of, t, x, w, 0, f.y, f.rows, f.n, f.c, false)
			if i := differs(getAs(b, cuda.F32, f.y, size), plain); i >= 0 {
				b.Fatalf("%v by %+v: other bits at %d %s", shape, t, i, what)
			}
		}
		for _, t := range tilings {
			same("where x is rounded before", t, cuda.BF16, half, f.w)
		}
		if f.c%8 > 0 || f.rows > 16 {
			continue
		}
		// One element further on nothing is at a multiple of 16 bytes.
		x, h, w := b.room(f.rows*f.c*4+4), b.room(f.rows*f.c*2+2), b.room(f.n*f.c*2+2)
		b.ok(b.m.Upload(x.At(1, 4), get[byte](b, f.x, f.rows*f.c*4)))
		b.ok(b.m.Upload(h.At(1, 2), get[byte](b, half, f.rows*f.c*2)))
		b.ok(b.m.Upload(w.At(1, 2), get[byte](b, f.w, f.n*f.c*2)))
		for _, t := range tilings {
			same("where nothing is aligned", t, cuda.F32, x.At(1, 4), w.At(1, 2))
			same("where nothing is aligned and x rounded before", t, cuda.BF16, h.At(1, 2), w.At(1, 2))
		}
	}
}
