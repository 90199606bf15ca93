package model

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model/safetensors"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trainSteps takes n steps of a fixed objective.
func trainSteps(t *testing.T, p *Policy, n int) {
	t.Helper()
	tokens, offsets := packed(p.Config(), 13, 20)
	for range n {
		err := p.Accumulate(t.Context(), tokens, offsets, func(lp, _ []float64) ([]float64, error) {
			_, grad := objective(lp)
			return grad, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Step(AdamW{LR: 0.01, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1}, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestResume: stopping after two steps and going on from the files gives the
// bits of five steps at a stretch.
func TestResume(t *testing.T) {
	c, o := tiny("qwen2", true), Options{Workers: 2}
	straight := random(t, c, o)
	trainSteps(t, straight, 5)

	dir := t.TempDir()
	first := random(t, c, o)
	trainSteps(t, first, 2)
	if err := errors.Join(first.Save(dir, torch.Float32), first.SaveOptimizer(filepath.Join(dir, "optimizer.safetensors"))); err != nil {
		t.Fatal(err)
	}
	second, err := Load(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.LoadOptimizer(filepath.Join(dir, "optimizer.safetensors")); err != nil {
		t.Fatal(err)
	}
	if second.Version() != 2 {
		t.Errorf("version %d after loading, want 2", second.Version())
	}
	trainSteps(t, second, 3)
	if !slices.Equal(torch.Data[float32](straight.flat), torch.Data[float32](second.flat)) {
		t.Error("resumed training ended with other weights")
	}
}

func TestBFloat16Storage(t *testing.T) {
	dir := t.TempDir()
	p := random(t, tiny("llama", false), Options{})
	if err := p.Save(dir, torch.BFloat16); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	want := slices.Clone(torch.Data[float32](p.flat))
	roundBF16(want)
	if !slices.Equal(want, torch.Data[float32](loaded.flat)) {
		t.Error("loaded weights are not the nearest bfloat16 of the saved ones")
	}
}

// TestShards loads a checkpoint that is cut in two.
func TestShards(t *testing.T) {
	dir := t.TempDir()
	p := random(t, tiny("qwen2", false), Options{})
	if err := p.Save(dir, torch.Float32); err != nil {
		t.Fatal(err)
	}
	var parts [2][]safetensors.Tensor
	var index strings.Builder
	for i, param := range p.Parameters() {
		parts[i%2] = append(parts[i%2], stored(param.Name, param.Tensor, false))
		index.WriteString(map[bool]string{true: "", false: ","}[i == 0])
		index.WriteString(`"` + param.Name + `":"part` + string(rune('0'+i%2)) + `.safetensors"`)
	}
	for i, tensors := range parts {
		if err := safetensors.Write(filepath.Join(dir, "part"+string(rune('0'+i))+".safetensors"), tensors, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "model.safetensors.index.json"), `{"weight_map":{`+index.String()+`}}`)
	if err := os.Remove(filepath.Join(dir, weightsFile)); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	if !slices.Equal(torch.Data[float32](p.flat), torch.Data[float32](loaded.flat)) {
		t.Error("the shards hold other weights")
	}
	write(t, filepath.Join(dir, "model.safetensors.index.json"), `{"weight_map":{"model.norm.weight":"../part0.safetensors"}}`)
	if _, err := Load(dir, Options{}); err == nil || !strings.Contains(err.Error(), "not a file of its folder") {
		t.Errorf("an index that leaves its folder: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	p := random(t, tiny("qwen2", true), Options{})
	for _, tc := range []struct {
		name string
		edit func(dir string, tensors []safetensors.Tensor) []safetensors.Tensor
		want string
	}{
		{"missing", func(_ string, ts []safetensors.Tensor) []safetensors.Tensor { return ts[1:] }, "model.embed_tokens.weight"},
		{"shape", func(_ string, ts []safetensors.Tensor) []safetensors.Tensor {
			ts[1].Shape = []int64{4, 5}
			return ts
		}, "model.layers.0.input_layernorm.weight has shape [4 5]; config.json asks for [20]"},
		{"dtype", func(_ string, ts []safetensors.Tensor) []safetensors.Tensor {
			ts[1].DType = safetensors.I32
			return ts
		}, "tensor model.layers.0.input_layernorm.weight: dtype I32 is not supported for weights"},
		{"unexpected", func(_ string, ts []safetensors.Tensor) []safetensors.Tensor {
			return append(ts, safetensors.Tensor{Name: "model.layers.0.self_attn.q_norm.weight", DType: safetensors.U8, Shape: []int64{1}, Data: []byte{0}})
		}, "model.safetensors has a tensor model.layers.0.self_attn.q_norm.weight, which a qwen2 model of this config.json has not"},
		{"tied", func(_ string, ts []safetensors.Tensor) []safetensors.Tensor {
			head := ts[0]
			head.Name, head.Data = "lm_head.weight", make([]byte, len(head.Data))
			return append(ts, head)
		}, "lm_head.weight is not model.embed_tokens.weight"},
		{"config", func(dir string, ts []safetensors.Tensor) []safetensors.Tensor {
			os.Remove(filepath.Join(dir, "config.json"))
			return ts
		}, "config.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := p.Save(dir, torch.Float32); err != nil {
				t.Fatal(err)
			}
			var tensors []safetensors.Tensor
			for _, param := range p.Parameters() {
				tensors = append(tensors, stored(param.Name, param.Tensor, false))
			}
			if err := safetensors.Write(filepath.Join(dir, weightsFile), tc.edit(dir, tensors), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir, Options{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// TestLoadSkips: a tied head that is stored too, and the frequencies that old
// checkpoints store, are no reason to refuse a file.
func TestLoadSkips(t *testing.T) {
	dir, p := t.TempDir(), random(t, tiny("qwen2", true), Options{})
	if err := p.Save(dir, torch.Float32); err != nil {
		t.Fatal(err)
	}
	var tensors []safetensors.Tensor
	for _, param := range p.Parameters() {
		tensors = append(tensors, stored(param.Name, param.Tensor, false))
	}
	head, frequencies := tensors[0], tensors[1]
	head.Name, frequencies.Name = "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"
	if err := safetensors.Write(filepath.Join(dir, weightsFile), append(tensors, head, frequencies), nil); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	if !slices.Equal(torch.Data[float32](p.flat), torch.Data[float32](loaded.flat)) {
		t.Error("other weights")
	}
}

func TestSeamRefusals(t *testing.T) {
	p := random(t, tiny("qwen2", true), Options{Workers: 2})
	ctx := t.Context()
	ok := func(lp, _ []float64) ([]float64, error) { return make([]float64, len(lp)), nil }
	boom := errors.New("boom")
	for _, tc := range []struct {
		name    string
		tokens  []int32
		offsets []int
		fn      func(lp, ent []float64) ([]float64, error)
		want    string
	}{
		{"offsets", []int32{1, 2}, []int{0, 1}, ok, "offsets must begin at 0 and end at the 2 tokens"},
		{"descending", []int32{1, 2}, []int{0, 2, 1, 2}, ok, "offsets[2] = 1 descends"},
		{"vocabulary", []int32{1, 37}, []int{0, 2}, ok, "tokens[1] = 37 is outside the vocabulary of 37"},
		{"window", make([]int32, 65), []int{0, 65}, ok, "sequence 0 has 65 tokens; the context window is 64"},
		{"objective", []int32{1, 2}, []int{0, 2}, func(_, _ []float64) ([]float64, error) { return nil, boom }, "boom"},
		{"length", []int32{1, 2}, []int{0, 2}, func(_, _ []float64) ([]float64, error) { return []float64{1}, nil }, "1 entries for 2 tokens"},
		{"not a number", []int32{1, 2}, []int{0, 2}, func(_, _ []float64) ([]float64, error) {
			return []float64{0, math.NaN()}, nil
		}, "gradient at token 1 is NaN"},
	} {
		if err := p.Accumulate(ctx, tc.tokens, tc.offsets, tc.fn); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
	if g := torch.Data[float32](sumLanes(p)); slices.ContainsFunc(g, func(v float32) bool { return v != 0 }) {
		t.Error("a refused batch left a gradient")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Accumulate(cancelled, []int32{1, 2}, []int{0, 2}, ok); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := p.Logprobs(cancelled, []int32{1, 2}, []int{0, 2}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestStepRefusesNonFinite: an exploded gradient changes nothing, and the next
// step works.
func TestStepRefusesNonFinite(t *testing.T) {
	p := random(t, tiny("qwen2", true), Options{Workers: 2})
	if _, err := p.Step(AdamW{}, 1); err == nil || !strings.Contains(err.Error(), "call Accumulate first") {
		t.Errorf("a step without a gradient: %v", err)
	}
	trainSteps(t, p, 1)
	before := slices.Clone(torch.Data[float32](p.flat))
	torch.Data[float32](p.lanes[1].grad[0])[5] = float32(math.Inf(1))
	norm, err := p.Step(AdamW{LR: 1, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1)
	if err == nil || !math.IsInf(norm, 1) {
		t.Errorf("norm %v, error %v", norm, err)
	}
	if !slices.Equal(before, torch.Data[float32](p.flat)) || p.Version() != 1 {
		t.Error("the weights or the version changed")
	}
	trainSteps(t, p, 1)
	if slices.Equal(before, torch.Data[float32](p.flat)) || p.Version() != 2 {
		t.Error("the next step did nothing")
	}
}

// TestMemoryIsReturned: what a policy allocated is gone after Close, and
// activations do not grow from step to step.
func TestMemoryIsReturned(t *testing.T) {
	before := torch.Allocated()
	p, err := New(tiny("qwen2", true), 1, Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	trainSteps(t, p, 1)
	mustLogprobs(t, p, []int32{1, 2, 3}, []int{0, 3})
	once := torch.Allocated()
	trainSteps(t, p, 3)
	mustLogprobs(t, p, []int32{1, 2, 3}, []int{0, 3})
	for purpose, n := range torch.Allocated() {
		if n != once[purpose] {
			t.Errorf("%v grew from %d to %d bytes", purpose, once[purpose], n)
		}
	}
	p.Close()
	for purpose, n := range torch.Allocated() {
		if n != before[purpose] {
			t.Errorf("%v: %d bytes left behind", purpose, n-before[purpose])
		}
	}
}

// TestOptimizerBeforeFirstStep: a state without moments is the same file
// whether or not it has been loaded before.
func TestOptimizerBeforeFirstStep(t *testing.T) {
	p := random(t, tiny("qwen2", true), Options{})
	var files [2][]byte
	for i := range files {
		path := filepath.Join(t.TempDir(), "optimizer.safetensors")
		if err := p.SaveOptimizer(path); err != nil {
			t.Fatal(err)
		}
		if err := p.LoadOptimizer(path); err != nil {
			t.Fatal(err)
		}
		var err error
		if files[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(files[0], files[1]) {
		t.Errorf("saved %d bytes, after loading them %d", len(files[0]), len(files[1]))
	}
}
