//go:build gpu

package gpu

// #include "nccl.h"
import "C"

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// Ring reduces float32 vectors between GPUs of one process with NCCL; it is the
// Reducer of rl/train/replicas over machines. Rank i is machine i. Sums are the same
// in every run on the same devices, in NCCL's order.
type Ring struct {
	machines []*Machine
	comms    []unsafe.Pointer
	numbers  []cuda.Pointer // a float64 for each rank
	end      sync.Once
}

// NewRing joins machines on different devices. Close it before they are dropped.
func NewRing(machines []*Machine) (*Ring, error) {
	r := &Ring{machines: machines, comms: make([]unsafe.Pointer, len(machines))}
	if len(machines) == 0 {
		return nil, errors.New("gpu: a ring of no machine")
	}
	devices := make([]C.int, len(machines))
	for i, m := range machines {
		devices[i] = C.int(m.device)
		number, err := m.Alloc(8)
		if err != nil {
			return nil, err
		}
		r.numbers = append(r.numbers, number)
	}
	if why := C.ssr_nccl_init(&r.comms[0], C.int(len(machines)), &devices[0]); why != nil {
		return nil, fmt.Errorf("gpu: NCCL over %d devices: %s", len(machines), C.GoString(why))
	}
	return r, nil
}

// Close ends the ring; a call in progress fails.
func (r *Ring) Close() {
	r.end.Do(func() {
		for _, c := range r.comms {
			C.ssr_nccl_abort(c)
		}
	})
}

// bucket is how many elements are queued at a time: 16 MB, long enough to be bound by
// the bandwidth between devices and not by their latency.
const bucket = 4 << 20

// ReduceScatter leaves the sum over all ranks in the part [bounds[r], bounds[r+1]) of
// each rank r's vector.
func (r *Ring) ReduceScatter(ctx context.Context, rank int, vector cuda.Pointer, bounds []int) error {
	return r.buckets(bounds, func(lo, n, owner int) error {
		return r.run(ctx, "reduce", rank, func(s unsafe.Pointer) *C.char {
			return C.ssr_nccl_reduce(address(vector.At(lo, 4)), C.ulong(n), C.int(owner), r.comms[rank], s)
		})
	})
}

// AllGather copies the part [bounds[r], bounds[r+1]) of each rank r's vector to all
// others.
func (r *Ring) AllGather(ctx context.Context, rank int, vector cuda.Pointer, bounds []int) error {
	return r.buckets(bounds, func(lo, n, owner int) error {
		return r.run(ctx, "broadcast", rank, func(s unsafe.Pointer) *C.char {
			return C.ssr_nccl_broadcast(address(vector.At(lo, 4)), C.ulong(n), C.int(owner), r.comms[rank], s)
		})
	})
}

// buckets calls f for every stretch of n elements of a part with the part's owner.
func (r *Ring) buckets(bounds []int, f func(lo, n, owner int) error) error {
	for owner := range r.machines {
		for lo, end := bounds[owner], bounds[owner+1]; lo < end; lo += bucket {
			if err := f(lo, min(bucket, end-lo), owner); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sum adds a number of each rank.
func (r *Ring) Sum(ctx context.Context, rank int, x float64) (float64, error) {
	m, bytes := r.machines[rank], make([]byte, 8)
	binary.LittleEndian.PutUint64(bytes, math.Float64bits(x))
	if err := m.Upload(r.numbers[rank], bytes); err != nil {
		return 0, err
	}
	err := r.run(ctx, "sum", rank, func(s unsafe.Pointer) *C.char {
		return C.ssr_nccl_sum((*C.double)(address(r.numbers[rank])), r.comms[rank], s)
	})
	if err != nil {
		return 0, err
	}
	err = m.Download(bytes, r.numbers[rank])
	return math.Float64frombits(binary.LittleEndian.Uint64(bytes)), err
}

// address is a device's address as C has it; it is never Go memory.
func address(p cuda.Pointer) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

// run queues an operation and waits for it. Where the context ends first, another
// rank may never come: the whole ring is ended, as NCCL cannot leave one operation.
func (r *Ring) run(ctx context.Context, what string, rank int, queue func(stream unsafe.Pointer) *C.char) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := r.machines[rank].on(func(s cu.Stream) error {
		if why := queue(*(*unsafe.Pointer)(unsafe.Pointer(&s))); why != nil {
			return errors.New(C.GoString(why))
		}
		for pause := time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
			err := s.Query()
			if err != error(cu.NotReady) {
				return err
			}
			select {
			case <-ctx.Done():
				r.Close()
				return ctx.Err()
			case <-time.After(pause):
			}
		}
	})
	if err != nil {
		return fmt.Errorf("gpu: rank %d of %d: %s: %w", rank, len(r.machines), what, err)
	}
	return nil
}
