package main

import (
	"context"
	"fmt"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/tabular"
	"github.com/ssr-go/ssr/rollout"
)

// sum is an episode of one turn: what is a + b?
type sum struct{ a, b int }

func (w sum) Start(context.Context) ([]rollout.Message, error) {
	return []rollout.Message{{Role: "user", Content: fmt.Sprintf("%d+%d: 012345678", w.a, w.b)}}, nil
}

func (w sum) Step(_ context.Context, a rollout.Action) (rollout.Feedback, error) {
	if a.Text == fmt.Sprint(w.a+w.b) {
		return rollout.Feedback{Done: true, Outcome: "solved"}, nil
	}
	return rollout.Feedback{Done: true, Outcome: "unsolved"}, nil
}

func (w sum) Close() error { return nil }

// sums asks each sum of two digits below five 32 times a step.
func sums(policy rollout.Policy) train.Game {
	player := rollout.Player{Policy: policy, Chat: tabular.Chat{}, Sampling: gen.Sampling{Temperature: 1}}
	return &train.TaskGame{Runner: rollout.NewRunner(player, 8), Tasks: func(step, _ int) (tasks []rollout.Task) {
		for k := range 25 * 32 {
			a, b := k/32/5, k/32%5
			group := fmt.Sprintf("%d-%d+%d", step, a, b)
			tasks = append(tasks, rollout.Task{
				ID: fmt.Sprintf("%s-%02d", group, k%32), Group: group, Role: rollout.Solver, Step: step,
				Env: func() (rollout.Env, error) { return sum{a, b}, nil },
				Score: func(_ context.Context, _ rollout.Env, t *rollout.Trajectory) error {
					if t.Outcome == "solved" {
						t.Reward = 1
					}
					return nil
				},
			})
		}
		return tasks
	}}
}
