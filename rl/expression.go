package rl

import (
	"errors"
	"fmt"
	"slices"

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
	// Build returns the vector of per-token losses. It may panic through
	// gorgonia.Must: compiling reports that as an error.
	Build func(in *Inputs) *gorgonia.Node
	// Scaled says that the losses of a sequence are 0, whatever the policy, where all its
	// advantages are, and that no other's depend on it: an update need not compute it.
	Scaled bool
	// Clipped, where not nil, counts the tokens that lose their gradient or have
	// it bounded; it only feeds the metric clip_fraction.
	Clipped func(t Tokens) int
}

// Tokens are the trained tokens of a batch, sequence after sequence: what
// quantities without a gradient are computed from. A vector that the batch does
// not have is zero.
type Tokens struct {
	// Logprobs are those under the policy now, Anchors those under the policy that
	// ratios are taken against (see Settings.Anchor).
	Logprobs, Anchors []float64
	// Rollouts and References are those of the policies that sampled, and of the
	// frozen reference, which a batch has where the expression asks for Inputs.Reference.
	Rollouts, References []float64
	Advantages           []float64
	// Offsets bound the sequences: sequence s is [Offsets[s], Offsets[s+1]), empty
	// where nothing of it is trained on. Turns bound the runs of tokens that follow
	// each other in their sequence: what a policy says between two observations.
	Offsets, Turns []int
}

// LogRatio is the log-probability now minus the anchor's, within ±20.
func (t Tokens) LogRatio(i int) float64 { return bound(t.Logprobs[i] - t.Anchors[i]) }

// sequences calls visit with the bounds of each sequence that is trained on.
func (t Tokens) sequences(visit func(lo, hi int)) {
	for s := range len(t.Offsets) - 1 {
		if lo, hi := t.Offsets[s], t.Offsets[s+1]; lo < hi {
			visit(lo, hi)
		}
	}
}

// spread writes to every token of a sequence the mean of value over it.
func (t Tokens) spread(out []float64, value func(i int) float64) {
	t.sequences(func(lo, hi int) { spread(out, lo, hi, value) })
}

// spreadTurns writes to every token of a turn the mean of value over it.
func (t Tokens) spreadTurns(out []float64, value func(i int) float64) {
	for k := range len(t.Turns) - 1 {
		spread(out, t.Turns[k], t.Turns[k+1], value)
	}
}

func spread(out []float64, lo, hi int, value func(i int) float64) {
	var sum float64
	for i := lo; i < hi; i++ {
		sum += value(i)
	}
	for i := lo; i < hi; i++ {
		out[i] = sum / float64(hi-lo)
	}
}

// Inputs are the vectors an expression is made of, each of the same length.
// They are created when first asked for, so that an expression which does not
// read, say, the advantage does not need one.
type Inputs struct {
	graph           *gorgonia.ExprGraph
	n               int
	feeds           []feed
	logRatio, ratio *gorgonia.Node
	constants       map[float64]*gorgonia.Node
	// What the expression needs of a batch, beside the log-probabilities now.
	anchored, needsAdvantages, needsRollouts, needsReferences bool
}

// feed ties an input node to the vector that fills it. computed makes the vector
// of a batch; where it is nil, stored picks one of Tokens.
type feed struct {
	name     string
	node     *gorgonia.Node
	data     []float64
	stored   func(t *Tokens) []float64
	computed func(t Tokens, out []float64)
}

// Logprob is the log-probability under the policy now.
func (in *Inputs) Logprob() *gorgonia.Node {
	return in.stored("logprob", func(t *Tokens) []float64 { return t.Logprobs })
}

// Advantage is the token's advantage.
func (in *Inputs) Advantage() *gorgonia.Node {
	in.needsAdvantages = true
	return in.stored("advantage", func(t *Tokens) []float64 { return t.Advantages })
}

// SequenceAdvantage is the mean advantage of the token's sequence.
func (in *Inputs) SequenceAdvantage() *gorgonia.Node {
	in.needsAdvantages = true
	return in.computed("sequence advantage", func(t Tokens, out []float64) {
		t.spread(out, func(i int) float64 { return t.Advantages[i] })
	})
}

// Frozen is a quantity that takes no gradient: compute fills out, one entry for
// each token, from a batch. Gorgonia has no stop-gradient, so it is fed in. The
// same name stands for the same quantity within an expression.
func (in *Inputs) Frozen(name string, compute func(t Tokens, out []float64)) *gorgonia.Node {
	in.anchored, in.needsAdvantages = true, true
	return in.computed(name, compute)
}

// LogRatio is the log-probability now minus the anchor's, within ±20.
func (in *Inputs) LogRatio() *gorgonia.Node {
	if in.logRatio == nil {
		in.logRatio = in.Clamp(sub(in.Logprob(), in.anchor()), -maxLogRatio, maxLogRatio)
	}
	return in.logRatio
}

// Ratio is the importance ratio exp(LogRatio).
func (in *Inputs) Ratio() *gorgonia.Node {
	if in.ratio == nil {
		in.ratio = exp(in.LogRatio())
	}
	return in.ratio
}

// SequenceRatio is the geometric mean of the ratios of the token's sequence,
// within e^±20. Its gradient goes to the token alone, as in the token form of
// GSPO (arXiv 2507.18071, section 4.3): the sum of the gradients over a sequence
// is that of the sequence's own ratio.
func (in *Inputs) SequenceRatio() *gorgonia.Node {
	rest := in.Frozen("rest of the sequence's log ratio", func(t Tokens, out []float64) {
		t.spread(out, func(i int) float64 { return t.Logprobs[i] - t.Anchors[i] })
		for i := range out {
			out[i] -= t.Logprobs[i] - t.Anchors[i]
		}
	})
	return exp(in.Clamp(add(sub(in.Logprob(), in.anchor()), rest), -maxLogRatio, maxLogRatio))
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

func (in *Inputs) anchor() *gorgonia.Node {
	in.anchored = true
	return in.stored("anchor", func(t *Tokens) []float64 { return t.Anchors })
}

// Reference is the log-probability under the frozen reference. An objective that asks
// for it is given one, and finds it in Tokens.References, too.
func (in *Inputs) Reference() *gorgonia.Node {
	in.needsReferences = true
	return in.stored("reference", func(t *Tokens) []float64 { return t.References })
}

func (in *Inputs) stored(name string, from func(t *Tokens) []float64) *gorgonia.Node {
	return in.input(feed{name: name, stored: from})
}

func (in *Inputs) computed(name string, compute func(t Tokens, out []float64)) *gorgonia.Node {
	return in.input(feed{name: name, computed: compute})
}

func (in *Inputs) input(f feed) *gorgonia.Node {
	if i := slices.IndexFunc(in.feeds, func(g feed) bool { return g.name == f.name }); i >= 0 {
		return in.feeds[i].node
	}
	f.node = gorgonia.NewVector(in.graph, tensor.Float64, gorgonia.WithShape(in.n), gorgonia.WithName(f.name))
	in.feeds = append(in.feeds, f)
	return f.node
}

func mul(a, b *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.HadamardProd(a, b)) }
func add(a, b *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.Add(a, b)) }
func sub(a, b *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.Sub(a, b)) }
func div(a, b *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.HadamardDiv(a, b)) }
func neg(a *gorgonia.Node) *gorgonia.Node        { return gorgonia.Must(gorgonia.Neg(a)) }
func exp(a *gorgonia.Node) *gorgonia.Node        { return gorgonia.Must(gorgonia.Exp(a)) }
func square(a *gorgonia.Node) *gorgonia.Node     { return gorgonia.Must(gorgonia.Square(a)) }
func smaller(a, b *gorgonia.Node) *gorgonia.Node { return gorgonia.Must(gorgonia.MinBetween(a, b)) }
func larger(a, b *gorgonia.Node) *gorgonia.Node  { return gorgonia.Must(gorgonia.MaxBetween(a, b)) }

// bound keeps a log ratio within ±maxLogRatio. (Branches, which are never taken
// in practice, are faster here than max and min.)
func bound(logRatio float64) float64 {
	if logRatio > maxLogRatio {
		return maxLogRatio
	}
	if logRatio < -maxLogRatio {
		return -maxLogRatio
	}
	return logRatio
}
