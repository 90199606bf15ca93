package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/sandbox"
)

type benchCmd struct {
	Model       string        `type:"existingdir" help:"A model; a config.json alone gets random weights; by default random weights in a shape of Qwen2."`
	Shape       string        `default:"2M" enum:"2M,20M,0.5B" help:"The random model's size: 2M, 20M or 0.5B parameters, the last in the shape of Qwen2.5-0.5B."`
	Device      string        `default:"cpu" help:"What computes: cpu, cuda:0 and so on, or generic, a GPU's operations on the CPU."`
	Kernels     bool          `default:"true" negatable:"" help:"On a GPU, this program's CUDA kernels where it has them; without, libtorch's operations alone."`
	Determinism bool          `help:"On a GPU, log-probabilities with the same bits in sampling and training."`
	DType       string        `name:"dtype" default:"float32" enum:"float32,bfloat16" help:"What it computes in."`
	Save        string        `type:"path" help:"Write the model, rounded to --dtype, to this folder and measure nothing."`
	Batch       int           `default:"128" help:"Sequences that generate side by side."`
	Prompt      int           `default:"128" help:"Tokens of each prompt."`
	New         int           `default:"64" help:"New tokens of each sequence."`
	Train       int           `default:"16" help:"Sequences of a training step."`
	Length      int           `default:"512" help:"Tokens of each training sequence."`
	Budget      time.Duration `name:"seconds" default:"10s" help:"Time for each part."`
	Workers     int           `help:"CPU workers; 0 means one per core."`
	Parts       []string      `default:"sampling,training,sandbox" enum:"greedy,machine,sampling,training,sandbox" help:"What to measure: sampling, training, sandbox; machine, what the kernels reach at best; or greedy, which prints tokens, to compare with those of other programs on the same model."`
	sandboxFlags
	jsonFlag
}

// benchmark is the result; a part that was not measured is absent.
type benchmark struct {
	Device     string `json:"device"`
	Parameters int    `json:"parameters"`
	Workers    int    `json:"workers"`
	// FirstToken is the time from the start of the process to the first sampled
	// token: loading, a prompt and one step.
	FirstToken float64 `json:"first_token_seconds,omitempty"`
	// SamplingTokens counts new tokens only; PromptTokens those read beside them.
	SamplingTokens float64 `json:"sampling_tokens_per_second,omitempty"`
	PromptTokens   float64 `json:"prompt_tokens_per_second,omitempty"`
	TrainingTokens float64 `json:"training_tokens_per_second,omitempty"`
	// SamplingCPU and TrainingCPU are the processor's time for a token, over all cores.
	SamplingCPU      float64 `json:"sampling_cpu_ms_per_token,omitempty"`
	TrainingCPU      float64 `json:"training_cpu_ms_per_token,omitempty"`
	SandboxEpisodes  float64 `json:"sandbox_episodes_per_second,omitempty"`
	SandboxCommandMS float64 `json:"sandbox_command_ms,omitempty"`
	// GFLOPs is what products reach that stay in the cache, and GBs how fast memory is
	// read, by all workers together.
	GFLOPs float64 `json:"gflops,omitempty"`
	GBs    float64 `json:"gb_per_second,omitempty"`
	// Greedy is what follows the ids 1, 2, … of a prompt where the most probable token
	// is always taken.
	Greedy []int32 `json:"greedy,omitempty"`
}

func (c *benchCmd) Run(ctx context.Context, o output) (err error) {
	var b benchmark
	p, err := c.model()
	if err != nil {
		return err
	}
	defer p.Close()
	if c.Save != "" {
		d, err := dtype(c.DType)
		if err != nil {
			return err
		}
		return p.Save(c.Save, d)
	}
	b.Device, b.Workers = p.Device().String(), p.Workers().Size()
	for _, param := range p.Parameters() {
		b.Parameters += param.Tensor.Len()
	}
	for _, part := range c.Parts {
		switch part {
		case "machine":
			err = machine(ctx, p, &b)
		case "greedy":
			err = c.greedy(ctx, p, &b)
		case "sampling":
			err = c.sampling(ctx, p, &b)
		case "training":
			err = c.training(ctx, p, &b)
		case "sandbox":
			err = c.sandbox(ctx, &b)
		}
		if err != nil {
			return fmt.Errorf("bench %s: %w", part, err)
		}
	}
	if c.JSON {
		return printJSON(o.out, b)
	}
	fmt.Fprintf(o.out, "%d parameters on %s, %d workers\n", b.Parameters, b.Device, b.Workers)
	for _, l := range []struct {
		name string
		v    float64
	}{
		{"first token, s", b.FirstToken}, {"sampling, tokens/s", b.SamplingTokens}, {"sampling, CPU ms a token", b.SamplingCPU}, {"prompts, tokens/s", b.PromptTokens},
		{"training, tokens/s", b.TrainingTokens}, {"training, CPU ms a token", b.TrainingCPU}, {"sandbox episodes/s", b.SandboxEpisodes}, {"sandbox command, ms", b.SandboxCommandMS},
		{"products, GFLOP/s", b.GFLOPs}, {"memory, GB/s", b.GBs},
	} {
		if l.v > 0 {
			fmt.Fprintf(o.out, "%-24s %10.3f\n", l.name, l.v)
		}
	}
	if b.Greedy != nil {
		fmt.Fprintln(o.out, "greedy:", b.Greedy)
	}
	return nil
}

// benchShapes are the random models, by about how many parameters they have.
var benchShapes = map[string]model.Config{
	"2M":   {VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 4, Heads: 6, KVHeads: 2, HeadDim: 32, RopeTheta: 1e4},
	"20M":  {VocabSize: 8192, Hidden: 384, Intermediate: 1152, Layers: 10, Heads: 6, KVHeads: 2, HeadDim: 64, RopeTheta: 1e4},
	"0.5B": {VocabSize: 151936, Hidden: 896, Intermediate: 4864, Layers: 24, Heads: 14, KVHeads: 2, HeadDim: 64, RopeTheta: 1e6},
}

func (c *benchCmd) model() (*model.Policy, error) {
	d, err := dtype(c.DType)
	if err != nil {
		return nil, err
	}
	on, err := openDevice(c.Device)
	if err != nil {
		return nil, err
	}
	o := model.Options{Workers: c.Workers, Device: on, DType: d, Determinism: c.Determinism}
	if c.Kernels {
		if o.Kernels, err = openKernels(on); err != nil {
			return nil, err
		}
	}
	if c.Model != "" {
		weights, err := filepath.Glob(filepath.Join(c.Model, "*.safetensors*"))
		if err != nil || len(weights) > 0 {
			return model.Load(c.Model, o)
		}
		shape, err := model.ReadConfig(c.Model)
		if err != nil {
			return nil, err
		}
		return model.New(shape, 1, o)
	}
	shape := benchShapes[c.Shape]
	shape.ModelType, shape.NormEps, shape.TieEmbeddings, shape.BOS = "qwen2", 1e-6, true, -1
	shape.MaxPositions = max(4096, c.Prompt+c.New)
	// Wide enough for the layers to outweigh the embedding: greedy tokens then differ
	// from each other and show a wrong detail.
	shape.InitStd = 1.5 / math.Sqrt(float64(shape.Hidden))
	return model.New(shape, 1, o)
}

// tokens are random ids.
func (c *benchCmd) tokens(r *rand.Rand, p *model.Policy, n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(r.IntN(p.Config().VocabSize))
	}
	return ids
}

// machine measures the best of five rounds in which every worker multiplies
// matrices that stay in its cache, and then a row with 256 MiB of weights of its own.
func machine(ctx context.Context, p *model.Policy, b *benchmark) error {
	const rows, k, n, repeat, wide = 96, 384, 512, 200, 1 << 26 / 384
	type lane struct{ x, w, y, large, out []float32 }
	lanes := make([]lane, b.Workers)
	for i := range lanes {
		lanes[i] = lane{
			make([]float32, rows*k), make([]float32, native.PackedLen(k, n)), make([]float32, rows*n),
			slices.Repeat([]float32{1}, native.PackedLen(k, wide)), make([]float32, wide), // pages that were never written have no memory
		}
	}
	rate := func(work float64, f func(lane)) (float64, error) {
		best := 0.
		for range 5 {
			began := time.Now()
			err := p.Workers().Each(ctx, func(worker int) error { f(lanes[worker]); return nil })
			if err != nil {
				return 0, err
			}
			best = max(best, work*float64(b.Workers)/time.Since(began).Seconds())
		}
		return best, nil
	}
	var err, err2 error
	b.GFLOPs, err = rate(2e-9*rows*k*n*repeat, func(l lane) {
		for range repeat {
			native.Linear(l.x, l.w, nil, rows, k, n, 0, 0, l.y, false)
		}
	})
	b.GBs, err2 = rate(4e-9*k*wide, func(l lane) { native.Linear(l.x, l.large, nil, 1, k, wide, 0, 0, l.out, false) })
	return errors.Join(err, err2)
}

// greedy continues the ids 1, 2, … without randomness.
func (c *benchCmd) greedy(ctx context.Context, p *model.Policy, b *benchmark) error {
	e, err := engine.New(p, engine.Options{MaxSequences: 1})
	if err != nil {
		return err
	}
	defer e.Close()
	prompt := make([]int32, c.Prompt)
	for i := range prompt {
		prompt[i] = int32(1+i) % int32(p.Config().VocabSize)
	}
	done, err := e.Generate(ctx, gen.Request{ID: "greedy", Tokens: prompt, MaxTokens: c.New})
	b.Greedy = done.Tokens
	return errors.Join(err, context.Cause(ctx))
}

// sampling keeps the batch full: a sequence that ends is replaced, as in play.
func (c *benchCmd) sampling(ctx context.Context, p *model.Policy, b *benchmark) error {
	// All sequences fit, and a block more than they fill.
	blocks := c.Batch * ((c.Prompt+c.New)/native.BlockTokens + 2)
	cache := max(int64(blocks)*p.CacheBlock(), 512<<20)
	e, err := engine.New(p, engine.Options{MaxSequences: c.Batch, CacheBytes: cache})
	if err != nil {
		return err
	}
	defer e.Close()
	r := rand.New(rand.NewPCG(1, 1))
	one := func(id string, prompt []int32, n int) error {
		defer e.Release(id)
		_, err := e.Generate(ctx, gen.Request{ID: id, Seed: 1, Tokens: prompt, MaxTokens: n, Sampling: gen.Sampling{Temperature: 1}})
		return errors.Join(err, context.Cause(ctx))
	}
	if err := one("first", c.tokens(r, p, c.Prompt), 1); err != nil {
		return err
	}
	if started, err := processStart(); err == nil {
		b.FirstToken = time.Since(started).Seconds()
	}
	prompts := make([][]int32, c.Batch)
	for i := range prompts {
		prompts[i] = c.tokens(r, p, c.Prompt)
	}
	began, cpu := time.Now(), cpuTime()
	var mu sync.Mutex
	done := 0
	var g errgroup.Group
	for i := range c.Batch {
		g.Go(func() error {
			for k := 0; time.Since(began) < c.Budget; k++ {
				if err := one(fmt.Sprintf("bench-%d-%d", i, k), prompts[i], c.New); err != nil {
					return err
				}
				mu.Lock()
				done++
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	b.SamplingTokens = float64(done*c.New) / seconds
	b.PromptTokens = float64(done*c.Prompt) / seconds
	b.SamplingCPU = float64((cpuTime() - cpu).Microseconds()) / 1000 / float64(done*c.New)
	return nil
}

// training repeats whole optimizer steps.
func (c *benchCmd) training(ctx context.Context, p *model.Policy, b *benchmark) error {
	r := rand.New(rand.NewPCG(2, 2))
	tokens := c.tokens(r, p, c.Train*c.Length)
	offsets := make([]int, c.Train+1)
	for i := range offsets {
		offsets[i] = i * c.Length
	}
	grad := make([]float64, len(tokens))
	for i := range grad {
		grad[i] = -1 / float64(len(grad))
	}
	step := func() error {
		err := p.Accumulate(ctx, tokens, offsets, func(_, _ []float64) ([]float64, error) { return grad, nil })
		if err == nil {
			_, err = p.Step(model.AdamW{LR: 1e-6, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8}, 1)
		}
		return err
	}
	if err := step(); err != nil { // the first one allocates
		return err
	}
	began, cpu := time.Now(), cpuTime()
	n := 0
	for ; time.Since(began) < c.Budget; n++ {
		if err := step(); err != nil {
			return err
		}
	}
	b.TrainingTokens = float64(n*len(tokens)) / time.Since(began).Seconds()
	b.TrainingCPU = float64((cpuTime() - cpu).Microseconds()) / 1000 / float64(n*len(tokens))
	return nil
}

// sandboxCommands is how many commands an episode of the benchmark runs.
const sandboxCommands = 4

// sandbox starts sandboxes on a folder of 100 files, runs commands and harvests,
// with as many side by side as there are workers.
func (c *benchCmd) sandbox(ctx context.Context, b *benchmark) (err error) {
	dir, err := os.MkdirTemp("", "ssr-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%02d.txt", i)), bytes.Repeat([]byte("line\n"), 200), 0o644); err != nil {
			return err
		}
	}
	backend, err := c.config().open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	var mu sync.Mutex
	episodes := 0
	var inside time.Duration
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for range b.Workers {
		g.Go(func() error {
			for time.Since(began) < c.Budget {
				spent, err := sandboxEpisode(gctx, backend, dir)
				if err != nil {
					return err
				}
				mu.Lock()
				episodes++
				inside += spent
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	b.SandboxEpisodes = float64(episodes) / time.Since(began).Seconds()
	b.SandboxCommandMS = inside.Seconds() * 1000 / float64(episodes*sandboxCommands)
	return nil
}

func sandboxEpisode(ctx context.Context, backend sandbox.Backend, dir string) (spent time.Duration, err error) {
	box, err := backend.Start(ctx, sandbox.Spec{Dir: dir, Owner: "ssr-bench"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	for i := range sandboxCommands {
		began := time.Now()
		res, err := box.Exec(ctx, sandbox.Cmd{Args: []string{"bash", "-c", fmt.Sprintf("grep -c line f%02d.txt && echo changed >> f%02d.txt", i, i)}})
		if err != nil {
			return 0, err
		}
		if !res.OK() {
			return 0, fmt.Errorf("a command ended with status %d: %s", res.Exit, res.Stderr)
		}
		spent += time.Since(began)
	}
	changes, err := box.Harvest(ctx)
	if err == nil && len(changes) != sandboxCommands {
		err = fmt.Errorf("%d files changed, want %d", len(changes), sandboxCommands)
	}
	return spent, err
}

// cpuTime is the processor's time that this process has taken.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it cannot fail for RUSAGE_SELF
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processStart is when the kernel started this process, to a hundredth of a second.
func processStart() (time.Time, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return time.Time{}, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, err
	}
	// The fields after the program's name, which may hold anything; starttime is the 22nd.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return time.Time{}, errors.New("/proc/self/stat is too short")
	}
	ticks, err1 := strconv.ParseFloat(string(fields[19]), 64)
	up, err2 := strconv.ParseFloat(string(bytes.Fields(uptime)[0]), 64)
	const ticksPerSecond = 100 // USER_HZ, fixed on Linux
	age := up - ticks/ticksPerSecond
	return time.Now().Add(-time.Duration(age * float64(time.Second))), errors.Join(err1, err2)
}
