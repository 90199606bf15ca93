package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
)

type benchCmd struct {
	Model         string        `type:"existingdir" help:"A model; a config.json alone gets random weights; by default random weights in a shape of Qwen2."`
	Shape         string        `default:"2M" enum:"2M,20M,0.5B" help:"The random model's size: 2M, 20M or 0.5B parameters, the last in the shape of Qwen2.5-0.5B."`
	Device        string        `default:"cpu" help:"What computes: cpu, cuda:0 and so on, or generic, a GPU's operations on the CPU."`
	DeviceBytes   int64         `help:"The device's memory, which what is measured must fit into; 0 is what is free of it."`
	Kernels       bool          `default:"true" negatable:"" help:"On a GPU, this program's CUDA kernels where it has them; without, libtorch's operations alone."`
	Determinism   bool          `help:"On a GPU, log-probabilities with the same bits in sampling and training."`
	DType         string        `name:"dtype" default:"float32" enum:"float32,bfloat16" help:"What it computes in."`
	LoRARank      int           `name:"lora-rank" help:"Train adapters of this rank; 0 trains the weights."`
	Save          string        `type:"path" help:"Write the model, rounded to --dtype, to this folder and measure nothing."`
	Batch         []int         `default:"128" help:"Sequences that generate side by side. Of several, as of prompts, decode, prefill and step measure each with each, and other parts the first."`
	Prompt        []int         `default:"128" help:"Tokens of each prompt; those of decode are whole blocks of 32."`
	New           int           `default:"64" help:"New tokens of each sequence."`
	PrefillTokens int           `default:"16384" help:"Tokens of the prompts that prefill reads side by side, of one prompt at least."`
	ChunkTokens   int           `help:"Tokens of a prompt that are read in one step; 0 is the engine's default."`
	StepTokens    int           `help:"Tokens of all prompts that are read in one step; 0 is the engine's default."`
	Train         []int         `default:"16" help:"Sequences of a training step, packed; of several, each is measured."`
	Length        []int         `default:"512" help:"Tokens of each training sequence: one for all of --train, or as many."`
	Group         int           `default:"8" help:"Episodes of a group in step."`
	MicroBatch    int           `default:"16384" help:"Most tokens of a micro-batch in step."`
	Budget        time.Duration `name:"seconds" default:"10s" help:"Time for each part, or of each of its settings."`
	Deadline      time.Duration `help:"Time for everything, after which the settings that are not measured are left out; 0 is no limit."`
	Workers       int           `help:"CPU workers; 0 means one per core."`
	Parts         []string      `default:"sampling,training,sandbox" enum:"greedy,machine,sampling,decode,prefill,training,step,sandbox" help:"What to measure: sampling, prompts and new tokens together; decode, one new token a sequence after prompts that are read; prefill, prompts alone; training; step, a whole step of GRPO; sandbox; machine, what the kernels reach at best; or greedy, which prints tokens, to compare with those of other programs on the same model."`
	sandboxFlags
	jsonFlag
}

// benchmark is the result; a part that was not measured is absent.
type benchmark struct {
	Device     string `json:"device"`
	Parameters int    `json:"parameters"`
	Workers    int    `json:"workers"`
	// CacheToken is the bytes of a token's keys and values over all layers.
	CacheToken int64 `json:"cache_bytes_per_token"`
	// FirstToken is the time from the start of the process to the first sampled
	// token: loading, a prompt and one step.
	FirstToken float64 `json:"first_token_seconds,omitempty"`
	// SamplingTokens counts new tokens only; PromptTokens those read beside them.
	SamplingTokens float64 `json:"sampling_tokens_per_second,omitempty"`
	PromptTokens   float64 `json:"prompt_tokens_per_second,omitempty"`
	// TrainingTokens is the first setting's.
	TrainingTokens float64 `json:"training_tokens_per_second,omitempty"`
	// SamplingCPU and TrainingCPU are the processor's time for a token, over all cores.
	SamplingCPU float64           `json:"sampling_cpu_ms_per_token,omitempty"`
	TrainingCPU float64           `json:"training_cpu_ms_per_token,omitempty"`
	Decode      []*decodeFigure   `json:"decode,omitempty"`
	Prefill     []*prefillFigure  `json:"prefill,omitempty"`
	Training    []*trainingFigure `json:"training,omitempty"`
	Step        []*stepFigure     `json:"step,omitempty"`

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

// benchRun is a benchmark under way: the policy at hand, and the figures so far.
type benchRun struct {
	*benchCmd
	// shape is of fresh weights, nil where the model has its own.
	shape   *model.Config
	options model.Options
	policy  *model.Policy
	trained bool  // the policy has gradients and an optimizer's state
	room    int64 // bytes of the device before there was a policy; 0 is unknown
	result  benchmark
	failed  []error // of settings
}

func (c *benchCmd) Run(ctx context.Context, o output) (err error) {
	if len(c.Batch) == 0 || len(c.Prompt) == 0 || len(c.Train) == 0 || len(c.Length) != 1 && len(c.Length) != len(c.Train) {
		return errors.New("--batch, --prompt, --train and --length need a value each, and --length one, or as many as --train")
	}
	for name, list := range map[string][]int{"batch": c.Batch, "prompt": c.Prompt} {
		if slices.Contains(list, 0) {
			return fmt.Errorf("--%s has a 0; give positive numbers", name)
		}
	}
	if slices.Contains(c.Parts, "training") && (slices.Contains(c.Train, 0) || slices.Contains(c.Length, 0)) {
		return errors.New("--train or --length has a 0; give positive numbers, or --parts without training")
	}
	if c.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.Deadline, errNoTime)
		defer cancel()
	}
	b := &benchRun{benchCmd: c}
	if err := b.begin(); err != nil {
		return err
	}
	defer b.close()
	if c.Save != "" {
		return b.policy.Save(c.Save, b.options.DType)
	}
	b.result.Device, b.result.Workers = b.policy.Device().String(), b.policy.Workers().Size()
	b.result.CacheToken = b.policy.CacheBlock() / native.BlockTokens
	for _, param := range b.policy.Parameters() {
		b.result.Parameters += param.Tensor.Len()
	}
	err = b.measure(ctx)
	if err != nil && len(b.result.lists()) == 0 {
		return err
	}
	print := b.result.print
	if c.JSON {
		print = func(w io.Writer) error { return printJSON(o.out, b.result) }
	}
	return errors.Join(append(b.failed, err, print(o.out))...)
}

// measure takes the parts in their order.
func (b *benchRun) measure(ctx context.Context) error {
	parts := map[string]func(context.Context) error{
		"machine": b.machine, "greedy": b.greedy, "sampling": b.sampling, "decode": b.decode, "prefill": b.prefill,
		"training": b.training, "step": b.steps, "sandbox": b.sandbox,
	}
	for _, part := range b.Parts {
		if err := parts[part](ctx); err != nil {
			return fmt.Errorf("bench %s: %w", part, err)
		}
	}
	return nil
}

// errNoTime ends what --deadline bounds.
var errNoTime = errors.New("--deadline has passed")

// leftOut is why a setting is not measured.
type leftOut string

func (l leftOut) Error() string { return string(l) }

// outcome is why a setting has no figures.
type outcome struct {
	LeftOut string `json:"left_out,omitempty"`
	Failed  string `json:"failed,omitempty"`
}

func (o outcome) why() string {
	if o.Failed != "" {
		return "FAILED: " + o.Failed
	}
	if o.LeftOut != "" {
		return "left out: " + o.LeftOut
	}
	return ""
}

// setting measures one, f, of several. One that fails, or does not fit, does not keep the
// next from being measured; an error is of an interrupted benchmark.
func (b *benchRun) setting(ctx context.Context, o *outcome, f func() error) error {
	err := context.Cause(ctx)
	if err == nil {
		err = f()
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var why leftOut
	switch {
	case err == nil:
	case errors.As(err, &why):
		o.LeftOut = why.Error()
	case errors.Is(err, errNoTime):
		o.LeftOut = errNoTime.Error()
	case ctx.Err() != nil:
		return err
	default:
		o.Failed = err.Error()
		b.failed = append(b.failed, err)
	}
	return nil
}

// lists are the figures of settings, as text.
func (r *benchmark) lists() (lines []string) {
	add := func(name string, v float64, unit string, o outcome) {
		text := fmt.Sprintf("%10.3f %s", v, unit)
		if why := o.why(); why != "" {
			text = why
		}
		lines = append(lines, fmt.Sprintf("%-48s %s", name, text))
	}
	for _, f := range r.Decode {
		add(fmt.Sprintf("decode, batch %d, context %d", f.Batch, f.Prompt+f.New), f.Tokens, "tokens/s", f.outcome)
	}
	for _, f := range r.Prefill {
		add(fmt.Sprintf("prefill, %d x %d", f.Sequences, f.Prompt), f.Tokens, "tokens/s", f.outcome)
	}
	for _, f := range r.Training {
		add(fmt.Sprintf("training, %d x %d%s", f.Sequences, f.Length, map[bool]string{true: ", recomputed"}[f.Recompute]), f.Tokens, "tokens/s", f.outcome)
	}
	for _, f := range r.Step {
		add(fmt.Sprintf("step, %d x %d of %d + %d", f.Groups, f.Episodes, f.Prompt, f.New), f.Tokens, "tokens/s", f.outcome)
	}
	return lines
}

func (r *benchmark) print(w io.Writer) error {
	lines := []string{fmt.Sprintf("%d parameters on %s, %d workers", r.Parameters, r.Device, r.Workers)}
	for _, l := range []struct {
		name string
		v    float64
	}{
		{"first token, s", r.FirstToken}, {"sampling, tokens/s", r.SamplingTokens}, {"sampling, CPU ms a token", r.SamplingCPU}, {"prompts, tokens/s", r.PromptTokens},
		{"training, tokens/s", r.TrainingTokens}, {"training, CPU ms a token", r.TrainingCPU}, {"sandbox episodes/s", r.SandboxEpisodes}, {"sandbox command, ms", r.SandboxCommandMS},
		{"products, GFLOP/s", r.GFLOPs}, {"memory, GB/s", r.GBs},
	} {
		if l.v > 0 {
			lines = append(lines, fmt.Sprintf("%-24s %10.3f", l.name, l.v))
		}
	}
	lines = append(lines, r.lists()...)
	if r.Greedy != nil {
		lines = append(lines, fmt.Sprint("greedy: ", r.Greedy))
	}
	return check(fmt.Fprintln(w, strings.Join(lines, "\n")))
}

// benchShapes are the random models, by about how many parameters they have.
var benchShapes = map[string]model.Config{
	"2M":   {VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 4, Heads: 6, KVHeads: 2, HeadDim: 32, RopeTheta: 1e4},
	"20M":  {VocabSize: 8192, Hidden: 384, Intermediate: 1152, Layers: 10, Heads: 6, KVHeads: 2, HeadDim: 64, RopeTheta: 1e4},
	"0.5B": {VocabSize: 151936, Hidden: 896, Intermediate: 4864, Layers: 24, Heads: 14, KVHeads: 2, HeadDim: 64, RopeTheta: 1e6},
}

// begin finds the device and the model and opens the first policy.
func (b *benchRun) begin() error {
	d, err := dtype(b.DType)
	if err != nil {
		return err
	}
	on, err := openDevice(b.Device)
	if err != nil {
		return err
	}
	b.options = model.Options{Workers: b.Workers, Device: on, DType: d, Determinism: b.Determinism}
	if b.LoRARank > 0 {
		b.options.LoRA = &model.LoRA{Rank: b.LoRARank}
	}
	if b.Kernels {
		if b.options.Kernels, err = openKernels(on); err != nil {
			return err
		}
	}
	if b.room = b.DeviceBytes; b.room == 0 {
		if b.room, err = freeOf(on); err != nil {
			return err
		}
	}
	if b.shape, err = b.fresh(); err != nil {
		return err
	}
	return b.open(false)
}

// fresh is the shape of a model without weights, nil for one that has some.
func (c *benchCmd) fresh() (*model.Config, error) {
	if c.Model != "" {
		weights, err := filepath.Glob(filepath.Join(c.Model, "*.safetensors*"))
		if err != nil || len(weights) > 0 {
			return nil, err
		}
		shape, err := model.ReadConfig(c.Model)
		return &shape, err
	}
	shape := benchShapes[c.Shape]
	shape.ModelType, shape.NormEps, shape.TieEmbeddings, shape.BOS = "qwen2", 1e-6, true, -1
	shape.MaxPositions = 4096
	for _, prompt := range c.Prompt {
		shape.MaxPositions = max(shape.MaxPositions, prompt+c.New)
	}
	// Wide enough for the layers to outweigh the embedding: greedy tokens then differ
	// from each other and show a wrong detail.
	shape.InitStd = 1.5 / math.Sqrt(float64(shape.Hidden))
	return &shape, nil
}

// open makes the policy, in the place of the one before.
func (b *benchRun) open(recompute bool) (err error) {
	b.close()
	b.options.Recompute, b.trained = recompute, false
	if b.shape == nil {
		b.policy, err = model.Load(b.Model, b.options)
	} else {
		b.policy, err = model.NewOnDevice(*b.shape, 1, b.options)
	}
	return err
}

// close frees the policy, where there is one.
func (b *benchRun) close() {
	if b.policy != nil {
		b.policy.Close()
		b.policy = nil
	}
}

// tokens are random ids.
func (b *benchRun) tokens(r *rand.Rand, n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(r.IntN(b.policy.Config().VocabSize))
	}
	return ids
}

// memoryFigure is what a plan foretold beside what was used, in bytes, by purpose. Peaks of
// different purposes need not have been at the same time. On a GPU, and in the plan, the
// total has what libtorch's operations take for themselves, too.
type memoryFigure struct {
	Plan      map[string]int64 `json:"plan"`
	Peak      map[string]int64 `json:"peak"`
	PlanTotal int64            `json:"plan_total"`
	PeakTotal int64            `json:"peak_total"`
}

// resetPeak begins to watch the memory.
func (b *benchRun) resetPeak() error {
	torch.ResetPeak()
	if number, ok := b.options.Device.GPU(); ok {
		_, err := gpu.Peak(number)
		return err
	}
	return nil
}

// used is the memory since resetPeak, beside a plan by purpose.
func (b *benchRun) used(plan map[torch.Purpose]int64) (*memoryFigure, error) {
	m := &memoryFigure{Plan: map[string]int64{}, Peak: map[string]int64{}, PeakTotal: torch.Peak()}
	for p, n := range plan {
		m.Plan[p.String()] = n
		m.PlanTotal += n
	}
	for p, n := range torch.Peaks() {
		m.Peak[p.String()] = n
	}
	number, ok := b.options.Device.GPU()
	if !ok {
		return m, nil
	}
	var err error
	m.PeakTotal, err = gpu.Peak(number)
	return m, err
}
