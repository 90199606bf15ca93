package model

import (
	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// operations are what a policy is computed with, where its tensors are: onCPU has them
// from kernels/native, onDevice from libtorch, onKernels many from kernels/cuda. Matrices
// are dense, a row a token. Gradients of weights are added to what is there, and may be
// nil where nobody asks for them.
type operations interface {
	// shared are the operations whose linear, attendCached and sample a team shares,
	// nil for none. A device needs no help.
	shared(team *device.Team) operations

	// indices readies whole numbers for the operations that take them, for as long
	// as the scope is open.
	indices(s *torch.Scope, of []int32) indices
	// gather computes out[i] = from[rows[i]], scatter its inverse, and scatterAdd adds.
	gather(out, from *torch.Tensor, rows indices)
	scatter(to, from *torch.Tensor, rows indices)
	scatterAdd(to, from *torch.Tensor, rows indices)
	addColumns(sum, m *torch.Tensor)

	// linear computes y = x @ Wᵀ + Bias, or adds it to y; inputGradient and
	// weightGradient are its backward pass. operand is x as products take it, for who
	// needs it more than once: x itself, or a copy that lasts as long as the scope.
	linear(l Linear, x, y *torch.Tensor, add bool)
	inputGradient(l Linear, dy, dx *torch.Tensor)
	weightGradient(dw, dy, x *torch.Tensor)
	operand(s *torch.Scope, x *torch.Tensor) *torch.Tensor
	// repack follows a change of l.W.
	repack(l *Linear)

	// rms normalises rows; y may be x, rstd nil. normHeads does it to the queries and
	// keys in a.qkv. dx may be dy.
	rms(x, weight, y, rstd *torch.Tensor)
	rmsBackward(s *torch.Scope, x, weight, rstd, dy, dx, dweight *torch.Tensor)
	normHeads(w *Layer, a *activations)
	normHeadsBackward(s *torch.Scope, w, g *Layer, a *activations, dqkv *torch.Tensor)
	// rotate turns the queries and keys in rows of qkv; inverse turns them back.
	rotate(qkv *torch.Tensor, positions indices, inverse bool)
	swiglu(gateUp, act *torch.Tensor)
	// swigluBackward replaces gateUp by its gradient.
	swigluBackward(gateUp, dact *torch.Tensor)
	// attention is within the sequences that offsets bound; lse may be nil.
	attention(layer int, qkv *torch.Tensor, offsets []int32, out, lse *torch.Tensor)
	attentionBackward(layer int, qkv, out, lse, dout *torch.Tensor, offsets []int32, dqkv *torch.Tensor)
	// round rounds what a policy that scores as a bfloat16 model stores as such.
	round(t *torch.Tensor)

	// logprob gives vectors of a row's logits and target; logprobBackward replaces
	// the logits by their gradient.
	logprob(logits *torch.Tensor, targets indices, logprobs, entropies, lse *torch.Tensor)
	logprobBackward(logits *torch.Tensor, targets indices, lse, g *torch.Tensor)

	squares(t *torch.Tensor) float64
	// adamw updates elements [lo, hi) of w; follow moves those of mean towards w.
	adamw(u native.AdamW, w, g, m, v *torch.Tensor, lo, hi int)
	follow(mean, w *torch.Tensor, decay float64, lo, hi int)

	// attendCached is attention over a cache to which the rows of segs are added
	// first. last are the rows whose attention is wanted in the last layer.
	// rotatesCached says whether it also rotates the queries and keys, as rotate would.
	attendCached(s *torch.Scope, cache *Cache, segs, last []native.Segment, table []int32) Attend
	rotatesCached() bool
	// sample draws a token for each row of logits.
	sample(logits *torch.Tensor, draws []Draw) (tokens []int32, logprobs, sampled []float32)
}

// indices are row numbers, tokens or positions, on the host and where an operation
// wants them.
type indices struct {
	host   []int32
	device *torch.Tensor // nil on the CPU
}

// part is [lo, hi) of them.
func (x indices) part(s *torch.Scope, lo, hi int) indices {
	out := indices{host: x.host[lo:hi]}
	if x.device != nil {
		out.device = s.Own(x.device.Rows(lo, hi))
	}
	return out
}

// shared is the policy as one forward pass uses it, with operations that a team shares.
func (p *Policy) shared(team *device.Team) *Policy {
	if team == nil {
		return p
	}
	return &Policy{config: p.config, options: p.options, weights: p.weights, ops: p.ops.shared(team)}
}

// gather copies rows of a matrix together.
func (p *Policy) gather(s *torch.Scope, from *torch.Tensor, rows indices) *torch.Tensor {
	out := s.Empty(len(rows.host), from.Shape()[1])
	p.ops.gather(out, from, rows)
	return out
}

// read copies a vector of a policy's dtype to the host.
func read(t *torch.Tensor) []float64 {
	out := make([]float64, t.Len())
	onHost(t, false, func(t *torch.Tensor) {
		if t.DType() == torch.Float64 {
			copy(out, torch.Data[float64](t))
			return
		}
		for i, v := range torch.Data[float32](t) {
			out[i] = float64(v)
		}
	})
	return out
}

// onHost gives f the tensor where Go can read it, and, if f writes, copies it back.
func onHost(t *torch.Tensor, writes bool, f func(*torch.Tensor)) {
	if t.Device() == torch.CPU {
		f(t)
		return
	}
	host := t.OnCPU()
	defer host.Free()
	f(host)
	if writes {
		torch.Copy(t, host)
	}
}
