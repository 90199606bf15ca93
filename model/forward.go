package model

import (
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// Legend: T tokens, C hidden width, H query heads, K key heads, D head
// dimension, I intermediate width, V vocabulary.

// Attend computes one layer's attention. Each row of qkv is a token's queries
// [H, D], keys [K, D] and values [K, D], rotated already; out is [T, H, D].
type Attend[F float] func(layer int, qkv, out []F)

// Forward runs tokens through the layers and the final norm and returns the
// hidden states [T, C], owned by the scope. Positions count from 0 in each
// sequence and are below MaxPositions. The rows are independent of each other
// but for what attend does, so any mix of sequences may be in them.
//
// It runs on the calling goroutine, which holds the weights through Read.
// F is float64 for a policy of that dtype, else float32.
func Forward[F float](p *Policy, s *torch.Scope, tokens, positions []int32, attend Attend[F]) *torch.Tensor {
	x := p.embed(s, tokens)
	for i := range p.weights.Layers {
		inner := s.Nest()
		layerForward(p, inner, i, x, positions, attend, p.newActivations(inner, len(tokens), false))
		inner.Close()
	}
	rms[F](p, x, p.weights.Norm, x, nil)
	return x
}

// ForwardRows is Forward for who wants the hidden states of some rows only:
// [len(rows), C], with the bits that Forward gives them. What the last layer does
// after its keys and values is left out for the others; of its attention, only
// the output of these rows is used.
func ForwardRows[F float](p *Policy, s *torch.Scope, tokens, positions []int32, rows []int, attend Attend[F]) *torch.Tensor {
	out := s.Empty(len(rows), p.config.Hidden)
	inner := s.Nest()
	x := p.embed(inner, tokens)
	last := len(p.weights.Layers) - 1
	for i := range last {
		s := inner.Nest()
		layerForward(p, s, i, x, positions, attend, p.newActivations(s, len(tokens), false))
		s.Close()
	}
	a := p.newActivations(inner, len(tokens), false)
	attentionForward(p, inner, last, x, positions, attend, a)
	if len(rows) > 0 {
		gatherInto[F](out, x, rows)
		chosen := &activations{att: gather[F](inner, a.att, rows), gateUp: inner.Empty(len(rows), 2*p.config.Intermediate)}
		mlpForward[F](p, inner, last, out, chosen)
		rms[F](p, out, p.weights.Norm, out, nil)
	}
	inner.Close()
	return out
}

// Logits is hidden [R, C] times the head: [R, V], owned by the scope.
func Logits(p *Policy, s *torch.Scope, hidden *torch.Tensor) *torch.Tensor {
	out := s.Empty(hidden.Shape()[0], p.config.VocabSize)
	if p.flat.DType() == torch.Float64 {
		project[float64](p, out, hidden)
	} else {
		project[float32](p, out, hidden)
	}
	return out
}

func project[F float](p *Policy, out, hidden *torch.Tensor) {
	apply[F](p.weights.Head, hidden, out, false)
	p.round(out)
}

// embed gathers the rows of tokens: [T, C].
func (p *Policy) embed(s *torch.Scope, tokens []int32) *torch.Tensor {
	x := s.Empty(len(tokens), p.config.Hidden)
	row := p.config.Hidden * x.DType().Size()
	dst, src := x.Bytes(), p.weights.Embedding.Bytes()
	for i, t := range tokens {
		copy(dst[i*row:(i+1)*row], src[int(t)*row:])
	}
	return x
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
func layerForward[F float](p *Policy, s *torch.Scope, layer int, x *torch.Tensor, positions []int32, attend Attend[F], a *activations) {
	attentionForward(p, s, layer, x, positions, attend, a)
	mlpForward[F](p, s, layer, x, a)
}

// attentionForward fills a up to a.att from the residual stream.
func attentionForward[F float](p *Policy, s *torch.Scope, layer int, x *torch.Tensor, positions []int32, attend Attend[F], a *activations) {
	w := &p.weights.Layers[layer]
	if a.input != nil {
		torch.Copy(a.input, x)
	}
	norm := s.Empty(x.Shape()...)
	rms[F](p, x, w.InputNorm, norm, a.rstd1)
	apply[F](w.QKV, norm, a.qkv, false)
	p.round(a.qkv)
	if w.QNorm != nil {
		if a.raw != nil {
			torch.Copy(a.raw, a.qkv)
		}
		normHeads[F](p, w, a)
	}
	if p.options.DType == torch.BFloat16 {
		rotate(p, a.qkv, positions, rotateBF16)
	} else {
		rotate(p, a.qkv, positions, native.Rope[F])
	}
	attend(layer, torch.Data[F](a.qkv), torch.Data[F](a.att))
}

// mlpForward adds to the residual stream x what attention found, a.att, and then
// what the MLP makes of the sum.
func mlpForward[F float](p *Policy, s *torch.Scope, layer int, x *torch.Tensor, a *activations) {
	w := &p.weights.Layers[layer]
	p.round(a.att)
	addProduct[F](p, s, x, a.att, w.Out)
	if a.middle != nil {
		torch.Copy(a.middle, x)
	}
	norm := s.Empty(x.Shape()...)
	rms[F](p, x, w.PostNorm, norm, a.rstd2)
	apply[F](w.GateUp, norm, a.gateUp, false)
	p.round(a.gateUp)
	act := s.Empty(x.Shape()[0], p.config.Intermediate)
	swiglu[F](p, a.gateUp, act)
	addProduct[F](p, s, x, act, w.Down)
}

// addProduct adds y @ Wᵀ to the residual stream.
func addProduct[F float](p *Policy, s *torch.Scope, x, y *torch.Tensor, l Linear) {
	if p.options.DType != torch.BFloat16 {
		apply[F](l, y, x, true)
		return
	}
	out := s.Empty(x.Shape()...)
	apply[F](l, y, out, false)
	p.round(out)
	x.Add(out)
	p.round(x)
}

func rms[F float](p *Policy, x, weight, y, rstd *torch.Tensor) {
	var r []F
	if rstd != nil {
		r = torch.Data[F](rstd)
	}
	rmsRows(p, torch.Data[F](x), torch.Data[F](weight), x.Shape()[0], 0, torch.Data[F](y), r)
}

// rmsRows normalises rows at a stride; y may be x.
func rmsRows[F float](p *Policy, x, weight []F, rows, stride int, y, rstd []F) {
	if p.options.DType == torch.BFloat16 {
		// F is float32 then.
		rmsBF16(any(x).([]float32), any(weight).([]float32), rows, stride, p.config.NormEps, any(y).([]float32), any(rstd).([]float32))
		return
	}
	native.RMSNorm(x, weight, rows, stride, stride, p.config.NormEps, y, rstd)
}

// normHeads normalises each head of the queries and keys in a.qkv.
func normHeads[F float](p *Policy, w *Layer, a *activations) {
	rows, qkv := a.qkv.Shape()[0], torch.Data[F](a.qkv)
	eachHead(p.config, w, func(head, first int, weight *torch.Tensor) {
		var rstd []F
		if a.rstdHeads != nil {
			rstd = torch.Data[F](a.rstdHeads)[head*rows:][:rows]
		}
		rmsRows(p, qkv[first:], torch.Data[F](weight), rows, a.qkv.Shape()[1], qkv[first:], rstd)
	})
}

// eachHead calls f for every query and key head with where it begins in a row of
// qkv and its norm in w.
func eachHead(c Config, w *Layer, f func(head, first int, weight *torch.Tensor)) {
	for head := range c.Heads + c.KVHeads {
		weight := w.QNorm
		if head >= c.Heads {
			weight = w.KNorm
		}
		f(head, head*c.HeadDim, weight)
	}
}

// rotate applies turn (native.Rope or its inverse) to the queries and keys.
func rotate[F float](p *Policy, qkv *torch.Tensor, positions []int32, turn func(x []F, positions []int32, cos, sin []F, heads, dim, ldx int)) {
	c, r := p.config, rotaryOf[F](p)
	width := qkv.Shape()[1]
	// Queries and keys are adjacent: H + K heads that rotate alike.
	turn(torch.Data[F](qkv), positions, r.cos, r.sin, c.Heads+c.KVHeads, c.HeadDim, width)
}

func swiglu[F float](p *Policy, gateUp, act *torch.Tensor) {
	if p.options.DType == torch.BFloat16 {
		swigluBF16(gateUp, act)
		return
	}
	gu, d := torch.Data[F](gateUp), p.config.Intermediate
	native.SwiGLU(gu, gu[d:], gateUp.Shape()[0], d, 2*d, 0, torch.Data[F](act))
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

func rotaryOf[F float](p *Policy) rotary[F] {
	var r any = p.rope32
	if p.flat.DType() == torch.Float64 {
		r = p.rope64
	}
	return r.(rotary[F])
}

// round rounds to bfloat16 where the policy computes in it.
func (p *Policy) round(t *torch.Tensor) {
	if p.options.DType == torch.BFloat16 {
		roundBF16(torch.Data[float32](t))
	}
}
