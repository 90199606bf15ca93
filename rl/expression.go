package rl

import (
	"errors"
	"fmt"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// ErrNonFinite is wrapped by errors about a NaN or an infinity in a place that
// is trained on. The training loop skips such a step.
var ErrNonFinite = errors.New("non-finite value")

// maxLogRatio bounds |log ratio| inside expressions, so that an extreme ratio
// gives a large finite number and no gradient instead of an overflow.
const maxLogRatio = 20

// Expression is an objective as a Gorgonia expression: the loss of one trained
// token, to be weighted and summed. It is differentiated with respect to the
// log-probabilities now; everything else is constant.
type Expression struct {
	// Pooled replaces the log-probabilities of a token, now and at sampling, by
	// their means over its sequence's trained tokens: the length-normalised
	// ratio of whole sequences (GSPO). The gradient of each token's term goes to
	// that token alone, as in GSPO's token form; where the advantage is constant
	// over a sequence this is the gradient of the sequence form.
	Pooled bool
	// Build returns the vector of per-token losses. It may panic through
	// gorgonia.Must: compiling reports that as an error.
	Build func(in *Inputs) *gorgonia.Node
	// Frozen computes Inputs.Frozen for a token: a quantity that depends on the
	// ratio and takes no gradient. Gorgonia has no stop-gradient, so it is fed in.
	Frozen func(ratio, advantage float64) float64
	// Clipped, where not nil, says which tokens lose their gradient or have it
	// bounded; it only feeds the metric clip_fraction.
	Clipped func(ratio, advantage float64) bool
}

// Inputs are the vectors an expression is made of, each of the same length.
// They are created when first asked for, so that an expression which does not
// read, say, the advantage does not need one.
type Inputs struct {
	graph                           *gorgonia.ExprGraph
	n                               int
	logprob, old, advantage, frozen *gorgonia.Node
	logRatio, ratio                 *gorgonia.Node
	constants                       map[float64]*gorgonia.Node
}

// Logprob is the log-probability under the policy now.
func (in *Inputs) Logprob() *gorgonia.Node { return in.input(&in.logprob, "logprob") }

// Advantage is the token's advantage.
func (in *Inputs) Advantage() *gorgonia.Node { return in.input(&in.advantage, "advantage") }

// Frozen is the value of Expression.Frozen.
func (in *Inputs) Frozen() *gorgonia.Node { return in.input(&in.frozen, "frozen") }

// LogRatio is the log-probability now minus that at sampling, within ±20.
func (in *Inputs) LogRatio() *gorgonia.Node {
	if in.logRatio == nil {
		diff := sub(in.Logprob(), in.input(&in.old, "old"))
		in.logRatio = in.Clamp(diff, -maxLogRatio, maxLogRatio)
	}
	return in.logRatio
}

// Ratio is the importance ratio exp(LogRatio).
func (in *Inputs) Ratio() *gorgonia.Node {
	if in.ratio == nil {
		in.ratio = gorgonia.Must(gorgonia.Exp(in.LogRatio()))
	}
	return in.ratio
}

// Const is a vector filled with v. (MinBetween and its like take no scalars.)
func (in *Inputs) Const(v float64) *gorgonia.Node {
	if c, ok := in.constants[v]; ok {
		return c
	}
	data := make([]float64, in.n)
	for i := range data {
		data[i] = v
	}
	c := gorgonia.NewConstant(tensor.New(tensor.WithShape(in.n), tensor.WithBacking(data)),
		gorgonia.WithName(fmt.Sprintf("const %g", v)))
	in.constants[v] = c
	return c
}

// Clamp bounds x from both sides; outside the bounds it passes no gradient.
func (in *Inputs) Clamp(x *gorgonia.Node, lo, hi float64) *gorgonia.Node {
	return larger(smaller(x, in.Const(hi)), in.Const(lo))
}

func (in *Inputs) input(slot **gorgonia.Node, name string) *gorgonia.Node {
	if *slot == nil {
		*slot = gorgonia.NewVector(in.graph, tensor.Float64, gorgonia.WithShape(in.n), gorgonia.WithName(name))
	}
	return *slot
}

func mul(a, b *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.HadamardProd(a, b)) }
func sub(a, b *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.Sub(a, b)) }
func neg(a *gorgonia.Node) *gorgonia.Node        { return gorgonia.Must(gorgonia.Neg(a)) }
func smaller(a, b *gorgonia.Node) *gorgonia.Node { return gorgonia.Must(gorgonia.MinBetween(a, b)) }
func larger(a, b *gorgonia.Node) *gorgonia.Node  { return gorgonia.Must(gorgonia.MaxBetween(a, b)) }

// units are an expression's inputs for a batch, one entry for each trained token, gathered from the places that
// are trained on: what stands in masked places never reaches a graph.
type units struct {
	logprob, old, advantage, frozen, weight []float64
}

// machine is a compiled expression for exactly n units. Shorter input is padded
// with repetitions of its last unit, of weight zero: values that the expression
// meets anyway cannot make a NaN of their own.
type machine struct {
	n        int
	in       *Inputs
	vm       gorgonia.VM
	feeds    []feed
	weight   []float64
	loss     gorgonia.Value
	gradient gorgonia.Value
}

// feed ties an input node to the vector it takes from units.
type feed struct {
	node *gorgonia.Node
	data []float64
	from func(u *units) []float64
}

// machineSizes are the shapes that graphs are built for (building takes 5 to
// 23 ms). A batch runs as pieces of the largest and one smaller rest, so that
// neither the number of machines nor their size grows with the batches seen.
var machineSizes = []int{64, 512, 4096}

func compile(e Expression, n int) (m *machine, err error) {
	defer func() {
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("rl: building the objective's graph: %v", p)
		}
	}()
	g := gorgonia.NewGraph()
	in := &Inputs{graph: g, n: n, constants: map[float64]*gorgonia.Node{}}
	term := e.Build(in)
	var weight *gorgonia.Node
	in.input(&weight, "weight")
	total := gorgonia.Must(gorgonia.Sum(mul(term, weight)))
	grads, err := gorgonia.Grad(total, in.Logprob())
	if err != nil {
		return nil, fmt.Errorf("rl: differentiating the objective: %w", err)
	}
	m = &machine{n: n, in: in}
	gorgonia.Read(total, &m.loss)
	// The gradient's own node is read: with bound dual values Gorgonia would
	// accumulate gradients over runs.
	gorgonia.Read(grads[0], &m.gradient)
	for _, f := range []feed{
		{node: in.logprob, from: func(u *units) []float64 { return u.logprob }},
		{node: in.old, from: func(u *units) []float64 { return u.old }},
		{node: in.advantage, from: func(u *units) []float64 { return u.advantage }},
		{node: in.frozen, from: func(u *units) []float64 { return u.frozen }},
		{node: weight, from: func(u *units) []float64 { return u.weight }},
	} {
		if f.node == nil {
			continue
		}
		f.data = make([]float64, n)
		if err := gorgonia.Let(f.node, tensor.New(tensor.WithShape(n), tensor.WithBacking(f.data))); err != nil {
			return nil, fmt.Errorf("rl: binding an input of the objective: %w", err)
		}
		m.feeds = append(m.feeds, f)
		if f.node == weight {
			m.weight = f.data
		}
	}
	m.vm = gorgonia.NewTapeMachine(g)
	return m, nil
}

// run evaluates units [lo, hi) and writes dLoss/dLogprob of each to grad.
func (m *machine) run(u *units, lo, hi int, grad []float64) (float64, error) {
	for _, f := range m.feeds {
		n := copy(f.data, f.from(u)[lo:hi])
		for i := n; i < m.n; i++ {
			f.data[i] = f.data[n-1]
		}
	}
	clear(m.weight[hi-lo:])
	defer m.vm.Reset()
	if err := m.vm.RunAll(); err != nil {
		return 0, fmt.Errorf("rl: running the objective's graph: %w", err)
	}
	copy(grad[lo:hi], m.gradient.Data().([]float64))
	return m.loss.Data().(float64), nil
}
