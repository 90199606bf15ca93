// Package cudatest is the suite that every cuda.Machine passes: each kernel against
// a plain reference in Go, in float64 and as its definition reads.
package cudatest

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// Test runs the suite; open is called once for each part.
func Test(t *testing.T, open func(t *testing.T) cuda.Machine) {
	for _, part := range []struct {
		name string
		test func(bench)
	}{
		{"RMSNorm", testRMSNorm},
		{"RMSNormBackward", testRMSNormBackward},
		{"SwiGLU", testSwiGLU},
		{"Sample", testSample},
		{"SampleRefuses", testSampleRefuses},
		{"Objective", testObjective},
		{"Optimizer", testOptimizer},
		{"Attention", testAttention},
		{"Head", testHead},
		{"HeadLong", testHeadLong},
		{"Linear", testLinear},
		{"LinearTilings", testLinearTilings},
		{"Record", testRecord},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.test(bench{t, open(t), rand.New(rand.NewPCG(1, 2))})
		})
	}
}

// bench is a machine with values on it.
type bench struct {
	*testing.T
	m   cuda.Machine
	rng *rand.Rand
}

func (b bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// room is memory that lasts until the part ends.
func (b bench) room(bytes int) cuda.Pointer {
	b.Helper()
	p, err := b.m.Alloc(bytes)
	b.ok(err)
	b.Cleanup(func() { b.m.Free(p) })
	return p
}

// put uploads values whose encoding is fixed.
func (b bench) put(values any) cuda.Pointer {
	b.Helper()
	bytes, err := binary.Append(nil, binary.LittleEndian, values)
	b.ok(err)
	p := b.room(len(bytes))
	b.ok(b.m.Upload(p, bytes))
	return p
}

// copied is bytes of the machine once more.
func (b bench) copied(p cuda.Pointer, n int) cuda.Pointer {
	b.Helper()
	return b.put(get[byte](b, p, n))
}

// get downloads n values.
func get[T any](b bench, p cuda.Pointer, n int) []T {
	b.Helper()
	out := make([]T, n)
	bytes := make([]byte, binary.Size(out))
	b.ok(b.m.Download(bytes, p))
	_, err := binary.Decode(bytes, binary.LittleEndian, out)
	b.ok(err)
	return out
}

// roundBF16 is the nearest bfloat16, ties to even.
func roundBF16(x float64) float64 {
	u := math.Float32bits(float32(x))
	return float64(math.Float32frombits((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000))
}

// putAs uploads numbers as elements of t and returns what they became.
func (b bench) putAs(t cuda.DType, values []float64) (cuda.Pointer, []float64) {
	b.Helper()
	out := make([]float64, len(values))
	if t == cuda.F32 {
		narrow := make([]float32, len(values))
		for i, v := range values {
			narrow[i] = float32(v)
			out[i] = float64(narrow[i])
		}
		return b.put(narrow), out
	}
	narrow := make([]uint16, len(values))
	for i, v := range values {
		out[i] = roundBF16(v)
		narrow[i] = uint16(math.Float32bits(float32(out[i])) >> 16)
	}
	return b.put(narrow), out
}

func getAs(b bench, t cuda.DType, p cuda.Pointer, n int) []float64 {
	b.Helper()
	out := make([]float64, n)
	if t == cuda.F32 {
		for i, v := range get[float32](b, p, n) {
			out[i] = float64(v)
		}
		return out
	}
	for i, v := range get[uint16](b, p, n) {
		out[i] = float64(math.Float32frombits(uint32(v) << 16))
	}
	return out
}

func (b bench) normal(n int, scale float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = b.rng.NormFloat64() * scale
	}
	return out
}

// near compares with a reference, relative to its largest value; bfloat16 has eight
// bits, of which a result may lose the last.
func (b bench) near(t cuda.DType, what string, got, want []float64) {
	b.Helper()
	b.within([...]float64{2e-6, 1.0 / 128}[t], what, got, want)
}

// within compares with a reference, relative to its largest value.
func (b bench) within(tolerance float64, what string, got, want []float64) {
	b.Helper()
	largest := 1e-30
	for _, w := range want {
		largest = max(largest, math.Abs(w))
	}
	for i, w := range want {
		if d := math.Abs(got[i] - w); !(d <= tolerance*largest) {
			b.Fatalf("%s: [%d] = %v, want %v (largest |value| %v)", what, i, got[i], w, largest)
		}
	}
}

// rounds checks that a kernel with results of bfloat16 gives those of float32, rounded.
func (b bench) rounds(what string, exact cuda.Pointer, n int, run func(out cuda.Pointer) error) {
	b.Helper()
	out := b.room(2 * n)
	b.ok(run(out))
	got := getAs(b, cuda.BF16, out, n)
	for i, v := range getAs(b, cuda.F32, exact, n) {
		if got[i] != roundBF16(v) {
			b.Fatalf("%s: [%d] is %v in bfloat16 and %v in float32", what, i, got[i], v)
		}
	}
}

func dtypes(f func(t cuda.DType)) {
	f(cuda.F32)
	f(cuda.BF16)
}

func testRMSNorm(b bench) {
	const eps = 1e-6
	dtypes(func(t cuda.DType) {
		for _, d := range []int{1, 40, 255, 600, 3001, 4096} {
			const rows = 3
			x, xs := b.putAs(t, b.normal(rows*d, 1))
			res, rs := b.putAs(t, b.normal(rows*d, 1))
			weight, ws := b.putAs(t, b.normal(d, 1))
			y, rstd := b.room(rows*d*t.Size()), b.room(rows*4)
			for _, fused := range []bool{false, true} {
				in, at := xs, cuda.Pointer(0)
				if fused {
					at, in = res, make([]float64, rows*d)
					for i := range in {
						in[i] = xs[i] + rs[i]
						if t == cuda.BF16 {
							in[i] = roundBF16(in[i])
						}
					}
				}
				wantY, wantR := make([]float64, rows*d), make([]float64, rows)
				for r := range rows {
					sum := 0.0
					for _, v := range in[r*d : (r+1)*d] {
						sum += v * v
					}
					wantR[r] = 1 / math.Sqrt(sum/float64(d)+eps)
					for i := range d {
						wantY[r*d+i] = in[r*d+i] * wantR[r] * ws[i]
					}
				}
				b.ok(cuda.RMSNorm(b.m, t, t, x, at, weight, y, rstd, rows, d, eps))
				what := fmt.Sprintf("%v, D=%d, fused=%v: ", t, d, fused)
				b.near(t, what+"y", getAs(b, t, y, rows*d), wantY)
				b.near(cuda.F32, what+"rstd", getAs(b, cuda.F32, rstd, rows), wantR)
				if fused {
					b.near(cuda.F32, what+"residual", getAs(b, t, res, rows*d), in)
				}
			}
			b.ok(cuda.RMSNorm(b.m, t, t, x, 0, weight, y, 0, rows, d, eps)) // without rstd
			if t == cuda.F32 {
				b.rounds("norm", y, rows*d, func(out cuda.Pointer) error {
					return cuda.RMSNorm(b.m, t, cuda.BF16, x, 0, weight, out, 0, rows, d, eps)
				})
			}
			normHeads(b, t, d, eps)
		}
	})
}

// normHeads normalises two heads in the middle of rows of four, and leaves the others.
func normHeads(b bench, t cuda.DType, d int, eps float64) {
	const rows, heads, first, n = 3, 4, 1, 2
	ld := heads * d
	x, want := b.putAs(t, b.normal(rows*ld, 1))
	weight, ws := b.putAs(t, b.normal(d, 1))
	rstd, wantR := b.room(n*rows*4), make([]float64, n*rows)
	for r := range rows {
		for h := range n {
			head, sum := want[r*ld+(first+h)*d:][:d], 0.0
			for _, v := range head {
				sum += v * v
			}
			scale := 1 / math.Sqrt(sum/float64(d)+eps)
			wantR[h*rows+r] = scale
			for i := range head {
				head[i] *= scale * ws[i]
			}
		}
	}
	b.ok(cuda.RMSNormHeads(b.m, t, x.At(first*d, t.Size()), weight, rstd, rows, n, d, ld, eps))
	b.near(t, "heads", getAs(b, t, x, rows*ld), want)
	b.near(cuda.F32, "rstd of heads", getAs(b, cuda.F32, rstd, n*rows), wantR)
}

// testRMSNormBackward compares with central differences of the norm, of whole rows and of
// two heads in the middle of rows of four, over more rows than one thread sums up.
func testRMSNormBackward(b bench) {
	const eps, rows = 1e-6, 70
	for _, c := range []struct{ d, n, of int }{{5, 1, 1}, {40, 1, 1}, {300, 1, 1}, {24, 2, 4}} {
		ld, first := c.of*c.d, (c.of-c.n)/2
		x, xs := b.putAs(cuda.F32, b.normal(rows*ld, 1))
		dy, ds := b.putAs(cuda.F32, b.normal(rows*ld, 1))
		weight, ws := b.putAs(cuda.F32, b.normal(c.d, 1))
		dw, was := b.putAs(cuda.F32, b.normal(c.d, 1))
		// norm is that of a head with one element moved, times dy: what is differentiated.
		norm := func(head, dy []float64, move int, by float64) (y float64) {
			sum := 0.0
			for i, v := range head {
				if i == move {
					v += by
				}
				sum += v * v
			}
			r := 1 / math.Sqrt(sum/float64(c.d)+eps)
			for i, v := range head {
				if i == move {
					v += by
				}
				y += ws[i] * v * r * dy[i]
			}
			return y
		}
		want, wantW, rstd := slices.Clone(ds), slices.Clone(was), make([]float64, c.n*rows)
		for r := range rows {
			for h := range c.n {
				at := r*ld + (first+h)*c.d
				head, g, sum := xs[at:at+c.d], ds[at:at+c.d], 0.0
				for _, v := range head {
					sum += v * v
				}
				scale := 1 / math.Sqrt(sum/float64(c.d)+eps)
				rstd[h*rows+r] = scale
				for i := range head {
					const by = 1e-5
					want[at+i] = (norm(head, g, i, by) - norm(head, g, i, -by)) / (2 * by)
					wantW[i] += g[i] * head[i] * scale
				}
			}
		}
		pr, _ := b.putAs(cuda.F32, rstd)
		scratch, out := b.room(cuda.RMSNormScratch(rows, c.n, c.d)), b.copied(dy, rows*ld*4)
		at := func(p cuda.Pointer) cuda.Pointer { return p.At(first*c.d, 4) }
		b.ok(cuda.RMSNormBackward(b.m, at(x), weight, pr, at(dy), at(out), 0, 0, rows, c.n, c.d, ld))
		b.near(cuda.F32, "gradient alone", getAs(b, cuda.F32, out, rows*ld), want)
		b.ok(cuda.RMSNormBackward(b.m, at(x), weight, pr, at(dy), at(dy), dw, scratch, rows, c.n, c.d, ld)) // in place
		what := fmt.Sprintf("D=%d, %d of %d heads: ", c.d, c.n, c.of)
		b.near(cuda.F32, what+"gradient", getAs(b, cuda.F32, dy, rows*ld), want)
		b.near(cuda.F32, what+"gradient of the weight", getAs(b, cuda.F32, dw, c.d), wantW)
	}
}

func testSwiGLU(b bench) {
	dtypes(func(t cuda.DType) {
		for _, d := range []int{1, 300, 1101} {
			const rows = 2
			gateUp, gu := b.putAs(t, b.normal(rows*2*d, 3))
			dy, ds := b.putAs(t, b.normal(rows*d, 1))
			y := b.room(rows * d * t.Size())
			value := func(g, u float64) float64 { return g / (1 + math.Exp(-g)) * u }
			wantY, wantG := make([]float64, rows*d), make([]float64, rows*2*d)
			for r := range rows {
				for i := range d {
					g, u, dv := gu[r*2*d+i], gu[r*2*d+d+i], ds[r*d+i]
					wantY[r*d+i] = value(g, u)
					const h = 1e-5 // central differences
					wantG[r*2*d+i] = dv * (value(g+h, u) - value(g-h, u)) / (2 * h)
					wantG[r*2*d+d+i] = dv * value(g, 1)
				}
			}
			b.ok(cuda.SwiGLU(b.m, t, t, gateUp, y, rows, d))
			b.near(t, fmt.Sprintf("%v, D=%d: y", t, d), getAs(b, t, y, rows*d), wantY)
			if t == cuda.F32 {
				b.rounds("SwiGLU", y, rows*d, func(out cuda.Pointer) error {
					return cuda.SwiGLU(b.m, t, cuda.BF16, gateUp, out, rows, d)
				})
			}
			b.ok(cuda.SwiGLUBackward(b.m, t, gateUp, dy, rows, d))
			b.near(t, fmt.Sprintf("%v, D=%d: gradient", t, d), getAs(b, t, gateUp, rows*2*d), wantG)
		}
	})
}

func testObjective(b bench) {
	for _, n := range []int{1, 700} {
		c := cuda.Clip{Low: 0.2, High: 0.28, Truncate: 1.5, Scale: 1.0 / 64}
		lp, old, behaviour, adv := b.normal(n, 1), make([]float64, n), make([]float64, n), b.normal(n, 1)
		mask := make([]byte, n)
		for i := range n {
			old[i] = lp[i] + b.rng.NormFloat64()*0.3
			behaviour[i] = old[i] + b.rng.NormFloat64()*0.5
			mask[i] = byte(b.rng.IntN(4) / 3)
			if n == 1 {
				mask[i] = 1
			}
		}
		p, lp := b.putAs(cuda.F32, lp)
		po, old := b.putAs(cuda.F32, old)
		pb, behaviour := b.putAs(cuda.F32, behaviour)
		pa, adv := b.putAs(cuda.F32, adv)
		// The definition, as a function of one token's log-probability.
		loss := func(i int, lp float64) float64 {
			ratio := math.Exp(lp - old[i])
			bounded := min(max(ratio, 1-c.Low), 1+c.High)
			return -c.Scale * min(math.Exp(old[i]-behaviour[i]), c.Truncate) * min(ratio*adv[i], bounded*adv[i])
		}
		want, totals := make([]float64, n), make([]float64, 4)
		for i := range n {
			if mask[i] == 0 {
				continue
			}
			const h = 1e-6
			want[i] = (loss(i, lp[i]+h) - loss(i, lp[i]-h)) / (2 * h)
			ratio := math.Exp(lp[i] - old[i])
			totals[0] += loss(i, lp[i])
			totals[1] += ratio - 1 - (lp[i] - old[i])
			if adv[i] > 0 && ratio > 1+c.High || adv[i] < 0 && ratio < 1-c.Low {
				totals[2]++
			}
			totals[3]++
		}
		grad, scratch, sums := b.room(n*4), b.room(cuda.ObjectiveScratch(n)), b.room(32)
		b.ok(cuda.Objective(b.m, c, p, po, pb, pa, b.put(mask), n, grad, scratch, sums))
		b.near(cuda.F32, "gradient", getAs(b, cuda.F32, grad, n), want)
		b.near(cuda.F32, "totals", get[float64](b, sums, 4), totals)
	}
}

func testOptimizer(b bench) {
	sizes := []int{5, 4096, 4099, 9000} // the last without a copy in bfloat16
	const clip = 0.5
	type tensor struct {
		cuda.Param
		p, m, v []float64
	}
	var all []tensor
	var params []cuda.Param
	for i, n := range sizes {
		var t tensor
		t.N, t.Decay = n, 0.1*float64(i)
		if i < 3 {
			t.Weight = b.room(n * 2)
		}
		t.Master, t.p = b.putAs(cuda.F32, b.normal(n, 1))
		t.Mean, t.m = b.putAs(cuda.F32, make([]float64, n))
		t.Square, t.v = b.putAs(cuda.F32, make([]float64, n))
		t.Grad = b.room(n * 4)
		if i == 2 { // at no multiple of 16 bytes
			t.Grad, t.Weight = b.room(n*4+4).At(1, 4), b.room(n*2+2).At(1, 2)
		}
		all, params = append(all, t), append(params, t.Param)
	}
	o, err := cuda.NewOptimizer(b.m, params)
	b.ok(err)
	defer o.Free(b.m)
	a := cuda.AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.5}
	for a.Step = 1; a.Step <= 3; a.Step++ {
		var grads [][]float64
		squares := 0.0
		for _, t := range all {
			g := b.normal(t.N, 0.1)
			bytes := make([]byte, 0, t.N*4)
			for i := range g {
				g[i] = float64(float32(g[i]))
				bytes = binary.LittleEndian.AppendUint32(bytes, math.Float32bits(float32(g[i])))
				squares += g[i] * g[i]
			}
			b.ok(b.m.Upload(t.Grad, bytes))
			grads = append(grads, g)
		}
		got, err := o.Squares(b.m)
		b.ok(err)
		if math.Abs(got-squares) > 1e-9*squares {
			b.Fatalf("squares %v, want %v", got, squares)
		}
		a.GradScale = min(1, clip/math.Sqrt(squares))
		b.ok(o.Step(b.m, a))
		for k, t := range all {
			for i := range t.p { // Loshchilov and Hutter, algorithm 2
				g := grads[k][i] * a.GradScale
				t.m[i] = a.Beta1*t.m[i] + (1-a.Beta1)*g
				t.v[i] = a.Beta2*t.v[i] + (1-a.Beta2)*g*g
				mh := t.m[i] / (1 - math.Pow(a.Beta1, float64(a.Step)))
				vh := t.v[i] / (1 - math.Pow(a.Beta2, float64(a.Step)))
				t.p[i] -= a.LR * (mh/(math.Sqrt(vh)+a.Eps) + a.WeightDecay*t.Decay*t.p[i])
			}
			b.near(cuda.F32, "master", getAs(b, cuda.F32, t.Master, t.N), t.p)
			b.near(cuda.F32, "mean", getAs(b, cuda.F32, t.Mean, t.N), t.m)
			b.near(cuda.F32, "square", getAs(b, cuda.F32, t.Square, t.N), t.v)
			if t.Weight != 0 {
				b.near(cuda.BF16, "weight", getAs(b, cuda.BF16, t.Weight, t.N), t.p)
			}
		}
	}
}
