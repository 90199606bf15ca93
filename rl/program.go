package rl

import (
	"math"
	"slices"
	"strings"

	"gorgonia.org/gorgonia"
)

// program is a Gorgonia graph of elementwise operations as straight-line code
// over blocks of tokens, small enough for the cache. Gorgonia's tape machine
// allocates a tensor for most operations and computes every derivative that the
// symbolic differentiation left behind, wanted or not; this computes what the
// loss and its gradient are made of, each operation as the tape does it, and
// allocates nothing while it runs.
type program struct {
	steps []instruction
	// slots are what instructions read and write: a part of a vector, a constant,
	// or a register, each of a block of tokens.
	slots [][]float64
	feeds []int // the slot of each input
	// weight, product (of the weight and the loss), gradient, and ratio, which is
	// -1 where the graph has none.
	weight, product, gradient, ratio int
}

// block is the number of tokens computed at a time.
const block = 512

// instruction writes out from a, and from b and c where the operation has as many
// operands.
type instruction struct {
	do           func(out, a, b, c []float64)
	out, a, b, c int
}

// one is the float64 1. Choices are made between bits, which takes no branch.
const one = 0x3ff0000000000000

// operations by their Gorgonia names.
var operations = map[string]func(out, a, b, c []float64){
	"+": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			out[i] = a[i] + b[i]
		}
	},
	"-": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			out[i] = a[i] - b[i]
		}
	},
	"⊙": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			out[i] = a[i] * b[i]
		}
	},
	"÷": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			out[i] = a[i] / b[i]
		}
	},
	"==": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			var same uint64
			if a[i] == b[i] {
				same = one
			}
			out[i] = math.Float64frombits(same)
		}
	},
	"MinBetween": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			x := math.Float64bits(a[i])
			if b[i] < a[i] {
				x = math.Float64bits(b[i])
			}
			out[i] = math.Float64frombits(x)
		}
	},
	"MaxBetween": func(out, a, b, _ []float64) {
		a, b = a[:len(out)], b[:len(out)]
		for i := range out {
			x := math.Float64bits(a[i])
			if b[i] > a[i] {
				x = math.Float64bits(b[i])
			}
			out[i] = math.Float64frombits(x)
		}
	},
	"neg": func(out, a, _, _ []float64) {
		a = a[:len(out)]
		for i := range out {
			out[i] = -a[i]
		}
	},
	"exp": func(out, a, _, _ []float64) {
		a = a[:len(out)]
		for i := range out {
			out[i] = math.Exp(a[i])
		}
	},
	"square": func(out, a, _, _ []float64) {
		a = a[:len(out)]
		for i := range out {
			out[i] = a[i] * a[i]
		}
	},
}

// clamp is a within [c, b].
func clamp(out, a, b, c []float64) {
	a, b, c = a[:len(out)], b[:len(out)], c[:len(out)]
	for i := range out {
		x := math.Float64bits(a[i])
		if b[i] < a[i] {
			x = math.Float64bits(b[i])
		}
		if y := math.Float64bits(c[i]); c[i] > math.Float64frombits(x) {
			x = y
		}
		out[i] = math.Float64frombits(x)
	}
}

// where is a where b equals c, and 0 elsewhere: a product with a comparison, which
// is how the slopes of MinBetween and MaxBetween come.
func where(out, a, b, c []float64) {
	a, b, c = a[:len(out)], b[:len(out)], c[:len(out)]
	for i := range out {
		x := math.Float64bits(a[i])
		if b[i] != c[i] {
			x = 0
		}
		out[i] = math.Float64frombits(x)
	}
}

// translator makes a program of a graph.
type translator struct {
	graph *gorgonia.ExprGraph
	p     *program
	slot  map[*gorgonia.Node]int
	nodes map[*gorgonia.Node]int // how often the graph's own operations use a node
	uses  map[*gorgonia.Node]int // by instructions that are still to come
	free  []int                  // registers
	fixed map[int]bool           // slots that are not registers
}

// translate returns the program of g, or nil where an operation is unknown to it:
// the tape knows more. ratio may be nil.
func translate(g *gorgonia.ExprGraph, feeds []feed, weight, product, gradient, ratio *gorgonia.Node) *program {
	t := &translator{graph: g, p: &program{}, slot: map[*gorgonia.Node]int{},
		nodes: map[*gorgonia.Node]int{}, uses: map[*gorgonia.Node]int{}, fixed: map[int]bool{}}
	for _, f := range feeds {
		t.p.feeds = append(t.p.feeds, t.pin(f.node))
	}
	t.p.weight = t.pin(weight)
	product, gradient = t.plain(product), t.plain(gradient)
	outputs := []*gorgonia.Node{product, gradient}
	if ratio != nil {
		outputs = append(outputs, ratio)
	}
	for _, n := range outputs {
		t.count(n, t.nodes, t.operands)
	}
	for _, n := range outputs {
		t.count(n, t.uses, func(n *gorgonia.Node) []*gorgonia.Node { _, operands := t.operation(n); return operands })
	}
	for _, n := range outputs {
		if !t.emit(n) {
			return nil
		}
	}
	t.p.product, t.p.gradient, t.p.ratio = t.slot[product], t.slot[gradient], -1
	if ratio != nil {
		t.p.ratio = t.slot[ratio]
	}
	return t.p
}

// pin gives a node a slot that is no register.
func (t *translator) pin(n *gorgonia.Node) int {
	s := len(t.p.slots)
	t.p.slots = append(t.p.slots, nil)
	t.slot[n], t.fixed[s] = s, true
	return s
}

func (t *translator) operands(n *gorgonia.Node) []*gorgonia.Node {
	var all []*gorgonia.Node
	for it := t.graph.From(n.ID()); it != nil && it.Next(); {
		all = append(all, t.plain(it.Node().(*gorgonia.Node)))
	}
	return all
}

// plain is n without multiplications by one, which differentiation leaves behind.
func (t *translator) plain(n *gorgonia.Node) *gorgonia.Node {
	if n.Op() == nil || n.Op().String() != "⊙ false" {
		return n
	}
	operands := t.operands(n)
	for i, o := range operands {
		if c, ok := t.constant(o); ok && c == 1 {
			return operands[1-i]
		}
	}
	return n
}

// count counts the uses of what n is made of. An output has one more, which is
// never used up, so that its register is not given away.
func (t *translator) count(n *gorgonia.Node, uses map[*gorgonia.Node]int, operands func(*gorgonia.Node) []*gorgonia.Node) {
	uses[n]++
	if uses[n] > 1 {
		return
	}
	for _, o := range operands(n) {
		t.count(o, uses, operands)
	}
}

// emit appends the instructions for n, unless they are there.
func (t *translator) emit(n *gorgonia.Node) bool {
	if _, ok := t.slot[n]; ok {
		return true
	}
	if c, ok := t.constant(n); ok {
		t.p.slots[t.pin(n)] = slices.Repeat([]float64{c}, block)
		return true
	}
	do, operands := t.operation(n)
	if do == nil {
		return false
	}
	var at [3]int
	for i, o := range operands {
		if !t.emit(o) {
			return false
		}
		at[i] = t.slot[o]
	}
	step := instruction{do: do, a: at[0], b: at[1], c: at[2]}
	for _, o := range operands {
		if t.uses[o]--; t.uses[o] == 0 && !t.fixed[t.slot[o]] {
			t.free = append(t.free, t.slot[o])
		}
	}
	if len(t.free) == 0 {
		t.free = append(t.free, len(t.p.slots))
		t.p.slots = append(t.p.slots, make([]float64, block))
	}
	step.out = t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.slot[n] = step.out
	t.p.steps = append(t.p.steps, step)
	return true
}

// operation is what computes n, and from what; nil where it is unknown.
func (t *translator) operation(n *gorgonia.Node) (func(out, a, b, c []float64), []*gorgonia.Node) {
	if n.Op() == nil {
		return nil, nil
	}
	if _, ok := t.constant(n); ok {
		return nil, nil
	}
	if x, lo, hi, ok := t.clamped(n); ok {
		return clamp, []*gorgonia.Node{x, hi, lo}
	}
	if a, x, y, ok := t.slope(n); ok {
		// The slope of a clamp is that of its maximum, times that of its minimum.
		if b, z, w, ok := t.slope(a); ok && t.nodes[a] == 1 {
			if from, _, _, ok := t.clamped(w); ok && from == x && z == y && z == t.operands(w)[0] {
				return where, []*gorgonia.Node{b, x, w}
			}
		}
		return where, []*gorgonia.Node{a, x, y}
	}
	operands := t.operands(n)
	name := t.name(n)
	if name == "==" && !strings.HasSuffix(n.Op().String(), " true") {
		return nil, nil // of booleans
	}
	return operations[name], operands
}

// name is that of an operation, without whether it is one of numbers or booleans.
func (t *translator) name(n *gorgonia.Node) string {
	if n.Op() == nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(n.Op().String(), " false"), " true")
}

// clamped says whether n is x between two constants, max(min(x, hi), lo), as
// Inputs.Clamp makes it.
func (t *translator) clamped(n *gorgonia.Node) (x, lo, hi *gorgonia.Node, ok bool) {
	if t.name(n) != "MaxBetween" {
		return nil, nil, nil, false
	}
	outer := t.operands(n)
	if t.name(outer[0]) != "MinBetween" {
		return nil, nil, nil, false
	}
	inner := t.operands(outer[0])
	low, isLow := t.constant(outer[1])
	high, isHigh := t.constant(inner[1])
	return inner[0], outer[1], inner[1], isLow && isHigh && low <= high
}

// slope says whether n is a where x equals y, and 0 elsewhere: a product with a
// comparison that nothing else uses.
func (t *translator) slope(n *gorgonia.Node) (a, x, y *gorgonia.Node, ok bool) {
	if n.Op() == nil || n.Op().String() != "⊙ false" {
		return nil, nil, nil, false
	}
	operands := t.operands(n)
	for i, o := range operands {
		if o.Op() != nil && o.Op().String() == "== true" && t.nodes[o] == 1 {
			compared := t.operands(o)
			return operands[1-i], compared[0], compared[1], true
		}
	}
	return nil, nil, nil, false
}

// constant is the value of a node that is one everywhere: a constant, or one
// spread over a vector.
func (t *translator) constant(n *gorgonia.Node) (float64, bool) {
	if n.Op() == nil {
		return 0, false
	}
	switch name := n.Op().String(); {
	case strings.HasPrefix(name, "Repeat"), strings.HasPrefix(name, "Reshape"):
		return t.constant(t.operands(n)[0])
	case strings.HasPrefix(name, "const") && n.Value() != nil:
		switch v := n.Value().Data().(type) {
		case float64:
			return v, true
		case []float64:
			return v[0], !slices.ContainsFunc(v, func(x float64) bool { return x != v[0] })
		}
	}
	return 0, false
}

// run returns the loss of the vectors, one for each input, and shows visit the
// gradient of each block, from lo on, and its ratio, nil where there is none.
func (p *program) run(vectors [][]float64, weight []float64, visit func(lo int, gradient, ratio []float64)) float64 {
	var loss float64
	for lo := 0; lo < len(weight); lo += block {
		hi := min(lo+block, len(weight))
		n := hi - lo
		for k, slot := range p.feeds {
			p.slots[slot] = vectors[k][lo:hi]
		}
		p.slots[p.weight] = weight[lo:hi]
		for _, s := range p.steps {
			s.do(p.slots[s.out][:n], p.slots[s.a], p.slots[s.b], p.slots[s.c])
		}
		for _, x := range p.slots[p.product][:n] {
			loss += x
		}
		var ratio []float64
		if p.ratio >= 0 {
			ratio = p.slots[p.ratio][:n]
		}
		visit(lo, p.slots[p.gradient][:n], ratio)
	}
	return loss
}
