package model

import (
	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// onCPU computes with kernels/native, whose rows have the same bits in any batch. F is
// float64 for a policy of that dtype, else float32.
type onCPU[F float] struct {
	p    *Policy
	rope rotary[F]
	team *device.Team
}

func newOnCPU[F float](p *Policy) onCPU[F] {
	o := onCPU[F]{p: p, rope: newRotary[F](p.config)}
	if p.rounds() {
		roundBF16(any(o.rope.cos).([]float32))
		roundBF16(any(o.rope.sin).([]float32))
	}
	return o
}

func (o onCPU[F]) shared(team *device.Team) operations {
	o.team = team
	return o
}

func (onCPU[F]) indices(_ *torch.Scope, of []int32) indices { return indices{host: of} }

func (onCPU[F]) gather(out, from *torch.Tensor, rows indices) {
	width := from.Shape()[1]
	dst, src := torch.Data[F](out), torch.Data[F](from)
	for i, r := range rows.host {
		copy(dst[i*width:(i+1)*width], src[int(r)*width:])
	}
}

func (onCPU[F]) scatter(to, from *torch.Tensor, rows indices) {
	width := to.Shape()[1]
	dst, src := torch.Data[F](to), torch.Data[F](from)
	for i, r := range rows.host {
		copy(dst[int(r)*width:(int(r)+1)*width], src[i*width:])
	}
}

func (onCPU[F]) scatterAdd(to, from *torch.Tensor, rows indices) {
	table, all, width := torch.Data[F](to), torch.Data[F](from), to.Shape()[1]
	for i, id := range rows.host {
		dst, src := table[int(id)*width:][:width], all[i*width:][:width]
		for j, v := range src {
			dst[j] += v
		}
	}
}

func (onCPU[F]) addColumns(sum, m *torch.Tensor) {
	dst := torch.Data[F](sum)
	for src := torch.Data[F](m); len(src) > 0; src = src[len(dst):] {
		for i, v := range src[:len(dst)] {
			dst[i] += v
		}
	}
}

// linear's rows have the same bits in any batch, which a product through libtorch's
// BLAS has not; nor does it matter to them how a team shares the columns.
func (o onCPU[F]) linear(l Linear, x, y *torch.Tensor, add bool) {
	out := l.W.Shape()[0]
	if x.Shape()[0] == 0 {
		return
	}
	if o.team == nil {
		columns[F](l, x, y, add, 0, out)
		return
	}
	o.team.Loop(out, native.PanelColumns, func(from, to int) { columns[F](l, x, y, add, from, to) })
}

// columns computes those of y from one that is a multiple of native.PanelColumns.
func columns[F float](l Linear, x, y *torch.Tensor, add bool, from, to int) {
	rows, out, in := x.Shape()[0], l.W.Shape()[0], l.W.Shape()[1]
	var bias []F
	if l.Bias != nil {
		bias = torch.Data[F](l.Bias)[from:to]
	}
	if l.packed.DType() == torch.BFloat16 { // F is float32 then
		native.LinearBFloat16(torch.Data[float32](x), halves(l.packed)[from*in:], any(bias).([]float32), rows, in, to-from, 0, out, torch.Data[float32](y)[from:], add)
		return
	}
	native.Linear(torch.Data[F](x), torch.Data[F](l.packed)[from*in:], bias, rows, in, to-from, 0, out, torch.Data[F](y)[from:], add)
}

func (onCPU[F]) inputGradient(l Linear, dy, dx *torch.Tensor) { torch.MatMul(dx, dy, l.W) }

func (onCPU[F]) weightGradient(dw, dy, x *torch.Tensor) {
	t := dy.T()
	torch.AddMatMul(dw, t, x)
	t.Free()
}

func (onCPU[F]) operand(_ *torch.Scope, x *torch.Tensor) *torch.Tensor { return x }

func (onCPU[F]) repack(l *Linear) {
	if l.packed.DType() == torch.BFloat16 {
		native.PackBFloat16(torch.Data[float32](l.W), l.W.Shape()[0], l.W.Shape()[1], halves(l.packed))
		return
	}
	native.Pack(torch.Data[F](l.W), l.W.Shape()[0], l.W.Shape()[1], torch.Data[F](l.packed))
}

func (o onCPU[F]) rms(x, weight, y, rstd *torch.Tensor) {
	var r []F
	if rstd != nil {
		r = torch.Data[F](rstd)
	}
	o.rmsRows(torch.Data[F](x), torch.Data[F](weight), x.Shape()[0], 0, torch.Data[F](y), r)
}

// rmsRows normalises rows at a stride; y may be x.
func (o onCPU[F]) rmsRows(x, weight []F, rows, stride int, y, rstd []F) {
	if o.p.rounds() {
		// F is float32 then.
		rmsBF16(any(x).([]float32), any(weight).([]float32), rows, stride, o.p.config.NormEps, any(y).([]float32), any(rstd).([]float32))
		return
	}
	native.RMSNorm(x, weight, rows, stride, stride, o.p.config.NormEps, y, rstd)
}

func (onCPU[F]) rmsBackward(s *torch.Scope, x, weight, rstd, dy, dx, dweight *torch.Tensor) {
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

func (o onCPU[F]) normHeads(w *Layer, a *activations) {
	rows, qkv := a.qkv.Shape()[0], torch.Data[F](a.qkv)
	for head := range o.p.config.Heads + o.p.config.KVHeads {
		x, weight := qkv[head*o.p.config.HeadDim:], w.headNorm(o.p.config, head)
		var rstd []F
		if a.rstdHeads != nil {
			rstd = torch.Data[F](a.rstdHeads)[head*rows:][:rows]
		}
		o.rmsRows(x, torch.Data[F](weight), rows, a.qkv.Shape()[1], x, rstd)
	}
}

func (o onCPU[F]) normHeadsBackward(s *torch.Scope, w, g *Layer, a *activations, dqkv *torch.Tensor) {
	rows, stride := dqkv.Shape()[0], dqkv.Shape()[1]
	raw, d, rstd := torch.Data[F](a.raw), torch.Data[F](dqkv), torch.Data[F](a.rstdHeads)
	for head := range o.p.config.Heads + o.p.config.KVHeads {
		first := head * o.p.config.HeadDim
		weight, dweight := w.headNorm(o.p.config, head), g.headNorm(o.p.config, head)
		if dweight == nil {
			dweight = unwanted(s, weight)
		}
		native.RMSNormBackward(raw[first:], torch.Data[F](weight), rstd[head*rows:][:rows], d[first:], rows, stride, stride,
			d[first:], torch.Data[F](dweight))
	}
}

// headNorm is the norm of a head, of the queries first and then of the keys.
func (l *Layer) headNorm(c Config, head int) *torch.Tensor {
	if head < c.Heads {
		return l.QNorm
	}
	return l.KNorm
}

func (o onCPU[F]) rotate(qkv *torch.Tensor, positions indices, inverse bool) {
	c := o.p.config
	turn := native.Rope[F]
	switch {
	case inverse:
		turn = native.RopeInverse[F]
	case o.p.rounds():
		turn = any(rotateBF16).(func(x []F, positions []int32, cos, sin []F, heads, dim, ldx int))
	}
	// Queries and keys are adjacent: H + K heads that rotate alike.
	turn(torch.Data[F](qkv), positions.host, o.rope.cos, o.rope.sin, c.Heads+c.KVHeads, c.HeadDim, qkv.Shape()[1])
}

func (o onCPU[F]) swiglu(gateUp, act *torch.Tensor) {
	if o.p.rounds() {
		swigluBF16(gateUp, act)
		return
	}
	gu, d := torch.Data[F](gateUp), o.p.config.Intermediate
	native.SwiGLU(gu, gu[d:], gateUp.Shape()[0], d, 2*d, 0, torch.Data[F](act))
}

func (o onCPU[F]) swigluBackward(gateUp, dact *torch.Tensor) {
	gu, d := torch.Data[F](gateUp), o.p.config.Intermediate
	native.SwiGLUBackward(gu, gu[d:], torch.Data[F](dact), gateUp.Shape()[0], d, 2*d, 0, gu, gu[d:])
}

func (o onCPU[F]) attention(layer int, qkv *torch.Tensor, offsets []int32, out, lse *torch.Tensor) {
	q, k, v := SplitQKV(o.p, torch.Data[F](qkv))
	var l []F
	if lse != nil {
		l = torch.Data[F](lse)
	}
	native.AttentionForward(o.p.Attention(layer), q, k, v, offsets, torch.Data[F](out), l)
}

func (o onCPU[F]) attentionBackward(layer int, qkv, out, lse, dout *torch.Tensor, offsets []int32, dqkv *torch.Tensor) {
	q, k, v := SplitQKV(o.p, torch.Data[F](qkv))
	dq, dk, dv := SplitQKV(o.p, torch.Data[F](dqkv))
	native.AttentionBackward(o.p.Attention(layer), q, k, v, torch.Data[F](out), torch.Data[F](lse), torch.Data[F](dout), offsets, dq, dk, dv)
}

func (o onCPU[F]) round(t *torch.Tensor) {
	if o.p.rounds() {
		roundBF16(torch.Data[float32](t))
	}
}

func (o onCPU[F]) logprob(logits *torch.Tensor, targets indices, logprobs, entropies, lse *torch.Tensor) {
	native.Logprob(torch.Data[F](logits), targets.host, o.p.config.VocabSize, torch.Data[F](logprobs), torch.Data[F](entropies), torch.Data[F](lse))
}

func (o onCPU[F]) logprobBackward(logits *torch.Tensor, targets indices, lse, g *torch.Tensor) {
	native.LogprobBackward(torch.Data[F](logits), targets.host, o.p.config.VocabSize, torch.Data[F](lse), torch.Data[F](g))
}

func (onCPU[F]) squares(t *torch.Tensor) float64 { return native.SumSquares(torch.Data[F](t)) }

func (onCPU[F]) adamw(u native.AdamW, w, g, m, v *torch.Tensor, lo, hi int) {
	native.Update(u, torch.Data[F](w)[lo:hi], torch.Data[F](g)[lo:hi], torch.Data[F](m)[lo:hi], torch.Data[F](v)[lo:hi])
}

func (onCPU[F]) follow(mean, w *torch.Tensor, decay float64, lo, hi int) {
	d, step := F(decay), F(1-decay)
	dst := torch.Data[F](mean)[lo:hi]
	for i, v := range torch.Data[F](w)[lo:hi] {
		dst[i] = d*dst[i] + step*v
	}
}

func (onCPU[F]) rotatesCached() bool { return false }

func (o onCPU[F]) attendCached(_ *torch.Scope, cache *Cache, segs, last []native.Segment, table []int32) Attend {
	return func(layer int, qkv, out *torch.Tensor) {
		q, k, v := SplitQKV(o.p, torch.Data[F](qkv))
		shape, queries, in := o.p.Attention(layer), segs, torch.Data[F](cache.layers[layer])
		if layer == o.p.config.Layers-1 {
			queries = last
		}
		native.CacheAppend(shape, k, v, segs, table, in)
		o.team.Loop(len(queries), 1, func(from, to int) {
			native.AttentionExtend(shape, q, queries[from:to], table, in, torch.Data[F](out), nil)
		})
	}
}

func (o onCPU[F]) sample(logits *torch.Tensor, draws []Draw) (tokens []int32, logprobs, sampled []float32) {
	all, vocab := torch.Data[float32](logits), o.p.config.VocabSize
	tokens, logprobs, sampled = make([]int32, len(draws)), make([]float32, len(draws)), make([]float32, len(draws))
	o.team.Loop(len(draws), 1, func(from, to int) {
		for i := from; i < to; i++ {
			tokens[i], logprobs[i], sampled[i] = native.Sample(all[i*vocab:(i+1)*vocab], draws[i].Sampling, draws[i].U)
		}
	})
	return tokens, logprobs, sampled
}
