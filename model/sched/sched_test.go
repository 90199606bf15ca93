package sched

import (
	"flag"
	"fmt"
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
