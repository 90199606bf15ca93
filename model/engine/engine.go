// Package engine generates: it drives the scheduler (model/sched) over a policy
// and implements rollout.Policy. One goroutine owns the scheduler and batches
// whatever waits; the policy's workers compute, each its share of the sequences
// on one thread, or, where few rows wait for large weights, all of them each product.
// Chunks of prompts are prefilled beside sequences that decode.
//
// A completion depends on the weights, the request's tokens, sampling, seed and
// id, and on nothing else: not on what else is generated, in which order
// requests arrive, how often memory was taken away, or how many workers there
// are. Its logprobs have the bits that Policy.Logprobs gives for the same tokens.
package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/sched"
)

// ErrClosed is returned for requests that a closed engine did not complete.
var ErrClosed = errors.New("engine: closed")

// Decoder turns tokens into text. Stop strings need one.
type Decoder interface {
	Decode(ids []int32) string
}

// Options bound the engine. Zero values mean the defaults stated.
type Options struct {
	// CacheBytes is the memory of the KV cache; default 512 MiB. Pages are
	// touched as they are first used.
	CacheBytes int64
	// MaxSequences is how many requests decode at once; default 256. More wait.
	MaxSequences int
	// ChunkTokens is how many prompt tokens of one sequence are fed per step;
	// default 256, and on a device 4096.
	ChunkTokens int
	// StepTokens is how many prompt tokens are fed per step and worker, over all
	// sequences; default 512, and on a device 4096.
	StepTokens int
	// MaxStale is how many versions old the keys and values of a sequence may become
	// in the middle of its episode; 0 computes them again after every update. Where it
	// is not 0, completions tell how old they were.
	MaxStale int64
	// Decoder finds stop strings; without one, requests that have any fail.
	Decoder Decoder
}

// Stats counts since the engine was made.
type Stats struct {
	sched.Stats
	// Steps is the number of batches computed, Together that of those whose products the
	// workers shared.
	Steps, Together int
	// Compute is the time spent computing them, Idle the time with nothing to do.
	Compute, Idle time.Duration
}

// Engine generates with a policy. Its methods are safe for concurrent use.
type Engine struct {
	policy *model.Policy
	config model.Config
	opts   Options
	shards []*shard
	// weightBytes is what a step reads of the weights; see together.
	weightBytes int

	wake  chan struct{} // holds one: something changed
	ended chan struct{} // closed when the loop has ended

	mu       sync.Mutex
	arrived  []*call
	released []string
	closed   bool
	failed   error // why the engine cannot go on
	stats    Stats

	// Owned by the loop.
	sched  *sched.Scheduler
	active map[sched.Ticket]*call
	cache  *model.Cache
}

// New starts an engine over a policy, which must outlive it. Close ends it. The
// cache is keyed by Policy.Version: weights that are replaced without a new
// version (LoadWeights, Refresh) need a new engine, or SetVersion.
func New(p *model.Policy, o Options) (e *Engine, err error) {
	defer torch.Catch(&err)
	if p.Parameters()[0].Tensor.DType() != torch.Float32 {
		return nil, errors.New("engine: a float64 policy is for checking gradients; load it as float32 or bfloat16 to generate")
	}
	o = o.withDefaults(p.Device())
	c := p.Config()
	blocks := int(o.CacheBytes / p.CacheBlock())
	workers := p.Workers().Size()
	s, err := sched.New(sched.Config{
		BlockTokens: native.BlockTokens, Blocks: blocks, MaxSequences: o.MaxSequences,
		MaxRows: o.MaxSequences + workers*max(o.StepTokens, native.BlockTokens), MaxChunk: max(o.ChunkTokens, native.BlockTokens),
		Window: c.WindowOfAll(), Span: native.SpanTokens, MaxStale: o.MaxStale,
	})
	if err != nil {
		return nil, fmt.Errorf("engine: KV cache of %d bytes: %w", o.CacheBytes, err)
	}
	e = &Engine{
		policy: p, config: c, opts: o, sched: s, active: map[sched.Ticket]*call{},
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
		cache: p.NewCache(blocks, o.MaxSequences), weightBytes: p.MatrixBytes(),
	}
	for range workers {
		e.shards = append(e.shards, &shard{arena: p.NewArena()})
	}
	go e.loop()
	return e, nil
}

// Memory foretells the bytes that an engine over a policy of this shape, of so many
// workers, takes at most: its KV cache, and a step's activations with what is reserved
// beside them, as model.Footprint has it.
func Memory(c model.Config, m model.Options, workers int, o Options) (cache, activations, reserved int64) {
	o = o.withDefaults(m.Device)
	for worker := range workers {
		sampled := o.MaxSequences/workers + 1
		rows := sampled + max(o.StepTokens, native.BlockTokens)
		if shared := togetherRows * workers; worker == 0 && workers > 1 {
			// It has all rows of a step whose products are shared.
			rows, sampled = max(rows, shared), max(sampled, min(shared, o.MaxSequences))
		}
		used, beside := model.SamplingMemory(c, m, rows, sampled, min(m.LogitRows(c.VocabSize), sampled))
		activations, reserved = activations+used, reserved+beside
	}
	return o.CacheBytes, activations + model.StepMemory(c, m, o.MaxSequences) + model.RecordedMemory(c, m, o.MaxSequences), reserved
}

func (o Options) withDefaults(on torch.Device) Options {
	if on != torch.CPU { // as many rows as fill it
		setDefault(&o.ChunkTokens, 4096)
		setDefault(&o.StepTokens, 4096)
	}
	setDefault(&o.CacheBytes, 512<<20)
	setDefault(&o.MaxSequences, 256)
	setDefault(&o.ChunkTokens, 256)
	setDefault(&o.StepTokens, 512)
	return o
}

func setDefault[T int | int64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Generate continues req.Tokens. When ctx ends first, it returns what was
// sampled so far with FinishCancelled and no error. Where the context window
// leaves no room for a token, the completion is empty with FinishLength.
func (e *Engine) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	all, err := e.GenerateAll(ctx, []gen.Request{req})
	if err != nil {
		return gen.Completion{}, err
	}
	return all[0], nil
}

// GenerateAll is Generate for requests that arrive together: no step sees some of them
// without the others. It returns when all have ended, with the first one's error if any
// failed.
func (e *Engine) GenerateAll(ctx context.Context, reqs []gen.Request) ([]gen.Completion, error) {
	calls := make([]*call, len(reqs))
	var arriving []*call
	for i, req := range reqs {
		c, err := e.newCall(ctx, req)
		if err != nil {
			return nil, fmt.Errorf("engine: request %q: %w", req.ID, err)
		}
		calls[i] = c
		switch {
		case c.limit <= 0:
			c.out.Finish = gen.FinishLength
			c.finish(nil)
		case ctx.Err() != nil:
			c.out.Finish = gen.FinishCancelled
			c.finish(nil)
		default:
			arriving = append(arriving, c)
		}
	}
	if err := e.arrive(arriving); err != nil {
		return nil, err
	}
	out := make([]gen.Completion, len(calls))
	var failed error
	for i, c := range calls {
		select {
		case <-c.done:
		case <-ctx.Done():
			e.nudge() // the loop looks at the contexts between steps
			<-c.done
		}
		if out[i] = c.out; failed == nil {
			failed = c.err
		}
	}
	if failed != nil {
		return nil, failed
	}
	return out, nil
}

// arrive gives the loop calls, all at once.
func (e *Engine) arrive(calls []*call) error {
	if len(calls) == 0 {
		return nil
	}
	e.mu.Lock()
	err := e.failed
	if e.closed {
		err = ErrClosed
	}
	if err == nil {
		e.arrived = append(e.arrived, calls...)
	}
	e.mu.Unlock()
	if err == nil {
		e.nudge()
	}
	return err
}

// Policy is the one that the engine generates with.
func (e *Engine) Policy() *model.Policy { return e.policy }

// Release drops the KV cache kept for a trajectory. Unknown ids are ignored.
func (e *Engine) Release(id string) {
	e.mu.Lock()
	if !e.closed {
		e.released = append(e.released, id)
	}
	e.mu.Unlock()
	e.nudge()
}

// Stats returns the counts so far.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

// Close ends the engine after the step it is computing; waiting requests fail
// with ErrClosed. It frees the cache, and may be called more than once.
func (e *Engine) Close() {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.mu.Unlock()
	e.nudge()
	<-e.ended
	if !first {
		return
	}
	e.cache.Free()
	for _, s := range e.shards {
		s.arena.Free()
	}
}

func (e *Engine) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// newCall checks a request.
func (e *Engine) newCall(ctx context.Context, req gen.Request) (*call, error) {
	s := req.Sampling
	switch {
	case len(req.Tokens) == 0:
		return nil, errors.New("no tokens to continue")
	case req.MaxTokens <= 0:
		return nil, fmt.Errorf("MaxTokens is %d; want a positive number", req.MaxTokens)
	case !(s.Temperature >= 0) || math.IsInf(s.Temperature, 1):
		return nil, fmt.Errorf("temperature is %v; want a number of at least 0", s.Temperature)
	case !(s.TopP >= 0 && s.TopP <= 1):
		return nil, fmt.Errorf("top-p is %v; want a number between 0 and 1", s.TopP)
	case !(s.MinP >= 0 && s.MinP <= 1):
		return nil, fmt.Errorf("min-p is %v; want a number between 0 and 1", s.MinP)
	case req.Alternatives < 0:
		return nil, fmt.Errorf("%d alternatives; want a number of at least 0", req.Alternatives)
	case s.TopK < 0:
		return nil, fmt.Errorf("top-k is %d; want a number of at least 0", s.TopK)
	case len(req.StopStrings) > 0 && e.opts.Decoder == nil:
		return nil, errors.New("it has stop strings but the engine has no decoder; set Options.Decoder")
	}
	for i, t := range req.Tokens {
		if t < 0 || int(t) >= e.config.VocabSize {
			return nil, fmt.Errorf("token %d at position %d is outside the vocabulary of %d", t, i, e.config.VocabSize)
		}
	}
	return &call{
		ctx: ctx, req: req, decoder: e.opts.Decoder, done: make(chan struct{}),
		stale:    e.opts.MaxStale > 0,
		stream:   gen.NewStream(req.Seed, req.ID),
		limit:    min(req.MaxTokens, e.config.MaxPositions-len(req.Tokens)),
		sampling: native.Sampling{Temperature: s.Temperature, TopP: s.TopP, TopK: s.TopK, MinP: s.MinP},
	}, nil
}
