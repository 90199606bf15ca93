package rl

import (
	"fmt"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// machine is a compiled expression. Where the expression is one of elementwise
// operations that program knows, it runs as such, on any number of tokens.
// Otherwise Gorgonia's tape runs it, on exactly n: shorter input is padded with
// repetitions of its last token, of weight zero, so that values which the
// expression meets anyway cannot make a NaN of their own.
type machine struct {
	n        int
	in       *Inputs
	program  *program
	vm       gorgonia.VM
	weight   []float64
	loss     gorgonia.Value
	gradient gorgonia.Value
}

// machineSizes are the shapes that the tape's graphs are built for (building takes 5 to
// 23 ms). A batch runs as pieces of the largest and one smaller rest, so that
// neither the number of machines nor their size grows with the batches seen.
var machineSizes = []int{64, 512, 4096}

// compile builds the machine; tape is for expressions that have no program, and
// for comparing both.
func compile(e Expression, n int, tape bool) (m *machine, err error) {
	defer func() {
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("rl: building the objective's graph: %v", p)
		}
	}()
	g := gorgonia.NewGraph()
	m = &machine{n: n, in: &Inputs{graph: g, n: n, constants: map[float64]*gorgonia.Node{}}, weight: make([]float64, n)}
	term := e.Build(m.in)
	weight := gorgonia.NewVector(g, tensor.Float64, gorgonia.WithShape(n), gorgonia.WithName("weight"))
	product := mul(term, weight)
	total := gorgonia.Must(gorgonia.Sum(product))
	grads, err := gorgonia.Grad(total, m.in.Logprob())
	if err != nil {
		return nil, fmt.Errorf("rl: differentiating the objective: %w", err)
	}
	if !tape {
		if m.program = translate(g, m.in.feeds, weight, product, grads[0], m.in.ratio); m.program != nil {
			return m, nil
		}
	}
	gorgonia.Read(total, &m.loss)
	// The gradient's own node is read: with bound dual values Gorgonia would
	// accumulate gradients over runs.
	gorgonia.Read(grads[0], &m.gradient)
	bind := func(node *gorgonia.Node, data []float64) error {
		return gorgonia.Let(node, tensor.New(tensor.WithShape(n), tensor.WithBacking(data)))
	}
	err = bind(weight, m.weight)
	for i := range m.in.feeds {
		f := &m.in.feeds[i]
		f.data = make([]float64, n)
		if err == nil {
			err = bind(f.node, f.data)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("rl: binding an input of the objective: %w", err)
	}
	m.vm = gorgonia.NewTapeMachine(g)
	return m, nil
}

// run evaluates tokens [lo, hi) of the vectors, one for each feed, on the tape,
// and returns the loss and dLoss/dLogprob of each, which the next run overwrites.
func (m *machine) run(vectors [][]float64, weight []float64, lo, hi int) (float64, []float64, error) {
	for k, f := range m.in.feeds {
		n := copy(f.data, vectors[k][lo:hi])
		for i := n; i < m.n; i++ {
			f.data[i] = f.data[n-1]
		}
	}
	clear(m.weight[copy(m.weight, weight[lo:hi]):])
	defer m.vm.Reset()
	if err := m.vm.RunAll(); err != nil {
		return 0, nil, fmt.Errorf("rl: running the objective's graph: %w", err)
	}
	return m.loss.Data().(float64), m.gradient.Data().([]float64)[:hi-lo], nil
}
