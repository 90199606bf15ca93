package c10d

import (
	"context"
	"encoding/binary"
	"slices"
	"unsafe"

	"github.com/ssr-go/ssr/kernels/collective"
)

// bucket is how many bytes an operation sends or receives at most, in all: what it
// takes of memory beside the vectors. Tests have a shorter one.
var bucket = 16 << 20

// Vectors is a group as the Reducer of rl/train/replicas, for flat vectors in host
// memory. Every rank adds what the others send it in the order of ranks, so sums are
// those of collective.Local; it sends no more bytes than in a ring. The rank that its
// methods are given is the group's.
type Vectors[F float32 | float64] struct{ *Group }

// ReduceScatter leaves in the part [bounds[r], bounds[r+1]) of each rank r's vector
// the sum over all ranks; the rest of the vectors stays as it is.
func (v Vectors[F]) ReduceScatter(ctx context.Context, rank int, vector []F, bounds []int) error {
	return v.buckets(vector, bounds, func(part func(r int) []F) error {
		own := part(rank)
		send, recv := make([][]byte, v.World()), make([]int, v.World())
		for r := range send {
			if r != rank {
				send[r], recv[r] = memory(part(r)), len(memory(own))
			}
		}
		return v.exchange(ctx, "reduce-scatter", send, recv, func(from [][]byte) {
			terms := make([][]F, len(from))
			for r := range terms {
				terms[r] = elements[F](from[r])
			}
			terms[rank] = own
			collective.Slices[F]{}.Sum(own, terms, 0, len(own))
		})
	})
}

// AllGather copies the part [bounds[r], bounds[r+1]) of each rank r's vector to all
// others.
func (v Vectors[F]) AllGather(ctx context.Context, rank int, vector []F, bounds []int) error {
	return v.buckets(vector, bounds, func(part func(r int) []F) error {
		send, recv := make([][]byte, v.World()), make([]int, v.World())
		for r := range send {
			if r != rank {
				send[r], recv[r] = memory(part(rank)), len(memory(part(r)))
			}
		}
		return v.exchange(ctx, "all-gather", send, recv, func(from [][]byte) {
			for r := range from {
				if r != rank {
					copy(memory(part(r)), from[r])
				}
			}
		})
	})
}

// buckets calls f for one stretch of all parts after the other.
func (v Vectors[F]) buckets(vector []F, bounds []int, f func(part func(r int) []F) error) error {
	longest := 0
	for r := range v.World() {
		longest = max(longest, bounds[r+1]-bounds[r])
	}
	size := max(1, bucket/v.World()/int(unsafe.Sizeof(*new(F))))
	for at := 0; at < longest; at += size {
		err := f(func(r int) []F {
			lo := min(bounds[r]+at, bounds[r+1])
			return vector[lo:min(lo+size, bounds[r+1])]
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AllGatherBytes gives every rank's bytes to all, in the order of ranks.
func (g *Group) AllGatherBytes(ctx context.Context, own []byte) ([][]byte, error) {
	length := binary.LittleEndian.AppendUint64(nil, uint64(len(own)))
	out, longest := make([][]byte, g.World()), 0
	err := g.exchange(ctx, "all-gather", slices.Repeat([][]byte{length}, g.World()), slices.Repeat([]int{8}, g.World()), func(from [][]byte) {
		for r, n := range from {
			out[r] = make([]byte, binary.LittleEndian.Uint64(n))
			longest = max(longest, len(out[r]))
		}
	})
	size := max(1, bucket/g.World())
	for at := 0; at < longest && err == nil; at += size {
		part := func(b []byte) []byte { return b[min(at, len(b)):min(at+size, len(b))] }
		recv := make([]int, g.World())
		for r := range recv {
			recv[r] = len(part(out[r]))
		}
		err = g.exchange(ctx, "all-gather", slices.Repeat([][]byte{part(own)}, g.World()), recv, func(from [][]byte) {
			for r := range from {
				copy(part(out[r]), from[r])
			}
		})
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// memory is a vector's, in this machine's order of bytes.
func memory[F float32 | float64](v []F) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(*new(F))))
}

func elements[F float32 | float64](b []byte) []F {
	return unsafe.Slice((*F)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(*new(F))))
}
