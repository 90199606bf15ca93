package torch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func fill(t *Tensor, r *rand.Rand) *Tensor {
	for i, d := 0, Data[float64](t); i < len(d); i++ {
		d[i] = r.NormFloat64()
	}
	return t
}

// TestProducts compares both products, of views with strides, with loops in Go.
func TestProducts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const m, k, n = 7, 5, 3
	a, b := fill(New(Weights, Float64, m, k+2), r), fill(New(Weights, Float64, n, k), r)
	out := fill(New(Weights, Float64, m, n), r)
	av, bt := a.Columns(1, k+1), b.T()
	defer func() {
		for _, x := range []*Tensor{av, bt, a, b, out} {
			x.Free()
		}
	}()
	da, db, before := Data[float64](a), Data[float64](b), slices.Clone(Data[float64](out))
	want := func(i, j int) float64 {
		sum := 0.0
		for x := range k {
			sum += da[i*(k+2)+1+x] * db[j*k+x]
		}
		return sum
	}
	near := func(name string, got, want float64) {
		if d := got - want; d > 1e-12 || d < -1e-12 {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	AddMatMul(out, av, bt)
	for i := range m {
		for j := range n {
			near("AddMatMul", Data[float64](out)[i*n+j], before[i*n+j]+want(i, j))
		}
	}
	MatMul(out, av, bt)
	for i := range m {
		for j := range n {
			near("MatMul", Data[float64](out)[i*n+j], want(i, j))
		}
	}
}

func TestViewsShareMemory(t *testing.T) {
	base := New(Weights, Float32, 4, 6)
	rows := base.Rows(1, 3)
	cols := rows.Columns(2, 4)
	flipped := cols.T()
	Memory[float32](flipped)[0] = 5 // row 1, column 2
	if got := Data[float32](base)[1*6+2]; got != 5 {
		t.Errorf("wrote through three views, read %v", got)
	}
	base.Free() // the memory lives on in the views
	if got := Memory[float32](cols)[0]; got != 5 {
		t.Errorf("after the owner was freed: %v", got)
	}
	for _, v := range []*Tensor{rows, cols, flipped} {
		v.Free()
	}
}

func TestCopyConverts(t *testing.T) {
	from, to := New(Weights, Float32, 3), New(Weights, BFloat16, 3)
	defer from.Free()
	defer to.Free()
	copy(Data[float32](from), []float32{1, 1 + 1.0/256, -2.5}) // the second is half-way and rounds to even
	Copy(to, from)
	if want := []byte{0x80, 0x3f, 0x80, 0x3f, 0x20, 0xc0}; !slices.Equal(to.Bytes(), want) {
		t.Errorf("% x, want % x", to.Bytes(), want)
	}
}

func TestErrorsNameTheOperation(t *testing.T) {
	a, b := New(Weights, Float32, 2, 3), New(Weights, Float64, 3, 2)
	defer a.Free()
	defer b.Free()
	for want, f := range map[string]func(){
		"MatMul: float32[2 3] = float32[2 3] @ float64[3 2]": func() { MatMul(a, a, b) },
		"Copy: float32[2 3] with float64[3 2]":               func() { Copy(a, b) },
		"Rows: [1, 3) of float32[2 3]":                       func() { a.Rows(1, 3) },
		"Data: float64[3 2] read as elements of 4 bytes":     func() { Data[float32](b) },
		// libtorch's own: it has no such memory.
		"empty: ": func() { New(Weights, Float64, 1<<40, 1<<20) },
	} {
		err := func() (err error) {
			defer Catch(&err)
			f()
			return nil
		}()
		var own *Error
		if !errors.As(err, &own) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestArenaReusesMemory(t *testing.T) {
	before := Allocated()
	a := NewArena(Activations, Float32)
	outer := a.Scope()
	first := outer.Empty(1000)
	address := &Data[float32](first)[0]
	inner := outer.Nest()
	big := inner.Empty(slabBytes) // four slabs' worth: a slab of its own
	if &Data[float32](inner.Empty(10))[0] == address || big.Len() != slabBytes {
		t.Error("tensors of open scopes overlap")
	}
	grown := Allocated()[Activations]
	inner.Close()
	again := outer.Nest()
	again.Empty(slabBytes)
	if got := Allocated()[Activations]; got != grown {
		t.Errorf("the same work again took %d more bytes", got-grown)
	}
	outer.Close() // closes again, too
	again.Close()
	fresh := a.Scope()
	if &Data[float32](fresh.Empty(5))[0] != address {
		t.Error("a closed scope's memory was not used again")
	}
	fresh.Close()
	a.Free()
	if got := Allocated()[Activations]; got != before[Activations] {
		t.Errorf("%d bytes left behind", got-before[Activations])
	}
}

func TestInnermostScopeOnly(t *testing.T) {
	a := NewArena(Activations, Float32)
	defer a.Free()
	outer := a.Scope()
	defer outer.Close()
	outer.Nest()
	defer func() {
		if recover() == nil {
			t.Error("memory from a scope that is not the innermost would be given back twice")
		}
	}()
	outer.Empty(1)
}

// TestOneThreadPerOperation: a large product must not spread over threads.
func TestOneThreadPerOperation(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("one core")
	}
	if n := threads(); n != 1 {
		t.Errorf("libtorch uses %d threads", n)
	}
}

// TestWhatTheVersionLacks holds what compat/include/torch/torch.h stands in for. A
// version that is not listed lies between two that are, and lacks no more than the
// later and no less than the earlier one.
func TestWhatTheVersionLacks(t *testing.T) {
	changed := []string{"_cslt_sparse_mm", "_scaled_mm", "_scaled_mm_out"}
	removed := []string{"align_as", "align_tensors", "cholesky", "cholesky_out", "qr", "qr_out"}
	var major, minor int
	if _, err := fmt.Sscanf(Version(), "%d.%d", &major, &minor); err != nil || major != 2 {
		t.Fatalf("libtorch %s: %v", Version(), err)
	}
	got := lacks()
	t.Logf("libtorch %s lacks %v", Version(), got)
	for _, name := range changed {
		if minor >= 6 && !slices.Contains(got, name) || minor <= 1 && slices.Contains(got, name) {
			t.Errorf("%s: libtorch %s lacks %v", name, Version(), got)
		}
	}
	for _, name := range removed {
		if minor <= 6 && slices.Contains(got, name) || minor >= 14 && !slices.Contains(got, name) {
			t.Errorf("%s: libtorch %s lacks %v", name, Version(), got)
		}
	}
}

// TestPeaks: a purpose's peak is the most of its own, the whole's that of all together.
func TestPeaks(t *testing.T) {
	before, all := Allocated(), int64(0)
	for _, n := range before {
		all += n
	}
	ResetPeak()
	a := New(Weights, Float32, 100)
	a.Free()
	b := New(Cache, Float64, 30)
	c := New(Cache, Float32, 10)
	c.Free()
	b.Free()
	for p, more := range map[Purpose]int64{Weights: 400, Cache: 280, Gradients: 0} {
		if got := Peaks()[p] - before[p]; got != more {
			t.Errorf("peak of %v: %d bytes more, want %d", p, got, more)
		}
	}
	if got := Peak() - all; got != 400 {
		t.Errorf("peak: %d bytes more, want 400", got)
	}
	ResetPeak()
	if got := Peaks()[Weights] - before[Weights]; got != 0 {
		t.Errorf("after a reset: %d bytes", got)
	}
}
