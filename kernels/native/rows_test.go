package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"testing"
)

func bruteRMSNorm(x, w []float64, eps float64) []float64 {
	y := make([]float64, len(x))
	for r := 0; r < len(x); r += len(w) {
		ss := dot(x[r:r+len(w)], x[r:r+len(w)])
		for i := range w {
			y[r+i] = x[r+i] * w[i] / math.Sqrt(ss/float64(len(w))+eps)
		}
	}
	return y
}

func testRMSNorm[F Float](t *testing.T) {
	for _, d := range []int{1, 6, 24, 192, 1000} {
		rng := rand.New(rand.NewPCG(1, uint64(d)))
		x, w := random[F](rng, 5*d), random[F](rng, d)
		y := zeros(x)
		RMSNorm(x, w, 5, 0, 0, 1e-6, y, nil)
		near(t, fmt.Sprint("y, D=", d), y, bruteRMSNorm(wide(x), wide(w), 1e-6))
		one := make([]F, d)
		RMSNorm(x[3*d:], w, 1, 0, 0, 1e-6, one, nil)
		same(t, "one row alone", one, y[3*d:4*d])
	}
}

func TestRMSNorm(t *testing.T) {
	t.Run("float32", testRMSNorm[float32])
	t.Run("float64", testRMSNorm[float64])
}

func TestRMSNormBackward(t *testing.T) {
	for _, d := range []int{3, 13} {
		rng := rand.New(rand.NewPCG(2, uint64(d)))
		x, w, g := random[float64](rng, 4*d), random[float64](rng, d), random[float64](rng, 4*d)
		loss := func() float64 { return dot(bruteRMSNorm(x, w, 1e-6), g) }
		wx, ww := numeric(x, loss), numeric(w, loss)
		y, rstd, dx, dw := zeros(x), make([]float64, 4), zeros(x), zeros(w)
		RMSNorm(x, w, 4, 0, 0, 1e-6, y, rstd)
		RMSNormBackward(x, w, rstd, g, 4, 0, 0, dx, dw)
		close64(t, "dx", dx, wx)
		close64(t, "dw", dw, ww)
		RMSNormBackward(x, w, rstd, g, 4, 0, 0, g, dw)
		same(t, "dx in place of dy", g, dx)
		for i := range ww {
			ww[i] *= 2
		}
		close64(t, "dw added to", dw, ww)
	}
}

func testRope[F Float](t *testing.T) {
	for _, dim := range []int{2, 12, 32} {
		const heads, ldx = 3, 200
		rng := rand.New(rand.NewPCG(3, uint64(dim)))
		positions := []int32{0, 7, 3, 15}
		cos, sin := make([]F, 16*dim/2), make([]F, 16*dim/2)
		for p := range 16 {
			for i := range dim / 2 {
				a := float64(p) * math.Pow(10000, -2*float64(i)/float64(dim))
				cos[p*dim/2+i], sin[p*dim/2+i] = F(math.Cos(a)), F(math.Sin(a))
			}
		}
		x := random[F](rng, 4*ldx)
		want := wide(x)
		for r, p := range positions {
			for h := range heads {
				v := want[r*ldx+h*dim:][:dim]
				for i := range dim / 2 {
					// A complex number times e^{iθ}.
					c, s := float64(cos[int(p)*dim/2+i]), float64(sin[int(p)*dim/2+i])
					z := complex(v[i], v[i+dim/2]) * complex(c, s)
					v[i], v[i+dim/2] = real(z), imag(z)
				}
			}
		}
		got := append([]F(nil), x...)
		Rope(got, positions, cos, sin, heads, dim, ldx)
		near(t, "rotated", got, want)
		RopeInverse(got, positions, cos, sin, heads, dim, ldx)
		near(t, "rotated back", got, wide(x))
	}
}

func TestRope(t *testing.T) {
	t.Run("float32", testRope[float32])
	t.Run("float64", testRope[float64])
}

func bruteSwiGLU(g, u []float64) []float64 {
	y := make([]float64, len(g))
	for i := range y {
		y[i] = g[i] / (1 + math.Exp(-g[i])) * u[i]
	}
	return y
}

func testSwiGLU[F Float](t *testing.T) {
	for _, d := range []int{3, 29, 64} {
		rng := rand.New(rand.NewPCG(4, uint64(d)))
		fused := random[F](rng, 3*2*d) // gate and up side by side
		for i := range fused {
			fused[i] *= 8
		}
		var g, u []F
		for r := range 3 {
			g, u = append(g, fused[r*2*d:][:d]...), append(u, fused[r*2*d+d:][:d]...)
		}
		y := make([]F, 3*d)
		SwiGLU(fused, fused[d:], 3, d, 2*d, 0, y)
		near(t, "y", y, bruteSwiGLU(wide(g), wide(u)))
	}
	y := make([]F, 4)
	SwiGLU([]F{-1e5, 1e5, -1e3, 0}, []F{1, 1, 1, 1}, 1, 4, 0, 0, y)
	near(t, "extremes", y, []float64{0, 1e5, 0, 0})
}

func TestSwiGLU(t *testing.T) {
	t.Run("float32", testSwiGLU[float32])
	t.Run("float64", testSwiGLU[float64])
}

func TestSwiGLUBackward(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	g, u, d := random[float64](rng, 21), random[float64](rng, 21), random[float64](rng, 21)
	loss := func() float64 { return dot(bruteSwiGLU(g, u), d) }
	wg, wu := numeric(g, loss), numeric(u, loss)
	SwiGLUBackward(g, u, d, 3, 7, 0, 0, g, u)
	close64(t, "dgate", g, wg)
	close64(t, "dup", u, wu)
}

func bruteLogprob(x []float64, target int) (lp, entropy, lse float64) {
	m, sum := math.Inf(-1), 0.0
	for _, v := range x {
		m = max(m, v)
	}
	for _, v := range x {
		sum += math.Exp(v - m)
	}
	lse = m + math.Log(sum)
	for _, v := range x {
		if p := math.Exp(v - lse); p > 0 {
			entropy -= p * (v - lse)
		}
	}
	return x[target] - lse, entropy, lse
}

func testLogprob[F Float](t *testing.T) {
	for _, v := range []int{1, 5, 100, 2048, 5001} {
		rng := rand.New(rand.NewPCG(6, uint64(v)))
		x := random[F](rng, 3*v)
		for i := range x {
			x[i] *= 5
		}
		if v > 50 {
			x[7], x[v+9] = F(math.Inf(-1)), 60
		}
		targets := []int32{0, int32(v - 1), int32(v / 2)}
		lp, ent, lse := make([]F, 3), make([]F, 3), make([]F, 3)
		Logprob(x, targets, v, lp, ent, lse)
		var wl, we, ws []float64
		for r, target := range targets {
			a, b, c := bruteLogprob(wide(x[r*v:(r+1)*v]), int(target))
			wl, we, ws = append(wl, a), append(we, b), append(ws, c)
		}
		near(t, "logprob", lp, wl)
		near(t, "entropy", ent, append(we, 10)[:3])
		near(t, "lse", lse, ws)
		alone := make([]F, 1)
		Logprob(x[v:], targets[1:2], v, alone, nil, nil)
		same(t, "alone", alone, lp[1:2])
	}
}

func TestLogprob(t *testing.T) {
	t.Run("float32", testLogprob[float32])
	t.Run("float64", testLogprob[float64])
}

func TestLogprobBackward(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	x, targets, g := random[float64](rng, 3*11), []int32{10, 0, 4}, []float64{0.5, 0, -2}
	want := numeric(x, func() (s float64) {
		for r, target := range targets {
			lp, _, _ := bruteLogprob(x[r*11:(r+1)*11], int(target))
			s += g[r] * lp
		}
		return s
	})
	lp, lse := make([]float64, 3), make([]float64, 3)
	Logprob(x, targets, 11, lp, nil, lse)
	LogprobBackward(x, targets, 11, lse, g)
	close64(t, "dlogits", x, want)
}

// The reference is the update rule of Loshchilov and Hutter (arXiv 1711.05101,
// algorithm 2) with a schedule multiplier of 1.
func testAdamW[F Float](t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	p, m, v := random[F](rng, 19), make([]F, 19), make([]F, 19)
	wp, wm, wv := wide(p), wide(m), wide(v)
	o := AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, GradScale: 0.5}
	for step := 1; step <= 5; step++ {
		g := random[F](rng, 19)
		o.Step = step
		Update(o, p, g, m, v)
		for i := range wp {
			gi := float64(g[i]) * 0.5
			wm[i] = 0.9*wm[i] + 0.1*gi
			wv[i] = 0.95*wv[i] + 0.05*gi*gi
			mh, vh := wm[i]/(1-math.Pow(0.9, float64(step))), wv[i]/(1-math.Pow(0.95, float64(step)))
			wp[i] -= o.LR * (mh/(math.Sqrt(vh)+o.Eps) + o.WeightDecay*wp[i])
		}
	}
	near(t, "p", p, wp)
	near(t, "m", m, wm)
	near(t, "v", v, wv)
}

func TestAdamW(t *testing.T) {
	t.Run("float32", testAdamW[float32])
	t.Run("float64", testAdamW[float64])
}

func TestSumSquares(t *testing.T) {
	x := make([]float32, 1003)
	for i := range x {
		x[i] = float32(i)
	}
	if got, want := SumSquares(x), float64(1002*1003*2005/6); got != want {
		t.Errorf("sum of squares 0…1002 = %v, want %v", got, want)
	}
}

// kept is the distribution that Sample draws from, by its definition.
func kept(logits []float32, s Sampling) []float64 {
	type tok struct {
		id int
		w  float64
	}
	var all []tok
	for i, x := range logits {
		all = append(all, tok{i, math.Exp(float64(x) / s.Temperature)})
	}
	sort.Slice(all, func(i, j int) bool {
		return logits[all[i].id] > logits[all[j].id] || logits[all[i].id] == logits[all[j].id] && all[i].id < all[j].id
	})
	if s.TopK > 0 && s.TopK < len(all) {
		all = all[:s.TopK]
	}
	total := 0.0
	for _, c := range all {
		total += c.w
	}
	if s.TopP > 0 && s.TopP < 1 {
		sum := 0.0
		for i, c := range all {
			if sum += c.w; sum >= s.TopP*total {
				all = all[:i+1]
				break
			}
		}
	}
	for i, c := range all {
		if c.w < s.MinP*all[0].w {
			all = all[:i]
			break
		}
	}
	total = 0
	for _, c := range all {
		total += c.w
	}
	p := make([]float64, len(logits))
	for _, c := range all {
		p[c.id] = c.w / total
	}
	return p
}

func TestSample(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	logits := random[float32](rng, 613)
	for i := range logits {
		logits[i] *= 2
	}
	logits[600] = logits[3] // a tie
	for _, s := range []Sampling{
		{Temperature: 1},
		{Temperature: 0.5},
		{Temperature: 1, TopK: 1},
		{Temperature: 2, TopK: 40},
		{Temperature: 1, TopP: 0.9},
		{Temperature: 1, TopP: 1e-9},
		{Temperature: 0.7, TopK: 50, TopP: 0.8},
		{Temperature: 1, TopK: 10000, TopP: 1},
		{Temperature: 1, MinP: 0.05},
		{Temperature: 1.5, TopK: 90, TopP: 0.95, MinP: 0.02},
		{Temperature: 1, MinP: 1},
	} {
		p := kept(logits, s)
		lp := make([]float32, 1)
		// The draw at u inverts the cumulative distribution: try the middle of each step.
		at := 0.0
		for id, w := range p {
			if w > 1e-5 {
				token, logprob, sampled := Sample(logits, s, at+w/2)
				if int(token) != id {
					t.Fatalf("%+v: u=%v drew %d, want %d", s, at+w/2, token, id)
				}
				Logprob(logits, []int32{token}, len(logits), lp, nil, nil)
				same(t, "logprob", []float32{logprob}, lp)
				if math.Abs(float64(sampled)-math.Log(w)) > 1e-5 {
					t.Fatalf("%+v: sampling logprob of %d is %v, want %v", s, id, sampled, math.Log(w))
				}
			}
			at += w
		}
		if token, _, _ := Sample(logits, s, math.Nextafter(1, 0)); p[token] == 0 {
			t.Errorf("%+v: u just below 1 drew %d, which has no weight", s, token)
		}
	}
}

func TestSampleGreedyAndBroken(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		logits []float32
		want   int32
	}{
		{[]float32{1, 3, 3, 2}, 1}, // lowest id on a tie
		{[]float32{-inf, 3, -inf}, 1},
		{[]float32{-inf, -inf}, -1},
		{[]float32{1, inf}, -1},
		{[]float32{nan, nan}, -1},
		{[]float32{nan, 1, 2}, -1},
		{[]float32{2, 1, nan}, -1},
	} {
		if got, _, _ := Sample(c.logits, Sampling{}, 0.5); got != c.want {
			t.Errorf("greedy over %v = %d, want %d", c.logits, got, c.want)
		}
		if got, _, _ := Sample(c.logits, Sampling{Temperature: 1}, 0.5); (got < 0) != (c.want < 0) {
			t.Errorf("sampling from %v = %d, want %d", c.logits, got, c.want)
		}
	}
}
