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

// Ring reduces vectors between GPUs with NCCL, of one process or of several; it is the
// Reducer of rl/train/replicas over them. Sums are the same in every run on the same
// devices, in NCCL's order.
type Ring struct {
	world   int
	members map[int]*member // those of this process, by rank
	calls   sync.WaitGroup  // in progress
	mutex   sync.Mutex
	ended   bool
	free    sync.Once
}

// errEnded is what operations of a ring return once one of them was broken off, or the
// ring was closed.
var errEnded = errors.New("the ring has ended")

// member is a GPU in a ring. Its operations wait for what libtorch has queued, and for
// nothing that it queues later: they have a stream of their own.
type member struct {
	*Machine
	comm   unsafe.Pointer // nil until it has joined
	stream cu.Stream
	queued cu.Event
}

func newMember(number int) (*member, error) {
	m := &member{Machine: &Machine{device: number}}
	err := m.on(func(cu.Stream) (err error) {
		if m.stream, err = cu.MakeStream(cu.NonBlocking); err == nil {
			m.queued, err = cu.MakeEvent(cu.DisableTiming)
		}
		return err
	})
	if err != nil {
		m.free()
		return nil, fmt.Errorf("gpu: device %d: a stream: %w", number, err)
	}
	return m, nil
}

// free gives back what newMember took. A ring ends where it fails, and cannot be mended.
func (m *member) free() {
	_ = m.on(func(cu.Stream) error {
		if m.queued != (cu.Event{}) {
			_ = cu.DestroyEvent(&m.queued)
		}
		if m.stream != (cu.Stream{}) {
			_ = m.stream.Destroy()
		}
		return nil
	})
}

// NewRing joins the GPUs of these numbers, no two alike; rank i is numbers[i].
func NewRing(numbers []int) (*Ring, error) {
	if len(numbers) == 0 {
		return nil, errors.New("gpu: a ring of no GPU")
	}
	for i, number := range numbers {
		if err := known(number); err != nil {
			return nil, err
		}
		if slices.Contains(numbers[:i], number) {
			return nil, fmt.Errorf("gpu: GPU number %d is given twice; NCCL needs one for each rank", number)
		}
	}
	r := &Ring{world: len(numbers), members: map[int]*member{}}
	ordinals, comms := make([]C.int, len(numbers)), make([]unsafe.Pointer, len(numbers))
	for i, number := range numbers {
		m, err := newMember(number)
		if err != nil {
			r.Close()
			return nil, err
		}
		ordinals[i], r.members[i] = C.int(number), m
	}
	if why := C.ssr_nccl_init(&comms[0], C.int(len(numbers)), &ordinals[0]); why != nil {
		r.Close()
		return nil, fmt.Errorf("gpu: NCCL over %d GPUs: %s", len(numbers), C.GoString(why))
	}
	for i, m := range r.members {
		m.comm = comms[i]
	}
	return r, nil
}

// idLen is the length of a ring's name.
const idLen = int(C.sizeof_ssr_nccl_id)

// NewRingID names a ring of several processes, for all of them to join.
func NewRingID() ([]byte, error) {
	var id C.ssr_nccl_id
	if why := C.ssr_nccl_new_id(&id); why != nil {
		return nil, fmt.Errorf("gpu: NCCL: %s", C.GoString(why))
	}
	return C.GoBytes(unsafe.Pointer(&id), C.int(idLen)), nil
}

// JoinRing makes the GPU of that number a rank of the ring of world processes that id
// names, and returns when all have joined. It cannot be broken off.
func JoinRing(id []byte, number, rank, world int) (*Ring, error) {
	if err := known(number); err != nil {
		return nil, err
	}
	if len(id) != idLen {
		return nil, fmt.Errorf("gpu: %d bytes are not the name of a ring", len(id))
	}
	m, err := newMember(number)
	if err != nil {
		return nil, err
	}
	err = m.on(func(cu.Stream) error {
		if why := C.ssr_nccl_join(&m.comm, (*C.ssr_nccl_id)(unsafe.Pointer(&id[0])), C.int(rank), C.int(world)); why != nil {
			return errors.New(C.GoString(why))
		}
		return nil
	})
	if err != nil {
		m.free()
		return nil, fmt.Errorf("gpu: NCCL, rank %d of %d: %w", rank, world, err)
	}
	return &Ring{world: world, members: map[int]*member{rank: m}}, nil
}

// known says what keeps a GPU from being used.
func known(number int) error {
	devices, why := Devices()
	if number >= 0 && number < len(devices) {
		return nil
	}
	if why == "" {
		why = fmt.Sprintf("there are %d, which count from 0", len(devices))
	}
	return fmt.Errorf("gpu: no GPU number %d: %s", number, why)
}

// Close ends the ring and frees its streams. A call in progress fails; Close waits for it.
func (r *Ring) Close() {
	r.abort()
	r.calls.Wait()
	r.free.Do(func() {
		for _, m := range r.members {
			m.free()
		}
	})
}

// abort ends the ring's communicators, and with them what waits in one.
func (r *Ring) abort() {
	r.mutex.Lock()
	was := r.ended
	r.ended = true
	r.mutex.Unlock()
	if was {
		return
	}
	for _, m := range r.members {
		if m.comm != nil {
			C.ssr_nccl_abort(m.comm)
		}
	}
}

// begin counts a call of the ring, unless that has ended.
func (r *Ring) begin() error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.ended {
		return errEnded
	}
	r.calls.Add(1)
	return nil
}

// whole says that the ring has not ended.
func (r *Ring) whole() error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.ended {
		return errEnded
	}
	return nil
}

// bucket is how many elements are queued at a time: 16 MB of float32, long enough to be
// bound by the bandwidth between devices and not by their latency.
const bucket = 4 << 20

// ReduceScatter leaves the sum over all ranks in the part [bounds[r], bounds[r+1]) of
// each rank r's vector.
func (r *Ring) ReduceScatter(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	return r.buckets(bounds, func(lo, n, owner int) error {
		return r.run(ctx, "reduce", rank, func(s unsafe.Pointer) *C.char {
			return C.ssr_nccl_reduce(vector.Address(lo), code(vector), C.ulong(n), C.int(owner), r.members[rank].comm, s)
		})
	})
}

// AllGather copies the part [bounds[r], bounds[r+1]) of each rank r's vector to all
// others.
func (r *Ring) AllGather(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	return r.buckets(bounds, func(lo, n, owner int) error {
		return r.run(ctx, "broadcast", rank, func(s unsafe.Pointer) *C.char {
			return C.ssr_nccl_broadcast(vector.Address(lo), code(vector), C.ulong(n), C.int(owner), r.members[rank].comm, s)
		})
	})
}

// buckets calls f for every stretch of n elements of a part with the part's owner.
func (r *Ring) buckets(bounds []int, f func(lo, n, owner int) error) error {
	for owner := range r.world {
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
	err := r.begin()
	if err == nil {
		defer r.calls.Done()
		err = r.members[rank].run(ctx, r.abort, queue)
	}
	if err == nil {
		err = r.whole() // an operation that was broken off ends as others do
	}
	if err != nil {
		return fmt.Errorf("gpu: rank %d of %d: %s: %w", rank, r.world, what, err)
	}
	return nil
}

func (m *member) run(ctx context.Context, abort func(), queue func(stream unsafe.Pointer) *C.char) error {
	return m.on(func(libtorch cu.Stream) error {
		s := m.stream
		if err := m.queued.Record(libtorch); err != nil {
			return err
		}
		if err := s.Wait(m.queued, 0); err != nil {
			return err
		}
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
				abort()
				return ctx.Err()
			case <-time.After(pause):
			}
		}
	})
}
