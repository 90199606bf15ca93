package model

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// onKernels is onDevice with kernels/cuda in the place of those of libtorch's operations
// that it has one for: what is several launches there is one, and decoding reads the
// cache where it is. They work on the tensors' own memory, in order with libtorch.
type onKernels struct {
	*onDevice
	m cuda.Machine
	// invariant computes every row with kernels whose rows do not depend on each other:
	// products and all attention too.
	invariant bool
	// tiled is attention on tensor cores, over a bfloat16 cache.
	tiled     bool
	optimizer *cuda.Optimizer // of the tensors params; nil until the first update
	params    []cuda.Param
}

func newOnKernels(o *onDevice, m cuda.Machine) *onKernels {
	return &onKernels{onDevice: o, m: m, invariant: o.p.options.Determinism, tiled: o.p.options.tensorCores(o.p.config)}
}

func (k *onKernels) free() {
	if k.optimizer != nil {
		k.optimizer.Free(k.m)
	}
	k.onDevice.free()
}

// at is where a tensor begins, 0 for nil.
func at(t *torch.Tensor) cuda.Pointer {
	if t == nil {
		return 0
	}
	return cuda.Pointer(t.Pointer())
}

// kindOf is the type of a tensor's elements.
func kindOf(t *torch.Tensor) cuda.DType {
	if t.DType() == torch.BFloat16 {
		return cuda.BF16
	}
	return cuda.F32
}

// must panics where a kernel fails, as an operation of libtorch does.
func must(op string, err error) {
	if err != nil {
		panic(&torch.Error{Op: op, Detail: err.Error()})
	}
}

// words is memory for so many elements of four bytes.
func (k *onKernels) words(n int) *torch.Tensor {
	return k.p.options.Device.Empty(torch.Activations, torch.Float32, n)
}

func (k *onKernels) shared(*device.Team) operations { return k }

func (k *onKernels) linear(l Linear, x, y *torch.Tensor, add bool) {
	rows, out, in, dtype := x.Shape()[0], l.W.Shape()[0], l.W.Shape()[1], cuda.F32
	if rows == 0 {
		return
	}
	// Of few rows a library's product would be three launches more: rounding, the bias, the
	// sum with what is there.
	if !k.invariant && !(k.half && rows <= cuda.FewRows) {
		k.onDevice.linear(l, x, y, add)
		return
	}
	if k.half {
		dtype = cuda.BF16
	}
	var scratch *torch.Tensor
	if bytes := cuda.LinearScratch(dtype, kindOf(x), rows, out, in); bytes > 0 {
		scratch = k.words(bytes / 4)
		defer scratch.Free()
	}
	must("Linear", cuda.Linear(k.m, dtype, kindOf(x), at(x), at(k.matrix(l)), at(l.Bias), at(y), rows, out, in, add, at(scratch)))
}

func (k *onKernels) rms(x, weight, y, rstd *torch.Tensor) {
	if rows, d := x.Shape()[0], x.Shape()[1]; rows > 0 {
		must("RMSNorm", cuda.RMSNorm(k.m, cuda.F32, kindOf(y), at(x), 0, at(weight), at(y), at(rstd), rows, d, k.p.config.NormEps))
	}
}

func (k *onKernels) normHeads(w *Layer, a *activations) {
	rows, ld, d := a.qkv.Shape()[0], a.qkv.Shape()[1], k.p.config.HeadDim
	if rows == 0 {
		return
	}
	k.eachKind(a.rstdHeads, func(first, n int, rstd *torch.Tensor) {
		must("RMSNormHeads", cuda.RMSNormHeads(k.m, cuda.F32, at(a.qkv).At(first*d, 4), at(w.headNorm(k.p.config, first)), at(rstd), rows, n, d, ld, k.p.config.NormEps))
	})
}

func (k *onKernels) rmsBackward(_ *torch.Scope, x, weight, rstd, dy, dx, dweight *torch.Tensor) {
	rows, d := x.Shape()[0], x.Shape()[1]
	k.normBackward(at(x), weight, rstd, at(dy), at(dx), dweight, rows, 1, d, d)
}

func (k *onKernels) normHeadsBackward(_ *torch.Scope, w, g *Layer, a *activations, dqkv *torch.Tensor) {
	rows, ld, d := dqkv.Shape()[0], dqkv.Shape()[1], k.p.config.HeadDim
	k.eachKind(a.rstdHeads, func(first, n int, rstd *torch.Tensor) {
		dx := at(dqkv).At(first*d, 4)
		k.normBackward(at(a.raw).At(first*d, 4), w.headNorm(k.p.config, first), rstd, dx, dx, g.headNorm(k.p.config, first), rows, n, d, ld)
	})
}

// normBackward is the gradient of n heads of rows; dweight may be nil.
func (k *onKernels) normBackward(x cuda.Pointer, weight, rstd *torch.Tensor, dy, dx cuda.Pointer, dweight *torch.Tensor, rows, n, d, ld int) {
	if rows == 0 {
		return
	}
	var scratch *torch.Tensor
	if dweight != nil {
		scratch = k.words(cuda.RMSNormScratch(rows, n, d) / 4)
		defer scratch.Free()
	}
	must("RMSNormBackward", cuda.RMSNormBackward(k.m, x, at(weight), at(rstd), dy, dx, at(dweight), at(scratch), rows, n, d, ld))
}

func (k *onKernels) rotate(qkv *torch.Tensor, positions indices, inverse bool) {
	c := k.p.config
	must("Rope", cuda.Rope(k.m, cuda.F32, at(qkv), at(positions.device), at(k.cos), at(k.sin), qkv.Shape()[0], c.Heads+c.KVHeads, c.HeadDim,
		qkv.Shape()[1], inverse))
}

func (k *onKernels) swiglu(gateUp, act *torch.Tensor) {
	must("SwiGLU", cuda.SwiGLU(k.m, cuda.F32, kindOf(act), at(gateUp), at(act), act.Shape()[0], act.Shape()[1]))
}

func (k *onKernels) swigluBackward(gateUp, dact *torch.Tensor) {
	must("SwiGLUBackward", cuda.SwiGLUBackward(k.m, cuda.F32, at(gateUp), at(dact), dact.Shape()[0], dact.Shape()[1]))
}

// attentionBackward is libtorch's. A GPU's FlashAttention also takes what determinism's
// own forward pass has left.
func (k *onKernels) attentionBackward(layer int, qkv, out, lse, dout *torch.Tensor, offsets []int32, dqkv *torch.Tensor) {
	h := k.heads(layer)
	if _, gpu := k.p.options.Device.GPU(); gpu {
		h.Fused = k.half
	}
	torch.AttentionBackward(h, qkv, out, lse, dout, offsets, dqkv)
}

// ready is a Product whose logits are there, all of them, and whose gradient is taken
// from where they were.
type ready struct{}

func (ready) Logits(cuda.Pointer, int, int) error   { return nil }
func (ready) Backward(cuda.Pointer, int, int) error { return nil }

// head are the rows of logits; stats may be nil for the backward pass.
func head(logits, stats, targets *torch.Tensor) cuda.Head {
	rows, vocab := logits.Shape()[0], logits.Shape()[1]
	return cuda.Head{DType: cuda.F32, Rows: rows, Vocab: vocab, Chunk: vocab, Logits: at(logits), Stats: at(stats), Target: at(targets)}
}

func (k *onKernels) logprob(logits *torch.Tensor, targets indices, logprobs, entropies, lse *torch.Tensor) {
	if logits.Shape()[0] == 0 {
		return
	}
	stats := k.words(logits.Shape()[0] * cuda.HeadRowSize / 4)
	defer stats.Free()
	must("Score", head(logits, stats, targets.device).Score(k.m, ready{}, at(logprobs), at(entropies), at(lse)))
}

func (k *onKernels) logprobBackward(logits *torch.Tensor, targets indices, lse, g *torch.Tensor) {
	if logits.Shape()[0] > 0 {
		must("Backward", head(logits, nil, targets.device).Backward(k.m, ready{}, at(lse), at(g)))
	}
}

func (k *onKernels) sample(logits *torch.Tensor, draws []Draw) (tokens []int32, logprobs, sampled []float32) {
	n := len(draws)
	if n == 0 {
		return nil, nil, nil
	}
	s := k.newSampling(n)
	defer s.free()
	must("Sample", k.m.Upload(at(s.requests), k.appendRequests(nil, draws)))
	s.queue(k, logits, 0)
	return s.read(k, n)
}

// sampling is the memory for n draws: what is asked and what was drawn.
type sampling struct{ requests, drawn *torch.Tensor }

func (k *onKernels) newSampling(n int) sampling {
	return sampling{k.words(n * cuda.SamplingSize / 4), k.words(3 * n)}
}

func (s sampling) free() {
	s.requests.Free()
	s.drawn.Free()
}

// appendRequests appends what is asked of rows, cuda.SamplingSize bytes each; zeros ask
// for the most probable token.
func (k *onKernels) appendRequests(to []byte, draws []Draw) []byte {
	all := make([]cuda.Sampling, len(draws))
	for i, d := range draws {
		all[i] = cuda.Sampling{
			Draw: cuda.Uniform(d.U), Temperature: float32(d.Temperature), TopP: float32(d.TopP), MinP: float32(d.MinP),
			TopK: int32(min(d.TopK, k.p.config.VocabSize)),
		}
	}
	to, err := binary.Append(to, binary.LittleEndian, all)
	must("Sample", err)
	return to
}

// queue draws for rows of logits, the first of which is number first.
func (s sampling) queue(k *onKernels, logits *torch.Tensor, first int) {
	n, rows := s.drawn.Len()/3, logits.Shape()[0]
	out := func(i int) cuda.Pointer { return at(s.drawn).At(i*n+first, 4) }
	must("Sample", cuda.Sample(k.m, at(logits), at(s.requests).At(first, cuda.SamplingSize), rows, logits.Shape()[1], out(0), out(1), out(2)))
}

// read waits for the first n draws.
func (s sampling) read(k *onKernels, n int) (tokens []int32, logprobs, sampled []float32) {
	all := s.drawn.Len() / 3
	bits := make([]byte, 12*all)
	must("Sample", k.m.Download(bits, at(s.drawn)))
	tokens, logprobs, sampled = make([]int32, all), make([]float32, all), make([]float32, all)
	from := bytes.NewReader(bits)
	for _, to := range []any{tokens, logprobs, sampled} {
		must("Sample", binary.Read(from, binary.LittleEndian, to))
	}
	return tokens[:n], logprobs[:n], sampled[:n]
}

// optimize readies the update of the policy's shard.
func (k *onKernels) optimize() {
	p := k.p
	p.needOptimizer()
	first, _, _ := p.Shard()
	shard := p.shardGradient()
	defer shard.Free()
	exact, grad := at(p.live).At(first, 4), at(shard)
	var params []cuda.Param
	for _, param := range p.trained {
		lo, hi := p.owned(param)
		if lo >= hi {
			continue
		}
		t := cuda.Param{
			Master: exact.At(lo, 4), Mean: at(p.moments.mean).At(lo, 4), Square: at(p.moments.square).At(lo, 4), Grad: grad.At(lo, 4), N: hi - lo,
		}
		if param.Decay {
			t.Decay = 1
		}
		t.Weight = k.copyOf(t.Master)
		params = append(params, t)
	}
	if slices.Equal(params, k.params) {
		return
	}
	if k.optimizer != nil {
		k.optimizer.Free(k.m)
		k.optimizer, k.params = nil, nil
	}
	o, err := cuda.NewOptimizer(k.m, params)
	must("NewOptimizer", err)
	k.optimizer, k.params = o, params
}

// copyOf is where the bfloat16 copy is of the weight at p, 0 where it has none.
func (k *onKernels) copyOf(p cuda.Pointer) cuda.Pointer {
	for _, l := range k.p.weights.linears() {
		if w := at(l.W); l.packed != nil && p >= w && p < w.At(l.W.Len(), 4) {
			return at(l.packed) + (p-w)/2
		}
	}
	return 0
}

// shardSquares is Σ g² over the shard of what is trained.
func (k *onKernels) shardSquares() (sum float64) {
	k.onWorker(func() (err error) {
		k.optimize()
		sum, err = k.optimizer.Squares(k.m)
		return err
	})
	return sum
}

// updateShard updates it, and with it the copies that products take.
func (k *onKernels) updateShard(u native.AdamW, decay float64) {
	k.onWorker(func() error {
		k.optimize()
		return k.optimizer.Step(k.m, cuda.AdamW{
			LR: u.LR, Beta1: u.Beta1, Beta2: u.Beta2, Eps: u.Eps, WeightDecay: decay, GradScale: u.GradScale, Step: u.Step,
		})
	})
}

// onWorker runs f where the policy's other kernels are launched: a machine is used by
// one goroutine at a time.
func (k *onKernels) onWorker(f func() error) {
	must("AdamW", k.p.pool.Do(context.Background(), 0, f))
}
