// Package collective moves flat vectors between the members of a group that work
// on one step together: sums that each has a part of, copies of all parts to all.
// Local is the group of goroutines in one process. Sums are taken in the order of
// ranks, so a result never depends on who came first.
package collective

import (
	"context"
	"fmt"
	"sync"
)

// Memory is how vectors of type V are reached.
type Memory[V any] interface {
	// Sum writes elements [lo, hi) of the sum of the terms, added one after the other,
	// to one of the terms; other elements stay as they are.
	Sum(to V, terms []V, lo, hi int) error
	// Copy copies elements [lo, hi).
	Copy(to, from V, lo, hi int) error
}

// Slices are vectors in the memory of Go.
type Slices[F float32 | float64] struct{}

// Sum is that of Memory.
func (Slices[F]) Sum(to []F, terms [][]F, lo, hi int) error {
	for i := lo; i < hi; i++ {
		sum := terms[0][i]
		for _, t := range terms[1:] {
			sum += t[i]
		}
		to[i] = sum
	}
	return nil
}

// Copy is that of Memory.
func (Slices[F]) Copy(to, from []F, lo, hi int) error {
	copy(to[lo:hi], from[lo:hi])
	return nil
}

// Local is a group of n ranks, each a goroutine. All ranks make the same calls in
// the same order, with vectors of the same length. Where the context ends, every
// call that waits for others returns its error.
type Local[V any] struct {
	n       int
	memory  Memory[V]
	meeting *meeting
	vectors []V
}

// NewLocal returns a group of n ranks, numbered from 0.
func NewLocal[V any](n int, memory Memory[V]) *Local[V] {
	if n < 1 {
		panic(fmt.Sprintf("collective: a group of %d", n))
	}
	return &Local[V]{n: n, memory: memory, meeting: newMeeting(n), vectors: make([]V, n)}
}

// ReduceScatter leaves in the part [bounds[r], bounds[r+1]) of each rank r's vector
// the sum over all ranks; the rest of the vectors stays as it is. The ranks add at
// the same time, each its part.
func (l *Local[V]) ReduceScatter(ctx context.Context, rank int, vector V, bounds []int) error {
	return l.together(ctx, rank, vector, func() error {
		return l.memory.Sum(vector, l.vectors, bounds[rank], bounds[rank+1])
	})
}

// AllGather copies the part [bounds[r], bounds[r+1]) of each rank r's vector to all
// others.
func (l *Local[V]) AllGather(ctx context.Context, rank int, vector V, bounds []int) error {
	return l.together(ctx, rank, vector, func() error {
		for r, from := range l.vectors {
			if r == rank {
				continue
			}
			if err := l.memory.Copy(vector, from, bounds[r], bounds[r+1]); err != nil {
				return err
			}
		}
		return nil
	})
}

// together runs f when all ranks have shown their vectors, and waits until all have
// run theirs.
func (l *Local[V]) together(ctx context.Context, rank int, vector V, f func() error) error {
	if l.n == 1 {
		return ctx.Err()
	}
	l.vectors[rank] = vector
	if err := l.meeting.wait(ctx); err != nil {
		return err
	}
	if err := f(); err != nil {
		return fmt.Errorf("collective: rank %d of %d: %w", rank, l.n, err)
	}
	return l.meeting.wait(ctx)
}

// meeting lets n goroutines go on when all have come, again and again.
type meeting struct {
	mu      sync.Mutex
	n, here int
	opened  chan struct{} // closed when all of this turn are here
}

func newMeeting(n int) *meeting { return &meeting{n: n, opened: make(chan struct{})} }

func (m *meeting) wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	opened := m.opened
	if m.here++; m.here == m.n {
		m.here, m.opened = 0, make(chan struct{})
		close(opened)
		m.mu.Unlock()
		return nil
	}
	m.mu.Unlock()
	select {
	case <-opened:
		return nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-opened:
		return nil // the others have come after all and go on
	default:
		m.here-- // so that the group can be used again
		return ctx.Err()
	}
}
