package rl

import (
	"math"
	"slices"
	"syscall"
	"testing"
	"time"

	"gorgonia.org/gorgonia"
	"pgregory.net/rapid"
)

// taped is the same objective on Gorgonia's tape.
func taped(t *testing.T, o *graphObjective) *graphObjective {
	t.Helper()
	m, err := compile(o.eval.expression, machineSizes[0], true)
	if err != nil {
		t.Fatal(err)
	}
	return &graphObjective{o.settings, &evaluator{
		expression: o.eval.expression, first: m, tapes: map[int]*machine{machineSizes[0]: m},
		vectors: make([][]float64, len(m.in.feeds)), scratch: make([][]float64, len(m.in.feeds)),
	}}
}

// TestProgramIsTheTape: every objective of ours runs as a program, and computes
// what Gorgonia's own machine does: the gradient to the bit, the loss up to the
// order of its sum.
func TestProgramIsTheTape(t *testing.T) {
	for name, o := range allObjectives(t) {
		t.Run(name, func(t *testing.T) {
			if o.eval.first.program == nil {
				t.Fatal("it has no program")
			}
			slow := taped(t, o)
			rapid.Check(t, func(t *rapid.T) {
				b := batchGen(8, rapid.SampledFrom([]float64{0.5, 30}).Draw(t, "spread")).Draw(t, "batch")
				want, err := slow.Evaluate(b)
				if err != nil {
					t.Fatal(err)
				}
				have, err := o.Evaluate(b)
				if err != nil {
					t.Fatal(err)
				}
				if !close(have.Loss, want.Loss, 1e-13) {
					t.Fatalf("loss %g, on the tape %g", have.Loss, want.Loss)
				}
				for i := range want.Grad {
					if have.Grad[i] != want.Grad[i] {
						t.Fatalf("gradient of token %d is %v, on the tape %v", i, have.Grad[i], want.Grad[i])
					}
				}
				for k, v := range want.Metrics {
					if !close(have.Metrics[k], v, 1e-13) {
						t.Fatalf("%s is %g, on the tape %g", k, have.Metrics[k], v)
					}
				}
			})
		})
	}
}

// TestSizes crosses the borders between blocks, and between the tape's shapes.
func TestSizes(t *testing.T) {
	s := Settings{ClipLow: 0.2, ClipHigh: 0.25, Aggregation: Constant, Length: 100}
	o, err := New("clip", s)
	if err != nil {
		t.Fatal(err)
	}
	slow := taped(t, o.(*graphObjective))
	for _, n := range []int{9000, 1, 63, 64, 65, 511, 512, 513, 1024, 4095, 4096, 4097, 2} {
		b := bigBatch(n + 1)
		loss, grad := clipReference(b, s)
		for what, o := range map[string]Objective{"program": o, "tape": slow} {
			res, err := o.Evaluate(b)
			if err != nil {
				t.Fatal(err)
			}
			near(t, what+": loss", res.Loss, loss, 1e-10*(1+math.Abs(loss)))
			for i := range grad {
				if math.Abs(res.Grad[i]-grad[i]) > 1e-14 {
					t.Fatalf("%s, %d tokens: gradient of token %d is %g, want %g", what, n, i, res.Grad[i], grad[i])
				}
			}
		}
	}
	if n := len(slow.eval.tapes); n != len(machineSizes) {
		t.Errorf("%d machines for %d shapes", n, len(machineSizes))
	}
}

// TestOtherOperations: an operation that programs do not know runs on the tape,
// over whatever constants.
func TestOtherOperations(t *testing.T) {
	o, err := Compose(Expression{Build: func(in *Inputs) *gorgonia.Node {
		return mul(in.Const(3), gorgonia.Must(gorgonia.Tanh(in.Logprob())))
	}}, Settings{Aggregation: SequenceSum})
	if err != nil {
		t.Fatal(err)
	}
	if o.(*graphObjective).eval.first.program != nil {
		t.Fatal("the tape was not asked")
	}
	b := bigBatch(600)
	res, err := o.Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 600; i++ {
		c := math.Cosh(b.Logprobs[i])
		near(t, "gradient", res.Grad[i], 3/(c*c), 1e-12)
	}
}

// TestSharedComparison: a comparison that two products use is computed once, and
// its operands, whose registers are given away in between, are not read again.
func TestSharedComparison(t *testing.T) {
	o, err := Compose(Expression{Build: func(in *Inputs) *gorgonia.Node {
		l := in.Logprob()
		d := neg(in.LogRatio())
		same := gorgonia.Must(gorgonia.Eq(d, in.Clamp(d, -0.02, 0.02), true))
		first := mul(same, l)
		for range 5 {
			first = add(square(first), l)
		}
		return add(first, mul(same, square(l)))
	}}, Settings{Aggregation: SequenceSum})
	if err != nil {
		t.Fatal(err)
	}
	if o.(*graphObjective).eval.first.program == nil {
		t.Fatal("it has no program")
	}
	b := bigBatch(100)
	for i := range b.Logprobs {
		b.Logprobs[i] /= 10
		b.RolloutLogprobs[i] /= 10
	}
	want, err := taped(t, o.(*graphObjective)).Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	have, err := o.Evaluate(b)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "loss", have.Loss, want.Loss, 1e-12)
	if !slices.Equal(have.Grad, want.Grad) {
		t.Errorf("gradient %v, on the tape %v", have.Grad[:5], want.Grad[:5])
	}
}

// TestNoGarbage: what an evaluation leaves behind does not depend on how many
// went before, and is the result alone.
func TestNoGarbage(t *testing.T) {
	o, err := New("dapo", Settings{ClipLow: 0.2, ClipHigh: 0.28, DualClip: 3, KLCoef: 0.1, Aggregation: TokenMean})
	if err != nil {
		t.Fatal(err)
	}
	b := bigBatch(5000)
	b.ReferenceLogprobs = b.RolloutLogprobs
	evaluate := func() {
		if _, err := o.Evaluate(b); err != nil {
			t.Fatal(err)
		}
	}
	evaluate()
	first := testing.AllocsPerRun(10, evaluate)
	if later := testing.AllocsPerRun(10, evaluate); later > first || first > 20 {
		t.Errorf("%v allocations, later %v", first, later)
	}
}

// fused is PPO's clip by hand, value and gradient in one loop: what there is to
// compare speed with.
func fused(b Batch, s Settings) (float64, []float64) {
	grad := make([]float64, len(b.Logprobs))
	w := 1 / float64(s.Length*b.Totals.Sequences)
	var loss float64
	for i, trained := range b.Mask {
		if !trained {
			continue
		}
		d := b.Logprobs[i] - b.RolloutLogprobs[i]
		r := math.Exp(max(-maxLogRatio, min(maxLogRatio, d)))
		a := -b.Advantages[i]
		free, kept := r*a, max(1-s.ClipLow, min(1+s.ClipHigh, r))*a
		loss += w * max(free, kept)
		if free >= kept && d >= -maxLogRatio && d <= maxLogRatio {
			grad[i] = w * free
		}
	}
	return loss, grad
}

// BenchmarkClip1M reports, beside the mean time, the least processor time of a
// call, which other processes on the machine change little.
func BenchmarkClip1M(b *testing.B) {
	s, err := Defaults("clip")
	if err != nil {
		b.Fatal(err)
	}
	o, err := New("clip", s)
	if err != nil {
		b.Fatal(err)
	}
	batch := bigBatch(1_000_000)
	measure := func(b *testing.B, call func()) {
		b.ReportAllocs()
		least := time.Duration(math.MaxInt64)
		for b.Loop() {
			began := processorTime(b)
			call()
			least = min(least, processorTime(b)-began)
		}
		b.ReportMetric(1e3*least.Seconds(), "least-ms")
	}
	b.Run("objective", func(b *testing.B) {
		measure(b, func() {
			if _, err := o.Evaluate(batch); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("handwritten", func(b *testing.B) { measure(b, func() { fused(batch, s) }) })
}

func processorTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
