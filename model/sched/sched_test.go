package sched

import (
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestMain raises rapid's number of checks: these are cheap, and it takes
// thousands to reach the rare orders of preemption.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "3000"); err != nil {
		panic(err)
	}
	m.Run()
}

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

func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := Config{
			BlockTokens:  rapid.IntRange(1, 4).Draw(rt, "block"),
			Blocks:       rapid.IntRange(8, 24).Draw(rt, "blocks"),
			MaxSequences: rapid.IntRange(1, 5).Draw(rt, "sequences"),
		}
		cfg.MaxRows = cfg.MaxSequences + cfg.BlockTokens + rapid.IntRange(0, 8).Draw(rt, "rows")
		cfg.MaxChunk = cfg.BlockTokens + rapid.IntRange(0, 8).Draw(rt, "chunk")
		cfg.MaxStale = rapid.Int64Range(0, 2).Draw(rt, "stale")
		if rapid.Bool().Draw(rt, "slides") {
			cfg.Window = rapid.IntRange(1, 9).Draw(rt, "window")
			cfg.Span = cfg.BlockTokens * rapid.IntRange(1, 3).Draw(rt, "span")
		}
		d := newDevice(t, cfg)
		var tickets []Ticket
		histories := map[string][]int32{}
		next := int64(0)
		finish := func(q Ticket) {
			seq := d.s.active[q]
			histories[seq.id] = slices.Clone(seq.tokens)
			d.s.Finish(q)
			tickets = slices.DeleteFunc(tickets, func(t Ticket) bool { return t == q })
		}
		step := func() bool {
			plan := d.s.Step()
			if len(plan) == 0 && len(tickets) > 0 {
				rt.Fatalf("nothing planned for %d requests", len(tickets))
			}
			oldest := len(tickets) == 0
			for _, w := range plan {
				oldest = oldest || w.Ticket == slices.Min(tickets)
			}
			if !oldest {
				rt.Fatalf("the oldest request does not advance")
			}
			d.run(plan)
			for _, w := range plan {
				if w.Sample && !d.s.Append(w.Ticket, int32(w.Start+len(w.Tokens))%2) {
					finish(w.Ticket)
				}
			}
			d.check()
			return len(plan) > 0
		}
		rt.Repeat(map[string]func(*rapid.T){
			"add": func(rt *rapid.T) {
				id := fmt.Sprint(rapid.IntRange(0, 4).Draw(rt, "id"))
				tokens := slices.Clone(histories[id])
				if rapid.IntRange(0, 3).Draw(rt, "rewrite") == 0 && len(tokens) > 0 {
					tokens = tokens[:rapid.IntRange(0, len(tokens)-1).Draw(rt, "keep")]
				}
				tokens = append(tokens, rapid.SliceOfN(rapid.Int32Range(0, 1), 1, 12).Draw(rt, "new")...)
				limit := rapid.IntRange(1, 8).Draw(rt, "limit")
				ticket, err := d.s.Add(id, tokens, limit)
				if fits := cfg.most(len(tokens)+limit) <= cfg.Blocks; (err == nil) != fits || cfg.Window == 0 && fits != (len(tokens)+limit <= cfg.Blocks*cfg.BlockTokens) {
					rt.Fatalf("adding %d tokens and %d more to a cache of %d blocks: %v", len(tokens), limit, cfg.Blocks, err)
				}
				if err == nil {
					tickets = append(tickets, ticket)
				} else {
					delete(histories, id)
				}
			},
			"step":  func(*rapid.T) { step() },
			"step2": func(*rapid.T) { step() },
			"step3": func(*rapid.T) { step() },
			"cancel": func(rt *rapid.T) {
				if len(tickets) > 0 {
					finish(rapid.SampledFrom(tickets).Draw(rt, "ticket"))
				}
			},
			"release": func(rt *rapid.T) { d.s.Release(fmt.Sprint(rapid.IntRange(0, 4).Draw(rt, "id"))) },
			"version": func(*rapid.T) {
				next++
				d.s.SetVersion(next)
			},
			"": func(*rapid.T) { d.check() },
		})
		for steps := 0; len(tickets) > 0; steps++ {
			step()
			if steps > 2000 {
				rt.Fatalf("%d requests still wait after %d steps", len(tickets), steps)
			}
		}
		for id := range 5 {
			d.s.Release(fmt.Sprint(id))
		}
		d.check()
		if got := d.s.Stats().FreeBlocks; got != cfg.Blocks {
			rt.Fatalf("%d of %d blocks free when everything is released", got, cfg.Blocks)
		}
	})
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

var roomy = Config{BlockTokens: 4, Blocks: 100, MaxSequences: 8, MaxRows: 64, MaxChunk: 16}

func TestGroupPrefillsItsPromptOnce(t *testing.T) {
	d := newDevice(t, roomy)
	prompt := ids(33, 0)
	for i := range 8 {
		if _, err := d.s.Add(fmt.Sprint(i), prompt, 3); err != nil {
			t.Fatal(err)
		}
	}
	d.drain()
	// 8 full blocks once, the last prompt token of each, and 2 of 3 sampled tokens
	// (the last one is never fed).
	if want := 32 + 8*1 + 8*2; d.fed != want {
		t.Errorf("fed %d tokens, want %d", d.fed, want)
	}
}

func TestNextTurnFeedsOnlyWhatIsNew(t *testing.T) {
	d := newDevice(t, roomy)
	history := ids(21, 0)
	add := func() {
		t.Helper()
		if _, err := d.s.Add("a", history, 3); err != nil {
			t.Fatal(err)
		}
		d.fed = 0
		d.drain()
		history = append(history, -1, -1, -1)
	}
	add()
	history = append(history, 100, 101)
	add()
	// The last sampled token of the first turn, two observations, two of three sampled.
	if d.fed != 1+2+2 {
		t.Errorf("second turn fed %d tokens, want 5", d.fed)
	}
	d.s.SetVersion(1)
	add()
	if want := len(history) - 1; d.fed != want {
		t.Errorf("a turn under a new version fed %d tokens, want all %d", d.fed, want)
	}
	d.s.Release("a")
	if st := d.s.Stats(); st.Parked != 0 || st.FreeBlocks != roomy.Blocks {
		t.Errorf("after Release: %+v", st)
	}
}

func TestYoungestIsPreempted(t *testing.T) {
	d := newDevice(t, Config{BlockTokens: 2, Blocks: 10, MaxSequences: 4, MaxRows: 16, MaxChunk: 8})
	var finished []Ticket
	for i := range 3 {
		if _, err := d.s.Add(fmt.Sprint(i), ids(4, 10*i), 12); err != nil {
			t.Fatal(err)
		}
	}
	for {
		plan := d.s.Step()
		if len(plan) == 0 {
			break
		}
		d.run(plan)
		for _, w := range plan {
			if w.Sample && !d.s.Append(w.Ticket, int32(w.Ticket)) {
				d.s.Finish(w.Ticket)
				finished = append(finished, w.Ticket)
			}
		}
	}
	if !slices.Equal(finished, []Ticket{1, 2, 3}) || d.s.Stats().Preempted == 0 {
		t.Errorf("finished in order %v with %d preempted", finished, d.s.Stats().Preempted)
	}
}

func TestRefusals(t *testing.T) {
	for _, cfg := range []Config{{}, {BlockTokens: 4, Blocks: 4, MaxSequences: 4, MaxRows: 7, MaxChunk: 4}, {BlockTokens: 4, Blocks: 4, MaxSequences: 1, MaxRows: 8, MaxChunk: 3}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v) succeeded", cfg)
		}
	}
	d := newDevice(t, roomy)
	for _, c := range []struct{ tokens, limit int }{{0, 1}, {1, 0}, {400, 1}} {
		if _, err := d.s.Add("a", ids(c.tokens, 0), c.limit); err == nil {
			t.Errorf("Add of %d tokens with limit %d succeeded", c.tokens, c.limit)
		}
	}
}

// Where all layers slide, a sequence far longer than the cache runs in the memory of
// its window, and its next turn feeds only what is new.
func TestWindowIsAllThatIsKept(t *testing.T) {
	d := newDevice(t, Config{BlockTokens: 4, Blocks: 10, MaxSequences: 2, MaxRows: 16, MaxChunk: 8, Window: 10, Span: 8})
	history := ids(100, 0)
	if _, err := d.s.Add("a", history, 50); err != nil {
		t.Fatal(err)
	}
	d.drain()
	if d.fed != 149 {
		t.Errorf("fed %d tokens, want 149: each once", d.fed)
	}
	if st := d.s.Stats(); st.Parked != 1 || 10-st.FreeBlocks > (10+8)/4+1 || st.Preempted != 0 {
		t.Errorf("after a long turn: %+v", st)
	}
	d.fed = 0
	if _, err := d.s.Add("a", append(history, slices.Repeat([]int32{-1}, 50)...), 3); err != nil {
		t.Fatal(err)
	}
	d.drain()
	if d.fed != 3 {
		t.Errorf("the next turn fed %d tokens, want the last sampled one and two of three", d.fed)
	}
}

// A cache outlives updates up to its bound, is shared with no request of the new
// version, and is then computed again.
func TestStaleCacheIsBounded(t *testing.T) {
	cfg := roomy
	cfg.MaxStale = 2
	d := newDevice(t, cfg)
	history := ids(20, 0)
	turn := func(id string, version int64) int {
		d.s.SetVersion(version)
		if _, err := d.s.Add(id, history, 1); err != nil {
			t.Fatal(err)
		}
		d.fed = 0
		d.drain()
		return d.fed
	}
	for _, want := range []struct {
		id      string
		version int64
		fed     int
	}{{"a", 0, 20}, {"b", 0, 4}, {"a", 1, 1}, {"c", 1, 20}, {"a", 2, 1}, {"c", 2, 1}, {"a", 3, 20}, {"c", 3, 1}, {"d", 3, 4}, {"c", 4, 20}} {
		if fed := turn(want.id, want.version); fed != want.fed {
			t.Fatalf("%s under version %d fed %d tokens, want %d", want.id, want.version, fed, want.fed)
		}
	}
}

// TestNobodyWaitsForEver plays an overload in virtual time: a step takes as long as
// it has rows. Requests arrive faster than they can be served, and some give up at a
// deadline. The oldest advances in every step, whoever waits is younger than all that
// run (check), and all end.
func TestNobodyWaitsForEver(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		cfg := Config{BlockTokens: 4, Blocks: 40, MaxSequences: 6, MaxRows: 24, MaxChunk: 12}
		d := newDevice(t, cfg)
		type request struct {
			arrives, deadline, left int
		}
		var all []*request
		for i, at := 0, 0; i < 60; i++ {
			at += rng.IntN(12)
			r := &request{arrives: at, left: 1 + rng.IntN(20)}
			if i%3 == 0 {
				r.deadline = at + 1 + rng.IntN(200)
			}
			all = append(all, r)
		}
		now, next, ended := 0, 0, 0
		running := map[Ticket]*request{}
		for ended < len(all) {
			for ; next < len(all) && (all[next].arrives <= now || len(running) == 0); next++ {
				r := all[next]
				now = max(now, r.arrives)
				ticket, err := d.s.Add(fmt.Sprint(next), ids(1+rng.IntN(30), rng.IntN(3)), r.left)
				if err != nil {
					t.Fatal(err)
				}
				running[ticket] = r
			}
			for ticket, r := range running {
				if r.deadline > 0 && now >= r.deadline {
					d.s.Finish(ticket)
					delete(running, ticket)
					ended++
				}
			}
			plan := d.s.Step()
			if len(plan) == 0 {
				if len(running) > 0 {
					t.Fatalf("seed %d: %d requests and nothing planned", seed, len(running))
				}
				continue
			}
			oldest := slices.Min(slices.Collect(maps.Keys(running)))
			if !slices.ContainsFunc(plan, func(w Work) bool { return w.Ticket == oldest }) {
				t.Fatalf("seed %d, time %d: the oldest request does not advance", seed, now)
			}
			d.run(plan)
			rows := 0
			for _, w := range plan {
				rows += len(w.Tokens)
			}
			now += rows
			for _, w := range plan {
				if w.Sample && !d.s.Append(w.Ticket, 0) {
					d.s.Finish(w.Ticket)
					delete(running, w.Ticket)
					ended++
				}
			}
		}
	}
}
