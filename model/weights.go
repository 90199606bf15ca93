package model

import (
	"fmt"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// float is an element type that a policy computes in.
type float = native.Float

// Parameter is one tensor of a checkpoint, under its Hugging Face name. Its
// tensor is a view of the policy's one weight buffer.
type Parameter struct {
	Name   string
	Tensor *torch.Tensor
	// Decay says whether weight decay applies: to matrices, not to biases and norms.
	Decay bool
	// offset is the first element in the buffer of all weights.
	offset int
	shape  []int
}

func (p Parameter) len() int {
	n := 1
	for _, s := range p.shape {
		n *= s
	}
	return n
}

// Linear is a projection: y = x @ Wᵀ + Bias.
type Linear struct {
	W *torch.Tensor // [out, in]
	// Bias is [out], or nil.
	Bias *torch.Tensor
	// packed is W again as the policy's products take it: on a CPU in the layout of
	// native.Linear, and in bfloat16 where W has such values. It is nil in a gradient,
	// and where they take W itself.
	packed *torch.Tensor
	// adapters change W, which has them in it; see LoRA. In a gradient they hold
	// that of their matrices.
	adapters []adapter
}

// Layer holds the weights of one decoder layer. The three attention projections
// are one matrix (rows of the queries, then keys, then values), and so are the
// gate and up projections of the MLP: checkpoints store them apart, but their
// memory is adjacent, and one wide product is faster than several narrow ones.
type Layer struct {
	InputNorm *torch.Tensor // [hidden]
	QKV       Linear        // [(heads + 2 KV heads) * head dim, hidden]
	// QNorm and KNorm are [head dim]; nil where the family does not normalise heads.
	QNorm, KNorm *torch.Tensor
	Out          Linear        // [hidden, heads * head dim]
	PostNorm     *torch.Tensor // [hidden]
	GateUp       Linear        // [2 * intermediate, hidden]
	Down         Linear        // [hidden, intermediate]
}

// Weights are views of one flat buffer: of the parameters, or of a gradient, where
// what is not trained is nil.
type Weights struct {
	Embedding *torch.Tensor // [vocabulary, hidden]
	Layers    []Layer
	Norm      *torch.Tensor // [hidden]
	// Head is [vocabulary, hidden]; the embedding itself when they are tied.
	Head Linear
	// views are all tensors above, to free.
	views []*torch.Tensor
}

const (
	embeddingName = "model.embed_tokens.weight"
	normName      = "model.norm.weight"
	headName      = "lm_head.weight"
)

func layerName(i int) string { return fmt.Sprintf("model.layers.%d.", i) }

// layout places the parameters in the flat buffer, in the order of the forward
// pass, and returns the buffer's length. Groups begin on a cache line; the few
// elements between groups stay zero.
func layout(c Config) (params []Parameter, total int) {
	group := func() { total = (total + 15) / 16 * 16 }
	add := func(name string, shape ...int) {
		p := Parameter{Name: name, shape: shape, offset: total, Decay: len(shape) > 1}
		params = append(params, p)
		total += p.len()
	}
	h, q, kv := c.Hidden, c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	add(embeddingName, c.VocabSize, h)
	for i := range c.Layers {
		name := layerName(i)
		group()
		add(name+"input_layernorm.weight", h)
		group()
		add(name+"self_attn.q_proj.weight", q, h)
		add(name+"self_attn.k_proj.weight", kv, h)
		add(name+"self_attn.v_proj.weight", kv, h)
		if c.family().qkvBias {
			group()
			add(name+"self_attn.q_proj.bias", q)
			add(name+"self_attn.k_proj.bias", kv)
			add(name+"self_attn.v_proj.bias", kv)
		}
		if c.family().qkNorm {
			group()
			add(name+"self_attn.q_norm.weight", c.HeadDim)
			group()
			add(name+"self_attn.k_norm.weight", c.HeadDim)
		}
		group()
		add(name+"self_attn.o_proj.weight", h, q)
		group()
		add(name+"post_attention_layernorm.weight", h)
		group()
		add(name+"mlp.gate_proj.weight", c.Intermediate, h)
		add(name+"mlp.up_proj.weight", c.Intermediate, h)
		group()
		add(name+"mlp.down_proj.weight", h, c.Intermediate)
	}
	group()
	add(normName, h)
	if !c.TieEmbeddings {
		group()
		add(headName, c.VocabSize, h)
	}
	group()
	return params, total
}

// newWeights makes the views that a forward or backward pass uses of memory in the
// given layout; view gives one at an offset, nil for none.
func newWeights(c Config, params []Parameter, view func(offset int, shape ...int) *torch.Tensor) *Weights {
	w := &Weights{}
	next := 0
	// take views the next n parameters of the layout as one tensor.
	take := func(n int, shape ...int) *torch.Tensor {
		t := view(params[next].offset, shape...)
		next += n
		if t != nil {
			w.views = append(w.views, t)
		}
		return t
	}
	linear := func(n, out, in int) Linear { return Linear{W: take(n, out, in)} }
	h, q, qkv := c.Hidden, c.Heads*c.HeadDim, (c.Heads+2*c.KVHeads)*c.HeadDim
	w.Embedding = take(1, c.VocabSize, h)
	for range c.Layers {
		l := Layer{InputNorm: take(1, h), QKV: linear(3, qkv, h)}
		if c.family().qkvBias {
			l.QKV.Bias = take(3, qkv)
		}
		if c.family().qkNorm {
			l.QNorm, l.KNorm = take(1, c.HeadDim), take(1, c.HeadDim)
		}
		l.Out = linear(1, h, q)
		l.PostNorm = take(1, h)
		l.GateUp = linear(2, 2*c.Intermediate, h)
		l.Down = linear(1, h, c.Intermediate)
		w.Layers = append(w.Layers, l)
	}
	w.Norm = take(1, h)
	if c.TieEmbeddings {
		w.Head = Linear{W: w.Embedding}
	} else {
		w.Head = linear(1, c.VocabSize, h)
	}
	return w
}

// linears are the projections of a forward pass.
func (w *Weights) linears() []*Linear {
	out := []*Linear{&w.Head}
	for i := range w.Layers {
		l := &w.Layers[i]
		out = append(out, &l.QKV, &l.Out, &l.GateUp, &l.Down)
	}
	return out
}

// needPacked allocates the packed copies, one after another, so that they share
// large pages.
func (w *Weights) needPacked(o Options) {
	dtype, length := o.packing(w.Head.W.DType())
	if length == nil {
		return
	}
	total := 0
	for _, l := range w.linears() {
		total += length(l.W.Shape()[1], l.W.Shape()[0])
	}
	all := o.Device.New(torch.Weights, dtype, total)
	w.views = append(w.views, all)
	at := 0
	for _, l := range w.linears() {
		n, shape := length(l.W.Shape()[1], l.W.Shape()[0]), l.W.Shape()
		if o.Device == torch.CPU {
			shape = []int{n}
		}
		l.packed = all.View(at, shape...)
		w.views = append(w.views, l.packed)
		at += n
	}
}

// packing is the dtype of packed copies and how many elements one takes of a matrix
// [out, in]; length is nil where there are none.
func (o Options) packing(compute torch.DType) (dtype torch.DType, length func(in, out int) int) {
	half := o.DType == torch.BFloat16
	if half {
		compute = torch.BFloat16
	}
	switch {
	case o.Device == torch.CPU:
		return compute, native.PackedLen
	case half:
		return compute, func(in, out int) int { return in * out }
	}
	return 0, nil
}

// MatrixBytes is what a step reads of the matrices, as the products take them.
func (p *Policy) MatrixBytes() (n int) {
	for _, l := range p.weights.linears() {
		t := l.packed
		if t == nil {
			t = l.W
		}
		n += t.Len() * t.DType().Size()
	}
	return n
}

func (w *Weights) free() {
	for _, t := range w.views {
		t.Free()
	}
}
