package sched

import (
	"fmt"
	"hash/fnv"
	"slices"
	"testing"
)

// device stands for the tensors: every slot of every block remembers which
// history its key and value were computed from, and the oldest version that had a
// part in it.
type device struct {
	t     testing.TB
	s     *Scheduler
	slots [][]slot
	fed   int
}

type slot struct {
	history uint64
	oldest  int64
}

func newDevice(t testing.TB, cfg Config) *device {
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, s: s, slots: make([][]slot, cfg.Blocks)}
	for i := range d.slots {
		d.slots[i] = make([]slot, cfg.BlockTokens)
	}
	return d
}

func histories(tokens []int32) []uint64 {
	h := fnv.New64a()
	sums := make([]uint64, len(tokens))
	for i, t := range tokens {
		fmt.Fprint(h, ",", t)
		sums[i] = h.Sum64()
	}
	return sums
}

// run executes a plan and checks that it is computable in any order: everything
// that a work reads is in its blocks already, and nobody else holds what it writes.
func (d *device) run(plan []Work) {
	B := d.s.cfg.BlockTokens
	rows := 0
	writers := map[int32]Ticket{}
	for _, w := range plan {
		q := d.s.active[w.Ticket]
		end := w.Start + len(w.Tokens)
		rows += len(w.Tokens)
		if len(w.Tokens) == 0 || len(w.Tokens) > d.s.cfg.MaxChunk || !slices.Equal(w.Tokens, q.tokens[w.Start:end]) || w.Sample != (end == len(q.tokens)) {
			d.t.Fatalf("malformed work %+v for a history of %d", w, len(q.tokens))
		}
		if len(w.Table) != (end+B-1)/B {
			d.t.Fatalf("work %+v has %d blocks for %d tokens", w, len(w.Table), end)
		}
		if age := d.s.version - w.Oldest; age < 0 || age > d.s.cfg.MaxStale || w.Start == 0 && age != 0 {
			d.t.Fatalf("ticket %d feeds from %d over a cache of version %d under version %d", w.Ticket, w.Start, w.Oldest, d.s.version)
		}
		want := histories(q.tokens[:end])
		low := 0 // the first token that the first query sees
		if d.s.cfg.Window > 0 {
			low = max(0, w.Start+1-d.s.cfg.Window) / d.s.cfg.Span * d.s.cfg.Span
		}
		for p := low; p < w.Start; p++ {
			switch at := d.slots[w.Table[p/B]][p%B]; {
			case at.history != want[p]:
				d.t.Fatalf("ticket %d reads position %d from a block that holds another history", w.Ticket, p)
			case at.oldest < w.Oldest:
				d.t.Fatalf("ticket %d reads position %d of version %d; it says that %d is the oldest", w.Ticket, p, at.oldest, w.Oldest)
			}
		}
		if held := len(q.blocks) - q.gone; held > d.s.cfg.most(len(q.tokens)+1) {
			d.t.Fatalf("ticket %d holds %d blocks, more than %d", w.Ticket, held, d.s.cfg.most(len(q.tokens)+1))
		}
		for b := w.Start / B; b < len(w.Table); b++ {
			n := w.Table[b]
			if other, ok := writers[n]; ok {
				d.t.Fatalf("tickets %d and %d write block %d", w.Ticket, other, n)
			}
			writers[n] = w.Ticket
			if d.s.pool.refs[n] != 1 || d.s.pool.named[n] {
				d.t.Fatalf("ticket %d writes block %d: %d holders, published %v", w.Ticket, n, d.s.pool.refs[n], d.s.pool.named[n])
			}
		}
	}
	if rows > d.s.cfg.MaxRows {
		d.t.Fatalf("%d rows in a step", rows)
	}
	for _, w := range plan {
		q := d.s.active[w.Ticket]
		want := histories(q.tokens)
		for i := range w.Tokens {
			p := w.Start + i
			d.slots[w.Table[p/B]][p%B] = slot{want[p], w.Oldest}
		}
	}
	d.fed += rows
	d.check()
	if len(plan) > 0 {
		d.s.Commit()
	}
}

// check holds the books: every block is free, kept or held, by as many holders
// as it counts, and the index names exactly the published blocks.
func (d *device) check() {
	p := d.s.pool
	held := make([]int, len(p.refs))
	for _, q := range d.s.active {
		for _, b := range q.blocks[q.gone:] {
			held[b]++
		}
	}
	for id, q := range d.s.parked {
		if q.id != id || q.done == 0 {
			d.t.Fatalf("parked %q under %q with %d tokens", q.id, id, q.done)
		}
		for _, b := range q.blocks[q.gone:] {
			held[b]++
		}
	}
	kept := 0
	for b := p.next[len(p.refs)]; int(b) != len(p.refs); b = p.next[b] {
		if p.refs[b] != 0 || !p.named[b] {
			d.t.Fatalf("block %d is kept with %d holders, published %v", b, p.refs[b], p.named[b])
		}
		kept++
	}
	free := map[int32]bool{}
	for _, b := range p.free {
		if free[b] || p.named[b] {
			d.t.Fatalf("block %d is free twice or published", b)
		}
		free[b] = true
	}
	inUse, named := 0, 0
	for b, n := range held {
		if p.refs[b] != n {
			d.t.Fatalf("block %d counts %d holders, has %d", b, p.refs[b], n)
		}
		if n > 0 {
			inUse++
		}
		if n > 1 && !p.named[b] && d.s.version == 0 {
			d.t.Fatalf("block %d is shared but was never published", b)
		}
		if p.named[b] {
			named++
			if p.index[p.keys[b]] != int32(b) {
				d.t.Fatalf("block %d is published under a key that leads elsewhere", b)
			}
		}
	}
	if kept != p.kept || len(free)+kept+inUse != len(held) || named != len(p.index) {
		d.t.Fatalf("blocks: %d free, %d kept (%d counted), %d held of %d; %d named, %d indexed", len(free), kept, p.kept, inUse, len(held), named, len(p.index))
	}
	if len(d.s.waiting)+len(d.s.running) != len(d.s.active) || !slices.IsSortedFunc(d.s.waiting, byTicket) || !slices.IsSortedFunc(d.s.running, byTicket) {
		d.t.Fatalf("%d waiting and %d running of %d", len(d.s.waiting), len(d.s.running), len(d.s.active))
	}
	if w, r := d.s.waiting, d.s.running; len(w) > 0 && len(r) > 0 && w[0].ticket < r[len(r)-1].ticket {
		d.t.Fatalf("ticket %d waits while the younger %d runs", w[0].ticket, r[len(r)-1].ticket)
	}
}

func ids(n, from int) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = int32(from + i)
	}
	return s
}

// drain steps until every request has reached its limit.
func (d *device) drain() {
	for {
		plan := d.s.Step()
		if len(plan) == 0 {
			return
		}
		d.run(plan)
		for _, w := range plan {
			if w.Sample && !d.s.Append(w.Ticket, -1) {
				d.s.Finish(w.Ticket)
			}
		}
	}
}
