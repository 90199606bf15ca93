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
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/torch"
)

// Options choose how a policy computes.
type Options struct {
	// DType is torch.Float32 (the zero value means it), torch.Float64 for
	// gradient checks, or torch.BFloat16 to score as a bfloat16 model does:
	// weights and every intermediate result are rounded to it, sums are not. It is
	// trained with float32 weights beside the rounded ones, and float32 gradients
	// and moments. Adapters are float32; the weights with them in are rounded.
	DType torch.DType
	// Device is where the weights are and everything is computed; the zero value is
	// the CPU and its own kernels. On another, in bfloat16 the products are of that
	// type and all else is float32.
	Device torch.Device
	// Kernels runs kernels/cuda on the device's memory, in order with libtorch, in the
	// place of several of its operations each; nil does without. The policy's worker
	// alone uses it.
	Kernels cuda.Machine
	// Determinism makes a token's log-probability have the same bits alone, in a batch,
	// packed and through a KV cache. A CPU always does; another device needs Kernels, and
	// gives libtorch's products and attention up for it.
	Determinism bool
	// Workers is the number of CPU workers, each on one thread; 0 means one per
	// core. Gradients are summed per worker and then over workers in their
	// order: results do not depend on timing, but, in the last bits, on Workers.
	// Another device has one.
	Workers int
	// Recompute keeps only each layer's input for the backward pass and computes
	// the layer again: a third more work, a tenth of the memory.
	Recompute bool
	// LoRA, where not nil, trains adapters; the weights stay as they are.
	LoRA *LoRA
	// FreezeLayers leaves the first so many layers as they are, and with any the
	// embedding, and the head where it is the embedding.
	FreezeLayers int
	// EMA, where not 0, keeps a mean of the trained weights over the steps that
	// forgets by this factor each step; see SaveMean.
	EMA float64
	// Shard is the part that this policy has where several replicas train together.
	Shard Shard
	// ShardGradient keeps of the gradient the shard alone, too, beside that of what the
	// backward pass is at work on (ZeRO stage 2, arXiv 1910.02054, section 5.2): every
	// batch's gradient is summed over the replicas, with AccumulateLast and Reduce.
	ShardGradient bool
}

func (o Options) validate(c Config) error {
	switch {
	case o.FreezeLayers < 0 || o.FreezeLayers > c.Layers:
		return fmt.Errorf("%d layers cannot be frozen of %d", o.FreezeLayers, c.Layers)
	case o.LoRA != nil && o.FreezeLayers == c.Layers:
		return errors.New("all layers are frozen: there is nothing for adapters to change")
	case !(o.EMA >= 0 && o.EMA < 1):
		return fmt.Errorf("the factor of the mean of the weights is %v; want 0 to less than 1", o.EMA)
	case o.Shard != Shard{} && (o.Shard.Index < 0 || o.Shard.Index >= o.Shard.Of):
		return fmt.Errorf("shard %d of %d is none; they count from 0", o.Shard.Index, o.Shard.Of)
	case o.LoRA != nil:
		return o.LoRA.validate(c)
	}
	return nil
}

// validateKernels says what is wrong with the kernels that there are.
func (o Options) validateKernels(c Config) error {
	switch {
	case o.Kernels != nil && (o.Device == torch.CPU || o.DType == torch.Float64):
		return fmt.Errorf("CUDA kernels are for float32 and bfloat16 on a device, not for %v on %v", o.DType, o.Device)
	case o.Kernels != nil && !o.tensorCores(c) && !attentionOf(c).Fits():
		return fmt.Errorf("CUDA kernels have no room for %d heads of %d on one key head", c.Heads/c.KVHeads, c.HeadDim)
	case o.Determinism && o.Device != torch.CPU && o.Kernels == nil:
		return fmt.Errorf("determinism on %v needs the CUDA kernels", o.Device)
	}
	return nil
}

// Policy is a model with its optimizer state. Weights are read by Logprobs,
// Accumulate and whatever runs inside Read, all concurrently, and changed by
// Step, Update and LoadOptimizer, which wait for the readers.
type Policy struct {
	config  Config
	options Options
	params  []Parameter
	flat    *torch.Tensor // all parameters
	weights *Weights
	// trained are the parameters that Step changes, and live is the buffer of their
	// values that their offsets count in: the weights from some place on, or the
	// adapters. Gradients and moments are laid out alike.
	trained []Parameter
	live    *torch.Tensor
	pool    *device.Pool
	ops     operations

	// mu: readers hold it while they use the weights.
	mu      sync.RWMutex
	version atomic.Int64

	// training: held by Accumulate and the parts of a step, one at a time.
	training sync.Mutex
	lanes    []lane
	units    []unit        // of the gradient
	slots    slots         // who has the lanes' memory for them
	sum      *torch.Tensor // the shard's gradient with Options.ShardGradient, nil until Accumulate
	moments  *moments      // nil until the first update
	// master, of a bfloat16 policy whose weights are trained, is live before it was
	// rounded, and mean its running mean where Options.EMA asks for one, both of the
	// shard alone; nil until the first update.
	master, mean *torch.Tensor
}

// lane is what one worker has for itself.
type lane struct {
	// scratch is for work that begins and ends within one task of the worker;
	// training for what Accumulate keeps between its passes.
	scratch, training *torch.Arena
	// grad is the memory of gradients, a slot each (see unit), and weights are views of
	// it; nil until Accumulate.
	grad    []*torch.Tensor
	weights *Weights
}

// defaultInitStd is the deviation of fresh weights where the shape says none.
const defaultInitStd = 0.02

// New draws a fresh policy: normal weights of deviation InitStd, zero biases,
// norms of one. The same seed gives the same weights.
func New(c Config, seed uint64, o Options) (*Policy, error) {
	if c.InitStd == 0 {
		c.InitStd = defaultInitStd
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
			case isNorm(param):
				return 1
			}
			return 0
		})
	}
	return p, p.begin(seed)
}

// NewOnDevice is New with matrices that libtorch draws where they are, which takes a GPU
// an instant for billions of them: other ones than New's, and on another device or by
// another libtorch others again. On a CPU it is New.
func NewOnDevice(c Config, seed uint64, o Options) (p *Policy, err error) {
	if o.Device == torch.CPU {
		return New(c, seed, o)
	}
	if c.InitStd == 0 {
		c.InitStd = defaultInitStd
	}
	if p, err = newPolicy(c, o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	defer torch.Catch(&err)
	for i, param := range p.params {
		switch {
		case param.Decay:
			param.Tensor.Normal(c.InitStd, rand.NewPCG(seed, uint64(i)).Uint64())
		case isNorm(param):
			fill(param.Tensor, func() float64 { return 1 })
		}
	}
	return p, p.begin(seed)
}

// isNorm says whether a parameter is the weight of a norm, which begins as 1.
func isNorm(param Parameter) bool { return strings.HasSuffix(param.Name, "norm.weight") }

// begin makes a policy whose weights have been drawn ready.
func (p *Policy) begin(seed uint64) error {
	p.initAdapters(seed)
	p.keepBase()
	return p.refresh()
}

// Refresh makes the policy see what was written to its Parameters. Load,
// LoadWeights and Step need no Refresh. With adapters the matrices follow from
// those: what was written to them is lost.
func (p *Policy) Refresh() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refresh()
}

// refresh merges the adapters and brings the packed copies up to date with the
// weights.
func (p *Policy) refresh() error {
	linears := p.weights.linears()
	work := make([]int, len(linears))
	for i, l := range linears {
		work[i] = l.W.Len()
	}
	dealt := deal(work, p.pool.Size())
	return p.each(context.Background(), func(worker int) error {
		for _, i := range dealt[worker] {
			l := linears[i]
			if len(l.adapters) > 0 {
				s := p.lanes[worker].scratch.Scope()
				merge(p, s, l)
				s.Close()
			}
			p.ops.repack(l)
		}
		return nil
	})
}

// fill writes weights.
func (p *Policy) fill(t *torch.Tensor, next func() float64) {
	if p.rounds() {
		exact := next
		next = func() float64 { return float64(bf16(float32(exact()))) }
	}
	fill(t, next)
}

// fill writes all elements of a dense tensor, wherever it is.
func fill(t *torch.Tensor, next func() float64) {
	onHost(t, true, func(t *torch.Tensor) {
		if t.DType() == torch.Float64 {
			for i, d := 0, torch.Data[float64](t); i < len(d); i++ {
				d[i] = next()
			}
			return
		}
		for i, d := 0, torch.Data[float32](t); i < len(d); i++ {
			d[i] = float32(next())
		}
	})
}

func newPolicy(c Config, o Options) (p *Policy, err error) {
	defer torch.Catch(&err)
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := o.validate(c); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := o.validateKernels(c); err != nil {
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
	if o.Device != torch.CPU {
		o.Workers = 1
	}
	params, total := layout(c)
	flat, err := newFlat(o.Device, compute, total)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	p = &Policy{config: c, options: o, params: params, flat: flat, pool: device.NewPool(o.Workers)}
	for i := range params {
		params[i].Tensor = p.flat.View(params[i].offset, params[i].shape...)
	}
	p.weights = newWeights(c, params, p.flat.View)
	p.weights.needPacked(o)
	p.setTrained()
	p.units = o.units(p.trained, p.live.Len())
	switch {
	case o.Kernels != nil:
		p.ops = newOnKernels(newOnDevice(p), o.Kernels)
	case o.Device != torch.CPU:
		p.ops = newOnDevice(p)
	case compute == torch.Float64:
		p.ops = newOnCPU[float64](p)
	default:
		p.ops = newOnCPU[float32](p)
	}
	for range p.pool.Size() {
		p.lanes = append(p.lanes, lane{
			scratch: p.NewArena(), training: p.NewArena(),
		})
	}
	return p, nil
}

// newFlat takes the memory of the weights, the first that a policy takes: the device
// may have too little, or not be there.
func newFlat(d torch.Device, dtype torch.DType, n int) (t *torch.Tensor, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%d weights on %v: %w", n, d, err)
		}
	}()
	defer torch.Catch(&err)
	return d.New(torch.Weights, dtype, n), nil
}

// Close frees the tensors and ends the workers; nothing may use the policy any more.
func (p *Policy) Close() {
	p.pool.Close()
	for _, l := range p.lanes {
		l.scratch.Free()
		l.training.Free()
		if l.grad != nil {
			l.weights.free()
		}
		for _, t := range l.grad {
			t.Free()
		}
	}
	if p.moments != nil {
		p.moments.free()
	}
	for _, t := range []*torch.Tensor{p.master, p.mean, p.sum} {
		if t != nil {
			t.Free()
		}
	}
	if o, ok := p.ops.(interface{ free() }); ok {
		o.free()
	}
	p.weights.free()
	for _, param := range p.params {
		param.Tensor.Free()
	}
	if p.options.LoRA != nil {
		for _, param := range p.trained {
			param.Tensor.Free()
		}
	}
	p.live.Free()
	p.flat.Free()
}

// setTrained decides what Step changes and where it is.
func (p *Policy) setTrained() {
	var total int
	p.trained, total = p.options.trained(p.config, p.params, p.flat.Len())
	if l := p.options.LoRA; l != nil {
		p.live = p.options.Device.New(torch.Weights, p.flat.DType(), total)
		for i := range p.trained {
			t := &p.trained[i]
			t.Tensor = p.live.View(t.offset, t.shape...)
		}
		p.weights.adapt(p.config, l, p.options.FreezeLayers, p.trained, p.live.View)
		return
	}
	p.live = p.flat.View(p.flat.Len()-total, total)
}

// trained are the tensors that are trained of a policy with these parameters, and how
// many elements they have; their offsets count from the first.
func (o Options) trained(c Config, params []Parameter, total int) ([]Parameter, int) {
	switch {
	case o.LoRA != nil:
		return adapterLayout(c, o.LoRA, o.FreezeLayers)
	case o.FreezeLayers == 0:
		return params, total
	}
	trained := slices.Clone(params[firstTrained(c, params, o.FreezeLayers):])
	base := trained[0].offset
	for i := range trained {
		trained[i].offset -= base
	}
	return trained, total - base
}

// firstTrained is the number of the first parameter above n frozen layers.
func firstTrained(c Config, params []Parameter, n int) int {
	prefix := normName
	if n < c.Layers {
		prefix = layerName(n)
	}
	return slices.IndexFunc(params, func(p Parameter) bool { return strings.HasPrefix(p.Name, prefix) })
}

// Config is the policy's shape.
func (p *Policy) Config() Config { return p.config }

// Device is where the policy's tensors are.
func (p *Policy) Device() torch.Device { return p.options.Device }

// Options are those that the policy was made with.
func (p *Policy) Options() Options { return p.options }

// Version counts the updates of the weights, unless
// LoadOptimizer or SetVersion said otherwise.
func (p *Policy) Version() int64 { return p.version.Load() }

// SetVersion restores the version of a checkpoint.
func (p *Policy) SetVersion(v int64) { p.version.Store(v) }

// Parameters lists the tensors of the checkpoint, in the order of the forward
// pass. Who writes to them does so while nothing else uses the policy, and calls
// Refresh afterwards.
func (p *Policy) Parameters() []Parameter { return p.params }

// Trained lists the tensors that Step changes: some or all of the Parameters, or
// the adapters.
func (p *Policy) Trained() []Parameter { return p.trained }

// LoRA describes the adapters, nil where there are none.
func (p *Policy) LoRA() *LoRA { return p.options.LoRA }

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

// each runs f on every worker that has something to do.
func (p *Policy) each(ctx context.Context, f func(worker int) error) (err error) {
	defer torch.Catch(&err)
	return p.pool.Each(ctx, f)
}

// all runs f on every worker. What f panics with, the caller does.
func (p *Policy) all(f func(worker int)) {
	err := p.pool.Each(context.Background(), func(worker int) error { f(worker); return nil })
	if err != nil { // of a policy that was closed
		panic(err)
	}
}
