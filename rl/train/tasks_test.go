package train

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/rollout"
)

// parrot answers with its trajectory's ID.
type parrot struct{ id string }

func (p parrot) Turn(context.Context, string) (string, error) { return p.id, nil }

// once is a world of one turn.
type once struct{}

func (once) Start(context.Context) ([]rollout.Message, error) {
	return []rollout.Message{{Role: "user", Content: "who?"}}, nil
}
func (once) Step(context.Context, rollout.Action) (rollout.Feedback, error) {
	return rollout.Feedback{Done: true, Outcome: "said"}, nil
}
func (once) Close() error { return nil }

// mixed is a game of three groups of two a round; the rewards of those whose
// names are in spread differ.
func mixed(resample int, spread ...string) *TaskGame {
	policy := &rollout.TextPolicy{New: func(id string) (rollout.TextPlayer, error) { return parrot{id}, nil }}
	return &TaskGame{
		Resample: resample,
		Runner:   rollout.NewRunner(rollout.Player{Policy: policy, Chat: rollout.ByteChat{}}, 2),
		Tasks: func(step, round int) (tasks []rollout.Task) {
			for k := range 6 {
				group := fmt.Sprintf("r%d-g%d", round, k%3)
				tasks = append(tasks, rollout.Task{
					ID: fmt.Sprint(group, "-", k/3), Group: group, Role: "parrot", Step: step,
					Env: func() (rollout.Env, error) { return once{}, nil },
					Score: func(_ context.Context, _ rollout.Env, t *rollout.Trajectory) error {
						if slices.Contains(spread, group) {
							t.Reward = float64(k / 3)
						}
						return nil
					},
				})
			}
			return tasks
		},
	}
}

func TestTaskGame(t *testing.T) {
	for _, c := range []struct {
		name     string
		resample int
		spread   []string
		want     []string // groups played
	}{
		{"one round", 0, nil, []string{"r0-g0", "r0-g1", "r0-g2"}},
		{"all have spread", 5, []string{"r0-g0", "r0-g1", "r0-g2"}, []string{"r0-g0", "r0-g1", "r0-g2"}},
		{"two have none, then one, then none left", 5, []string{"r0-g1", "r1-g0", "r2-g0"},
			[]string{"r0-g0", "r0-g1", "r0-g2", "r1-g0", "r1-g1", "r2-g0"}},
		{"the bound", 1, nil, []string{"r0-g0", "r0-g1", "r0-g2", "r1-g0", "r1-g1", "r1-g2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			played := map[string]Finished{}
			play := func(done []Finished) {
				t.Helper()
				err := mixed(c.resample, c.spread...).Play(t.Context(), 1, done, func(f Finished) error {
					if _, twice := played[f.Group.ID]; twice {
						t.Errorf("group %s is finished twice", f.Group.ID)
					}
					played[f.Group.ID] = f
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			play(nil)
			if have := slices.Sorted(maps.Keys(played)); !slices.Equal(have, c.want) {
				t.Fatalf("played %v, want %v", have, c.want)
			}
			for id, f := range played {
				if ts := f.Group.Trajectories; len(ts) != 2 || ts[0].ID != id+"-0" || ts[1].ID != id+"-1" {
					t.Errorf("group %s is %v", id, ts)
				}
				want := 0.0
				if id[1] != '0' {
					want = 1
				}
				if have := f.Counts["resampled_groups"]; have != want {
					t.Errorf("group %s counts %g resampled groups", id, have)
				}
			}
			// An attempt that was cut off after any group goes on to the same groups.
			for _, lost := range c.want {
				var done []Finished
				for _, id := range c.want {
					if id != lost {
						done = append(done, played[id])
					}
				}
				delete(played, lost)
				play(done)
				if have := slices.Sorted(maps.Keys(played)); !slices.Equal(have, c.want) {
					t.Fatalf("without %s: played %v, want %v", lost, have, c.want)
				}
			}
		})
	}
	sentinel := errors.New("disk full")
	err := mixed(0).Play(t.Context(), 1, nil, func(Finished) error { return sentinel })
	if !errors.Is(err, sentinel) {
		t.Errorf("an error of finish ends the play with %v", err)
	}
	game := mixed(0)
	game.Tasks = func(int, int) []rollout.Task {
		return []rollout.Task{{ID: "a", Group: "g", Role: "x"}, {ID: "b", Group: "g", Role: "y"}}
	}
	if err := game.Play(t.Context(), 1, nil, func(Finished) error { return nil }); err == nil {
		t.Error("a group of two roles is played")
	}
}
