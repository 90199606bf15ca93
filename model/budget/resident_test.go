package budget

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
)

// medium has 22 million weights.
var medium = model.Config{
	ModelType: "qwen2", VocabSize: 8192, Hidden: 448, Intermediate: 1280, Layers: 8, Heads: 7, KVHeads: 1, HeadDim: 64,
	MaxPositions: 1024, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
}

// residents are runs whose processes are measured.
var residents = map[string]Run{
	"full": {
		Model: medium, Options: model.Options{Workers: 1}, Replicas: 1, MicroBatch: 512, Longest: 256,
		Engine: &engine.Options{CacheBytes: 4 << 20, MaxSequences: 4, StepTokens: 256},
	},
	"bfloat16": {
		Model: medium, Options: model.Options{Workers: 2, DType: torch.BFloat16, Recompute: true, EMA: 0.9}, Replicas: 1, MicroBatch: 512, Longest: 256,
		Engine: &engine.Options{CacheBytes: 4 << 20, MaxSequences: 4, StepTokens: 256},
	},
	"adapters": {
		Model: medium, Options: model.Options{Workers: 2, LoRA: &model.LoRA{Rank: 8}}, Replicas: 1, MicroBatch: 512, Longest: 128,
		Engine: &engine.Options{CacheBytes: 4 << 20, MaxSequences: 4, StepTokens: 256}, Reference: true,
	},
}

// What TestResidentProcess plays, and with the model in which folder.
const residentRun, residentModel = "SSR_TEST_RESIDENT_RUN", "SSR_TEST_RESIDENT_MODEL"

// TestResidentMemory holds plans to 10% of what the system says that processes had in
// memory at most which load a policy, generate, score and take a step. What a process
// has beside a model is told by one with a small model.
func TestResidentMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes steps of models of several hundred megabytes")
	}
	for name, r := range residents {
		t.Run(name, func(t *testing.T) {
			measured, planned := int64(0), int64(0)
			for shape, sign := range map[*model.Config]int64{&small: -1, &r.Model: 1} {
				r := r
				r.Model = *shape
				plan, err := Make(r)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("planned %v", plan)
				planned += sign * plan.All()
				measured += sign * processOf(t, name, r.Model)
			}
			off := float64(planned)/float64(measured) - 1
			t.Logf("%s more in memory, planned %s (%+.1f%%)", Size(measured), Size(planned), 100*off)
			if off < -0.1 || off > 0.1 {
				t.Errorf("%d bytes more in memory, planned %d", measured, planned)
			}
		})
	}
}

// processOf is the most bytes that a process had in memory which played the named run
// with a model of this shape.
func processOf(t *testing.T, name string, c model.Config) int64 {
	t.Helper()
	dir := t.TempDir()
	p, err := model.New(c, 1, model.Options{Workers: 1})
	if err == nil {
		err = p.Save(dir, torch.Float32)
		p.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestResidentProcess$", "-test.v")
	cmd.Env = append(os.Environ(), residentRun+"="+name, residentModel+"="+dir)
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("%s", out)
	}
	_, text, ok := strings.Cut(string(out), "resident: ")
	if err != nil || !ok {
		t.Fatalf("%v\n%s", err, out)
	}
	text, _, _ = strings.Cut(text, "\n")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestResidentProcess is the process that TestResidentMemory measures.
func TestResidentProcess(t *testing.T) {
	r, ok := residents[os.Getenv(residentRun)]
	if !ok {
		t.Skip("TestResidentMemory runs this")
	}
	play(t, os.Getenv(residentModel), r)
	fmt.Printf("resident: %d\n", resident(t))
}

// play is a step of a run with the model in dir.
func play(t *testing.T, dir string, r Run) {
	t.Helper()
	p, err := model.Load(dir, r.Options)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	e, err := engine.New(p, *r.Engine)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	tokens, offsets := make([]int32, r.MicroBatch), []int{0}
	for i := range tokens {
		tokens[i] = int32(i * 31 % 2048)
		if (i+1)%r.Longest == 0 {
			offsets = append(offsets, i+1)
		}
	}
	done := make(chan error)
	for i := range r.Engine.MaxSequences {
		go func() {
			_, err := e.Generate(t.Context(), gen.Request{ID: fmt.Sprint(i), Tokens: tokens[i : i+r.Longest-2], MaxTokens: 2})
			done <- err
		}()
	}
	for range r.Engine.MaxSequences {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if r.Reference {
		frozen, err := model.Load(dir, model.Options{Workers: r.Options.Workers})
		if err != nil {
			t.Fatal(err)
		}
		defer frozen.Close()
		if _, err := frozen.Logprobs(t.Context(), tokens, offsets); err != nil {
			t.Fatal(err)
		}
	}
	err = p.Accumulate(t.Context(), tokens, offsets, func(logprobs, _ []float64) ([]float64, error) { return logprobs, nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Step(model.AdamW{LR: 1e-4, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1); err != nil {
		t.Fatal(err)
	}
}

// resident is the most bytes that the process has had in memory at a time.
func resident(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); fields[0] == "VmHWM:" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Skip("the system does not say VmHWM")
	return 0
}
