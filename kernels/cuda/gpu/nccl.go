//go:build gpu

package gpu

// #include "nccl.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/ssr-go/ssr/kernels/torch"
)

// Ring reduces vectors between GPUs of one process with NCCL; it is the Reducer of
// rl/train/replicas over them. Sums are the same in every run on the same devices, in
// NCCL's order.
type Ring struct {
	machines []*Machine
	comms    []unsafe.Pointer
	end      sync.Once
}

// NewRing joins the GPUs of these numbers, no two alike; rank i is numbers[i].
func NewRing(numbers []int) (*Ring, error) {
	if len(numbers) == 0 {
		return nil, errors.New("gpu: a ring of no GPU")
	}
	r := &Ring{comms: make([]unsafe.Pointer, len(numbers))}
	devices, why := Devices()
	ordinals := make([]C.int, len(numbers))
	for i, number := range numbers {
		switch {
		case number < 0 || number >= len(devices):
			return nil, fmt.Errorf("gpu: no GPU number %d of %d: %s", number, len(devices), why)
		case slices.Contains(numbers[:i], number):
			return nil, fmt.Errorf("gpu: GPU number %d is given twice; NCCL needs one for each rank", number)
		}
		ordinals[i] = C.int(number)
		r.machines = append(r.machines, &Machine{device: number})
	}
	if why := C.ssr_nccl_init(&r.comms[0], C.int(len(numbers)), &ordinals[0]); why != nil {
		return nil, fmt.Errorf("gpu: NCCL over %d GPUs: %s", len(numbers), C.GoString(why))
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

// bucket is how many elements are queued at a time: 16 MB of float32, long enough to be
// bound by the bandwidth between devices and not by their latency.
const bucket = 4 << 20

// ReduceScatter leaves the sum over all ranks in the part [bounds[r], bounds[r+1]) of
// each rank r's vector.
func (r *Ring) ReduceScatter(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	return r.buckets(bounds, func(lo, n, owner int) error {
		return r.run(ctx, "reduce", rank, func(s unsafe.Pointer) *C.char {
			return C.ssr_nccl_reduce(vector.Address(lo), code(vector), C.ulong(n), C.int(owner), r.comms[rank], s)
		})
	})
}

// AllGather copies the part [bounds[r], bounds[r+1]) of each rank r's vector to all
// others.
func (r *Ring) AllGather(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	return r.buckets(bounds, func(lo, n, owner int) error {
		return r.run(ctx, "broadcast", rank, func(s unsafe.Pointer) *C.char {
			return C.ssr_nccl_broadcast(vector.Address(lo), code(vector), C.ulong(n), C.int(owner), r.comms[rank], s)
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

// code is NCCL's for the elements of a vector.
func code(vector *torch.Tensor) C.int {
	if vector.DType() == torch.Float64 {
		return C.ssr_nccl_float64
	}
	return C.ssr_nccl_float32
}

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
