//go:build gpu

package gpu

import (
	"encoding/binary"
	"fmt"
	"testing"

	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/torch"
)

// BenchmarkKernels times each kernel at the sizes of a policy of 7 billion parameters.
// Its roofline is the longer of two times: that of a copy, on the same device, of as many
// bytes as it must move, and that of its multiplications and additions at the device's
// peak in float32, or, on tensor cores, at the rate of libtorch's product of large
// matrices of bfloat16. The metric roof% is that time over the kernel's own. The products'
// last sizes are those of 0.5 billion parameters.
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
	put := func(values []int64) cuda.Pointer {
		bytes, err := binary.Append(nil, binary.LittleEndian, values)
		if err != nil {
			b.Fatal(err)
		}
		p := room(len(bytes))
		if err := m.Upload(p, bytes); err != nil {
			b.Fatal(err)
		}
		return p
	}
	var copyRate, tensorRate float64
	peak, err := m.peak()
	if err != nil {
		b.Fatal(err)
	}
	roofline := func(name string, bytes, operations int, peak *float64, run func() error) {
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
			if operations > 0 {
				work := float64(operations) * float64(b.N) / seconds
				b.ReportMetric(work/1e9, "GFLOP/s")
				if name == "libtorch's product" {
					tensorRate = work
				}
			}
			if copyRate > 0 && *peak > 0 {
				b.ReportMetric(100*max(float64(bytes)/copyRate, float64(operations) / *peak)*float64(b.N)/seconds, "roof%")
			}
		})
	}
	measure := func(name string, bytes int, run func() error) { roofline(name, bytes, 0, &peak, run) }
	measure("copy", 2<<30, func() error {
		return m.on(func(s cu.Stream) error {
			return cu.MemcpyDtoDAsync(cu.DevicePtr(other), cu.DevicePtr(scratch), 1<<30, s)
		})
	})
	measure("rms_norm_bf16", rows*width*2*2, func() error {
		return cuda.RMSNorm(m, cuda.BF16, cuda.BF16, scratch, 0, other, scratch.At(1<<30, 1), 0, rows, width, 1e-6)
	})
	measure("rms_norm_bf16+residual", rows*width*2*4, func() error {
		return cuda.RMSNorm(m, cuda.BF16, cuda.BF16, scratch, scratch.At(1<<29, 1), other, scratch.At(1<<30, 1), 0, rows, width, 1e-6)
	})
	measure("rms_norm_f32", rows*width*4*2, func() error {
		return cuda.RMSNorm(m, cuda.F32, cuda.F32, scratch, 0, other, scratch.At(1<<30, 1), 0, rows, width, 1e-6)
	})
	const qkv = (32 + 2*8) * 128
	measure("rms_norm_f32/heads", rows*32*128*4*2, func() error {
		return cuda.RMSNormHeads(m, cuda.F32, scratch, other, 0, rows, 32, 128, qkv, 1e-6)
	})
	position, slot := make([]int64, rows), make([]int64, rows)
	for i := range rows {
		position[i], slot[i] = int64(i%4096), int64(i)
	}
	positions, slots := put(position), put(slot)
	cos, sin := other, other.At(4096*64, 4)
	measure("rope_f32", rows*(32+8)*128*4*2, func() error {
		return cuda.Rope(m, cuda.F32, scratch, positions, cos, sin, rows, 32+8, 128, qkv, false)
	})
	measure("rope_append_f32", rows*qkv*4*2, func() error {
		return cuda.RopeAppend(m, cuda.F32, cuda.Attention{Heads: 32, KVHeads: 8, Dim: 128}, scratch, positions, slots, cos, sin, other.At(1<<30, 1), rows)
	})
	measure("swiglu_bf16", rows*inter*2*3, func() error { return cuda.SwiGLU(m, cuda.BF16, cuda.BF16, scratch, other, rows, inter) })
	measure("swiglu_f32", 4096*inter*4*3, func() error { return cuda.SwiGLU(m, cuda.F32, cuda.F32, scratch, other, 4096, inter) })
	measure("swiglu_backward_f32", 4096*inter*4*5, func() error { return cuda.SwiGLUBackward(m, cuda.F32, scratch, other, 4096, inter) })
	const scored = 2048 // rows of logits
	h := cuda.Head{
		DType: cuda.F32, Rows: scored, Vocab: vocab, Chunk: vocab, Logits: scratch, Stats: other, Target: put(make([]int64, scored)),
	}
	vectors := other.At(1<<20, 1)
	measure("head/score", scored*vocab*4, func() error {
		return h.Score(m, present{}, vectors, vectors.At(scored, 4), vectors.At(2*scored, 4))
	})
	measure("head/backward", scored*vocab*4*2, func() error { return h.Backward(m, present{}, vectors, vectors.At(scored, 4)) })
	const tokens = 1 << 20
	measure("objective_f32", tokens*(4*5+1), func() error {
		v := func(i int) cuda.Pointer { return scratch.At(i*tokens, 4) }
		return cuda.Objective(m, cuda.Clip{Low: 0.2, High: 0.2, Scale: 1}, v(0), v(1), v(2), v(3), v(4), tokens, v(5), other, other.At(1<<30, 1))
	})
	const large = 8192
	square := func(dtype torch.DType) *torch.Tensor {
		t := torch.CUDA(0).New(torch.Activations, dtype, large, large)
		b.Cleanup(t.Free)
		return t
	}
	x, w, y := square(torch.BFloat16), square(torch.BFloat16), square(torch.BFloat16)
	roofline("libtorch's product", 3*large*large*2, 2*large*large*large, &tensorRate, func() error {
		torch.Product(y, x, w, nil, false, true)
		return nil
	})
	for _, shape := range [][2]int{{width, width}, {896, 896}, {896, 4864}, {2 * 4864, 896}} {
		for _, r := range []int{1, 8, 16, 64, 256, 4096} {
			for t, peak := range []*float64{cuda.F32: &peak, cuda.BF16: &tensorRate} {
				t, n, c := cuda.DType(t), shape[0], shape[1]
				part := room(max(cuda.LinearScratch(t, cuda.F32, r, n, c), 16))
				roofline(fmt.Sprintf("linear_%v/%d rows, %d to %d", t, r, c, n), n*c*t.Size()+r*(n+c)*4, 2*r*n*c, peak, func() error {
					return cuda.Linear(m, t, cuda.F32, scratch, other, 0, scratch.At(1<<30, 1), r, n, c, false, part)
				})
			}
		}
	}
	requests := room(64 * cuda.SamplingSize)
	if err := m.Upload(requests, make([]byte, 64*cuda.SamplingSize)); err != nil { // greedy
		b.Fatal(err)
	}
	measure("sample_f32/greedy", 64*vocab*4, func() error {
		return cuda.Sample(m, scratch, requests, 64, vocab, other, other.At(256, 1), other.At(512, 1))
	})
	if err := m.Upload(requests, nucleus(64)); err != nil {
		b.Fatal(err)
	}
	measure("sample_f32/top-p", 64*vocab*4, func() error {
		return cuda.Sample(m, scratch, requests, 64, vocab, other, other.At(256, 1), other.At(512, 1))
	})
	a := cuda.Attention{Heads: 32, KVHeads: 8, Dim: 128, Scale: 0.088}
	const sequences, keys = 32, 4096
	perCache := (1 << 30) / (a.PageElements() * 4)
	var blocks, list []int64 // block 0 for all would sit in a cache
	for i := range sequences {
		list = append(list, int64(i), int64(len(blocks)), keys)
		for range keys / cuda.PageTokens {
			blocks = append(blocks, int64(len(blocks)*7%perCache))
		}
	}
	table, queries := put(blocks), put(list)
	part := room(cuda.DecodeScratch(a, sequences, keys))
	measure("decode_f32", sequences*keys*a.KVHeads*a.Dim*4*2, func() error {
		return cuda.Decode(m, a, other, a.Heads*a.Dim, scratch, table, queries, sequences, keys, part, other.At(1<<20, 1), 0)
	})
	o, err := cuda.NewOptimizer(m, []cuda.Param{{
		Weight: scratch, Master: scratch.At(1<<30, 1), Mean: other, Square: other.At(1<<30, 1), Grad: room(params * 4), N: params,
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer o.Free(m)
	measure("grad_squares", params*4, func() error {
		_, err := o.Squares(m)
		return err
	})
	measure("adamw", params*(2+4+4*2*3), func() error {
		return o.Step(m, cuda.AdamW{LR: 1e-6, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, GradScale: 1, Step: 1})
	})
}

// present is a Product whose logits are there.
type present struct{}

func (present) Logits(cuda.Pointer, int, int) error   { return nil }
func (present) Backward(cuda.Pointer, int, int) error { return nil }

// nucleus is n requests for draws of the most probable 95 %.
func nucleus(n int) []byte {
	all := make([]cuda.Sampling, n)
	for i := range all {
		all[i] = cuda.Sampling{Draw: uint64(i) << 46, Temperature: 1, TopP: 0.95}
	}
	bytes, err := binary.Append(nil, binary.LittleEndian, all)
	if err != nil {
		panic(err) // a fixed layout
	}
	return bytes
}

// peak is the multiplications and additions in float32 that the device can do a second:
// two a lane and clock (CUDA C++ Programming Guide, arithmetic instructions: 64 lanes a
// multiprocessor in compute capability 8.0, 128 from 8.6 on).
func (m *Machine) peak() (rate float64, err error) {
	err = m.on(func(cu.Stream) error {
		d, err := cu.GetDevice(m.device)
		if err != nil {
			return err
		}
		processors, err := d.Attribute(cu.MultiprocessorCount)
		if err != nil {
			return err
		}
		khz, err := d.Attribute(cu.ClockRate)
		if err != nil {
			return err
		}
		major, err := d.Attribute(cu.ComputeCapabilityMajor)
		if err != nil {
			return err
		}
		minor, err := d.Attribute(cu.ComputeCapabilityMinor)
		lanes := 128
		if major == 8 && minor == 0 {
			lanes = 64
		}
		rate = 2 * float64(lanes) * float64(processors) * float64(khz) * 1e3
		return err
	})
	return rate, err
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
		defer func() { _ = cu.DestroyEvent(&begin) }()
		end, err := cu.MakeEvent(cu.DefaultEvent)
		if err != nil {
			return err
		}
		defer func() { _ = cu.DestroyEvent(&end) }()
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
