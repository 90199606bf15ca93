package selfplay

import (
	"context"
	"sync"
)

// maxMemo bounds a memo; past it, everything finished is forgotten.
const maxMemo = 256

// memo remembers results by key and computes each once, also for callers that
// ask at the same time. The zero value is ready for use.
type memo[T any] struct {
	mu    sync.Mutex
	cells map[string]*cell[T]
}

type cell[T any] struct {
	ready chan struct{} // closed when value and keep are set
	value T
	keep  bool
}

// do returns what f returned for key before, or calls it. f also says whether
// its result is worth keeping; a caller that waited for one that is not calls
// its own f. remembered is true when f was not called.
func (m *memo[T]) do(ctx context.Context, key string, f func() (value T, keep bool, err error)) (value T, remembered bool, err error) {
	for {
		m.mu.Lock()
		c, ok := m.cells[key]
		if !ok {
			if m.cells == nil || len(m.cells) >= maxMemo {
				m.cells = map[string]*cell[T]{}
			}
			c = &cell[T]{ready: make(chan struct{})}
			m.cells[key] = c
		}
		m.mu.Unlock()
		if !ok {
			value, keep, err := f()
			c.value, c.keep = value, keep && err == nil
			if !c.keep {
				m.mu.Lock()
				if m.cells[key] == c {
					delete(m.cells, key)
				}
				m.mu.Unlock()
			}
			close(c.ready)
			return value, false, err
		}
		select {
		case <-c.ready:
		case <-ctx.Done():
			return value, false, context.Cause(ctx)
		}
		if c.keep {
			return c.value, true, nil
		}
	}
}
