package model

import (
	"syscall"
	"testing"
	"time"
)

// small is the 2 M-parameter shape that the project's figures are given for.
var small = Config{
	ModelType: "qwen2", VocabSize: 2048, Hidden: 192, Intermediate: 512, Layers: 4, Heads: 6, KVHeads: 2, HeadDim: 32,
	MaxPositions: 1024, NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, BOS: -1,
}

// BenchmarkStep is one optimizer step over 16 sequences of 512 tokens. The
// second figure leaves out what other processes took of the machine.
func BenchmarkStep(b *testing.B) {
	p, err := New(small, 1, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	lengths := make([]int, 16)
	for i := range lengths {
		lengths[i] = 512
	}
	tokens, offsets := packed(small, lengths...)
	grad := make([]float64, len(tokens))
	for i := range grad {
		grad[i] = -1 / float64(len(grad))
	}
	n, began := 0, time.Duration(0)
	for b.Loop() {
		if n == 0 {
			began = cpuTime(b)
		}
		err := p.Accumulate(b.Context(), tokens, offsets, func(_, _ []float64) ([]float64, error) { return grad, nil })
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Step(AdamW{LR: 1e-3, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8}, 1); err != nil {
			b.Fatal(err)
		}
		n += len(tokens)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "tokens/s")
	cpu := (cpuTime(b) - began) / time.Duration(p.Workers().Size())
	b.ReportMetric(float64(n)/cpu.Seconds(), "tokens/cpu-s")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
