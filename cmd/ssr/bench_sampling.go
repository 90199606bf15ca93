package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/budget"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
)

// decodeFigure is steps of one new token each for Batch sequences that have been read: of
// Prompt tokens and then of one more each step, up to Prompt + New.
type decodeFigure struct {
	Batch  int     `json:"batch"`
	Prompt int     `json:"prompt"`
	New    int     `json:"new"`
	Tokens float64 `json:"tokens_per_second,omitempty"`
	StepMS float64 `json:"step_ms,omitempty"`
	outcome
}

// prefillFigure is Sequences prompts of Prompt tokens, and one new token of each.
type prefillFigure struct {
	Sequences int     `json:"sequences"`
	Prompt    int     `json:"prompt"`
	Tokens    float64 `json:"tokens_per_second,omitempty"`
	outcome
}

// greedy continues the ids 1, 2, … without randomness.
func (b *benchRun) greedy(ctx context.Context) error {
	e, err := engine.New(b.policy, engine.Options{MaxSequences: 1})
	if err != nil {
		return err
	}
	defer e.Close()
	prompt := make([]int32, b.Prompt[0])
	for i := range prompt {
		prompt[i] = int32(1+i) % int32(b.policy.Config().VocabSize)
	}
	done, err := e.Generate(ctx, gen.Request{ID: "greedy", Tokens: prompt, MaxTokens: b.New})
	b.result.Greedy = done.Tokens
	return errors.Join(err, context.Cause(ctx))
}

// sampling keeps the batch full: a sequence that ends is replaced, as in play.
func (b *benchRun) sampling(ctx context.Context) error {
	batch, prompt := b.Batch[0], b.Prompt[0]
	cache := max(b.cacheBytes(batch, prompt+b.New), 512<<20)
	e, err := engine.New(b.policy, b.engineOptions(batch, cache))
	if err != nil {
		return err
	}
	defer e.Close()
	r := rand.New(rand.NewPCG(1, 1))
	one := func(id string, prompt []int32, n int) error {
		defer e.Release(id)
		_, err := e.Generate(ctx, sampled(id, prompt, n))
		return errors.Join(err, context.Cause(ctx))
	}
	if err := one("first", b.tokens(r, prompt), 1); err != nil {
		return err
	}
	if started, err := processStart(); err == nil {
		b.result.FirstToken = time.Since(started).Seconds()
	}
	prompts := make([][]int32, batch)
	for i := range prompts {
		prompts[i] = b.tokens(r, prompt)
	}
	began, cpu := time.Now(), cpuTime()
	var mu sync.Mutex
	done := 0
	var g errgroup.Group
	for i := range batch {
		g.Go(func() error {
			for k := 0; time.Since(began) < b.Budget; k++ {
				if err := one(fmt.Sprintf("bench-%d-%d", i, k), prompts[i], b.New); err != nil {
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
	b.result.SamplingTokens = float64(done*b.New) / seconds
	b.result.PromptTokens = float64(done*prompt) / seconds
	b.result.SamplingCPU = float64((cpuTime() - cpu).Microseconds()) / 1000 / float64(done*b.New)
	return nil
}

// decode measures each batch at each context. The sequences of a setting are those of the
// ones before, longer or more, so that an engine goes on with what it has read.
func (b *benchRun) decode(ctx context.Context) error {
	var all, fit []*decodeFigure
	for _, prompt := range b.Prompt {
		for _, batch := range b.Batch {
			whole := max(1, prompt/native.BlockTokens) * native.BlockTokens
			all = append(all, &decodeFigure{Batch: batch, Prompt: whole, New: b.New})
		}
	}
	sequences, most := 1, int64(0)
	room, err := b.cacheRoom(b.engineOptions(1, 0))
	if err != nil {
		return err
	}
	for _, f := range all {
		need := b.cacheBytes(f.Batch, f.Prompt+f.New)
		if f.LeftOut = b.tooLong(f.Prompt+f.New, need, room); f.LeftOut == "" {
			fit, sequences, most = append(fit, f), max(sequences, f.Batch), max(most, need)
		}
	}
	b.result.Decode = all
	if len(fit) == 0 {
		return nil
	}
	e, err := engine.New(b.policy, b.engineOptions(sequences, most))
	if err != nil {
		return err
	}
	defer e.Close()
	for i, f := range fit {
		if err := b.setting(ctx, &f.outcome, func() error { return b.decodeOne(ctx, e, f) }); err != nil {
			for _, f := range fit[i:] {
				f.LeftOut = "interrupted"
			}
			return err
		}
	}
	return nil
}

// tooLong says why sequences of so many tokens that need so many bytes of cache cannot be,
// "" where they can.
func (b *benchRun) tooLong(tokens int, need, room int64) string {
	switch window := b.policy.Config().MaxPositions; {
	case tokens > window:
		return fmt.Sprintf("%d tokens are more than the context window of %d", tokens, window)
	case need > room:
		return fmt.Sprintf("its KV cache takes %s, and weights and activations leave %s", budget.Size(need), budget.Size(room))
	}
	return ""
}

func (b *benchRun) decodeOne(ctx context.Context, e *engine.Engine, f *decodeFigure) error {
	if f.New < 2 {
		return leftOut("--new is less than 2: the first new token comes with the prompt")
	}
	reqs := make([]gen.Request, f.Batch)
	for i := range reqs {
		prompt := b.tokens(rand.New(rand.NewPCG(3, uint64(i))), f.Prompt)
		reqs[i] = sampled(fmt.Sprint("decode-", i), prompt, 1)
	}
	first, err := generate(ctx, e, reqs)
	if err != nil {
		return err
	}
	for i := range reqs {
		reqs[i].Tokens, reqs[i].MaxTokens = append(reqs[i].Tokens, first[i].Tokens...), f.New-1
	}
	// The first time a GPU records the steps that it repeats.
	if _, err := generate(ctx, e, reqs); err != nil {
		return err
	}
	before, began, rounds := e.Stats(), time.Now(), 0
	for ; rounds == 0 || time.Since(began) < b.Budget; rounds++ {
		if _, err := generate(ctx, e, reqs); err != nil {
			return err
		}
	}
	seconds := time.Since(began).Seconds()
	if n := e.Stats().Prefilled - before.Prefilled; n > 0 {
		return fmt.Errorf("decode, batch %d, prompts of %d: %d tokens of them were read again", f.Batch, f.Prompt, n)
	}
	steps := rounds * (f.New - 1)
	f.Tokens, f.StepMS = float64(steps*f.Batch)/seconds, 1000*seconds/float64(steps)
	return nil
}

// prefill measures prompts that nobody has read.
func (b *benchRun) prefill(ctx context.Context) error {
	for _, prompt := range b.Prompt {
		f := &prefillFigure{Sequences: max(1, b.PrefillTokens/prompt), Prompt: prompt}
		if err := b.setting(ctx, &f.outcome, func() error { return b.prefillOne(ctx, f) }); err != nil {
			return err
		}
		b.result.Prefill = append(b.result.Prefill, f)
	}
	return nil
}

func (b *benchRun) prefillOne(ctx context.Context, f *prefillFigure) error {
	cache := b.cacheBytes(f.Sequences, f.Prompt+1)
	o := b.engineOptions(f.Sequences, cache)
	room, err := b.cacheRoom(o)
	if err != nil {
		return err
	}
	if why := b.tooLong(f.Prompt+1, cache, room); why != "" {
		return leftOut(why)
	}
	e, err := engine.New(b.policy, o)
	if err != nil {
		return err
	}
	defer e.Close()
	r := rand.New(rand.NewPCG(4, 4))
	round := func() error {
		reqs := make([]gen.Request, f.Sequences)
		for i := range reqs {
			reqs[i] = sampled(fmt.Sprint("prefill-", i), b.tokens(r, f.Prompt), 1)
		}
		_, err := generate(ctx, e, reqs)
		for _, req := range reqs {
			e.Release(req.ID)
		}
		return err
	}
	if err := round(); err != nil {
		return err
	}
	began, rounds := time.Now(), 0
	for ; rounds == 0 || time.Since(began) < b.Budget; rounds++ {
		if err := round(); err != nil {
			return err
		}
	}
	f.Tokens = float64(rounds*f.Sequences*f.Prompt) / time.Since(began).Seconds()
	return nil
}

func (b *benchRun) engineOptions(sequences int, cache int64) engine.Options {
	return engine.Options{MaxSequences: sequences, CacheBytes: cache, ChunkTokens: b.ChunkTokens, StepTokens: b.StepTokens}
}

// cacheBytes is a KV cache in which so many sequences of so many tokens fit, and a block
// more of each.
func (b *benchRun) cacheBytes(sequences, tokens int) int64 {
	return int64(sequences*(tokens/native.BlockTokens+2)) * b.policy.CacheBlock()
}

// cacheRoom is what weights and an engine's activations leave of the device.
func (b *benchRun) cacheRoom(o engine.Options) (int64, error) {
	if b.room == 0 {
		return 1 << 62, nil
	}
	c, workers := b.policy.Config(), b.policy.Workers().Size()
	f, err := model.TrainingMemory(c, b.options, workers, []int{1})
	_, activations, _ := engine.Memory(c, b.options, workers, o)
	return max(0, b.room-f.Weights-activations), err
}

// sampled is a request for n tokens at temperature 1.
func sampled(id string, prompt []int32, n int) gen.Request {
	return gen.Request{ID: id, Seed: 1, Tokens: prompt, MaxTokens: n, Sampling: gen.Sampling{Temperature: 1}}
}

// generate completes requests that arrive together, each to its end.
func generate(ctx context.Context, e *engine.Engine, reqs []gen.Request) ([]gen.Completion, error) {
	all, err := e.GenerateAll(ctx, reqs)
	if err == nil {
		err = context.Cause(ctx)
	}
	for i := 0; i < len(all) && err == nil; i++ {
		if got, want := len(all[i].Tokens), reqs[i].MaxTokens; got != want {
			err = fmt.Errorf("request %s got %d tokens of %d", reqs[i].ID, got, want)
		}
	}
	return all, err
}
