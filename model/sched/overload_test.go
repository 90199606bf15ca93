package sched

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

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
