package engine

import (
	"fmt"
	"math"
	"testing"

	"github.com/ssr-go/ssr/internal/envtest"
	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/cudatest"
	"github.com/ssr-go/ssr/kernels/cuda/emulate"
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
)

// withKernels is a device with the CUDA kernels: the GPU that SSR_TEST_DEVICE names, or
// what stands for any, where the emulator runs them.
func withKernels(t *testing.T, o model.Options) model.Options {
	t.Helper()
	o.Device, o.Kernels = envtest.Device(t, torch.ParseDevice), &cudatest.Recorder{Machine: emulate.New(emulate.Descending)}
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

// TestKernelsGenerate: with the CUDA kernels greedy and sampled
// tokens are those of the CPU, through windows, grouped queries and prompts in chunks.
func TestKernelsGenerate(t *testing.T) {
	reqs := mixed()[:6]
	order := []int{3, 1, 0, 2, 5, 4}
	for _, c := range shapes() {
		cpu := start(t, policyOn(t, c, model.Options{Workers: 1}), Options{})
		want := concurrently(t, cpu, reqs, order)
		recorded := withKernels(t, model.Options{})
		plain := recorded
		plain.Kernels = struct{ cuda.Machine }{recorded.Kernels} // which can not record
		for name, o := range map[string]model.Options{"recorded": recorded, "plain": plain} {
			e := start(t, policyOn(t, c, o), Options{ChunkTokens: 32, StepTokens: 64, MaxSequences: 4})
			for i, got := range concurrently(t, e, reqs, order) {
				near(t, fmt.Sprintf("%s, %s, request %d", c.ModelType, name, i), got, want[i])
			}
		}
	}
}

// tall have heads that attention on tensor cores is for.
func tall() (all []model.Config) {
	for i, c := range shapes() {
		if i%2 == 1 {
			c.Heads, c.KVHeads, c.HeadDim = 3, 1, 64
			all = append(all, c)
		}
	}
	return all
}

// TestKernelsHalf: where attention of sampling is over a bfloat16 cache, a prompt in chunks,
// through a shared prefix and in any company, and that of scoring is libtorch's, both round
// to 8 bits at other places.
func TestKernelsHalf(t *testing.T) {
	reqs := mixed()[:5]
	for _, c := range tall() {
		p := policyOn(t, c, withKernels(t, model.Options{DType: torch.BFloat16}))
		e, most := start(t, p, Options{ChunkTokens: 32, StepTokens: 64, MaxSequences: 4}), 0.0
		for i, got := range concurrently(t, e, reqs, []int{3, 1, 0, 2, 4}) {
			for j, lp := range rescore(t, p, reqs[i], got) {
				most = max(most, math.Abs(float64(got.Logprobs[j])-lp))
			}
		}
		if t.Logf("%s: off by %.2g", c.ModelType, most); !(most > 0 && most < 0.1) {
			t.Errorf("%s: sampled and scored log-probabilities differ by %g; want a little", c.ModelType, most)
		}
	}
}

// TestKernelsDeterminism: a completion has the same bits alone and in any company, and
// its log-probabilities are those that training recomputes.
func TestKernelsDeterminism(t *testing.T) {
	reqs := mixed()[:5]
	for i, c := range append(shapes(), tall()...) {
		dtype := []torch.DType{torch.Float32, torch.BFloat16}[i%2]
		if c.HeadDim == 64 {
			dtype = torch.BFloat16
		}
		p := policyOn(t, c, withKernels(t, model.Options{Determinism: true, DType: dtype}))
		alone, e := start(t, p, Options{}), start(t, p, Options{ChunkTokens: 32, StepTokens: 64, MaxSequences: 4})
		for i, got := range concurrently(t, e, reqs, []int{3, 1, 0, 2, 4}) {
			want := generate(t, alone, reqs[i])
			alone.Release(reqs[i].ID)
			if !equal(got, want) {
				t.Fatalf("%s, %v, request %d:\n%+v\nalone it was\n%+v", c.ModelType, dtype, i, got, want)
			}
			for j, lp := range rescore(t, p, reqs[i], got) {
				if float64(got.Logprobs[j]) != lp {
					t.Fatalf("%s, %v, request %d, token %d: sampled at %v, recomputed %v", c.ModelType, dtype, i, j, got.Logprobs[j], lp)
				}
			}
		}
	}
}
