// Package collective moves flat vectors between the members of a group that work
// on one step together: sums that each has a part of, copies of all parts to all,
// sums of numbers. Local is the group of goroutines in one process over host memory.
// Sums are taken in the order of ranks, so a result never depends on who came first.
package collective

import (
	"context"
	"fmt"
	"sync"
)

// Local is a group of n ranks, each a goroutine. All ranks make the same calls in
// the same order, with vectors of the same length. Where the context ends, every
// call that waits for others returns its error.
type Local[F float32 | float64] struct {
	n       int
	meeting *meeting
	vectors [][]F
	numbers []float64
}

// NewLocal returns a group of n ranks, numbered from 0.
func NewLocal[F float32 | float64](n int) *Local[F] {
	if n < 1 {
		panic(fmt.Sprintf("collective: a group of %d", n))
	}
	return &Local[F]{n: n, meeting: newMeeting(n), vectors: make([][]F, n), numbers: make([]float64, n)}
}

// ReduceScatter leaves in the part [bounds[r], bounds[r+1]) of each rank r's vector
// the sum over all ranks; the rest of the vectors stays as it is. The ranks add at
// the same time, each its part.
func (l *Local[F]) ReduceScatter(ctx context.Context, rank int, vector []F, bounds []int) error {
	l.vectors[rank] = vector
	if err := l.meeting.wait(ctx); err != nil {
		return err
	}
	for i := bounds[rank]; i < bounds[rank+1]; i++ {
		// Rank 0 first, whoever adds.
		sum := l.vectors[0][i]
		for r := 1; r < l.n; r++ {
			sum += l.vectors[r][i]
		}
		vector[i] = sum
	}
	return l.meeting.wait(ctx)
}

// AllGather copies the part [bounds[r], bounds[r+1]) of each rank r's vector to all
// others.
func (l *Local[F]) AllGather(ctx context.Context, rank int, vector []F, bounds []int) error {
	l.vectors[rank] = vector
	if err := l.meeting.wait(ctx); err != nil {
		return err
	}
	for r, from := range l.vectors {
		if r != rank {
			copy(vector[bounds[r]:bounds[r+1]], from[bounds[r]:bounds[r+1]])
		}
	}
	return l.meeting.wait(ctx)
}

// Sum adds a number of each rank and gives the result to all.
func (l *Local[F]) Sum(ctx context.Context, rank int, x float64) (float64, error) {
	l.numbers[rank] = x
	if err := l.meeting.wait(ctx); err != nil {
		return 0, err
	}
	sum := 0.0
	for _, v := range l.numbers {
		sum += v
	}
	return sum, l.meeting.wait(ctx)
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
