package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/kernels/collective/c10d"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/budget"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/learner"
	"github.com/ssr-go/ssr/rollout"
)

// sftFlags are the settings of supervised fine-tuning.
type sftFlags struct {
	Epochs      int     `default:"3" help:"Passes over the examples."`
	BatchSize   int     `default:"32" help:"Examples of an update."`
	TokenBudget int     `default:"8192" help:"Tokens of a micro-batch."`
	LR          float64 `name:"lr" default:"0.001" help:"Peak learning rate."`
	Warmup      int     `default:"10" help:"Updates until the peak."`
	WeightDecay float64 `default:"0.1" help:"Decoupled weight decay."`
	Clip        float64 `default:"1" help:"Bound on the gradient's norm; 0 for none."`
	Seed        uint64  `default:"1" help:"Seed of every draw."`

	CheckpointEvery int `help:"Updates between checkpoints, from which a run goes on; 0 means an epoch."`
	computeFlags
}

func (f sftFlags) settings() train.SFTSettings {
	s := train.DefaultSFTSettings()
	s.Epochs, s.BatchSize, s.TokenBudget = f.Epochs, f.BatchSize, f.TokenBudget
	s.Optimizer.LR, s.Optimizer.WeightDecay, s.Optimizer.Clip = f.LR, f.WeightDecay, f.Clip
	s.Schedule.Warmup, s.CheckpointEvery = f.Warmup, f.CheckpointEvery
	return s
}

type sftCmd struct {
	Model  string `required:"" type:"existingdir" help:"The policy to start from."`
	Data   string `required:"" type:"existingfile" help:"JSON lines: {\"messages\": [{\"role\", \"content\"}, …]}, of which the assistant's are learned, or {\"tokens\": […], \"trained\": […]}."`
	Out    string `required:"" type:"path" help:"The folder to write: a run, with the model in OUT/model."`
	Resume bool   `help:"Go on with what OUT holds."`
	Stored string `name:"save-dtype" default:"float32" enum:"float32,bfloat16" help:"How to store the weights: float32 or bfloat16."`
	trainedFlags
	sftFlags
	jsonFlag
}

// trainedFlags choose what of a model is trained.
type trainedFlags struct {
	LoRARank     int      `name:"lora-rank" help:"Train adapters of this rank (LoRA) instead of the weights; they are saved in OUT/adapter, too."`
	LoRAAlpha    float64  `name:"lora-alpha" help:"Alpha of the adapters; by default their rank."`
	LoRATargets  []string `name:"lora-targets" help:"Projections with adapters, such as q_proj,v_proj; by default all of a layer."`
	FreezeLayers int      `help:"Leave the embedding and the first so many layers as they are."`
	EMA          float64  `name:"ema" help:"Keep a mean of the weights that forgets by this factor each update, in the checkpoints' folder ema."`
	Recompute    bool     `help:"Compute layers again in the backward pass, for a tenth of the memory."`
}

func (f trainedFlags) options() model.Options {
	o := model.Options{Recompute: f.Recompute, FreezeLayers: f.FreezeLayers, EMA: f.EMA}
	if f.LoRARank != 0 {
		o.LoRA = &model.LoRA{Rank: f.LoRARank, Alpha: f.LoRAAlpha, Targets: f.LoRATargets}
	}
	return o
}

// adapterDir is where sft puts the adapters, in its folder.
const adapterDir = "adapter"

// modelDir is where commands that make a policy put it, in their folder.
const modelDir = "model"

func (c *sftCmd) Run(ctx context.Context, o output) error {
	options := c.options()
	if err := c.apply(&options); err != nil {
		return err
	}
	available, err := freeOf(options.Device)
	if err != nil {
		return err
	}
	p, err := openPolicy(c.Model, options)
	if err != nil {
		return err
	}
	defer p.Close()
	examples, err := readExamples(c.Data, p)
	if err != nil {
		return err
	}
	longest := 0
	for _, e := range examples {
		longest = max(longest, len(e.Tokens))
	}
	options.Workers = p.Workers().Size()
	plan, err := budget.Make(budget.Run{Model: p.Config(), Options: options, Replicas: 1, MicroBatch: c.TokenBudget, Longest: longest})
	if err != nil {
		return err
	}
	if err := fits(o, plan, available); err != nil {
		return fmt.Errorf("%w: lower --token-budget (%d; the longest example has %d tokens), set --recompute or --lora-rank", err, c.TokenBudget, longest)
	}
	sum, err := p.fit(ctx, o, train.SFTOptions{SFTSettings: c.settings(), Dir: c.Out, Seed: c.Seed, Resume: c.Resume}, examples, nil)
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(o.err, "go on with: the same command and --resume")
		}
		return err
	}
	if p.LoRA() != nil {
		if err := p.SaveAdapter(filepath.Join(c.Out, adapterDir), c.Model); err != nil {
			return err
		}
	}
	return p.finish(o, c.Out, c.Stored, sum, c.JSON)
}

// oneProcess refuses to be one of several that a launcher started.
func oneProcess() error {
	if launch, err := c10d.FromEnvironment(os.Getenv); launch != nil || err != nil {
		return errors.Join(errors.New("supervised training is of one process; unset WORLD_SIZE, or start it without the launcher"), err)
	}
	return nil
}

// fit fine-tunes the policy under the live view. afterEpoch, where not nil, may
// end it, and says what it has to say in a line.
func (p *policy) fit(ctx context.Context, o output, opts train.SFTOptions, examples []train.Example,
	afterEpoch func(ctx context.Context, epoch int) (line string, stop bool, err error)) (train.Summary, error) {
	if err := oneProcess(); err != nil {
		return train.Summary{}, err
	}
	view := ui.NewProgress(o.err, nil)
	defer view.Close()
	opts.OnEvent = view.OnEvent
	if afterEpoch != nil {
		opts.AfterEpoch = func(ctx context.Context, epoch int) (bool, error) {
			line, stop, err := afterEpoch(ctx, epoch)
			view.Println(line)
			return stop, err
		}
	}
	return train.SFT(ctx, opts, learner.New(p.Policy, p.tokenizer), examples)
}

// finish saves the model into dir, draws the curves and reports.
func (p *policy) finish(o output, dir, storage string, sum train.Summary, asJSON bool) error {
	d, err := dtype(storage)
	if err != nil {
		return err
	}
	out := filepath.Join(dir, modelDir)
	if err := p.save(out, d); err != nil {
		return err
	}
	metrics, err := ui.ReadMetrics(filepath.Join(dir, "metrics.jsonl"))
	if err != nil {
		return err
	}
	if err := drawCurves(filepath.Join(dir, "curves.svg"), filepath.Base(dir), metrics); err != nil {
		return err
	}
	if asJSON {
		return printJSON(o.out, map[string]any{"model": out, "updates": sum.Steps, "skipped_updates": sum.Skipped})
	}
	ui.Summary(o.out, metrics)
	return check(fmt.Fprintf(o.out, "model: %s\n", out))
}

// save writes a model folder.
func (p *policy) save(dir string, d torch.DType) error {
	return errors.Join(os.MkdirAll(dir, 0o755), p.Save(dir, d), p.tokenizer.Save(dir))
}

// readExamples reads the data of sft and checks it against the policy.
func readExamples(path string, p *policy) ([]train.Example, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	window, rows := p.Config().MaxPositions, p.Config().VocabSize
	var all []train.Example
	err = eachLine(f, func(n int, line []byte) error {
		var item struct {
			episode
			train.Example
		}
		err := strictJSON(line, &item)
		e := item.Example
		if err == nil && item.Messages != nil {
			e, err = item.episode.example(p.tokenizer, false)
		}
		switch {
		case err != nil:
		case len(e.Tokens) == 0 || len(e.Tokens) != len(e.Trained):
			err = fmt.Errorf("%d tokens and %d marks; there must be as many, and one at least", len(e.Tokens), len(e.Trained))
		case len(e.Tokens) > window:
			err = fmt.Errorf("%d tokens, more than the model's window of %d", len(e.Tokens), window)
		}
		for _, id := range e.Tokens {
			if err == nil && (id < 0 || int(id) >= rows) {
				err = fmt.Errorf("token %d is outside the vocabulary of %d", id, rows)
			}
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
		all = append(all, e)
		return nil
	})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s holds no example", path)
	}
	return all, err
}

// episode is a line of recorded chat.
type episode struct {
	// Role is the part that the assistant plays, where it plays one.
	Role     rollout.Role    `json:"role,omitempty"`
	Messages []token.Message `json:"messages"`
	// Skip are the assistant's turns, from 0, that are shown and not imitated.
	Skip []int `json:"skip,omitempty"`
}

// example renders a chat as it would have been played: the prompt up to the
// first assistant's turn, then turns of the assistant and of the user. What is not
// the assistant's is trained on only where the whole is to be learned as text: it
// teaches what tools show. Turns to skip never are.
func (c episode) example(t *token.Tokenizer, whole bool) (e train.Example, err error) {
	messages := c.Messages
	chat, err := token.NewChat(t)
	if err != nil {
		return e, err
	}
	add := func(ids []int32, own bool) {
		e.Tokens = append(e.Tokens, ids...)
		for range ids {
			e.Trained = append(e.Trained, own)
		}
	}
	first := 0
	for first < len(messages) && messages[first].Role != token.Assistant {
		first++
	}
	if first == len(messages) || first == 0 {
		return e, errors.New("a chat needs a prompt and an assistant's message after it")
	}
	add(chat.Prompt(messages[:first]), whole)
	for i, m := range messages[first:] {
		own := i%2 == 0
		if (m.Role == token.Assistant) != own || !own && m.Role != token.User {
			return e, fmt.Errorf("message %d is from %q; after the prompt assistant and user take turns", first+i+1, m.Role)
		}
		if own {
			add(chat.Reply(m.Content), !slices.Contains(c.Skip, i/2))
		} else if first+i+1 < len(messages) { // a last observation teaches nothing
			add(chat.Observation(m.Content, true), whole)
		}
	}
	return e, nil
}
