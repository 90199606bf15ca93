package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/gpu"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/rollout/remote"
)

// policy is a model with its tokenizer, loaded to score, generate and train.
type policy struct {
	*model.Policy
	others    []*model.Policy // the other replicas, where there are several
	kernels   []*gpu.Machine  // of the GPUs that they are on
	tokenizer *token.Tokenizer
}

// replicas are all copies of the model, in their order.
func (p *policy) replicas() []*model.Policy { return append([]*model.Policy{p.Policy}, p.others...) }

// Close frees all replicas, and the kernels that they were opened with.
func (p *policy) Close() {
	for _, r := range p.replicas() {
		r.Close()
	}
	for _, m := range p.kernels {
		m.Close()
	}
}

// openPolicy loads a model folder; the caller closes it, and with it the kernels.
func openPolicy(dir string, o model.Options) (*policy, error) {
	if o.Device == torch.CPU {
		warnCPU()
	}
	t, err := token.Load(dir)
	if err != nil {
		return nil, err
	}
	p, err := model.Load(dir, o)
	if err != nil {
		return nil, err
	}
	if rows := p.Config().VocabSize; t.VocabSize() > rows {
		p.Close()
		return nil, fmt.Errorf("%s: the tokenizer has %d ids, the model's embedding only %d rows", dir, t.VocabSize(), rows)
	}
	opened := &policy{Policy: p, tokenizer: t}
	opened.own(o.Kernels)
	return opened, nil
}

// openReplicas loads as many replicas of a model folder as are configured, or the one
// of this process; the caller closes the policy.
func openReplicas(dir string, c policyConfig, ps *processes) (*policy, error) {
	devices, err := c.devices()
	if err != nil {
		return nil, err
	}
	o, err := c.optionsOn(devices[0])
	if err != nil {
		return nil, err
	}
	ps.shard(&o)
	if o.Kernels, err = c.kernels(o.Device); err != nil {
		return nil, err
	}
	p, err := openPolicy(dir, o)
	if err != nil {
		return nil, err
	}
	for i := 1; i < c.Replicas; i++ {
		o.Shard.Index, o.Device = i, devices[i]
		var r *model.Policy
		if o.Kernels, err = c.kernels(o.Device); err == nil {
			r, err = model.Load(dir, o)
		}
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("replica %d of %d: %w", i, c.Replicas, err)
		}
		p.others = append(p.others, r)
		p.own(o.Kernels)
	}
	return p, nil
}

// own closes the kernels of a GPU, where there are some, with the policy.
func (p *policy) own(kernels cuda.Machine) {
	if m, ok := kernels.(*gpu.Machine); ok {
		p.kernels = append(p.kernels, m)
	}
}

// source generates for trajectories.
type source interface {
	rollout.Policy
	rollout.Releaser
	Close()
}

// elsewhere is a policy on a server as a source.
type elsewhere struct{ *remote.Policy }

func (elsewhere) Release(string) {}
func (elsewhere) Close()         {}

// generator is a source that knows which trajectories it is generating for.
type generator struct {
	source
	mu   sync.Mutex
	live map[string]bool
}

// engines generate side by side, one for each replica of a policy.
type engines struct {
	*rollout.Spread
	all []*engine.Engine
}

func (e engines) Close() {
	for _, one := range e.all {
		one.Close()
	}
}

// newGenerator starts an engine for each replica, beside which others of the same
// weights generate; the caller closes it before the policy.
func (p *policy) newGenerator(c policyConfig, others ...rollout.Policy) (*generator, error) {
	var e engines
	var policies []rollout.Policy
	for _, r := range p.replicas() {
		o := engine.Options{MaxSequences: c.Batch, CacheBytes: c.CacheBytes, MaxStale: c.MaxStale, Decoder: p.tokenizer}
		var one *engine.Engine
		var err error
		if o.CacheBytes, err = cacheOf(r, o, 0); err == nil {
			one, err = engine.New(r, o)
		}
		if err != nil {
			e.Close()
			return nil, err
		}
		e.all, policies = append(e.all, one), append(policies, one)
	}
	e.Spread = rollout.NewSpread(append(policies, others...)...)
	return &generator{source: e, live: map[string]bool{}}, nil
}

func (g *generator) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	g.mu.Lock()
	g.live[req.ID] = true
	g.mu.Unlock()
	return g.source.Generate(ctx, req)
}

func (g *generator) Release(id string) {
	g.mu.Lock()
	delete(g.live, id)
	g.mu.Unlock()
	g.source.Release(id)
}

// InFlight is the number of episodes that have generated and not yet ended.
func (g *generator) InFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.live)
}

// dtype reads the name of an element type.
func dtype(name string) (torch.DType, error) {
	switch name {
	case "", "float32":
		return torch.Float32, nil
	case "float64":
		return torch.Float64, nil
	case "bfloat16":
		return torch.BFloat16, nil
	}
	return 0, fmt.Errorf("no dtype %q; there are float32, float64 and bfloat16", name)
}
