//go:build gpu

package gpu

import (
	"encoding/binary"
	"fmt"
	"testing"

	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// BenchmarkAttention times attention over a bfloat16 cache: one token of each of so many
// sequences, and many tokens of one. The metric roof% is the longer of two times over the
// kernel's own: that of a copy, on the same device, of as many bytes as must be read and
// written, and that of its products at the peak of the tensor cores.
func BenchmarkAttention(b *testing.B) {
	m := open(b)
	ok := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	room := func(bytes int) cuda.Pointer {
		p, err := m.Alloc(bytes)
		ok(err)
		b.Cleanup(func() { m.Free(p) })
		return p
	}
	put := func(values []int64) cuda.Pointer {
		bytes, err := binary.Append(nil, binary.LittleEndian, values)
		ok(err)
		p := room(len(bytes))
		ok(m.Upload(p, bytes))
		return p
	}
	const half = 1 << 30
	cache := room(2 * half)
	q, out := room(half/4), room(half/4)
	zero := make([]byte, 16<<20)
	for at := 0; at < 2*half; at += len(zero) {
		ok(m.Upload(cache.At(at, 1), zero))
	}
	for at := 0; at < half/4; at += len(zero) {
		ok(m.Upload(q.At(at, 1), zero))
	}
	copying, err := m.time(20, func() error {
		return m.on(func(s cu.Stream) error {
			return cu.MemcpyDtoDAsync(cu.DevicePtr(cache.At(half, 1)), cu.DevicePtr(cache), half, s)
		})
	})
	ok(err)
	copyRate := 20 * 2 * half / copying
	peak, err := m.tensorPeak()
	ok(err)
	for _, a := range []cuda.Attention{{Heads: 32, KVHeads: 8, Dim: 128, Scale: 0.088}, {Heads: 14, KVHeads: 2, Dim: 64, Scale: 0.125}} {
		for _, s := range []struct{ sequences, tokens, keys int }{
			{1, 1, 8192}, {64, 1, 1024}, {64, 1, 8192}, {16, 1, 32768}, {1, 512, 8192}, {1, 8192, 8192},
		} {
			pages := 2 * half / (a.PageElements() * 2)
			var tiles []int32
			var blocks []int64 // which may be several sequences': block 0 for all would sit in a cache of the device's
			for i := range s.sequences {
				tiles = a.AppendTiles(tiles, i*s.tokens, s.tokens, len(blocks), s.keys-s.tokens+1)
				for range s.keys / cuda.PageTokens {
					blocks = append(blocks, int64(len(blocks)*7%pages))
				}
			}
			wide := make([]int64, len(tiles))
			for i, v := range tiles {
				wide[i] = int64(v)
			}
			n := len(tiles) / cuda.TileWords
			list, table, scratch := put(wide), put(blocks), cuda.Pointer(0)
			if a.Splits(n) {
				scratch = room(cuda.AttendScratch(a, n, s.keys))
			}
			seen := s.sequences * s.tokens * (2*s.keys - s.tokens + 1) / 2 // pairs of a token and a key
			bytes := s.sequences*s.keys*a.KVHeads*a.Dim*2*2 + s.sequences*s.tokens*a.Heads*a.Dim*4*2
			operations := 4 * seen * a.Heads * a.Dim
			b.Run(fmt.Sprintf("%d×%d of %d keys, %d×%d heads of %d", s.sequences, s.tokens, s.keys, a.KVHeads, a.Heads/a.KVHeads, a.Dim), func(b *testing.B) {
				seconds, err := m.time(b.N, func() error {
					return cuda.Attend(m, a, q, a.Heads*a.Dim, cache, table, list, n, s.keys, scratch, out, 0)
				})
				if err != nil {
					b.Fatal(err)
				}
				each := seconds / float64(b.N)
				b.ReportMetric(each*1e6, "µs/launch")
				b.ReportMetric(float64(bytes)/each/1e9, "GB/s")
				b.ReportMetric(float64(operations)/each/1e12, "TFLOP/s")
				b.ReportMetric(100*max(float64(bytes)/copyRate, float64(operations)/peak)/each, "roof%")
			})
		}
	}
}

// tensorPeak is the multiplications and additions of bfloat16, summed in float32, that the
// device's tensor cores can do a second. A multiprocessor and clock of them: 1024 pairs in
// compute capability 8.0 (NVIDIA A100 Tensor Core GPU Architecture, 2020), 2048 in 9.0
// (NVIDIA H100 Tensor Core GPU Architecture, 2022), taken for later ones too; 256 in those
// between, of GeForce, and twice that of others (NVIDIA Ampere GA102 GPU Architecture, 2021; Ada GPU Architecture, 2023).
func (m *Machine) tensorPeak() (rate float64, err error) {
	err = m.on(func(cu.Stream) error {
		d, err := cu.GetDevice(m.device)
		if err != nil {
			return err
		}
		var of [4]int
		for i, a := range []cu.DeviceAttribute{cu.MultiprocessorCount, cu.ClockRate, cu.ComputeCapabilityMajor, cu.ComputeCapabilityMinor} {
			if of[i], err = d.Attribute(a); err != nil {
				return err
			}
		}
		pairs := 2048
		if of[2] == 8 {
			pairs = 256
			if of[3] == 0 {
				pairs = 1024
			}
		}
		rate = 2 * float64(pairs) * float64(of[0]) * float64(of[1]) * 1e3
		return nil
	})
	return rate, err
}
