package model

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// finished follows, through the backward pass of an update's last batch, how much of the
// gradient all workers are done with. Nothing follows where it is nil.
type finished struct {
	p    *Policy
	tell func(from int)
	mu   sync.Mutex
	from []int // by worker: it is done with all elements from there on
	told int
}

// following tells, where tell is not nil.
func (p *Policy) following(tell func(from int)) *finished {
	if tell == nil {
		return nil
	}
	n := p.live.Len()
	return &finished{p: p, tell: tell, from: slices.Repeat([]int{n}, len(p.lanes)), told: n}
}

// reach says that a worker is done with the elements from there on.
func (f *finished) reach(worker, from int) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.from[worker] = from
	if from := slices.Max(f.from); from < f.told {
		f.p.sumPart(from, f.told)
		f.told = from
		f.tell(from)
	}
}

// done says that a worker is done with a layer and all after it.
func (f *finished) done(worker, layer int) {
	if f != nil {
		f.reach(worker, f.p.begin(layer))
	}
}

// begin is where the gradient of a layer begins; those of later layers, of the last norm
// and of a head that is not the embedding follow.
func (p *Policy) begin(layer int) int {
	prefix := fmt.Sprintf("model.layers.%d.", layer)
	return p.trained[slices.IndexFunc(p.trained, func(t Parameter) bool { return strings.HasPrefix(t.Name, prefix) })].offset
}
