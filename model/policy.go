// Package model holds the policy: a decoder-only transformer in Hugging Face
// layout whose weights generate and are trained in place.
//
// The forward pass is one function (Forward) for scoring, training and
// generation; they differ only in where attention finds its keys. With kernels
// whose rows do not depend on what else is computed, a token has the same bits
// of log-probability alone, in a batch, packed, and through a KV cache.
//
// The backward pass is written out: it needs no autograd graph, recomputes what
// is cheap, and adds into the gradient buffer directly. Its seam to the
// algorithm is Accumulate, which hands out log-probabilities and takes their
// gradient.
package model

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/torch"
)

// Options choose how a policy computes.
type Options struct {
	// DType is torch.Float32 (the zero value means it), torch.Float64 for
	// gradient checks, or torch.BFloat16 to score as a bfloat16 model does:
	// weights and every intermediate result are rounded to it, sums are not.
	// A bfloat16 policy cannot be trained.
	DType torch.DType
	// Workers is the number of CPU workers, each on one thread; 0 means one per
	// core. Gradients are summed per worker and then over workers in their
	// order: results do not depend on timing, but, in the last bits, on Workers.
	Workers int
	// Recompute keeps only each layer's input for the backward pass and computes
	// the layer again: a third more work, a tenth of the memory.
	Recompute bool
}

// Policy is a model with its optimizer state. Weights are read by Logprobs,
// Accumulate and whatever runs inside Read, all concurrently, and changed by
// Step and LoadOptimizer, which wait for the readers.
type Policy struct {
	config  Config
	options Options
	params  []Parameter
	flat    *torch.Tensor // all parameters
	weights *Weights
	pool    *device.Pool
	rope32  rotary[float32]
	rope64  rotary[float64]

	// mu: readers hold it while they use the weights.
	mu      sync.RWMutex
	version atomic.Int64

	// training: held by Accumulate and Step, one at a time.
	training sync.Mutex
	lanes    []lane
	moments  *moments // nil until the first Step
}

// lane is what one worker has for itself.
type lane struct {
	// scratch is for work that begins and ends within one task of the worker;
	// training for what Accumulate keeps between its passes.
	scratch, training *torch.Arena
	// grad is the gradient of all parameters, nil until Accumulate.
	grad    *torch.Tensor
	weights *Weights
}

// New draws a fresh policy: normal weights of deviation InitStd, zero biases,
// norms of one. The same seed gives the same weights.
func New(c Config, seed uint64, o Options) (*Policy, error) {
	if c.InitStd == 0 {
		c.InitStd = 0.02
	}
	p, err := newPolicy(c, o)
	if err != nil {
		return nil, err
	}
	for i, param := range p.params {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		p.fill(param.Tensor, func() float64 {
			switch {
			case param.Decay:
				return r.NormFloat64() * c.InitStd
			case strings.HasSuffix(param.Name, "norm.weight"):
				return 1
			}
			return 0
		})
	}
	return p, p.refresh()
}

// Refresh makes the policy see what was written to its Parameters. Load,
// LoadWeights and Step need no Refresh.
func (p *Policy) Refresh() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refresh()
}

// refresh brings the packed copies up to date with the weights.
func (p *Policy) refresh() error {
	return p.each(context.Background(), func(worker int) error {
		for i, l := range p.weights.linears() {
			switch {
			case i%p.pool.Size() != worker:
			case p.flat.DType() == torch.Float64:
				pack[float64](l)
			default:
				pack[float32](l)
			}
		}
		return nil
	})
}

func (p *Policy) fill(t *torch.Tensor, next func() float64) {
	if t.DType() == torch.Float64 {
		for i, d := 0, torch.Data[float64](t); i < len(d); i++ {
			d[i] = next()
		}
		return
	}
	d := torch.Data[float32](t)
	for i := range d {
		d[i] = float32(next())
	}
	if p.options.DType == torch.BFloat16 {
		roundBF16(d)
	}
}

func newPolicy(c Config, o Options) (p *Policy, err error) {
	defer torch.Catch(&err)
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	compute := torch.Float32
	switch o.DType {
	case 0:
		o.DType = torch.Float32
	case torch.Float32, torch.BFloat16:
	case torch.Float64:
		compute = torch.Float64
	default:
		return nil, fmt.Errorf("model: dtype %v is not supported; want float32, float64 or bfloat16", o.DType)
	}
	params, total := layout(c)
	p = &Policy{config: c, options: o, params: params, flat: torch.New(torch.Weights, compute, total), pool: device.NewPool(o.Workers)}
	for i := range params {
		params[i].Tensor = p.flat.View(params[i].offset, params[i].shape...)
	}
	p.weights = newWeights(c, params, p.flat)
	p.weights.needPacked()
	if compute == torch.Float64 {
		p.rope64 = newRotary[float64](c)
	} else {
		p.rope32 = newRotary[float32](c)
		if o.DType == torch.BFloat16 {
			roundBF16(p.rope32.cos)
			roundBF16(p.rope32.sin)
		}
	}
	for range p.pool.Size() {
		p.lanes = append(p.lanes, lane{
			scratch: torch.NewArena(torch.Activations, compute), training: torch.NewArena(torch.Activations, compute),
		})
	}
	return p, nil
}

// Close frees the tensors and ends the workers; nothing may use the policy any more.
func (p *Policy) Close() {
	p.pool.Close()
	for _, l := range p.lanes {
		l.scratch.Free()
		l.training.Free()
		if l.grad != nil {
			l.weights.free()
			l.grad.Free()
		}
	}
	if p.moments != nil {
		p.moments.free()
	}
	p.weights.free()
	for _, param := range p.params {
		param.Tensor.Free()
	}
	p.flat.Free()
}

// Config is the policy's shape.
func (p *Policy) Config() Config { return p.config }

// Version counts the updates of the weights: the number of Steps, unless
// LoadOptimizer or SetVersion said otherwise.
func (p *Policy) Version() int64 { return p.version.Load() }

// SetVersion restores the version of a checkpoint.
func (p *Policy) SetVersion(v int64) { p.version.Store(v) }

// Parameters lists the tensors of the checkpoint, in the order of the forward
// pass. Who writes to them does so while nothing else uses the policy, and calls
// Refresh afterwards.
func (p *Policy) Parameters() []Parameter { return p.params }

// Workers are the policy's CPU workers; generation shares them with training.
func (p *Policy) Workers() *device.Pool { return p.pool }

// Read runs f while the weights cannot change and gives it their version. A
// generation step runs inside one Read. f must not call Logprobs, Accumulate or
// Step, nor wait for a goroutine that does.
func (p *Policy) Read(f func(version int64, w *Weights) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return f(p.version.Load(), p.weights)
}

// errTrain refuses to train what only scores.
var errTrain = errors.New("model: a bfloat16 policy cannot be trained; load it as float32")

// each runs f on every worker that has something to do.
func (p *Policy) each(ctx context.Context, f func(worker int) error) (err error) {
	defer torch.Catch(&err)
	return p.pool.Each(ctx, f)
}
