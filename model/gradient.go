package model

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/ssr-go/ssr/kernels/torch"
)

// unit is a stretch [lo, hi) of the gradient that is in memory as one, in a slot of
// each lane that it may share with others. A whole gradient is one unit. With
// Options.ShardGradient a layer is one, and layers take turns in two slots: the gradient of
// one is summed while the next is computed. The embedding and a head of its own, each
// longer than many a layer, have a third; an embedding that is the head holds it through the
// whole backward pass.
type unit struct{ lo, hi, slot int }

// units of what is trained, in order.
func (o Options) units(trained []Parameter, total int) (all []unit) {
	if !o.ShardGradient {
		return []unit{{0, total, 0}}
	}
	last := ""
	for _, t := range trained {
		group, slot := t.Name, 2
		if rest, ok := strings.CutPrefix(t.Name, "model.layers."); ok {
			group, _, _ = strings.Cut(rest, ".")
			layer, _ := strconv.Atoi(group)
			slot = layer % 2
		} else if t.Name == normName { // goes with the last layer
			if len(all) > 0 {
				continue
			}
			slot = 0
		}
		if group != last {
			all = append(all, unit{lo: t.offset, slot: slot})
			last = group
		}
	}
	for i := range all {
		all[i].hi = total
		if i+1 < len(all) {
			all[i].hi = all[i+1].lo
		}
	}
	return all
}

// slotLengths is the length of each slot.
func slotLengths(units []unit) (n []int) {
	for _, u := range units {
		for len(n) <= u.slot {
			n = append(n, 0)
		}
		n[u.slot] = max(n[u.slot], u.hi-u.lo)
	}
	return n
}

func (p *Policy) unitAt(offset int) unit {
	return p.units[slices.IndexFunc(p.units, func(u unit) bool { return offset < u.hi })]
}

// Pieces are where the pieces of the gradient begin that Reduce takes one after the
// other; nil where it is whole.
func (p *Policy) Pieces() (begin []int) {
	for _, u := range p.units {
		if p.options.ShardGradient {
			begin = append(begin, u.lo)
		}
	}
	return begin
}

// holder is the unit of a pass that has a slot.
type holder struct {
	pass int64 // from 1; 0 is none
	lo   int
}

// slots tell which unit has which slot of the lanes.
type slots struct {
	passes  int64 // that have begun
	mu      sync.Mutex
	holders [3]holder
	freed   chan struct{} // closed with the next free; nil where nobody waits for it
}

// take waits until a slot is free, or the caller's already.
func (s *slots) take(ctx context.Context, slot int, h holder) error {
	for {
		s.mu.Lock()
		if now := s.holders[slot]; now == (holder{}) || now == h {
			s.holders[slot] = h
			s.mu.Unlock()
			return nil
		}
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		freed := s.freed
		s.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *slots) free(slot int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders[slot] = holder{}
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// needGradients allocates what gradients need.
func (p *Policy) needGradients() (err error) {
	defer torch.Catch(&err)
	empty := func(n int) *torch.Tensor { return p.options.Device.New(torch.Gradients, p.flat.DType(), n) }
	for i := range p.lanes {
		if l := &p.lanes[i]; l.weights == nil {
			for _, n := range slotLengths(p.units)[len(l.grad):] {
				l.grad = append(l.grad, empty(n))
			}
			l.weights = p.newGradient(l.grad)
		}
	}
	if lo, hi, _ := p.Shard(); p.options.ShardGradient && p.sum == nil {
		p.sum = empty(hi - lo)
	}
	return nil
}

// newGradient lays the memory of a lane's gradients out.
func (p *Policy) newGradient(slots []*torch.Tensor) *Weights {
	view := func(offset int, shape ...int) *torch.Tensor {
		u := p.unitAt(offset)
		return slots[u.slot].View(offset-u.lo, shape...)
	}
	untrained := p.flat.Len() - p.live.Len()
	if p.options.LoRA != nil {
		untrained = p.flat.Len()
	}
	w := newWeights(p.config, p.params, func(offset int, shape ...int) *torch.Tensor {
		if offset < untrained {
			return nil
		}
		return view(offset-untrained, shape...)
	})
	if l := p.options.LoRA; l != nil {
		w.adapt(p.config, l, p.options.FreezeLayers, p.trained, view)
	}
	return w
}

// shardGradient is that of the shard; the caller frees it.
func (p *Policy) shardGradient() *torch.Tensor {
	lo, hi, _ := p.Shard()
	if p.options.ShardGradient {
		return p.sum.Rows(0, hi-lo)
	}
	return p.lanes[0].grad[0].Rows(lo, hi)
}

func (p *Policy) clearGradient() {
	p.all(func(worker int) {
		for _, t := range p.lanes[worker].grad {
			t.Zero()
		}
	})
	if p.sum != nil {
		p.sum.Zero()
	}
	for slot := range p.slots.holders {
		p.slots.free(slot)
	}
}
