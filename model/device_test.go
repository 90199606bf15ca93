package model

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/kernels/torch"
)

// families with everything in them.
func everyFamily() []Config {
	return []Config{tiny("qwen2", true), tiny("qwen3", false), tiny("llama", false), tiny("mistral", false), tiny("cwm", false)}
}

// differ is the largest difference of two vectors, relative to 1 or the second's.
func differ(t *testing.T, got, want []float64) (most float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d values, want %d", len(got), len(want))
	}
	for i, w := range want {
		d := math.Abs(got[i]-w) / max(1, math.Abs(w))
		if math.IsNaN(d) {
			t.Fatalf("value %d is %v, want %v", i, got[i], w)
		}
		most = max(most, d)
	}
	return most
}

// TestDeviceIsTheCPU: log-probabilities, entropies, gradients and three steps of a policy
// on a device are those of the CPU's kernels, in every family and option.
func TestDeviceIsTheCPU(t *testing.T) {
	for _, c := range everyFamily() {
		for name, o := range map[string]Options{
			"float64": {DType: torch.Float64}, "float32": {}, "recompute": {Recompute: true},
			"frozen": {FreezeLayers: 1, EMA: 0.9}, "adapters": {LoRA: &LoRA{Rank: 3, Alpha: 5}},
		} {
			t.Run(c.ModelType+"/"+name, func(t *testing.T) {
				tolerance := 1e-5
				if o.DType == torch.Float64 {
					tolerance = 1e-11
				}
				most := 0.0
				near := func(what string, got, want []float64) {
					t.Helper()
					d := differ(t, got, want)
					if most = max(most, d); !(d <= tolerance) {
						t.Errorf("%s: off by %.3g; want %g at most", what, d, tolerance)
					}
				}
				defer func() { t.Logf("off by %.2g at most", most) }()
				dir := t.TempDir()
				o.Workers = 1
				cpu := adapted(t, c, o, dir)
				o.Device = envtest.Device(t, torch.ParseDevice)
				other := adapted(t, c, o, dir)
				tokens, offsets := packed(c, 30, 1, 21, 9, 60)
				near("log-probabilities", mustLogprobs(t, other, tokens, offsets), mustLogprobs(t, cpu, tokens, offsets))
				for step := range 3 {
					var lp, entropy [2][]float64
					var grad [2][]float64
					for i, p := range []*Policy{cpu, other} {
						lp[i], entropy[i], grad[i] = passes(t, p, tokens, offsets)
					}
					near("log-probabilities in training", lp[1], lp[0])
					near("entropies", entropy[1], entropy[0])
					near(fmt.Sprintf("gradient of step %d", step), grad[1], grad[0])
					var norms [2]float64
					for i, p := range []*Policy{cpu, other} {
						var err error
						// Adam divides by the gradient's own size: where that is rounding, so is the step.
						if norms[i], err = p.Step(AdamW{LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-3, WeightDecay: 0.1}, 0.1); err != nil {
							t.Fatal(err)
						}
					}
					near("norm", norms[1:], norms[:1])
					near("weights", read(other.flat), read(cpu.flat))
				}
				if o.EMA > 0 {
					near("mean of the weights", read(other.mean), read(cpu.mean))
				}
			})
		}
	}
}

// TestDeviceGradient compares the gradient along a random direction with the central
// difference of the loss, all on the device.
func TestDeviceGradient(t *testing.T) {
	for _, c := range everyFamily() {
		p := random(t, c, Options{DType: torch.Float64, Device: envtest.Device(t, torch.ParseDevice)})
		tokens, offsets := packed(c, 19, 1, 24, 5)
		accumulateAll(t, p, tokens, offsets)
		grad, weights := read(sumLanes(p)), read(p.flat)
		r := rand.New(rand.NewPCG(5, 6))
		along, want := make([]float64, len(grad)), 0.0
		for i := range along {
			along[i] = r.NormFloat64()
			want += along[i] * grad[i]
		}
		const h = 1e-6
		at := func(x float64) float64 {
			i := -1
			fill(p.flat, func() float64 { i++; return weights[i] + x*along[i] })
			if err := p.Refresh(); err != nil {
				t.Fatal(err)
			}
			loss, _ := objective(mustLogprobs(t, p, tokens, offsets))
			return loss
		}
		got := (at(h) - at(-h)) / (2 * h)
		t.Logf("%s: gradient %.10g, central difference %.10g", c.ModelType, want, got)
		if math.Abs(got-want) > 1e-5*(1+math.Abs(want)) {
			t.Errorf("%s: gradient %.10g along a direction, central difference %.10g", c.ModelType, want, got)
		}
	}
}

// TestDeviceMatchesTransformers holds the device against the same figures as the CPU.
func TestDeviceMatchesTransformers(t *testing.T) {
	for _, name := range goldenCases {
		for dtype, most := range map[torch.DType]float64{torch.Float32: 2e-5, torch.Float64: 2e-5, torch.BFloat16: 0.3} {
			p, g := loadGolden(t, name, Options{DType: dtype, Device: envtest.Device(t, torch.ParseDevice)})
			want := g.Logprobs
			if dtype == torch.BFloat16 {
				want = g.BFloat16
			}
			tokens, offsets := join(g.Sequences)
			worst := 0.0
			for i, lp := range mustLogprobs(t, p, tokens, offsets) {
				worst = max(worst, math.Abs(lp-flatten(want)[i]))
			}
			t.Logf("%s, %v: largest difference %.3g", name, dtype, worst)
			if !(worst < most) {
				t.Errorf("%s, %v: largest difference %.3g; want less than %g", name, dtype, worst, most)
			}
		}
	}
}

// passes runs a batch forward and backward: what it predicts, and the gradient of the
// objective's mean.
func passes(t *testing.T, p *Policy, tokens []int32, offsets []int) (lp, entropy, grad []float64) {
	t.Helper()
	err := p.Accumulate(t.Context(), tokens, offsets, func(l, e []float64) ([]float64, error) {
		lp, entropy = slices.Clone(l), slices.Clone(e)
		_, g := objective(l)
		for j := range g {
			g[j] /= float64(len(g))
		}
		return g, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lp, entropy, read(sumLanes(p))
}

// TestFusedAttention: libtorch's own attention, and its gradient, are the composed ones
// but for what bfloat16 rounds, over packed sequences with shared keys. Where a window
// hides something the composed ones are used, but for a GPU's FlashAttention.
func TestFusedAttention(t *testing.T) {
	const n, width, wide = 70, 6*8 + 2*2*8, 6 * 8
	d, r := envtest.Device(t, torch.ParseDevice), rand.New(rand.NewPCG(1, 2))
	tensor := func(columns int, next func() float64) *torch.Tensor {
		x := d.New(torch.Activations, torch.Float32, n, columns)
		fill(x, next)
		t.Cleanup(x.Free)
		return x
	}
	zero := func() float64 { return 0 }
	qkv, dout := tensor(width, r.NormFloat64), tensor(wide, r.NormFloat64)
	_, flash := d.GPU()
	offsets := []int32{0, 40, 40, n}
	for window, exact := range map[int]bool{0: false, 40: false, 7: true} {
		exact = exact && !flash
		var out, grad, logs [2][]float64
		for i, fused := range []bool{false, true} {
			h := torch.Heads{Heads: 6, KVHeads: 2, Dim: 8, Window: window, Scale: 0.4, Fused: fused}
			o, lse, dqkv := tensor(wide, zero), tensor(6, zero), tensor(width, zero)
			torch.Attention(h, qkv, offsets, o, lse)
			torch.AttentionBackward(h, qkv, o, lse, dout, offsets, dqkv)
			out[i], grad[i], logs[i] = read(o), read(dqkv), read(lse)
		}
		results := map[string][2][]float64{"attention": out, "gradient": grad}
		if flash || exact {
			results["lse"] = logs
		}
		for name, pair := range results {
			d := differ(t, pair[1], pair[0])
			t.Logf("window %d, %s: off by %.2g at most", window, name, d)
			if !(d <= 0.1) || exact != (d == 0) {
				t.Errorf("window %d, %s: off by %.3g; want 0.1 at most, and nothing where it is exact: %v", window, name, d, exact)
			}
		}
	}
}

// TestHalfProducts: with products of bfloat16 the gradient points where that of float32
// does, and the weights that are trained are exact ones.
func TestHalfProducts(t *testing.T) {
	c := tiny("qwen3", true)
	single, half := random(t, c, Options{Device: envtest.Device(t, torch.ParseDevice)}), random(t, c, Options{Device: envtest.Device(t, torch.ParseDevice), DType: torch.BFloat16})
	if d := differ(t, read(half.flat), read(single.flat)); d != 0 {
		t.Errorf("weights differ by %g; want the same", d)
	}
	tokens, offsets := packed(c, 30, 21, 9)
	var grad [2][]float64
	for i, p := range []*Policy{single, half} {
		accumulateAll(t, p, tokens, offsets)
		grad[i] = read(sumLanes(p))
	}
	var dot, a, b float64
	for i := range grad[0] {
		dot, a, b = dot+grad[0][i]*grad[1][i], a+grad[0][i]*grad[0][i], b+grad[1][i]*grad[1][i]
	}
	cosine := dot / math.Sqrt(a*b)
	t.Logf("cosine %v, norms %v and %v", cosine, math.Sqrt(a), math.Sqrt(b))
	if !(cosine > 0.998) || cosine == 1 {
		t.Errorf("the cosine between the gradients is %v; want over 0.998, and not the same numbers", cosine)
	}
	// The copies that products take follow the weights.
	before := mustLogprobs(t, half, tokens, offsets)
	if _, err := half.Step(AdamW{LR: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := half.Save(dir, torch.Float32); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir, Options{Device: envtest.Device(t, torch.ParseDevice), DType: torch.BFloat16})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	after := mustLogprobs(t, half, tokens, offsets)
	if d := differ(t, mustLogprobs(t, again, tokens, offsets), after); d != 0 {
		t.Errorf("a policy loaded from the trained weights scores %g differently", d)
	}
	if d := differ(t, after, before); d == 0 {
		t.Error("a step changed no log-probability")
	}
}

// TestDeviceCheckpoint: what a policy on a device saves, the CPU goes on with, and the
// other way round.
func TestDeviceCheckpoint(t *testing.T) {
	c := tiny("llama", false)
	tokens, offsets := packed(c, 30, 21, 9)
	step := func(p *Policy) {
		t.Helper()
		accumulateAll(t, p, tokens, offsets)
		if _, err := p.Step(AdamW{LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-3}, 1); err != nil {
			t.Fatal(err)
		}
	}
	there := map[torch.Device]torch.Device{torch.CPU: envtest.Device(t, torch.ParseDevice), envtest.Device(t, torch.ParseDevice): torch.CPU}
	for from := range there {
		a := random(t, c, Options{Device: from, Workers: 1, EMA: 0.5})
		step(a)
		dir := t.TempDir()
		optimizer := filepath.Join(dir, "optimizer.safetensors")
		if err := a.Save(dir, torch.Float32); err != nil {
			t.Fatal(err)
		}
		if err := a.SaveOptimizer(optimizer); err != nil {
			t.Fatal(err)
		}
		if err := a.SaveMean(filepath.Join(dir, "mean"), torch.BFloat16, ""); err != nil {
			t.Fatal(err)
		}
		b, err := Load(dir, Options{Device: there[from], Workers: 1, EMA: 0.5})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if err := b.LoadOptimizer(optimizer); err != nil {
			t.Fatal(err)
		}
		if d := differ(t, read(b.flat), read(a.flat)); d != 0 || b.Version() != 1 {
			t.Errorf("from %v to %v: version %d, weights off by %g", from, b.Device(), b.Version(), d)
		}
		step(a)
		step(b)
		if d := differ(t, read(b.flat), read(a.flat)); d > 1e-6 {
			t.Errorf("from %v to %v: a step later the weights are off by %g", from, b.Device(), d)
		}
	}
}

func TestNoSuchDevice(t *testing.T) {
	_, err := New(tiny("qwen2", true), 1, Options{Device: torch.CUDA(99)})
	if err == nil || !strings.Contains(err.Error(), "cuda:99") {
		t.Errorf("%v", err)
	}
}

// TestDeviceMemory compares what is foretold of a device, but for what libtorch takes
// beside, with what tensors own at most over a step.
func TestDeviceMemory(t *testing.T) {
	lengths := []int{400, 300, 80, 20}
	for name, o := range map[string]Options{
		"single": {}, "half": {DType: torch.BFloat16, Recompute: true}, "adapters": {LoRA: &LoRA{Rank: 8}},
	} {
		o.Device = envtest.Device(t, torch.ParseDevice)
		before := torch.Allocated()
		p, err := New(small, 1, o)
		if err != nil {
			t.Fatal(err)
		}
		tokens, offsets := packed(small, lengths...)
		accumulateAll(t, p, tokens, offsets)
		if _, err := p.Step(AdamW{LR: 1e-4, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
			t.Fatal(err)
		}
		f, err := TrainingMemory(small, o, 1, lengths)
		if err != nil {
			t.Fatal(err)
		}
		f.Activations -= o.beside(small, 800, 4)
		after := torch.Allocated()
		for purpose, want := range map[torch.Purpose]int64{
			torch.Weights: f.Weights, torch.Gradients: f.Gradients, torch.Optimizer: f.Optimizer, torch.Activations: f.Activations,
		} {
			near(t, name+", "+purpose.String(), after[purpose]-before[purpose], want)
		}
		p.Close()
	}
}

// TestDeviceDraws: matrices drawn on a device have the shape's deviation and follow from
// the seed, each a stream of its own; norms are 1 and biases 0; adapters change nothing yet.
func TestDeviceDraws(t *testing.T) {
	on := envtest.Device(t, torch.ParseDevice)
	for _, c := range everyFamily() {
		for _, o := range []Options{{Device: on}, {Device: on, LoRA: &LoRA{Rank: 3}}} {
			draw := func(seed uint64) *Policy {
				p, err := NewOnDevice(c, seed, o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.Close)
				return p
			}
			p, again, other := draw(3), draw(3), draw(4)
			variance := cmp.Or(c.InitStd, defaultInitStd) * cmp.Or(c.InitStd, defaultInitStd)
			var last []float64
			for i, param := range p.Parameters() {
				got := read(param.Tensor)
				if !slices.Equal(got, read(again.Parameters()[i].Tensor)) {
					t.Errorf("%s %s: the same seed draws other values", c.ModelType, param.Name)
				}
				if !param.Decay {
					want := 0.0
					if isNorm(param) {
						want = 1
					}
					if slices.ContainsFunc(got, func(v float64) bool { return v != want }) {
						t.Errorf("%s %s: not all are %v", c.ModelType, param.Name, want)
					}
					continue
				}
				sum := 0.0
				for _, v := range got {
					sum += v * v / variance
				}
				n := float64(len(got))
				if d := math.Abs(sum/n - 1); d > 5*math.Sqrt(2/n) {
					t.Errorf("%s %s: variance off by %v of %v", c.ModelType, param.Name, d, variance)
				}
				if next := read(other.Parameters()[i].Tensor); slices.Equal(got, next) || slices.Equal(got, last) {
					t.Errorf("%s %s: another seed or parameter has the same values", c.ModelType, param.Name)
				}
				last = got
			}
		}
	}
}
