package model

import (
	"context"

	"github.com/ssr-go/ssr/kernels/torch"
)

// tape is a segment between its forward and its backward pass.
type tape struct {
	seg     segment
	scope   *torch.Scope // owns the tensors below
	layers  []*activations
	last    *torch.Tensor // [T, C] residual stream before the final norm
	rstd    *torch.Tensor // [T]
	hidden  *torch.Tensor // [T, C] after the final norm
	rows    indices       // the rows that the head is computed for
	targets indices       // and the tokens that they predict
	tokens  indices       // of the segment
	at      indices       // and their positions
	logits  *torch.Tensor // [len(rows), V], or nil to compute them again
	scores  scores
	// dlogprobs are the gradient of scores.logprobs, and dx [T, C] that of the residual
	// stream as far as the backward pass has come.
	dlogprobs []float64
	dx        *torch.Tensor
}

// attendWithin is attention within the sequences of a segment. layers, if not
// nil, receive the logs of its denominators.
func attendWithin(p *Policy, seg segment, layers []*activations) Attend {
	return func(layer int, qkv, out *torch.Tensor) {
		var lse *torch.Tensor
		if layers != nil {
			lse = layers[layer].lse
		}
		p.ops.attention(layer, qkv, seg.offsets, out, lse)
	}
}

// record runs the forward pass of a segment and keeps what backward needs. mask
// says which tokens of the batch are predicted, as segment.predicted has it.
func record(p *Policy, scope *torch.Scope, seg segment, mask []bool) *tape {
	n := len(seg.tokens)
	rows, targets := seg.predicted(mask)
	ready := func(of []int32) indices { return p.ops.indices(scope, of) }
	t := &tape{seg: seg, scope: scope, rows: ready(rows), targets: ready(targets), tokens: ready(seg.tokens), at: ready(seg.positions)}
	x := p.embed(scope, t.tokens)
	t.last, t.rstd, t.hidden = x, scope.Empty(n), scope.Empty(n, p.config.Hidden)
	t.layers = make([]*activations, len(p.weights.Layers))
	attend := attendWithin(p, seg, t.layers)
	for i := range t.layers {
		var a *activations
		if p.options.Recompute {
			a = &activations{input: scope.Empty(n, p.config.Hidden)}
			torch.Copy(a.input, x)
		} else {
			a = p.newActivations(scope, n, true)
		}
		t.layers[i] = a
		s := scope.Nest()
		if p.options.Recompute {
			layerForward(p, s, i, x, t.at, attend, p.newActivations(s, n, false))
		} else {
			layerForward(p, s, i, x, t.at, attend, a)
		}
		s.Close()
	}
	p.ops.rms(x, p.weights.Norm, t.hidden, t.rstd)
	if p.keepsLogits() {
		t.logits = scope.Empty(len(rows), p.config.VocabSize)
	}
	t.scores = score(p, scope, t.hidden, t.rows, t.targets, t.logits)
	return t
}

// backward adds to a worker's gradient that of all parameters, given that of the
// log-probabilities of its tapes. A layer is done with for all of them before the one
// below it is begun, so that gradients become final layer by layer.
func backward(ctx context.Context, p *Policy, worker int, tapes []*tape, done *finished) error {
	grad := p.lanes[worker].weights
	s := p.lanes[worker].training.Scope()
	defer s.Close()
	each := func(f func(t *tape, s *torch.Scope)) {
		for _, t := range tapes {
			inner := s.Nest()
			f(t, inner)
			inner.Close()
		}
	}
	for _, t := range tapes {
		t.dx = s.Empty(t.hidden.Shape()...)
	}
	head := headName
	if p.config.TieEmbeddings {
		head = embeddingName
	}
	if err := done.begin(ctx, head, normName); err != nil {
		return err
	}
	each(func(t *tape, s *torch.Scope) { t.headBackward(p, s, grad) })
	done.reach(worker, headName)
	for layer := len(p.weights.Layers) - 1; layer >= p.options.FreezeLayers; layer-- {
		if err := done.begin(ctx, layerName(layer)); err != nil {
			return err
		}
		each(func(t *tape, s *torch.Scope) { t.layerBackward(p, s, layer, t.dx, grad) })
		done.reach(worker, layerName(layer))
	}
	if grad.Embedding != nil {
		if err := done.begin(ctx, embeddingName); err != nil {
			return err
		}
		each(func(t *tape, _ *torch.Scope) { p.ops.scatterAdd(grad.Embedding, t.dx, t.tokens) })
	}
	done.end(worker)
	return nil
}

// headBackward begins dx and adds the gradient of the head and the norm before it.
func (t *tape) headBackward(p *Policy, s *torch.Scope, grad *Weights) {
	dlp, i := s.Empty(len(t.dlogprobs)), -1
	fill(dlp, func() float64 { i++; return t.dlogprobs[i] })
	t.scoreBackward(p, s, grad, dlp, t.dx)
	p.ops.rmsBackward(s, t.last, p.weights.Norm, t.rstd, t.dx, t.dx, grad.Norm)
}

// layerBackward replaces dx, the gradient of the layer's output [T, C], by that
// of its input. It overwrites the layer's activations.
func (t *tape) layerBackward(p *Policy, s *torch.Scope, layer int, dx *torch.Tensor, grad *Weights) {
	c, w, g := p.config, &p.weights.Layers[layer], &grad.Layers[layer]
	n := len(t.seg.tokens)
	a := t.layers[layer]
	if p.options.Recompute {
		a = p.newActivations(s, n, true)
		x := s.Empty(n, c.Hidden)
		torch.Copy(x, t.layers[layer].input)
		t.layers[layer] = a
		again := s.Nest()
		layerForward(p, again, layer, x, t.at, attendWithin(p, t.seg, t.layers), a)
		again.Close()
	}
	norm, dnorm := p.operands(s, n, c.Hidden), s.Empty(n, c.Hidden)

	// The MLP: x += Down(silu(gate) * up).
	act, dact := p.operands(s, n, c.Intermediate), s.Empty(n, c.Intermediate)
	p.ops.swiglu(a.gateUp, act)
	linearBackward(p, s, w.Down, g.Down, dx, act, dact)
	p.ops.swigluBackward(a.gateUp, dact)
	p.ops.rms(a.middle, w.PostNorm, norm, nil)
	linearBackward(p, s, w.GateUp, g.GateUp, a.gateUp, norm, dnorm)
	p.ops.rmsBackward(s, a.middle, w.PostNorm, a.rstd2, dnorm, dnorm, g.PostNorm)
	dx.Add(dnorm)

	// Attention: x += Out(attention(qkv)).
	datt, dqkv := s.Empty(a.att.Shape()...), s.Empty(a.qkv.Shape()...)
	linearBackward(p, s, w.Out, g.Out, dx, a.att, datt)
	p.ops.attentionBackward(layer, a.qkv, a.att, a.lse, datt, t.seg.offsets, dqkv)
	p.ops.rotate(dqkv, t.at, true)
	if w.QNorm != nil {
		p.ops.normHeadsBackward(s, w, g, a, dqkv)
	}
	p.ops.rms(a.input, w.InputNorm, norm, nil)
	linearBackward(p, s, w.QKV, g.QKV, dqkv, norm, dnorm)
	p.ops.rmsBackward(s, a.input, w.InputNorm, a.rstd1, dnorm, dnorm, g.InputNorm)
	dx.Add(dnorm)
}

// linearBackward adds to g the gradient of l, given that of its output dy [T, out] and
// its input x [T, in], and overwrites dx [T, in] with that of the input.
func linearBackward(p *Policy, s *torch.Scope, l, g Linear, dy, x, dx *torch.Tensor) {
	operand := dy
	if g.W != nil {
		operand = p.ops.operand(s, dy)
		p.ops.weightGradient(g.W, operand, x)
	}
	for i, a := range l.adapters {
		adapterBackward(s, p.options.LoRA.scale(), a, g.adapters[i], s.Own(dy.Columns(a.lo, a.hi)), x)
	}
	if g.Bias != nil {
		p.ops.addColumns(g.Bias, dy)
	}
	p.ops.inputGradient(l, operand, dx)
}
