package model

import (
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
)

// adapted is a policy over weights that it saves in dir, with adapters that do
// something.
func adapted(t *testing.T, c Config, o Options, dir string) *Policy {
	t.Helper()
	if err := random(t, c, Options{DType: o.DType}).Save(dir, torch.Float32); err != nil {
		t.Fatal(err)
	}
	p, err := Load(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	r := rand.New(rand.NewPCG(8, 8))
	for _, param := range p.Trained() {
		fill(param.Tensor, func() float64 { return 0.2 * r.NormFloat64() })
	}
	if err := p.Refresh(); err != nil {
		t.Fatal(err)
	}
	return p
}

func accumulateAll(t *testing.T, p *Policy, tokens []int32, offsets []int) {
	t.Helper()
	err := p.Accumulate(t.Context(), tokens, offsets, func(lp, _ []float64) ([]float64, error) {
		_, grad := objective(lp)
		return grad, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// savedTwice is a policy with adapters saved in dir, and loaded, in both ways: the
// adapters over their base, and the sum by itself.
func savedTwice(t *testing.T, p *Policy, base, dir string, o Options, dtype torch.DType) (again, merged *Policy) {
	t.Helper()
	adapter, sum := filepath.Join(dir, "adapter"), filepath.Join(dir, "merged")
	again, err := Load(base, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	if err := errors.Join(p.SaveAdapter(adapter, base), again.LoadAdapter(adapter), p.Save(sum, dtype)); err != nil {
		t.Fatal(err)
	}
	if merged, err = Load(sum, Options{DType: dtype}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(merged.Close)
	return again, merged
}

// TestAdapterGradient compares the gradient of adapters with central differences.
func TestAdapterGradient(t *testing.T) {
	for _, tc := range []struct {
		c Config
		o Options
	}{
		{tiny("qwen2", true), Options{Workers: 2, LoRA: &LoRA{Rank: 3, Alpha: 6}}},
		{tiny("qwen3", false), Options{Workers: 1, Recompute: true, LoRA: &LoRA{Rank: 1, Targets: []string{"q_proj", "v_proj", "up_proj"}}}},
		{tiny("cwm", false), Options{Workers: 1, FreezeLayers: 1, LoRA: &LoRA{Rank: 2}}},
	} {
		tc.o.DType = torch.Float64
		p := adapted(t, tc.c, tc.o, t.TempDir())
		tokens, offsets := packed(tc.c, 9, 1, 14)
		accumulateAll(t, p, tokens, offsets)
		grad := torch.Data[float64](sumLanes(p))
		r := rand.New(rand.NewPCG(5, 6))
		for _, param := range p.Trained() {
			w := torch.Data[float64](param.Tensor)
			for range 2 {
				i := r.IntN(len(w))
				const h = 1e-5
				at := func(x float64) float64 {
					keep := w[i]
					w[i] += x
					if err := p.Refresh(); err != nil {
						t.Fatal(err)
					}
					w[i] = keep
					loss, _ := objective(mustLogprobs(t, p, tokens, offsets))
					return loss
				}
				want, got := (at(h)-at(-h))/(2*h), grad[param.offset+i]
				if math.Abs(got-want) > 1e-6*(1+math.Abs(want)) {
					t.Errorf("%s %s[%d]: gradient %.9g, central difference %.9g", tc.c.ModelType, param.Name, i, got, want)
				}
			}
		}
	}
}

// TestAdapters: the merged policy says what one says whose matrices were summed up
// by hand; what is saved merged, or as an adapter and loaded again, has the same
// bits; training changes nothing but the adapters.
func TestAdapters(t *testing.T) {
	c, dir := tiny("llama", false), t.TempDir()
	o := Options{Workers: 2, LoRA: &LoRA{Rank: 3, Alpha: 7, Targets: []string{"k_proj", "o_proj", "gate_proj", "down_proj"}}}
	base := filepath.Join(dir, "base")
	p := adapted(t, c, o, base)
	tokens, offsets := packed(c, 30, 12)
	want := mustLogprobs(t, p, tokens, offsets)

	plain, err := Load(base, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	byName := map[string]*torch.Tensor{}
	for _, param := range p.Trained() {
		byName[param.Name] = param.Tensor
	}
	summed := 0
	for _, param := range plain.Parameters() {
		a := byName[strings.TrimSuffix(param.Name, "weight")+loraA]
		if a == nil {
			continue
		}
		b := byName[strings.TrimSuffix(param.Name, "weight")+loraB]
		w, A, B := torch.Data[float32](param.Tensor), torch.Data[float32](a), torch.Data[float32](b)
		in := param.shape[1]
		for i := range w {
			for k := range 3 {
				w[i] += float32(7.0 / 3 * float64(B[i/in*3+k]) * float64(A[k*in+i%in]))
			}
		}
		summed++
	}
	if err := plain.Refresh(); err != nil || summed != 8 {
		t.Fatalf("%d matrices have adapters, want 8: %v", summed, err)
	}
	for i, lp := range mustLogprobs(t, plain, tokens, offsets) {
		if math.Abs(lp-want[i]) > 1e-4 {
			t.Fatalf("token %d: %v with adapters, %v with the sum", i, want[i], lp)
		}
	}

	again, merged := savedTwice(t, p, base, dir, o, torch.Float32)
	for name, other := range map[string]*Policy{"loaded again": again, "merged": merged} {
		if i := sameBits(mustLogprobs(t, other, tokens, offsets), want); i >= 0 {
			t.Errorf("%s: token %d has another log-probability", name, i)
		}
	}

	before := slices.Clone(torch.Data[float32](p.flat))
	trainSteps(t, p, 3)
	changed := map[string]bool{}
	for _, param := range p.Parameters() {
		changed[param.Name] = !slices.Equal(before[param.offset:][:param.len()], torch.Data[float32](param.Tensor))
	}
	for name, c := range changed {
		if _, has := byName[strings.TrimSuffix(name, "weight")+loraA]; has != c {
			t.Errorf("training changed %s: %v", name, c)
		}
	}
	for name, l := range map[string]*LoRA{"rank": {Rank: 2, Alpha: 14.0 / 3}, "scale": {Rank: 3, Alpha: 6}, "has": {Rank: 3, Alpha: 7, Targets: []string{"k_proj"}}, "q_proj": {Rank: 3, Alpha: 7}} {
		other, err := Load(base, Options{LoRA: l})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.LoadAdapter(filepath.Join(dir, "adapter")); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("an adapter of another %s: %v", name, err)
		}
	}
}

// TestBFloat16Adapters: the weights are the sum rounded; the gradient is that of float32
// and of differences, as far as the rounding lets them; adapters are exact, in training
// and in files, from which the policy comes back with the same bits.
func TestBFloat16Adapters(t *testing.T) {
	c, dir := tiny("qwen3", true), t.TempDir()
	c.InitStd = 0.1
	l := &LoRA{Rank: 3, Alpha: 6}
	base, o := filepath.Join(dir, "base"), Options{Workers: 2, DType: torch.BFloat16, LoRA: l}
	half := adapted(t, c, o, base)
	single, err := Load(base, Options{Workers: 2, LoRA: l})
	if err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	live := torch.Data[float32](half.live)
	set := func(p *Policy, to func(i int) float32) {
		for i, into := 0, torch.Data[float32](p.live); i < len(into); i++ {
			into[i] = to(i)
		}
		if err := p.Refresh(); err != nil {
			t.Fatal(err)
		}
	}
	start := slices.Clone(live)
	set(single, func(i int) float32 { return start[i] })
	summed := torch.Data[float32](single.flat)
	for i, v := range torch.Data[float32](half.flat) {
		// A bfloat16 is within 2⁻⁸ of what it is rounded from.
		if v != bf16(v) || math.Abs(float64(v-summed[i])) > math.Abs(float64(summed[i]))/256*1.001 {
			t.Fatalf("weight %d is %v, the sum %v", i, v, summed[i])
		}
	}
	if !slices.ContainsFunc(live, func(v float32) bool { return v != bf16(v) }) {
		t.Error("the adapters are rounded")
	}

	tokens, offsets := packed(c, 40, 20)
	accumulateAll(t, half, tokens, offsets)
	accumulateAll(t, single, tokens, offsets)
	gradient := slices.Clone(torch.Data[float32](sumLanes(half)))
	norm := nearlySame(t, gradient, torch.Data[float32](sumLanes(single)), 0.995)
	// Along the gradient, by steps that rounding does not swallow, over which the slope
	// changes in float32 as well.
	const h = 0.05
	slope := func(p *Policy) float64 {
		loss := map[float32]float64{}
		for _, sign := range []float32{1, -1} {
			set(p, func(i int) float32 { return start[i] + sign*h*gradient[i]/float32(norm) })
			loss[sign], _ = objective(mustLogprobs(t, p, tokens, offsets))
		}
		set(p, func(i int) float32 { return start[i] })
		return (loss[1] - loss[-1]) / (2 * h)
	}
	t.Logf("norm of the gradient %v, slope %v, in float32 %v", norm, slope(half), slope(single))
	if s, want := slope(half), slope(single); math.Abs(s/want-1) > 0.02 || math.Abs(s/norm-1) > 0.2 {
		t.Errorf("slope %v, in float32 %v, norm of the gradient %v", s, want, norm)
	}

	want := mustLogprobs(t, half, tokens, offsets)
	again, merged := savedTwice(t, half, base, dir, o, torch.BFloat16)
	for name, other := range map[string]*Policy{"loaded again": again, "merged": merged} {
		if i := sameBits(mustLogprobs(t, other, tokens, offsets), want); i >= 0 {
			t.Errorf("%s: token %d has another log-probability", name, i)
		}
	}
	// Steps of 1e-5 move no weight at a time.
	loss0, _ := objective(want)
	half.ClearGradient()
	for range 100 {
		accumulateAll(t, half, tokens, offsets)
		if _, err := half.Step(AdamW{LR: 1e-5, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
			t.Fatal(err)
		}
	}
	loss1, _ := objective(mustLogprobs(t, half, tokens, offsets))
	for i, v := range live {
		if off := math.Abs(float64(v - start[i])); off > 1.1e-3 || off == 0 && gradient[i] != 0 {
			t.Fatalf("adapter %d went from %v to %v in 100 steps of 1e-5", i, start[i], v)
		}
	}
	if loss1 >= loss0 {
		t.Errorf("the loss went from %v to %v", loss0, loss1)
	}
}
