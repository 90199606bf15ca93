package emulate_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/emulate"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/model/gen"
)

// TestSampleIsThatOfTheCPU: for one seed, trajectory and position both samplers draw
// the same token. They round their weights differently, so that a draw within 1e-6 of
// a boundary may go either way; of these draws none does.
func TestSampleIsThatOfTheCPU(t *testing.T) {
	const vocab, rows, seed = 1500, 40, 0xfeedface12345678
	rng := rand.New(rand.NewPCG(5, 5))
	m := emulate.New(3)
	alloc := func(n int) cuda.Pointer {
		p, err := m.Alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Free(p) })
		return p
	}
	logits := make([]float32, rows*vocab)
	for i := range logits {
		logits[i] = float32(rng.NormFloat64() * 2)
	}
	var requests []cuda.Sampling
	var want []native.Sampling
	var draws []float64
	for r := range rows {
		id, position := fmt.Sprint("trajectory ", r), rng.IntN(100000)
		s := native.Sampling{Temperature: []float64{1, 0.5, 1.5, 0}[r%4], TopK: []int{0, 50, 0, 7, 0}[r%5], TopP: []float64{0, 0.9, 1}[r%3]}
		requests = append(requests, cuda.Sampling{
			Draw:        cuda.Uniform(gen.NewStream(seed, id).Uniform(position)),
			Temperature: float32(s.Temperature), TopK: int32(s.TopK), TopP: float32(s.TopP),
		})
		s.TopP = float64(float32(s.TopP))
		want, draws = append(want, s), append(draws, gen.NewStream(seed, id).Uniform(position))
	}
	var request, in bytes.Buffer
	if err := binary.Write(&request, binary.LittleEndian, requests); err != nil || request.Len() != rows*cuda.SamplingSize {
		t.Fatalf("%d bytes of requests, %v", request.Len(), err)
	}
	if err := binary.Write(&in, binary.LittleEndian, logits); err != nil {
		t.Fatal(err)
	}
	pl, pr, out := alloc(in.Len()), alloc(request.Len()), alloc(rows*12)
	m.Upload(pl, in.Bytes())
	m.Upload(pr, request.Bytes())
	if err := cuda.Sample(m, pl, pr, rows, vocab, out, out.At(rows, 4), out.At(2*rows, 4)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, rows*12)
	m.Download(got, out)
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(got[i*4:]) }
	for r, s := range want {
		token, lp, slp := native.Sample(logits[r*vocab:(r+1)*vocab], s, draws[r])
		gotLP, gotSLP := math.Float32frombits(word(rows+r)), math.Float32frombits(word(2*rows+r))
		if int32(word(r)) != token || math.Abs(float64(gotLP-lp)) > 1e-5 || math.Abs(float64(gotSLP-slp)) > 1e-5 {
			t.Errorf("row %d, %+v: token %d (%v, %v), on the CPU %d (%v, %v)", r, s, int32(word(r)), gotLP, gotSLP, token, lp, slp)
		}
	}
}
