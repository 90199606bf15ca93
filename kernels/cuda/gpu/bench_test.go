//go:build gpu

package gpu

import (
	"testing"

	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// BenchmarkKernels times each kernel that memory bounds, at the sizes of a policy of
// 7 billion parameters, against the bandwidth of a copy on the same device: the
// metric copy% is bytes that the kernel must move over time, relative to that.
func BenchmarkKernels(b *testing.B) {
	m := open(b)
	const rows, width, inter, vocab, params = 8192, 4096, 12288, 151936, 1 << 28
	room := func(bytes int) cuda.Pointer {
		p, err := m.Alloc(bytes)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Free(p) })
		return p
	}
	scratch, other := room(2<<30), room(2<<30)
	zero := make([]byte, 16<<20)
	for at := 0; at < 2<<30; at += len(zero) {
		for _, p := range []cuda.Pointer{scratch, other} {
			if err := m.Upload(p.At(at, 1), zero); err != nil {
				b.Fatal(err)
			}
		}
	}
	var copyRate float64
	measure := func(name string, bytes int, run func() error) {
		b.Run(name, func(b *testing.B) {
			seconds, err := m.time(b.N, run)
			if err != nil {
				b.Fatal(err)
			}
			rate := float64(bytes) * float64(b.N) / seconds
			if name == "copy" {
				copyRate = rate
			}
			b.ReportMetric(rate/1e9, "GB/s")
			b.ReportMetric(seconds/float64(b.N)*1e6, "µs/launch")
			if copyRate > 0 {
				b.ReportMetric(100*rate/copyRate, "copy%")
			}
		})
	}
	measure("copy", 2<<30, func() error {
		return m.on(func(s cu.Stream) error {
			return cu.MemcpyDtoDAsync(cu.DevicePtr(other), cu.DevicePtr(scratch), 1<<30, s)
		})
	})
	measure("rms_norm_bf16", rows*width*2*2, func() error {
		return cuda.RMSNorm(m, cuda.BF16, scratch, 0, other, scratch.At(1<<30, 1), 0, rows, width, 1e-6)
	})
	measure("rms_norm_bf16+residual", rows*width*2*4, func() error {
		return cuda.RMSNorm(m, cuda.BF16, scratch, scratch.At(1<<29, 1), other, scratch.At(1<<30, 1), 0, rows, width, 1e-6)
	})
	measure("swiglu_bf16", rows*inter*2*3, func() error { return cuda.SwiGLU(m, cuda.BF16, scratch, other, rows, inter) })
	requests := room(64 * cuda.SamplingSize)
	if err := m.Upload(requests, make([]byte, 64*cuda.SamplingSize)); err != nil { // greedy
		b.Fatal(err)
	}
	measure("sample_f32/greedy", 64*vocab*4, func() error {
		return cuda.Sample(m, scratch, requests, 64, vocab, other, other.At(256, 1), other.At(512, 1))
	})
	a := cuda.Attention{Heads: 32, KVHeads: 8, Dim: 128, Scale: 0.088}
	const sequences, keys = 64, 4096
	table := room(sequences * keys / cuda.PageTokens * 4) // block 0 for all would sit in a cache
	lengths := make([]byte, sequences*4)
	blocks := make([]byte, sequences*keys/cuda.PageTokens*4)
	for i := range sequences {
		lengths[i*4+1] = keys >> 8
	}
	perCache := (1 << 30) / (a.PageElements() * 2)
	for i := range len(blocks) / 4 {
		n := i * 7 % perCache
		blocks[i*4], blocks[i*4+1], blocks[i*4+2] = byte(n), byte(n>>8), byte(n>>16)
	}
	length := room(len(lengths))
	for p, from := range map[cuda.Pointer][]byte{table: blocks, length: lengths} {
		if err := m.Upload(p, from); err != nil {
			b.Fatal(err)
		}
	}
	part := room(cuda.DecodeScratch(a, sequences, keys))
	measure("decode_bf16", sequences*keys*a.KVHeads*a.Dim*2*2, func() error {
		return cuda.Decode(m, cuda.BF16, a, other, a.Heads*a.Dim, scratch, table, keys/cuda.PageTokens, length, sequences, keys, part, other.At(1<<20, 1))
	})
	o, err := cuda.NewOptimizer(m, []cuda.Param{{
		Weight: scratch, Master: scratch.At(1<<30, 1), Mean: other, Square: other.At(1<<30, 1), Grad: room(params * 4), N: params,
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer o.Free(m)
	if _, err := o.Norm(m, 0); err != nil {
		b.Fatal(err)
	}
	measure("adamw_bf16", params*(2+4+4*2*3), func() error {
		return o.Step(m, cuda.AdamW{LR: 1e-6, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, Step: 1})
	})
}

// time is the seconds that n runs take on the device, after one to warm up.
func (m *Machine) time(n int, run func() error) (seconds float64, err error) {
	if err := run(); err != nil {
		return 0, err
	}
	err = m.on(func(s cu.Stream) error {
		begin, err := cu.MakeEvent(cu.DefaultEvent)
		if err != nil {
			return err
		}
		end, err := cu.MakeEvent(cu.DefaultEvent)
		if err != nil {
			return err
		}
		if err := begin.Record(s); err != nil {
			return err
		}
		for range n {
			if err := run(); err != nil {
				return err
			}
		}
		if err := end.Record(s); err != nil {
			return err
		}
		if err := end.Synchronize(); err != nil {
			return err
		}
		ms, err := begin.Elapsed(end)
		seconds = ms / 1000
		return err
	})
	return seconds, err
}
