package device

import (
	"errors"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// Every number is in exactly one part, and parts begin at multiples of the unit.
func TestTeamLoop(t *testing.T) {
	pools := []*Pool{NewPool(1), NewPool(2), NewPool(5)}
	defer func() {
		for _, p := range pools {
			p.Close()
		}
	}()
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(pools).Draw(t, "pool")
		unit := rapid.IntRange(1, 20).Draw(t, "unit")
		sizes := rapid.SliceOfN(rapid.IntRange(0, 300), 0, 20).Draw(t, "sizes")
		err := p.Lead(t.Context(), func(team *Team) error {
			for _, n := range sizes {
				seen := make([]atomic.Int32, n)
				team.Loop(n, unit, func(from, to int) {
					if from%unit != 0 {
						t.Errorf("a part of units of %d begins at %d", unit, from)
					}
					for i := from; i < to; i++ {
						seen[i].Add(1)
					}
				})
				for i := range seen {
					if v := seen[i].Load(); v != 1 {
						t.Fatalf("%d of %d was run %d times", i, n, v)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// Helpers take parts while the leader is held up in its own.
func TestTeamSharesItsLoops(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	err := p.Lead(t.Context(), func(team *Team) error {
		var running atomic.Int32
		all := make(chan struct{})
		team.Loop(3, 1, func(int, int) {
			if running.Add(1) == 3 {
				close(all)
			}
			<-all // every part waits for the others
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTeamErrorsAndPanics(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	want := errors.New("an error")
	if err := p.Lead(t.Context(), func(*Team) error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	for part := range 12 {
		func() {
			defer func() {
				if got := recover(); got != "a part" {
					t.Errorf("a panic in part %d of 12 became %v", part, got)
				}
			}()
			err := p.Lead(t.Context(), func(team *Team) error {
				team.Loop(12, 1, func(from, _ int) {
					if from == part {
						panic("a part")
					}
				})
				return nil
			})
			t.Errorf("after a panic: %v", err)
		}()
	}
	if err := p.Lead(t.Context(), func(*Team) error { return nil }); err != nil {
		t.Errorf("after the panics: %v", err)
	}
}
