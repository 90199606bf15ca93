package model

import (
	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// Legend: T tokens, C hidden width, H query heads, K key heads, D head
// dimension, I intermediate width, V vocabulary.

// Attend computes one layer's attention. Each row of qkv is a token's queries
// [H, D], keys [K, D] and values [K, D], rotated already; out is [T, H·D].
type Attend func(layer int, qkv, out *torch.Tensor)

// Forward runs tokens through the layers and the final norm and returns the
// hidden states [T, C], owned by the scope. Positions count from 0 in each
// sequence and are below MaxPositions. The rows are independent of each other
// but for what attend does, so any mix of sequences may be in them.
//
// It runs on the calling goroutine, which holds the weights through Read.
func Forward(p *Policy, s *torch.Scope, tokens, positions []int32, attend Attend) *torch.Tensor {
	x := p.embed(s, p.ops.indices(s, tokens))
	at := p.ops.indices(s, positions)
	for i := range p.weights.Layers {
		inner := s.Nest()
		layerForward(p, inner, i, x, at, attend, p.newActivations(inner, len(tokens), false))
		inner.Close()
	}
	p.ops.rms(x, p.weights.Norm, x, nil)
	return x
}

// ForwardRows is Forward for who wants the hidden states of some rows only:
// [len(rows), C], on a CPU with the bits that Forward gives them. What the last layer
// does after its keys and values is left out for the others; of its attention, only
// the output of these rows is used. attend is that of a Cache. A team, where it is not
// nil and the policy is on a CPU, shares the products, which changes no bit.
func ForwardRows(p *Policy, s *torch.Scope, team *device.Team, tokens, positions, rows []int32, attend Attend) *torch.Tensor {
	p = p.shared(team)
	out := s.Empty(len(rows), p.config.Hidden)
	inner := s.Nest()
	x := p.embed(inner, p.ops.indices(inner, tokens))
	var at indices
	if !p.ops.rotatesCached() {
		at = p.ops.indices(inner, positions)
	}
	last := len(p.weights.Layers) - 1
	for i := range last {
		s := inner.Nest()
		layerForward(p, s, i, x, at, attend, p.newActivations(s, len(tokens), false))
		s.Close()
	}
	a := p.newActivations(inner, len(tokens), false)
	attentionForward(p, inner, last, x, at, attend, a)
	if len(rows) > 0 {
		wanted := p.ops.indices(inner, rows)
		p.ops.gather(out, x, wanted)
		chosen := &activations{att: p.gather(inner, a.att, wanted), gateUp: inner.Empty(len(rows), 2*p.config.Intermediate)}
		mlpForward(p, inner, last, out, chosen)
		p.ops.rms(out, p.weights.Norm, out, nil)
	}
	inner.Close()
	return out
}

// Logits is hidden [R, C] times the head: [R, V], owned by the scope. team is as
// ForwardRows has it.
func Logits(p *Policy, s *torch.Scope, team *device.Team, hidden *torch.Tensor) *torch.Tensor {
	out := s.Empty(hidden.Shape()[0], p.config.VocabSize)
	p.shared(team).project(out, hidden)
	return out
}

func (p *Policy) project(out, hidden *torch.Tensor) {
	p.ops.linear(p.weights.Head, hidden, out, false)
	p.ops.round(out)
}

// embed gathers the rows of tokens: [T, C].
func (p *Policy) embed(s *torch.Scope, tokens indices) *torch.Tensor {
	return p.gather(s, p.weights.Embedding, tokens)
}

// activations are what one layer's backward pass needs of its forward pass.
type activations struct {
	input *torch.Tensor // [T, C] residual stream before attention; nil unless training
	// raw is qkv before the norms of its heads; nil unless training a family that
	// has them.
	raw    *torch.Tensor // [T, (H+2K)D]
	qkv    *torch.Tensor // [T, (H+2K)D] after rotation
	att    *torch.Tensor // [T, HD]
	middle *torch.Tensor // [T, C] residual stream before the MLP; nil unless training
	gateUp *torch.Tensor // [T, 2I]
	// Of the norms, 1/rms [T]; of those of the heads [H+K, T]; of attention, the
	// log of its denominator [T, H].
	rstd1, rstd2, rstdHeads, lse *torch.Tensor
}

func (p *Policy) newActivations(s *torch.Scope, rows int, training bool) *activations {
	c := p.config
	a := &activations{
		qkv:    s.Empty(rows, (c.Heads+2*c.KVHeads)*c.HeadDim),
		att:    s.Empty(rows, c.Heads*c.HeadDim),
		gateUp: s.Empty(rows, 2*c.Intermediate),
	}
	if training {
		a.input, a.middle = s.Empty(rows, c.Hidden), s.Empty(rows, c.Hidden)
		a.rstd1, a.rstd2, a.lse = s.Empty(rows), s.Empty(rows), s.Empty(rows, c.Heads)
		if c.family().qkNorm {
			a.raw, a.rstdHeads = s.Empty(a.qkv.Shape()...), s.Empty(c.Heads+c.KVHeads, rows)
		}
	}
	return a
}

// layerForward replaces the residual stream x [T, C] by the layer's output and
// fills a. Temporary memory comes from s.
func layerForward(p *Policy, s *torch.Scope, layer int, x *torch.Tensor, positions indices, attend Attend, a *activations) {
	attentionForward(p, s, layer, x, positions, attend, a)
	mlpForward(p, s, layer, x, a)
}

// attentionForward fills a up to a.att from the residual stream.
func attentionForward(p *Policy, s *torch.Scope, layer int, x *torch.Tensor, positions indices, attend Attend, a *activations) {
	w := &p.weights.Layers[layer]
	if a.input != nil {
		torch.Copy(a.input, x)
	}
	norm := p.operands(s, x.Shape()[0], p.config.Hidden)
	p.ops.rms(x, w.InputNorm, norm, a.rstd1)
	p.ops.linear(w.QKV, norm, a.qkv, false)
	p.ops.round(a.qkv)
	if w.QNorm != nil {
		if a.raw != nil {
			torch.Copy(a.raw, a.qkv)
		}
		p.ops.normHeads(w, a)
	}
	if positions.host != nil { // else attend does
		p.ops.rotate(a.qkv, positions, false)
	}
	attend(layer, a.qkv, a.att)
}

// mlpForward adds to the residual stream x what attention found, a.att, and then
// what the MLP makes of the sum.
func mlpForward(p *Policy, s *torch.Scope, layer int, x *torch.Tensor, a *activations) {
	w := &p.weights.Layers[layer]
	p.ops.round(a.att)
	addProduct(p, s, x, a.att, w.Out)
	if a.middle != nil {
		torch.Copy(a.middle, x)
	}
	norm := p.operands(s, x.Shape()[0], p.config.Hidden)
	p.ops.rms(x, w.PostNorm, norm, a.rstd2)
	p.ops.linear(w.GateUp, norm, a.gateUp, false)
	p.ops.round(a.gateUp)
	act := p.operands(s, x.Shape()[0], p.config.Intermediate)
	p.ops.swiglu(a.gateUp, act)
	addProduct(p, s, x, act, w.Down)
}

// operands is memory for rows that products take and nothing else does: of bfloat16 where
// they round them to that.
func (p *Policy) operands(s *torch.Scope, rows, width int) *torch.Tensor {
	if p.options.halvesOperands() {
		return s.Half(rows, width)
	}
	return s.Empty(rows, width)
}

// halvesOperands says whether operands are bfloat16. Adapters' gradients take exact ones.
func (o Options) halvesOperands() bool {
	return o.DType == torch.BFloat16 && o.Device != torch.CPU && o.LoRA == nil
}

// addProduct adds y @ Wᵀ to the residual stream.
func addProduct(p *Policy, s *torch.Scope, x, y *torch.Tensor, l Linear) {
	if !p.rounds() {
		p.ops.linear(l, y, x, true)
		return
	}
	out := s.Empty(x.Shape()...)
	p.ops.linear(l, y, out, false)
	p.ops.round(out)
	x.Add(out)
	p.ops.round(x)
}

// Attention is the kernels' description of a layer's attention over rows of qkv
// as Attend receives them; see SplitQKV.
func (p *Policy) Attention(layer int) native.Attention {
	c := p.config
	width := (c.Heads + 2*c.KVHeads) * c.HeadDim
	return native.Attention{
		Heads: c.Heads, KVHeads: c.KVHeads, Dim: c.HeadDim, Window: c.window(layer), QStride: width, KStride: width, VStride: width,
	}
}

// SplitQKV gives the queries, keys and values of rows of qkv as slices that
// begin at the first row's, to be used with the strides of Attention.
func SplitQKV[F float](p *Policy, qkv []F) (q, k, v []F) {
	c := p.config
	return qkv, qkv[c.Heads*c.HeadDim:], qkv[(c.Heads+c.KVHeads)*c.HeadDim:]
}

// rounds says whether the policy scores as a bfloat16 model does; see Options.DType.
func (p *Policy) rounds() bool { return p.options.rounds() }

func (o Options) rounds() bool { return o.DType == torch.BFloat16 && o.Device == torch.CPU }

// roundsTrained says whether what Step changes is rounded, so that the exact values are
// kept elsewhere. Adapters are not.
func (o Options) roundsTrained() bool { return o.rounds() && o.LoRA == nil }
