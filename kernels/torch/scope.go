package torch

import "slices"

// slabBytes is the least that an Arena asks libtorch for at a time.
const slabBytes = 16 << 20

// Arena is scratch memory of one worker: scopes take from it and give back in
// the order of a stack, so that a training step touches the same pages again
// and again instead of asking the system for fresh ones. It is used by one
// goroutine at a time.
type Arena struct {
	books   Meter
	device  Device
	purpose Purpose
	slabs   []*Tensor
	open    []*Scope
}

// NewArena returns an arena that holds no memory yet, of the CPU's.
func NewArena(purpose Purpose, dtype DType) *Arena { return CPU.NewArena(purpose, dtype) }

// Free returns the memory; all scopes must be closed.
func (a *Arena) Free() {
	if len(a.open) != 0 {
		panic("torch: arena freed while a scope is open")
	}
	for _, s := range a.slabs {
		s.Free()
	}
	a.slabs, a.books = nil, Meter{dtype: a.books.dtype}
}

// Reserve takes, of an arena that holds none yet, the memory that a meter's books came to:
// what takes no more, in the same order, will then not ask for any.
func (a *Arena) Reserve(m *Meter) {
	a.books = Meter{dtype: a.books.dtype, sizes: slices.Clone(m.sizes)}
	for _, n := range m.sizes {
		a.slabs = append(a.slabs, a.device.alloc(a.purpose, a.books.dtype, []int{n}))
	}
}

// take returns the slab and offset of n elements.
func (a *Arena) take(n int) (*Tensor, int) {
	slab, offset := a.books.Take(n)
	if slab == len(a.slabs) {
		a.slabs = append(a.slabs, a.device.alloc(a.purpose, a.books.dtype, []int{a.books.sizes[slab]}))
	}
	return a.slabs[slab], offset
}

// Meter keeps the books of an Arena, which tells how much one will hold without
// taking any memory.
type Meter struct {
	dtype DType
	sizes []int // elements of each slab
	mark  Mark
}

// Mark is a place in a meter's books, to go back to.
type Mark struct{ slab, used int }

// NewMeter returns a meter of an arena of that dtype.
func NewMeter(dtype DType) *Meter { return &Meter{dtype: dtype} }

// Take books n elements, aligned to a cache line, and says where they are.
func (m *Meter) Take(n int) (slab, offset int) {
	line := 64 / m.dtype.Size()
	n = (n + line - 1) / line * line
	at := &m.mark
	for ; at.slab < len(m.sizes) && at.used+n > m.sizes[at.slab]; at.slab, at.used = at.slab+1, 0 {
	}
	if at.slab == len(m.sizes) {
		m.sizes = append(m.sizes, max(n, slabBytes/m.dtype.Size()))
	}
	at.used += n
	return at.slab, at.used - n
}

// Mark is the place where the next elements are booked, and Release goes back there.
func (m *Meter) Mark() Mark        { return m.mark }
func (m *Meter) Release(mark Mark) { m.mark = mark }

// Held is the bytes of all slabs, in use or not.
func (m *Meter) Held() int64 {
	n := 0
	for _, s := range m.sizes {
		n += s
	}
	return int64(n) * int64(m.dtype.Size())
}

// Scope opens a scope, within those that are open.
func (a *Arena) Scope() *Scope {
	s := &Scope{arena: a, depth: len(a.open), mark: a.books.Mark()}
	a.open = append(a.open, s)
	return s
}

// Scope owns tensors; Close frees them all.
type Scope struct {
	arena *Arena
	depth int // index in arena.open; -1 when closed
	mark  Mark
	owned []*Tensor
}

// Empty is a tensor of the scope, of the arena's dtype and undefined content.
// The scope must be the innermost one.
func (s *Scope) Empty(shape ...int) *Tensor {
	if s.depth != len(s.arena.open)-1 {
		panic("torch: memory asked of a scope that is not the innermost")
	}
	slab, offset := s.arena.take(elements("Empty", shape))
	return s.Own(slab.View(offset, shape...))
}

// Half is Empty of bfloat16, in memory of a float32 arena.
func (s *Scope) Half(shape ...int) *Tensor {
	n := elements("Half", shape)
	pairs := s.Empty((n + 1) / 2)
	all := s.Own(pairs.as(BFloat16))
	return s.Own(all.View(0, shape...))
}

// Own makes the scope free t, for instance a view, and returns it.
func (s *Scope) Own(t *Tensor) *Tensor {
	s.owned = append(s.owned, t)
	return t
}

// Nest opens a scope within this one.
func (s *Scope) Nest() *Scope { return s.arena.Scope() }

// Close frees the scope's tensors and gives their memory back, after closing
// what is still open within it (a panic may have skipped that). Closing twice
// does nothing.
func (s *Scope) Close() {
	if s.depth < 0 {
		return
	}
	a, depth := s.arena, s.depth
	for i := len(a.open) - 1; i >= depth; i-- {
		inner := a.open[i]
		for j := len(inner.owned) - 1; j >= 0; j-- {
			inner.owned[j].Free()
		}
		inner.owned = nil
		inner.depth = -1
		a.books.Release(inner.mark)
	}
	a.open = a.open[:depth]
}
