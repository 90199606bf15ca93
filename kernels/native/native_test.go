package native

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"
)

// TestMain runs every test with each instruction set that the processor has.
func TestMain(m *testing.M) {
	for _, isa := range []string{"base", "avx2", "avx512"} {
		if !forceISA(isa) {
			continue
		}
		if code := m.Run(); code != 0 {
			os.Exit(code)
		}
	}
}

func random[F Float](rng *rand.Rand, n int) []F {
	s := make([]F, n)
	for i := range s {
		s[i] = F(rng.NormFloat64())
	}
	return s
}

func wide[F Float](s []F) []float64 {
	w := make([]float64, len(s))
	for i, x := range s {
		w[i] = float64(x)
	}
	return w
}

func zeros[F Float](s []F) []F { return make([]F, len(s)) }

// tolerance is the largest error allowed relative to the largest value.
func tolerance[F Float]() float64 {
	if single[F]() {
		return 1e-5
	}
	return 1e-13
}

// near compares against a float64 reference, relative to its largest value.
func near[F Float](t *testing.T, what string, got []F, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	scale, worst, at := 1e-30, 0.0, 0
	for _, w := range want {
		scale = max(scale, math.Abs(w))
	}
	for i, w := range want {
		if d := math.Abs(float64(got[i]) - w); !(d <= worst) {
			worst, at = d, i
		}
	}
	if !(worst <= tolerance[F]()*scale) {
		t.Errorf("%s: [%d] = %v, want %v (largest |value| %v)", what, at, got[at], want[at], scale)
	}
}

func same[F Float](t *testing.T, what string, got, want []F) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] || math.Signbit(float64(got[i])) != math.Signbit(float64(want[i])) {
			t.Fatalf("%s: [%d] = %v, want the bits of %v", what, i, got[i], want[i])
		}
	}
}

// numeric is the central difference of f with respect to every element of x.
func numeric(x []float64, f func() float64) []float64 {
	const h = 1e-5
	g := make([]float64, len(x))
	for i := range x {
		at := x[i]
		x[i] = at + h
		up := f()
		x[i] = at - h
		down := f()
		x[i] = at
		g[i] = (up - down) / (2 * h)
	}
	return g
}

func dot(a, b []float64) (s float64) {
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

// close64 compares an analytic gradient with a numeric one.
func close64(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-7*(1+math.Abs(want[i])) {
			t.Fatalf("%s: [%d] = %v, central difference %v", what, i, got[i], want[i])
		}
	}
}
