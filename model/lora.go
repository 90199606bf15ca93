package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/kernels/torch"
)

// LoRA trains, in the place of a matrix W [out, in], two thin ones: A [rank, in]
// and B [out, rank]. The layer computes with W + Alpha/Rank·B·A (Hu et al., "LoRA:
// Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1).
//
// The sum is kept in the place of W, beside W itself, so that the policy generates
// and scores as fast as without. Gradients and moments exist for A and B alone. Where
// the policy rounds its weights to bfloat16, so is the sum, and W is kept as bfloat16; A
// and B are not, so that steps too small for the sum add up in them.
type LoRA struct {
	Rank int `json:"rank" yaml:"rank"`
	// Alpha is the numerator of the scale; 0 means Rank.
	Alpha float64 `json:"alpha,omitempty" yaml:"alpha,omitempty"`
	// Targets are the projections that have adapters, by the last part of their
	// module's name, such as q_proj; none means all seven of a layer.
	Targets []string `json:"targets,omitempty" yaml:"targets,omitempty"`
}

func (l *LoRA) scale() float64 {
	if l.Alpha == 0 {
		return 1
	}
	return l.Alpha / float64(l.Rank)
}

// projection is a module that can have an adapter: rows [lo, hi) of a Linear.
type projection struct {
	module     string // within the layer
	of         func(*Layer) *Linear
	lo, hi, in int
}

func (p projection) target() string { return p.module[strings.LastIndexByte(p.module, '.')+1:] }

// projections lists those of a layer, in the order of the forward pass.
func (c Config) projections() []projection {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	qkv := func(l *Layer) *Linear { return &l.QKV }
	gateUp := func(l *Layer) *Linear { return &l.GateUp }
	return []projection{
		{"self_attn.q_proj", qkv, 0, q, c.Hidden},
		{"self_attn.k_proj", qkv, q, q + kv, c.Hidden},
		{"self_attn.v_proj", qkv, q + kv, q + 2*kv, c.Hidden},
		{"self_attn.o_proj", func(l *Layer) *Linear { return &l.Out }, 0, c.Hidden, q},
		{"mlp.gate_proj", gateUp, 0, c.Intermediate, c.Hidden},
		{"mlp.up_proj", gateUp, c.Intermediate, 2 * c.Intermediate, c.Hidden},
		{"mlp.down_proj", func(l *Layer) *Linear { return &l.Down }, 0, c.Hidden, c.Intermediate},
	}
}

// targets are the projections that l adapts.
func (l *LoRA) targets(c Config) (chosen []projection) {
	for _, p := range c.projections() {
		if len(l.Targets) == 0 || slices.Contains(l.Targets, p.target()) {
			chosen = append(chosen, p)
		}
	}
	return chosen
}

func (l *LoRA) validate(c Config) error {
	if l.Rank <= 0 || !(l.Alpha >= 0) || math.IsInf(l.Alpha, 1) {
		return fmt.Errorf("lora: rank %d must be positive and alpha %v not negative", l.Rank, l.Alpha)
	}
	var known []string
	for _, p := range c.projections() {
		known = append(known, p.target())
	}
	for _, t := range l.Targets {
		if !slices.Contains(known, t) {
			return fmt.Errorf("lora: no projection %q to adapt; there are %s", t, strings.Join(known, ", "))
		}
	}
	return nil
}

// adapter is the pair of matrices of one projection.
type adapter struct {
	lo, hi int           // the rows of the Linear's matrix
	a, b   *torch.Tensor // [rank, in] and [hi-lo, rank]
	base   *torch.Tensor // [hi-lo, in], the matrix without them; nil in a gradient
}

// adapterLayout names the adapters' tensors of the layers from first on and places
// them in a buffer.
func adapterLayout(c Config, l *LoRA, first int) (params []Parameter, total int) {
	add := func(name string, shape ...int) {
		p := Parameter{Name: name, shape: shape, offset: total, Decay: true}
		params = append(params, p)
		total += (p.len() + 15) / 16 * 16
	}
	for i := first; i < c.Layers; i++ {
		for _, p := range l.targets(c) {
			name := layerName(i) + p.module + "."
			add(name+loraA, l.Rank, p.in)
			add(name+loraB, p.hi-p.lo, l.Rank)
		}
	}
	return params, total
}

// adapt gives the layers of w from first on adapters whose tensors are views of
// memory that is laid out as params.
func (w *Weights) adapt(c Config, l *LoRA, first int, params []Parameter, view func(offset int, shape ...int) *torch.Tensor) {
	take := func() *torch.Tensor {
		t := view(params[0].offset, params[0].shape...)
		params = params[1:]
		w.views = append(w.views, t)
		return t
	}
	for i := first; i < c.Layers; i++ {
		for _, p := range l.targets(c) {
			linear := p.of(&w.Layers[i])
			linear.adapters = append(linear.adapters, adapter{lo: p.lo, hi: p.hi, a: take(), b: take()})
		}
	}
}

// initAdapters draws A uniformly from ±1/sqrt(in), as PEFT does, and leaves B at
// 0: the policy begins as it is without them.
func (p *Policy) initAdapters(seed uint64) {
	for i, param := range p.trained {
		if !strings.HasSuffix(param.Name, loraA) {
			continue
		}
		r := rand.New(rand.NewPCG(seed, 1<<32+uint64(i)))
		bound := 1 / math.Sqrt(float64(param.shape[1]))
		fill(param.Tensor, func() float64 { return bound * (2*r.Float64() - 1) })
	}
}

// keepBase remembers the matrices as they are without adapters.
func (p *Policy) keepBase() {
	w, dtype := p.weights, p.flat.DType()
	if p.rounds() {
		dtype = torch.BFloat16 // which they fit in
	}
	for _, l := range w.linears() {
		for i := range l.adapters {
			a := &l.adapters[i]
			rows := l.W.Rows(a.lo, a.hi)
			if a.base == nil {
				a.base = l.W.Device().New(torch.Weights, dtype, rows.Shape()...)
				w.views = append(w.views, a.base)
			}
			torch.Copy(a.base, rows)
			rows.Free()
		}
	}
}

// merge computes l.W from its base and adapters.
func merge(p *Policy, s *torch.Scope, l *Linear) {
	for _, a := range l.adapters {
		rows := s.Own(l.W.Rows(a.lo, a.hi))
		torch.Copy(rows, a.base)
		torch.AddMatMul(rows, scaled(s, a.b, p.options.LoRA.scale()), a.a)
		p.ops.round(rows)
	}
}

// adapterBackward adds to g the gradient of an adapter, given that of the output of
// its rows dy [T, hi-lo] and their input x [T, in]: with u = x·Aᵀ and v = dy·B,
// dB = scale·dyᵀ·u and dA = scale·vᵀ·x.
func adapterBackward(s *torch.Scope, scale float64, a, g adapter, dy, x *torch.Tensor) {
	rows, rank := x.Shape()[0], a.a.Shape()[0]
	u, v := s.Empty(rows, rank), s.Empty(rows, rank)
	torch.MatMul(u, x, s.Own(a.a.T()))
	torch.MatMul(v, dy, a.b)
	torch.AddMatMul(g.b, s.Own(dy.T()), scaled(s, u, scale))
	torch.AddMatMul(g.a, s.Own(scaled(s, v, scale).T()), x)
}

func scaled(s *torch.Scope, t *torch.Tensor, by float64) *torch.Tensor {
	out := s.Empty(t.Shape()...)
	torch.Scaled(out, t, by)
	return out
}
