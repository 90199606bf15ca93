package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/budget"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/learner"
	"github.com/ssr-go/ssr/rollout"
)

// stepFigure is steps of GRPO by the training loop (arXiv 2402.03300, without the penalty):
// Groups of Episodes each that continue a prompt of Prompt tokens by New ones, advantages,
// the objective, and an update. Times are means over the steps after the first.
type stepFigure struct {
	Groups    int  `json:"groups"`
	Episodes  int  `json:"episodes"`
	Prompt    int  `json:"prompt"`
	New       int  `json:"new"`
	LoRARank  int  `json:"lora_rank,omitempty"`
	Recompute bool `json:"recompute,omitempty"`
	// Seconds of a step, and of its play and its update.
	Seconds float64 `json:"seconds,omitempty"`
	Play    float64 `json:"play_seconds,omitempty"`
	Update  float64 `json:"update_seconds,omitempty"`
	// Tokens of prompts and episodes a second of the step, and of the update, and new ones
	// a second of play.
	Tokens  float64 `json:"tokens_per_second,omitempty"`
	Trained float64 `json:"trained_tokens_per_second,omitempty"`
	Sampled float64 `json:"sampled_tokens_per_second,omitempty"`
	// Turnaround is in seconds.
	Turnaround *turnaround `json:"turnaround,omitempty"`
	// Agreement is of the last step.
	Agreement *agreement    `json:"agreement,omitempty"`
	Memory    *memoryFigure `json:"memory,omitempty"`
	outcome
}

// turnaround is what lies between sampling and training.
type turnaround struct {
	// ToTraining is from the last sampled token to the first micro-batch, ToSampling from
	// the update's end to the next sampled token, after a prompt. Both in seconds.
	ToTraining float64 `json:"to_training_seconds"`
	ToSampling float64 `json:"to_sampling_seconds"`
	// CopiedBytes is of weights that the engine generates with elsewhere than where the
	// learner updates them, and of those that it or the learner took beside the policy's.
	CopiedBytes int64 `json:"weight_bytes_copied"`
}

// agreement is |log-probability in training − in sampling| of the same tokens under the
// same weights, in nats.
type agreement struct {
	Largest float64 `json:"largest"`
	Mean    float64 `json:"mean"`
	Tokens  int     `json:"tokens"`
}

// benchSteps is how many steps a run takes, the first of which allocates and is not counted.
const benchSteps = 3

func (b *benchRun) steps(ctx context.Context) error {
	for _, prompt := range b.Prompt {
		for _, batch := range b.Batch {
			f := &stepFigure{Episodes: min(b.Group, batch), Prompt: prompt, New: b.New, LoRARank: b.LoRARank}
			f.Groups = max(1, batch/max(1, f.Episodes))
			if err := b.setting(ctx, &f.outcome, func() error { return b.stepOne(ctx, f) }); err != nil {
				return err
			}
			b.result.Step = append(b.result.Step, f)
		}
	}
	return nil
}

func (b *benchRun) stepOne(ctx context.Context, f *stepFigure) (err error) {
	if f.Episodes < 2 {
		return leftOut("a group of one episode has no advantage; raise --batch or --group")
	}
	sequences, length := f.Groups*f.Episodes, f.Prompt+f.New
	o := b.engineOptions(sequences, b.cacheBytes(sequences, length))
	plan, err := b.trainee(budget.Run{MicroBatch: b.MicroBatch, Longest: length, Engine: &o})
	if err != nil {
		return err
	}
	f.Recompute = b.options.Recompute
	if err := b.resetPeak(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ssr-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	weights := torch.Allocated()[torch.Weights]
	e, err := engine.New(b.policy, o)
	if err != nil {
		return err
	}
	defer e.Close()
	settings, err := grpo(b.MicroBatch)
	if err != nil {
		return err
	}
	l := &watchedLearner{Learner: learner.New(b.policy, nil)}
	g := &benchGame{b: b, engine: e, figure: f, updated: &l.stepped}
	f.Turnaround = &turnaround{}
	var ended time.Time // of the last step
	_, err = train.Train(ctx, train.Options{Settings: settings, Dir: dir, Seed: 1, OnEvent: func(ev train.Event) {
		if ev.Phase != train.PhaseStep {
			return
		}
		now := time.Now()
		if ev.Step > 1 {
			const n = benchSteps - 1
			f.Seconds += now.Sub(ended).Seconds() / n
			f.Play += ev.Metrics.Seconds.Play / n
			f.Update += ev.Metrics.Seconds.Update / n
			f.Turnaround.ToTraining += l.accumulated.Sub(g.sampled).Seconds() / n
			f.Turnaround.ToSampling += g.toSampling.Seconds() / n
		}
		ended = now
	}}, l, g)
	if err != nil {
		return err
	}
	if l.agreement.Tokens == 0 {
		return errors.New("no group's rewards differed, so that nothing was trained on")
	}
	tokens := float64(sequences * length)
	f.Tokens, f.Trained, f.Sampled = tokens/f.Seconds, tokens/f.Update, float64(sequences*f.New)/f.Play
	f.Turnaround.CopiedBytes = copiedBytes(e.Policy(), l.Policies()) + torch.Allocated()[torch.Weights] - weights
	f.Agreement = &l.agreement
	f.Memory, err = b.used(byPurpose(plan))
	return err
}

// grpo are the training loop's settings for one update a step, without what a frozen
// reference is needed for, and without a checkpoint before the end.
func grpo(microBatch int) (train.Settings, error) {
	s := train.DefaultSettings()
	loss, err := rl.Defaults("grpo")
	if err != nil {
		return s, err
	}
	loss.KLCoef = 0
	s.Objective, s.Loss, s.Advantage, s.TokenBudget = "grpo", loss, "grpo", microBatch
	s.Steps, s.CheckpointEvery, s.Guard = benchSteps, benchSteps, train.Guard{}
	return s, nil
}

// copiedBytes is the size of the weights that a policy generates with and that are not in
// the same memory as those of any that are trained.
func copiedBytes(generating *model.Policy, trained []*model.Policy) (bytes int64) {
	for i, param := range generating.Parameters() {
		same := func(p *model.Policy) bool { return p.Parameters()[i].Tensor.Same(param.Tensor) }
		if !slices.ContainsFunc(trained, same) {
			bytes += int64(param.Tensor.Len() * param.Tensor.DType().Size())
		}
	}
	return bytes
}

// watchedLearner is ssr train's learner, with its times and how far its log-probabilities
// are from the sampler's. It keeps no checkpoints.
type watchedLearner struct {
	*learner.Learner
	accumulated, stepped time.Time // when the last accumulation began and the last step ended
	mu                   sync.Mutex
	agreement            agreement
}

func (l *watchedLearner) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	l.accumulated, l.agreement = time.Now(), agreement{}
	err := l.Learner.Accumulate(ctx, batches, func(i int, logprobs, entropies []float64) ([]float64, error) {
		l.compare(batches[i], logprobs)
		return fn(i, logprobs, entropies)
	})
	l.agreement.Mean /= float64(max(1, l.agreement.Tokens))
	return err
}

// compare adds a micro-batch to the agreement, whose mean is a sum meanwhile.
func (l *watchedLearner) compare(b rl.Packed, logprobs []float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, trained := range b.Mask {
		if trained {
			gap := math.Abs(logprobs[k] - b.RolloutLogprobs[k])
			l.agreement.Largest, l.agreement.Mean = max(l.agreement.Largest, gap), l.agreement.Mean+gap
			l.agreement.Tokens++
		}
	}
}

func (l *watchedLearner) Step(ctx context.Context, o train.AdamW) (float64, error) {
	norm, err := l.Learner.Step(ctx, o)
	l.stepped = time.Now()
	return norm, err
}

func (l *watchedLearner) Save(string) error { return nil }

// benchGame has episodes of one turn after random prompts. An episode's reward is the
// share of even ids in it.
type benchGame struct {
	b       *benchRun
	engine  *engine.Engine
	figure  *stepFigure
	updated *time.Time // the end of the learner's last step

	toSampling time.Duration // from the update before a step to the step's first token
	mu         sync.Mutex
	sampled    time.Time // when the last episode ended
}

// Play generates each group's episodes together, and all groups side by side. It does not
// go on with an interrupted step: nobody resumes a benchmark.
func (g *benchGame) Play(ctx context.Context, step int, _ []train.Finished, finish func(train.Finished) error) error {
	if step > 1 {
		first := sampled(fmt.Sprint("first-", step), g.prompt(step, 0), 1)
		if _, err := generate(ctx, g.engine, []gen.Request{first}); err != nil {
			return err
		}
		g.toSampling = time.Since(*g.updated)
		g.engine.Release(first.ID)
	}
	var all errgroup.Group
	for k := range g.figure.Groups {
		all.Go(func() error {
			group, err := g.play(ctx, step, k)
			if err != nil {
				return err
			}
			return finish(train.Finished{Group: group})
		})
	}
	return all.Wait()
}

// prompt is that of a group.
func (g *benchGame) prompt(step, group int) []int32 {
	return g.b.tokens(rand.New(rand.NewPCG(uint64(step), uint64(group))), g.figure.Prompt)
}

func (g *benchGame) play(ctx context.Context, step, k int) (*rollout.Group, error) {
	group := &rollout.Group{ID: fmt.Sprintf("%d-%d", step, k), Role: rollout.Solver}
	reqs := make([]gen.Request, g.figure.Episodes)
	for i := range reqs {
		reqs[i] = sampled(fmt.Sprintf("%s-%d", group.ID, i), g.prompt(step, k), g.figure.New)
		defer g.engine.Release(reqs[i].ID)
	}
	done, err := generate(ctx, g.engine, reqs)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.sampled = time.Now()
	g.mu.Unlock()
	for i, c := range done {
		t := &rollout.Trajectory{ID: reqs[i].ID, Group: group.ID, Role: group.Role, Step: step, Status: rollout.Scored}
		t.Append(reqs[i].Tokens, nil, nil)
		t.Append(c.Tokens, c.Logprobs, c.Versions)
		even := 0
		for _, id := range c.Tokens {
			even += int(1 - id%2)
		}
		t.Reward = float64(even) / float64(len(c.Tokens))
		group.Trajectories = append(group.Trajectories, t)
	}
	return group, nil
}

func (g *benchGame) State() ([]byte, error) { return nil, nil }
func (g *benchGame) Restore([]byte) error   { return nil }
