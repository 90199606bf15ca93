package model

import (
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// tape is a segment between its forward and its backward pass.
type tape[F float] struct {
	seg     segment
	scope   *torch.Scope // owns the tensors below
	layers  []*activations
	last    *torch.Tensor // [T, C] residual stream before the final norm
	rstd    *torch.Tensor // [T]
	hidden  *torch.Tensor // [T, C] after the final norm
	rows    []int         // the rows that the head is computed for
	targets []int32       // and the tokens that they predict
	logits  *torch.Tensor // [len(rows), V], or nil to compute them again
	scores  scores[F]
}

// attendWithin is attention within the sequences of a segment. layers, if not
// nil, receive the logs of its denominators.
func attendWithin[F float](p *Policy, seg segment, layers []*activations) Attend[F] {
	return func(layer int, qkv, out []F) {
		q, k, v := SplitQKV(p, qkv)
		var lse []F
		if layers != nil && layers[layer].lse != nil {
			lse = torch.Data[F](layers[layer].lse)
		}
		native.AttentionForward(p.Attention(layer), q, k, v, seg.offsets, out, lse)
	}
}

// record runs the forward pass of a segment and keeps what backward needs. mask
// says which tokens of the batch are predicted, as segment.predicted has it.
func record[F float](p *Policy, scope *torch.Scope, seg segment, mask []bool) *tape[F] {
	n := len(seg.tokens)
	t := &tape[F]{seg: seg, scope: scope}
	t.rows, t.targets = seg.predicted(mask)
	x := p.embed(scope, seg.tokens)
	t.last, t.rstd, t.hidden = x, scope.Empty(n), scope.Empty(n, p.config.Hidden)
	t.layers = make([]*activations, len(p.weights.Layers))
	attend := attendWithin[F](p, seg, t.layers)
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
			layerForward(p, s, i, x, seg.positions, attend, p.newActivations(s, n, false))
		} else {
			layerForward(p, s, i, x, seg.positions, attend, a)
		}
		s.Close()
	}
	rms[F](p, x, p.weights.Norm, t.hidden, t.rstd)
	if p.keepsLogits() {
		t.logits = scope.Empty(len(t.rows), p.config.VocabSize)
	}
	t.scores = score[F](p, scope, t.hidden, t.rows, t.targets, t.logits)
	return t
}

// backward adds the gradient of all parameters to grad, given that of the
// log-probabilities of t.targets.
func (t *tape[F]) backward(p *Policy, grad *Weights, dlogprobs []F) {
	s := t.scope.Nest()
	defer s.Close()
	dx := s.Empty(t.hidden.Shape()...)
	t.scoreBackward(p, s, grad, dlogprobs, dx)
	rmsBackward[F](s, t.last, p.weights.Norm, t.rstd, dx, dx, grad.Norm)
	for i := len(t.layers) - 1; i >= p.options.FreezeLayers; i-- {
		inner := s.Nest()
		t.layerBackward(p, inner, i, dx, grad)
		inner.Close()
	}
	if grad.Embedding != nil {
		scatterAdd(torch.Data[F](grad.Embedding), torch.Data[F](dx), t.seg.tokens, p.config.Hidden)
	}
}

// layerBackward replaces dx, the gradient of the layer's output [T, C], by that
// of its input. It overwrites the layer's activations.
func (t *tape[F]) layerBackward(p *Policy, s *torch.Scope, layer int, dx *torch.Tensor, grad *Weights) {
	c, w, g := p.config, &p.weights.Layers[layer], &grad.Layers[layer]
	n := len(t.seg.tokens)
	a := t.layers[layer]
	if p.options.Recompute {
		a = p.newActivations(s, n, true)
		x := s.Empty(n, c.Hidden)
		torch.Copy(x, t.layers[layer].input)
		t.layers[layer] = a
		again := s.Nest()
		layerForward(p, again, layer, x, t.seg.positions, attendWithin[F](p, t.seg, t.layers), a)
		again.Close()
	}
	norm, dnorm := s.Empty(n, c.Hidden), s.Empty(n, c.Hidden)

	// The MLP: x += Down(silu(gate) * up).
	act, dact := s.Empty(n, c.Intermediate), s.Empty(n, c.Intermediate)
	swiglu[F](p, a.gateUp, act)
	weightBackward[F](p, s, w.Down, g.Down, dx, act)
	torch.MatMul(dact, dx, w.Down.W)
	gu, d := torch.Data[F](a.gateUp), c.Intermediate
	native.SwiGLUBackward(gu, gu[d:], torch.Data[F](dact), n, d, 2*d, 0, gu, gu[d:])
	rms[F](p, a.middle, w.PostNorm, norm, nil)
	weightBackward[F](p, s, w.GateUp, g.GateUp, a.gateUp, norm)
	torch.MatMul(dnorm, a.gateUp, w.GateUp.W)
	rmsBackward[F](s, a.middle, w.PostNorm, a.rstd2, dnorm, dnorm, g.PostNorm)
	dx.Add(dnorm)

	// Attention: x += Out(attention(qkv)).
	datt, dqkv := s.Empty(a.att.Shape()...), s.Empty(a.qkv.Shape()...)
	weightBackward[F](p, s, w.Out, g.Out, dx, a.att)
	torch.MatMul(datt, dx, w.Out.W)
	q, k, v := SplitQKV(p, torch.Data[F](a.qkv))
	dq, dk, dv := SplitQKV(p, torch.Data[F](dqkv))
	native.AttentionBackward(p.Attention(layer), q, k, v, torch.Data[F](a.att), torch.Data[F](a.lse), torch.Data[F](datt),
		t.seg.offsets, dq, dk, dv)
	rotate[F](p, dqkv, t.seg.positions, native.RopeInverse[F])
	if w.QNorm != nil {
		normHeadsBackward[F](p, s, w, g, a, dqkv)
	}
	rms[F](p, a.input, w.InputNorm, norm, nil)
	weightBackward[F](p, s, w.QKV, g.QKV, dqkv, norm)
	if g.QKV.Bias != nil {
		addColumns(torch.Data[F](g.QKV.Bias), torch.Data[F](dqkv))
	}
	torch.MatMul(dnorm, dqkv, w.QKV.W)
	rmsBackward[F](s, a.input, w.InputNorm, a.rstd1, dnorm, dnorm, g.InputNorm)
	dx.Add(dnorm)
}

// weightBackward adds to g the gradient of l, given that of its output dy
// [T, out] and its input x [T, in].
func weightBackward[F float](p *Policy, s *torch.Scope, l, g Linear, dy, x *torch.Tensor) {
	if g.W != nil {
		torch.AddMatMul(g.W, s.Own(dy.T()), x)
	}
	for i, a := range l.adapters {
		adapterBackward[F](s, p.options.LoRA.scale(), a, g.adapters[i], s.Own(dy.Columns(a.lo, a.hi)), x)
	}
}

// rmsBackward writes dx and adds to dweight, if that is not nil; dx may be dy.
func rmsBackward[F float](s *torch.Scope, x, weight, rstd, dy, dx, dweight *torch.Tensor) {
	if dweight == nil {
		dweight = unwanted(s, weight)
	}
	native.RMSNormBackward(torch.Data[F](x), torch.Data[F](weight), torch.Data[F](rstd), torch.Data[F](dy),
		x.Shape()[0], 0, 0, torch.Data[F](dx), torch.Data[F](dweight))
}

// unwanted is a place for a gradient that nobody asks for.
func unwanted(s *torch.Scope, weight *torch.Tensor) *torch.Tensor {
	t := s.Empty(weight.Shape()...)
	t.Zero()
	return t
}

// normHeadsBackward replaces dqkv, the gradient of the normalised heads, by that
// of the raw ones, and adds to the gradient of the norms in g.
func normHeadsBackward[F float](p *Policy, s *torch.Scope, w, g *Layer, a *activations, dqkv *torch.Tensor) {
	rows, stride := dqkv.Shape()[0], dqkv.Shape()[1]
	raw, d, rstd := torch.Data[F](a.raw), torch.Data[F](dqkv), torch.Data[F](a.rstdHeads)
	eachHead(p.config, w, func(head, first int, weight *torch.Tensor) {
		dweight := g.QNorm
		if head >= p.config.Heads {
			dweight = g.KNorm
		}
		if dweight == nil {
			dweight = unwanted(s, weight)
		}
		native.RMSNormBackward(raw[first:], torch.Data[F](weight), rstd[head*rows:][:rows], d[first:], rows, stride, stride,
			d[first:], torch.Data[F](dweight))
	})
}

// addColumns adds every row of m to sum.
func addColumns[F float](sum, m []F) {
	for len(m) > 0 {
		row := m[:len(sum)]
		for i, v := range row {
			sum[i] += v
		}
		m = m[len(sum):]
	}
}

// scatterAdd adds row i of rows to row ids[i] of table.
func scatterAdd[F float](table, rows []F, ids []int32, width int) {
	for i, id := range ids {
		dst, src := table[int(id)*width:][:width], rows[i*width:][:width]
		for j, v := range src {
			dst[j] += v
		}
	}
}
