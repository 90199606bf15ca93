package model

import (
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
)

// TestFrozenLayers: what is trained has the gradient that it has when all is, and
// the rest stays.
func TestFrozenLayers(t *testing.T) {
	for _, c := range []Config{tiny("qwen3", true), tiny("llama", false)} {
		tokens, offsets := packed(c, 30, 21)
		all := random(t, c, Options{DType: torch.Float64, Workers: 2})
		accumulateAll(t, all, tokens, offsets)
		want := torch.Data[float64](sumLanes(all))
		for _, n := range []int{1, 2} {
			p := random(t, c, Options{DType: torch.Float64, Workers: 2, FreezeLayers: n})
			accumulateAll(t, p, tokens, offsets)
			got := torch.Data[float64](sumLanes(p))
			if !slices.Equal(got, want[len(want)-len(got):]) {
				t.Errorf("%s: frozen below layer %d: another gradient", c.ModelType, n)
			}
			before := slices.Clone(torch.Data[float64](p.flat))
			if _, err := p.Step(AdamW{LR: 0.1, Beta1: 0.9, Beta2: 0.9, Eps: 1e-8, WeightDecay: 0.1}, 0); err != nil {
				t.Fatal(err)
			}
			for _, param := range p.Parameters() {
				frozen := param.Name == embeddingName || strings.HasPrefix(param.Name, "model.layers.0.") || n == 2 && strings.HasPrefix(param.Name, "model.layers.")
				if same := slices.Equal(before[param.offset:][:param.len()], torch.Data[float64](param.Tensor)); same != frozen {
					t.Errorf("%s: frozen below layer %d: %s stayed: %v", c.ModelType, n, param.Name, same)
				}
			}
		}
	}
}

// TestAccumulation: micro-batches one after the other, or each sequence alone, add
// up to the gradient of one big batch.
func TestAccumulation(t *testing.T) {
	c := tiny("mistral", false)
	p := random(t, c, Options{DType: torch.Float64, Workers: 2})
	lengths := []int{30, 2, 21, 9, 44}
	tokens, offsets := packed(c, lengths...)
	grad := make([]float64, len(tokens))
	for i := range grad {
		grad[i] = math.Sin(float64(i))
	}
	batch := func(lo, hi int) {
		var rel []int
		for _, o := range offsets[lo : hi+1] {
			rel = append(rel, o-offsets[lo])
		}
		err := p.Accumulate(t.Context(), tokens[offsets[lo]:offsets[hi]], rel, func(_, _ []float64) ([]float64, error) {
			return grad[offsets[lo]:offsets[hi]], nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	batch(0, 5)
	want := slices.Clone(torch.Data[float64](sumLanes(p)))
	for name, cuts := range map[string][]int{"micro-batches": {0, 2, 5}, "unpacked": {0, 1, 2, 3, 4, 5}} {
		p.ClearGradient()
		for i := range len(cuts) - 1 {
			batch(cuts[i], cuts[i+1])
		}
		for i, g := range torch.Data[float64](sumLanes(p)) {
			if math.Abs(g-want[i]) > 1e-12*(1+math.Abs(want[i])) {
				t.Fatalf("%s: gradient %d is %v, of one batch %v", name, i, g, want[i])
			}
		}
	}
}

// TestHeadInChunks: the gradient of the head, which is computed in chunks of rows
// and never keeps the logits of this vocabulary, is that of the whole.
func TestHeadInChunks(t *testing.T) {
	c := tiny("llama", false)
	c.VocabSize = 40_000
	p := random(t, c, Options{DType: torch.Float64, Workers: 1})
	tokens, offsets := packed(c, 45)
	chunks := 0
	for range p.headChunks(len(tokens) - 1) {
		chunks++
	}
	if chunks < 3 || p.keepsLogits() {
		t.Fatalf("%d chunks, logits kept: %v; the test wants several, and none kept", chunks, p.keepsLogits())
	}
	accumulateAll(t, p, tokens, offsets)
	got := torch.Data[float64](p.lanes[0].weights.Head.W)

	arena := torch.NewArena(torch.Activations, torch.Float64)
	defer arena.Free()
	s := arena.Scope()
	defer s.Close()
	seg := segments(tokens, offsets, 1, segmentTokens)[0][0]
	hidden := Forward(p, s, tokens, seg.positions, attendWithin(p, seg, nil))
	logits, h := torch.Data[float64](Logits(p, s, nil, hidden)), torch.Data[float64](hidden)
	V, C := c.VocabSize, c.Hidden
	want := make([]float64, V*C)
	logprobs := make([]float64, len(tokens))
	for pass := range 2 {
		_, g := objective(logprobs)
		for r := range len(tokens) - 1 {
			row := logits[r*V:][:V]
			most, sum := slices.Max(row), 0.0
			for _, x := range row {
				sum += math.Exp(x - most)
			}
			logprobs[r+1] = row[tokens[r+1]] - most - math.Log(sum)
			if pass == 0 {
				continue
			}
			for v, x := range row {
				d := -math.Exp(x-most) / sum
				if int32(v) == tokens[r+1] {
					d++
				}
				for k := range C {
					want[v*C+k] += g[r+1] * d * h[r*C+k]
				}
			}
		}
	}
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-10*(1+math.Abs(want[i])) {
			t.Fatalf("gradient %d of the head is %v, of the whole %v", i, got[i], want[i])
		}
	}
}

// TestBFloat16Training: steps too small to move a bfloat16 weight add up in the
// exact ones, the policy computes with those rounded, and goes on from files with
// the same bits.
func TestBFloat16Training(t *testing.T) {
	c, o := tiny("qwen3", true), Options{Workers: 2, DType: torch.BFloat16}
	p := random(t, c, o)
	start := slices.Clone(torch.Data[float32](p.flat))
	tokens, offsets := packed(c, 13, 20)
	step := func(p *Policy) {
		accumulateAll(t, p, tokens, offsets)
		// A weight of 0.3 has neighbours at a distance of 0.001 or more.
		if _, err := p.Step(AdamW{LR: 2e-5, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
			t.Fatal(err)
		}
	}
	loss0, _ := objective(mustLogprobs(t, p, tokens, offsets))
	for range 100 {
		step(p)
	}
	rounded := slices.Clone(torch.Data[float32](p.master))
	roundBF16(rounded)
	if !slices.Equal(rounded, torch.Data[float32](p.flat)) {
		t.Error("the weights are not the exact ones rounded")
	}
	moved := 0
	for i, v := range rounded {
		if math.Abs(float64(start[i])) > 0.1 && v != start[i] {
			moved++
		}
	}
	loss1, _ := objective(mustLogprobs(t, p, tokens, offsets))
	if moved < 100 || loss1 >= loss0 {
		t.Errorf("%d of the larger weights moved in 100 small steps; the loss went from %v to %v", moved, loss0, loss1)
	}

	dir := t.TempDir()
	file := filepath.Join(dir, "optimizer.safetensors")
	if err := errors.Join(p.Save(dir, torch.BFloat16), p.SaveOptimizer(file)); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.LoadOptimizer(file); err != nil {
		t.Fatal(err)
	}
	step(p)
	step(again)
	if !slices.Equal(torch.Data[float32](p.master), torch.Data[float32](again.master)) {
		t.Error("resumed training ended with other exact weights")
	}
}

// nearlySame checks that two gradients have nearly the same direction, by the cosine
// that they have at least, and length, but not the same bits, and gives the length of
// the first.
func nearlySame(t *testing.T, a, b []float32, cosine float64) float64 {
	t.Helper()
	var ab, aa, bb float64
	for i := range a {
		ab, aa, bb = ab+float64(a[i]*b[i]), aa+float64(a[i]*a[i]), bb+float64(b[i]*b[i])
	}
	if cos := ab / math.Sqrt(aa*bb); cos < cosine || math.Abs(aa/bb-1) > 0.05 || slices.Equal(a, b) {
		t.Errorf("cosine %v, squared norms %v and %v", cos, aa, bb)
	}
	return math.Sqrt(aa)
}

// TestBFloat16Gradient: rounding moves the gradient a little, as it moves the
// log-probabilities.
func TestBFloat16Gradient(t *testing.T) {
	for _, c := range []Config{tiny("qwen3", true), tiny("llama", false)} {
		c.InitStd = 0.1
		half := random(t, c, Options{Workers: 1, DType: torch.BFloat16})
		single := random(t, c, Options{Workers: 1})
		copy(torch.Data[float32](single.flat), torch.Data[float32](half.flat))
		if err := single.Refresh(); err != nil {
			t.Fatal(err)
		}
		tokens, offsets := packed(c, 40, 20)
		accumulateAll(t, half, tokens, offsets)
		accumulateAll(t, single, tokens, offsets)
		nearlySame(t, torch.Data[float32](sumLanes(half)), torch.Data[float32](sumLanes(single)), 0.999)
	}
}

// TestMeanOfTheWeights follows the mean over steps and a resume, in full and of
// adapters.
func TestMeanOfTheWeights(t *testing.T) {
	c := tiny("llama", false)
	for name, o := range map[string]Options{
		"all": {Workers: 2, EMA: 0.9}, "frozen": {Workers: 2, EMA: 0.75, FreezeLayers: 1}, "adapters": {Workers: 2, EMA: 0.9, LoRA: &LoRA{Rank: 2}},
	} {
		dir := t.TempDir()
		base := filepath.Join(dir, "base")
		p := adapted(t, c, o, base)
		if err := p.SaveMean(filepath.Join(dir, "mean"), torch.Float32, base); !errors.Is(err, ErrNoMean) {
			t.Errorf("%s: a mean before the first step: %v", name, err)
		}
		want := slices.Clone(torch.Data[float32](p.live))
		follow := func(p *Policy) {
			trainSteps(t, p, 1)
			for i, v := range torch.Data[float32](p.live) {
				want[i] = float32(o.EMA)*want[i] + float32(1-o.EMA)*v
			}
		}
		follow(p)
		follow(p)
		file := filepath.Join(dir, "optimizer.safetensors")
		again, err := Load(base, o)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if o.LoRA != nil {
			err = errors.Join(p.SaveAdapter(dir, base), again.LoadAdapter(dir))
		} else {
			err = errors.Join(p.Save(dir, torch.Float32), again.LoadWeights(dir))
		}
		if err := errors.Join(err, p.SaveOptimizer(file), again.LoadOptimizer(file)); err != nil {
			t.Fatal(name, err)
		}
		follow(again)
		if err := again.SaveMean(filepath.Join(dir, "mean"), torch.Float32, base); err != nil {
			t.Fatal(name, err)
		}
		averaged, err := Load(base, o)
		if err != nil {
			t.Fatal(err)
		}
		defer averaged.Close()
		if o.LoRA != nil {
			err = averaged.LoadAdapter(filepath.Join(dir, "mean"))
		} else {
			err = averaged.LoadWeights(filepath.Join(dir, "mean"))
		}
		if err != nil {
			t.Fatal(name, err)
		}
		for i, v := range torch.Data[float32](averaged.live) {
			if math.Abs(float64(v-want[i])) > 1e-6 {
				t.Fatalf("%s: the mean of weight %d is %v, want %v", name, i, v, want[i])
			}
		}
	}
}

func TestTrainingRefusals(t *testing.T) {
	for want, o := range map[string]Options{
		"frozen of 2": {FreezeLayers: 3}, "nothing": {FreezeLayers: 2, LoRA: &LoRA{Rank: 1}},
		"rank 0": {LoRA: &LoRA{}}, "lm_head": {LoRA: &LoRA{Rank: 1, Targets: []string{"lm_head"}}}, "mean": {EMA: 1},
	} {
		if p, err := New(tiny("llama", false), 1, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
			if p != nil {
				p.Close()
			}
		}
	}
}
