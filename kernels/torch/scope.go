package torch

// slabBytes is the least that an Arena asks libtorch for at a time.
const slabBytes = 16 << 20

// Arena is scratch memory of one worker: scopes take from it and give back in
// the order of a stack, so that a training step touches the same pages again
// and again instead of asking the system for fresh ones. It is used by one
// goroutine at a time.
type Arena struct {
	dtype   DType
	purpose Purpose
	slabs   []*Tensor
	slab    int // the slab in use
	used    int // elements of it that are taken
	open    []*Scope
}

// NewArena returns an arena that holds no memory yet.
func NewArena(purpose Purpose, dtype DType) *Arena {
	return &Arena{purpose: purpose, dtype: dtype}
}

// Free returns the memory; all scopes must be closed.
func (a *Arena) Free() {
	if len(a.open) != 0 {
		panic("torch: arena freed while a scope is open")
	}
	for _, s := range a.slabs {
		s.Free()
	}
	a.slabs, a.slab, a.used = nil, 0, 0
}

// Scope opens a scope, within those that are open.
func (a *Arena) Scope() *Scope {
	s := &Scope{arena: a, depth: len(a.open), slab: a.slab, used: a.used}
	a.open = append(a.open, s)
	return s
}

// take returns the slab and offset of n elements, aligned to a cache line.
func (a *Arena) take(n int) (*Tensor, int) {
	line := 64 / a.dtype.Size()
	n = (n + line - 1) / line * line
	for ; a.slab < len(a.slabs); a.slab, a.used = a.slab+1, 0 {
		if s := a.slabs[a.slab]; a.used+n <= s.Len() {
			a.used += n
			return s, a.used - n
		}
	}
	s := alloc(a.purpose, a.dtype, []int{max(n, slabBytes/a.dtype.Size())})
	a.slabs = append(a.slabs, s)
	a.used = n
	return s, 0
}

// Scope owns tensors; Close frees them all.
type Scope struct {
	arena      *Arena
	depth      int // index in arena.open; -1 when closed
	slab, used int
	owned      []*Tensor
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
		a.slab, a.used = inner.slab, inner.used
	}
	a.open = a.open[:depth]
}
