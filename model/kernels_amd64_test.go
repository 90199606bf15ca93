package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/kernels/cuda/cudatest"
	"github.com/ssr-go/ssr/kernels/cuda/emulate"
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// withKernels is a device with the CUDA kernels: the GPU that SSR_TEST_DEVICE names, or
// what stands for any, where the emulator runs them.
func withKernels(t *testing.T, o Options) Options {
	t.Helper()
	o.Device, o.Kernels = envtest.Device(t, torch.ParseDevice), emulate.New(emulate.Descending)
	if number, ok := o.Device.GPU(); ok {
		m, err := gpu.Open(number)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		o.Kernels = m
	}
	return o
}

// TestKernelsAreTheCPU: with the CUDA kernels log-probabilities, entropies, gradients and
// three steps of AdamW are those of the CPU's kernels.
func TestKernelsAreTheCPU(t *testing.T) {
	for family, c := range everyFamily() {
		for name, o := range map[string]Options{
			"float32": {EMA: 0.9}, "determinism": {Determinism: true, Recompute: true}, "frozen": {FreezeLayers: 1},
			"adapters": {LoRA: &LoRA{Rank: 3, Alpha: 5}},
		} {
			if name != "float32" && family != len(name)%5 {
				continue // the emulator is slow
			}
			t.Run(c.ModelType+"/"+name, func(t *testing.T) {
				most := 0.0
				near := func(what string, got, want []float64) {
					t.Helper()
					d := differ(t, got, want)
					if most = max(most, d); !(d <= 1e-5) {
						t.Errorf("%s: off by %.3g; want 1e-5 at most", what, d)
					}
				}
				defer func() { t.Logf("off by %.2g at most", most) }()
				dir := t.TempDir()
				o.Workers = 1
				cpu, other := adapted(t, c, o, dir), adapted(t, c, withKernels(t, o), dir)
				tokens, offsets := packed(c, 13, 1, 24)
				near("log-probabilities", mustLogprobs(t, other, tokens, offsets), mustLogprobs(t, cpu, tokens, offsets))
				for step := range 3 {
					var lp, entropy, grad [2][]float64
					var norm [2]float64
					for i, p := range []*Policy{cpu, other} {
						lp[i], entropy[i], grad[i] = passes(t, p, tokens, offsets)
						var err error
						if norm[i], err = p.Step(AdamW{LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-3, WeightDecay: 0.1}, 0.1); err != nil {
							t.Fatal(err)
						}
					}
					near("log-probabilities in training", lp[1], lp[0])
					near("entropies", entropy[1], entropy[0])
					near(fmt.Sprintf("gradient of step %d", step), grad[1], grad[0])
					near("norm", norm[1:], norm[:1])
					near("weights", read(other.flat), read(cpu.flat))
				}
				if o.EMA > 0 {
					near("mean of the weights", read(other.mean), read(cpu.mean))
				}
			})
		}
	}
}

// TestKernelsShardGradient: the optimizer's kernels take a shard's gradient where it is,
// whether the rest of it is there or not: the same update bit for bit.
func TestKernelsShardGradient(t *testing.T) {
	c := tiny("qwen3", true)
	c.Layers = 3
	var squares [2]float64
	var weights [2][]float64
	for i, sharded := range []bool{false, true} {
		p := random(t, c, withKernels(t, Options{Shard: Shard{1, 2}, ShardGradient: sharded}))
		if err := p.Prepare(); err != nil {
			t.Fatal(err)
		}
		if sharded {
			r := newReducing(p, 1, p.live.Len(), func(*torch.Tensor) error { return nil })
			if err := errors.Join(accumulateLast(t.Context(), p, 0, r.final), <-r.ended); err != nil {
				t.Fatal(err)
			}
		} else if err := accumulateLast(t.Context(), p, 0, nil); err != nil {
			t.Fatal(err)
		}
		squares[i] = p.GradientSquares()
		err := p.Update(AdamW{LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-3}, 0.5, func(*torch.Tensor) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		weights[i] = read(p.flat)
	}
	if i := sameBits(weights[1], weights[0]); i >= 0 || squares[0] != squares[1] || squares[0] == 0 {
		t.Errorf("weight %d differs, Σ g² is %v and %v of the whole gradient", i, squares[1], squares[0])
	}
}

// TestKernelsHalf: in bfloat16 the products' copies of the weights, which the update
// writes, are the weights rounded.
func TestKernelsHalf(t *testing.T) {
	for _, c := range []Config{tiny("qwen3", true), tiny("mistral", false)} {
		plain, p := random(t, c, Options{Device: envtest.Device(t, torch.ParseDevice)}), random(t, c, withKernels(t, Options{DType: torch.BFloat16}))
		tokens, offsets := packed(c, 30, 9)
		d := differ(t, mustLogprobs(t, p, tokens, offsets), mustLogprobs(t, plain, tokens, offsets))
		if !(d > 0 && d < 0.3) {
			t.Errorf("%s: log-probabilities are %g from those of float32; want a little", c.ModelType, d)
		}
		accumulateAll(t, p, tokens, offsets)
		if _, err := p.Step(AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-3, WeightDecay: 0.1}, 1); err != nil {
			t.Fatal(err)
		}
		for i, l := range p.weights.linears() {
			wide := envtest.Device(t, torch.ParseDevice).Empty(torch.Activations, torch.Float32, l.W.Shape()...)
			torch.Copy(wide, l.packed)
			copied := read(wide)
			for j, w := range read(l.W) {
				if copied[j] != float64(bf16(float32(w))) {
					t.Fatalf("%s, matrix %d: [%d] is %v, its copy %v", c.ModelType, i, j, w, copied[j])
				}
			}
			wide.Free()
		}
	}
}

// tall has heads that attention on tensor cores is for, three of which share their keys,
// so that tiles begin in the middle of a token.
func tall(modelType string, tied bool, dim int) Config {
	c := tiny(modelType, tied)
	c.Heads, c.KVHeads, c.HeadDim = 3, 1, dim
	return c
}

// TestKernelsAttention: attention on tensor cores and its gradient are those of float32
// over the same rounded queries, keys and values. Weights are rounded to 8 bits, each off
// by 2⁻⁸ at most: with values of deviation 1, the output is off by less than twice that, and
// the gradient, which takes products with the output in, by less than four times.
func TestKernelsAttention(t *testing.T) {
	var many []int32 // sequences, and so many tiles that each has one warp
	for at := int32(0); len(many) <= 2048; at += int32(2 + len(many)%4) {
		many = append(many, at)
	}
	for _, tc := range []struct {
		c       Config
		offsets []int32
	}{
		{tall("qwen2", true, 64), []int32{0, 37, 38, 60}}, {tall("mistral", false, 128), []int32{0, 37, 38, 60}}, {tall("qwen2", true, 64), many},
	} {
		c, offsets := tc.c, tc.offsets
		p := random(t, c, withKernels(t, Options{DType: torch.BFloat16, Determinism: true}))
		rows := int(offsets[len(offsets)-1])
		rng := rand.New(rand.NewPCG(1, 1))
		tensor := func(width int) *torch.Tensor {
			x := p.Device().New(torch.Activations, torch.Float32, rows, width)
			t.Cleanup(x.Free)
			return x
		}
		width := (c.Heads + 2*c.KVHeads) * c.HeadDim
		qkv, out, lse, dout, dqkv := tensor(width), tensor(c.Heads*c.HeadDim), tensor(c.Heads), tensor(c.Heads*c.HeadDim), tensor(width)
		for _, x := range []*torch.Tensor{qkv, dout} {
			fill(x, rng.NormFloat64)
		}
		p.ops.attention(0, qkv, offsets, out, lse)
		p.ops.attentionBackward(0, qkv, out, lse, dout, offsets, dqkv)

		a := p.Attention(0)
		single := func(x *torch.Tensor) (narrow []float32) {
			for _, v := range read(x) {
				narrow = append(narrow, float32(v))
			}
			return narrow
		}
		x, g := single(qkv), single(dout)
		for i, v := range x {
			if v != bf16(v) {
				t.Fatalf("%s: [%d] of the rows is %v, which no bfloat16 is", c.ModelType, i, v)
			}
		}
		q, k, v := SplitQKV(p, x)
		wantOut, wantLSE, want := make([]float32, len(g)), make([]float32, rows*c.Heads), make([]float32, len(x))
		native.AttentionForward(a, q, k, v, offsets, wantOut, wantLSE)
		dq, dk, dv := SplitQKV(p, want)
		native.AttentionBackward(a, q, k, v, wantOut, wantLSE, g, offsets, dq, dk, dv)
		rounding := 1. / 64
		if _, gpu := p.Device().GPU(); gpu {
			rounding = 1. / 32 // of FlashAttention's gradient
		}
		for _, part := range []struct {
			name  string
			got   *torch.Tensor
			want  []float32
			bound float64
		}{{"output", out, wantOut, 1. / 128}, {"denominators", lse, wantLSE, 1e-6}, {"gradient", dqkv, want, rounding}} {
			wide := make([]float64, len(part.want))
			for i, v := range part.want {
				wide[i] = float64(v)
			}
			d := differ(t, read(part.got), wide)
			if t.Logf("%s, %s: off by %.2g", c.ModelType, part.name, d); !(d <= part.bound) {
				t.Errorf("%s: the %s is off by %.3g; want %.3g at most", c.ModelType, part.name, d, part.bound)
			}
		}
	}
}

// TestKernelsDeterminism: with it a token's log-probability has the same bits alone,
// packed with others and in training, in float32 and bfloat16.
func TestKernelsDeterminism(t *testing.T) {
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		configs := []Config{tiny("qwen2", true), tiny("qwen3", false), tiny("cwm", false)}
		if dtype == torch.BFloat16 {
			configs = append(configs, tall("qwen3", false, 64), tall("cwm", false, 128))
		}
		for _, c := range configs {
			p := random(t, c, withKernels(t, Options{Determinism: true, DType: dtype}))
			tokens, offsets := packed(c, 9, 1, 40, 3)
			together := mustLogprobs(t, p, tokens, offsets)
			for s, lo := range offsets[:4] {
				hi := offsets[s+1]
				if i := sameBits(mustLogprobs(t, p, tokens[lo:hi], []int{0, hi - lo}), together[lo:hi]); i >= 0 {
					t.Errorf("%s, %v: sequence %d, token %d has other bits alone", c.ModelType, dtype, s, i)
				}
			}
			err := p.Accumulate(t.Context(), tokens, offsets, func(lp, _ []float64) ([]float64, error) {
				if i := sameBits(lp, together); i >= 0 {
					t.Errorf("%s, %v: token %d scores %v in training, %v in scoring", c.ModelType, dtype, i, lp[i], together[i])
				}
				return make([]float64, len(lp)), nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestKernelsRefuse(t *testing.T) {
	wide := tiny("qwen2", true)
	wide.Heads, wide.KVHeads, wide.HeadDim = 64, 1, 64
	for name, c := range map[string]struct {
		c Config
		o Options
	}{
		"float64": {tiny("qwen2", true), withKernels(t, Options{DType: torch.Float64})},
		"CPU":     {tiny("qwen2", true), Options{Kernels: emulate.New(emulate.Ascending)}},
		"heads":   {wide, withKernels(t, Options{})},
		"none":    {tiny("qwen2", true), Options{Device: torch.Generic, Determinism: true}},
	} {
		if p, err := New(c.c, 1, c.o); err == nil {
			p.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestRecordedSteps: three sequences in a bucket of four draw what each draws alone, and
// write nothing to the cache but their own keys and values, before and after an update of
// the weights.
func TestRecordedSteps(t *testing.T) {
	for _, c := range []Config{tiny("qwen3", false), tiny("mistral", false), tall("qwen3", false, 64)} {
		c.MaxPositions = 700
		r := &cudatest.Recorder{Machine: emulate.New(emulate.Ascending)}
		o := Options{Device: torch.Generic, Kernels: r, Determinism: true}
		if c.HeadDim == 64 {
			o.DType = torch.BFloat16
		}
		p := random(t, c, o)
		const blocks = 24
		past, first := []int32{37, 0, 600}, []int32{0, 3, 5}
		tokens, table := []int32{5, 9, 1}, []int32{7, 2, 3, 0, 4}
		for i := range int32(19) {
			table = append(table, 5+i)
		}
		draws := []Draw{{}, {Sampling: native.Sampling{Temperature: 1}, U: 0.3}, {Sampling: native.Sampling{Temperature: 0.8, TopP: 0.9, TopK: 20}, U: 0.7}}
		step := func(cache *Cache, rows ...int) ([]int32, []float32, []float32) {
			var ids []int32
			var segs []native.Segment
			var asked []Draw
			for i, r := range rows {
				ids, asked = append(ids, tokens[r]), append(asked, draws[r])
				segs = append(segs, native.Segment{Row: int32(i), Rows: 1, Past: past[r], Table: first[r]})
			}
			if !cache.Repeats() {
				t.Fatal("the machine records, but the cache does not")
			}
			return cache.Decode(ids, segs, table, asked)
		}
		together, alone := p.NewCache(blocks, 3), p.NewCache(blocks, 3)
		defer together.Free()
		defer alone.Free()
		var last []float32
		for round := range 2 {
			r.Made, r.Replayed = 0, 0
			next, lps, slps := step(together, 0, 1, 2)
			for i := range tokens {
				n, l, s := step(alone, i)
				if n[0] != next[i] || l[0] != lps[i] || s[0] != slps[i] {
					t.Errorf("%s, row %d: %d (%v, %v), alone %d (%v, %v)", c.ModelType, i, next[i], lps[i], slps[i], n[0], l[0], s[0])
				}
			}
			// Alone there are buckets of one row with 256 and with 1024 keys.
			if want := [][2]int{{3, 1}, {0, 4}}[round]; r.Made != want[0] || r.Replayed != want[1] {
				t.Errorf("%s: %d steps were recorded and %d repeated; want %v", c.ModelType, r.Made, r.Replayed, want)
			}
			own := map[int]bool{}
			for i := range tokens {
				block := int(table[first[i]+past[i]/native.BlockTokens])
				for head := range 2 * c.KVHeads {
					for d := range c.HeadDim {
						own[((block*2*c.KVHeads+head)*native.BlockTokens+int(past[i])%native.BlockTokens)*c.HeadDim+d] = true
					}
				}
			}
			for layer := range c.Layers {
				kept := p.Device().Empty(torch.Activations, torch.Float32, together.layers[layer].Len())
				torch.Copy(kept, together.layers[layer])
				values := read(kept)
				kept.Free()
				for i, v := range values {
					if (v != 0) != own[i] {
						t.Fatalf("%s, layer %d: element %d of the cache is %v; it is a token's own: %v", c.ModelType, layer, i, v, own[i])
					}
				}
			}
			if slices.Equal(lps, last) {
				t.Errorf("%s: an update changed nothing", c.ModelType)
			}
			last = lps
			batch, offsets := packed(c, 12)
			accumulateAll(t, p, batch, offsets)
			if _, err := p.Step(AdamW{LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-3}, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestStepMemory: what a cache has beside its blocks, with all sizes of steps recorded, is
// what is foretold, and the first large step moves nothing that a smaller one has used.
func TestStepMemory(t *testing.T) {
	c := tall("qwen2", true, 64)
	c.MaxPositions, c.VocabSize = 600, 9000
	o := Options{Device: torch.Generic, Kernels: &cudatest.Recorder{Machine: emulate.New(emulate.Ascending)}, DType: torch.BFloat16}
	p := random(t, c, o)
	before := torch.Allocated()[torch.Activations]
	const blocks, sequences = 40, 3
	cache := p.NewCache(blocks, sequences)
	defer cache.Free()
	bytes := 0
	for _, l := range cache.layers {
		bytes += l.Len() * l.DType().Size()
	}
	if want := blocks * p.CacheBlock(); int64(bytes) != want {
		t.Errorf("a cache has %d bytes; its blocks are %d", bytes, want)
	}
	var table []int32
	for i := range int32(blocks) {
		table = append(table, i)
	}
	draws := make([]Draw, sequences)
	for _, rows := range []int{1, 2, 3} {
		for _, past := range []int32{5, 300, 580} {
			var segs []native.Segment
			for i := range int32(rows) {
				segs = append(segs, native.Segment{Row: i, Rows: 1, Past: past, Table: 19 * (i % 2)})
			}
			cache.Decode([]int32{1, 2, 3}[:rows], segs, table, draws[:rows])
		}
	}
	near(t, "beside the cache", torch.Allocated()[torch.Activations]-before, StepMemory(c, o, sequences))
}

// TestKernelsAttentionCached: rows that attend through a cache, a few at first and then the
// others, by launches of a tile each where there is no memory to join more, have the bits of
// those that attend at once.
func TestKernelsAttentionCached(t *testing.T) {
	for _, c := range []Config{tall("qwen2", true, 64), tall("mistral", false, 64), tiny("cwm", false)} {
		p := random(t, c, withKernels(t, Options{DType: torch.BFloat16, Determinism: true}))
		k := p.ops.(*onKernels)
		const rows, first = 50, 19
		arena := p.NewArena()
		defer arena.Free()
		s := arena.Scope()
		defer s.Close()
		qkv, want, got := s.Empty(rows, (c.Heads+2*c.KVHeads)*c.HeadDim), s.Empty(rows, c.Heads*c.HeadDim), s.Empty(rows, c.Heads*c.HeadDim)
		fill(qkv, rand.New(rand.NewPCG(1, 1)).NormFloat64)
		cached := s.Empty(qkv.Shape()...)
		torch.Copy(cached, qkv)

		positions := make([]int32, rows)
		for i := range positions {
			positions[i] = int32(i)
		}
		k.rotate(qkv, k.indices(s, positions), false)
		k.attention(0, qkv, []int32{0, rows}, want, nil)

		cache := p.NewCache(3, 1)
		defer cache.Free()
		cache.scratch.Free()
		cache.scratch = k.words(p.options.scratch(c, 1, rows))
		for _, bound := range [][2]int{{0, first}, {first, rows}} {
			lo, hi := bound[0], bound[1]
			seg := []native.Segment{{Rows: int32(hi - lo), Past: int32(lo)}}
			cache.Attend(s, nil, seg, seg, []int32{2, 0})(0, s.Own(cached.Rows(lo, hi)), s.Own(got.Rows(lo, hi)))
		}
		if i := sameBits(read(got), read(want)); i >= 0 {
			t.Errorf("%s, heads of %d: element %d of %d is another through the cache", c.ModelType, c.HeadDim, i, got.Len())
		}
	}
}
