package rollout_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rollout"
)

// device counts which trajectories were asked of it and are still held.
type device struct {
	mu    sync.Mutex
	asked map[string]int
	held  map[string]bool
}

func (d *device) Generate(_ context.Context, req gen.Request) (gen.Completion, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked[req.ID]++
	d.held[req.ID] = true
	return gen.Completion{Tokens: []int32{7}}, nil
}

func (d *device) Release(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.held, id)
}

func TestSpread(t *testing.T) {
	var devices []*device
	var policies []rollout.Policy
	for range 3 {
		d := &device{asked: map[string]int{}, held: map[string]bool{}}
		devices, policies = append(devices, d), append(policies, d)
	}
	s := rollout.NewSpread(policies...)
	const trajectories, turns = 30, 4
	var wait sync.WaitGroup
	for i := range trajectories {
		wait.Go(func() {
			for range turns {
				if c, err := s.Generate(t.Context(), gen.Request{ID: fmt.Sprint(i)}); err != nil || !slices.Equal(c.Tokens, []int32{7}) {
					t.Error(c, err)
				}
			}
		})
	}
	wait.Wait()
	for i, d := range devices {
		if len(d.asked) != trajectories/3 {
			t.Errorf("device %d has %d trajectories, want %d", i, len(d.asked), trajectories/3)
		}
		for id, n := range d.asked {
			if n != turns {
				t.Errorf("device %d answered %d of %d turns of %s", i, n, turns, id)
			}
		}
	}
	// Room that was given back is used first.
	for id := range devices[1].asked {
		s.Release(id)
	}
	s.Release("unknown")
	if len(devices[1].held) != 0 || len(devices[0].held) != trajectories/3 {
		t.Errorf("%d and %d trajectories held", len(devices[1].held), len(devices[0].held))
	}
	for i := range trajectories / 3 {
		s.Generate(t.Context(), gen.Request{ID: fmt.Sprint("new ", i)})
	}
	if got := len(devices[1].held); got != trajectories/3 {
		t.Errorf("%d of %d new trajectories went where there was room", got, trajectories/3)
	}
}
