package torch

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/kernels/native"
)

// generic puts values on the device that stands for any.
func generic(t *testing.T, shape []int, next func() float64) *Tensor {
	t.Helper()
	host := New(Activations, Float64, shape...)
	for i, d := 0, Data[float64](host); i < len(d); i++ {
		d[i] = next()
	}
	out := envtest.Device(t, ParseDevice).New(Activations, Float64, shape...)
	Copy(out, host)
	host.Free()
	t.Cleanup(out.Free)
	return out
}

func values(t *Tensor) []float64 {
	host := t.OnCPU()
	defer host.Free()
	return slices.Clone(Data[float64](host))
}

// TestAttentionInBlocks: however many scores may exist at a time, attention and its
// gradient are those of the CPU's kernels.
func TestAttentionInBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	offsets := []int32{0, 40, 41, 41, 70}
	const n = 70
	for _, window := range []int{0, 1, 7, 100} {
		h := Heads{Heads: 6, KVHeads: 2, Dim: 4, Window: window, Scale: 0.4}
		a := native.Attention{Heads: 6, KVHeads: 2, Dim: 4, Window: window, Scale: 0.4, QStride: 40, KStride: 40, VStride: 40}
		qkv, dout := generic(t, []int{n, 40}, r.NormFloat64), generic(t, []int{n, 24}, r.NormFloat64)
		x, g := values(qkv), values(dout)
		out, lse, dx := make([]float64, n*24), make([]float64, n*6), make([]float64, n*40)
		native.AttentionForward(a, x, x[24:], x[32:], offsets, out, lse)
		native.AttentionBackward(a, x, x[24:], x[32:], out, lse, g, offsets, dx, dx[24:], dx[32:])
		for _, h.Scores = range []int{1, 200, 5000, 0} {
			nan := func() float64 { return math.NaN() }
			gotOut, gotLSE, gotD := generic(t, []int{n, 24}, nan), generic(t, []int{n, 6}, nan), generic(t, []int{n, 40}, nan)
			Attention(h, qkv, offsets, gotOut, gotLSE)
			AttentionBackward(h, qkv, gotOut, gotLSE, dout, offsets, gotD)
			for name, pair := range map[string][2][]float64{"out": {values(gotOut), out}, "lse": {values(gotLSE), lse}, "gradient": {values(gotD), dx}} {
				for i, want := range pair[1] {
					if d := math.Abs(pair[0][i] - want); !(d <= 1e-12*(1+math.Abs(want))) {
						t.Fatalf("window %d, %d scores: %s[%d] is %v, want %v", window, h.Scores, name, i, pair[0][i], want)
					}
				}
			}
		}
	}
}

// TestSampleIsThatOfTheCPU draws from rows of many kinds, in one batch, and compares
// with native.Sample. A draw within rounding of a boundary may go to a neighbour.
func TestSampleIsThatOfTheCPU(t *testing.T) {
	const rows, vocab = 600, 211
	r := rand.New(rand.NewPCG(3, 4))
	host := New(Activations, Float32, rows, vocab)
	defer host.Free()
	logits := Data[float32](host)
	for i := range logits {
		logits[i] = float32(3 * r.NormFloat64())
		if i%5 == 0 {
			logits[i] = float32(math.Round(float64(logits[i]))) // ties
		}
	}
	logits[7*vocab+3] = float32(math.NaN())
	logits[8*vocab+3] = float32(math.Inf(1))
	logits[9*vocab+3] = float32(math.Inf(-1))
	var draws []Draw
	pick := func(of ...float64) float64 { return of[r.IntN(len(of))] }
	for range rows {
		draws = append(draws, Draw{
			Temperature: pick(0, 0.3, 1, 1.7), TopP: pick(0, 0.5, 0.95, 1), MinP: pick(0, 0, 0.1), TopK: int(pick(0, 1, 5, 1000)), U: r.Float64(),
		})
	}
	device := envtest.Device(t, ParseDevice).New(Activations, Float32, rows, vocab)
	defer device.Free()
	Copy(device, host)
	// Some together, some without one that is filtered.
	apart := 0
	for lo := 0; lo < rows; lo += 60 {
		part := device.Rows(lo, lo+60)
		tokens, lps, slps := Sample(part, draws[lo:lo+60])
		part.Free()
		for i := range tokens {
			row, d := logits[(lo+i)*vocab:][:vocab], draws[lo+i]
			token, lp, slp := native.Sample(row, native.Sampling{Temperature: d.Temperature, TopP: d.TopP, MinP: d.MinP, TopK: d.TopK}, d.U)
			if tokens[i] != token {
				apart++
				t.Logf("row %d, %+v: token %d, the CPU draws %d", lo+i, d, tokens[i], token)
				continue
			}
			if token >= 0 && (math.Abs(float64(lps[i]-lp)) > 1e-5 || math.Abs(float64(slps[i]-slp)) > 1e-5) {
				t.Errorf("row %d, %+v: log-probabilities %v and %v, want %v and %v", lo+i, d, lps[i], slps[i], lp, slp)
			}
		}
	}
	if apart > 1 {
		t.Errorf("%d of %d draws differ from the CPU's", apart, rows)
	}
}

func TestParseDevice(t *testing.T) {
	for name, want := range map[string]Device{"": CPU, "cpu": CPU, "generic": Generic, "cuda": CUDA(0), "cuda:3": CUDA(3)} {
		d, err := ParseDevice(name)
		if err != nil || d != want {
			t.Errorf("%q is %v, %v; want %v", name, d, err, want)
		}
		if again, err := ParseDevice(d.String()); err != nil || again != d {
			t.Errorf("%v reads back as %v, %v", d, again, err)
		}
	}
	for _, name := range []string{"gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"} {
		if d, err := ParseDevice(name); err == nil {
			t.Errorf("%q is %v; want an error", name, d)
		}
	}
}

// TestDeviceMemoryIsNotGos: what Go may not read on a GPU it may not read on Generic.
func TestDeviceMemoryIsNotGos(t *testing.T) {
	a := envtest.Device(t, ParseDevice).New(Weights, Float32, 2)
	defer a.Free()
	row := a.Rows(0, 1)
	defer row.Free()
	for name, f := range map[string]func(){"Data": func() { Data[float32](a) }, "Bytes": func() { row.Bytes() }} {
		err := func() (err error) {
			defer Catch(&err)
			f()
			return nil
		}()
		if err == nil {
			t.Errorf("%s of a tensor on %v", name, a.Device())
		}
	}
}

// TestDeviceNormal: draws have the moments of the normal distribution, within five
// deviations of each moment's estimate, and follow from the seed.
func TestDeviceNormal(t *testing.T) {
	const n, std = 1 << 16, 0.3
	draw := func(seed uint64) []float64 {
		x := envtest.Device(t, ParseDevice).New(Weights, Float64, n)
		defer x.Free()
		x.Normal(std, seed)
		return values(x)
	}
	one := draw(7)
	var sum, squares, fourths float64
	for _, v := range one {
		v /= std
		sum, squares, fourths = sum+v, squares+v*v, fourths+v*v*v*v
	}
	for _, m := range []struct {
		name               string
		got, want, deviate float64 // of one draw's: Var(x) = 1, Var(x²) = 2, Var(x⁴) = 96
	}{{"mean", sum / n, 0, 1}, {"variance", squares / n, 1, math.Sqrt2}, {"fourth moment", fourths / n, 3, math.Sqrt(96)}} {
		if d := math.Abs(m.got - m.want); d > 5*m.deviate/math.Sqrt(n) {
			t.Errorf("%s %v, want %v", m.name, m.got, m.want)
		}
	}
	if !slices.Equal(one, draw(7)) {
		t.Error("the same seed draws other values")
	}
	if other := draw(8); slices.Equal(one, other) || one[0] == other[0] {
		t.Error("another seed draws the same values")
	}
}
