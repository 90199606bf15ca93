package main

import (
	"context"
	"fmt"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/tabular"
	"github.com/ssr-go/ssr/rollout"
)

// board is one match of a zero-sum game of two seats, 0 and 1, as text.
type board interface {
	// Turn is the seat to move, or -1 when the match is over.
	Turn() int
	// View is all that the seat to move needs to know; it ends with a colon and
	// the moves there are, a byte each.
	View() string
	// Move makes one of them.
	Move(m byte)
	// Score is what seat 0 wins, and seat 1 loses.
	Score() float64
}

// opponent answers a view with a move; id names the draw.
type opponent func(ctx context.Context, id, view string) (byte, error)

// seat is an episode: one seat of a match, the other being played by other. As a
// view says everything, other is shown no more than the last one.
type seat struct {
	board
	id    string
	own   int
	other opponent
	moves int
}

// Start implements rollout.Env.
func (s *seat) Start(ctx context.Context) ([]rollout.Message, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return []rollout.Message{{Role: "user", Content: s.View()}}, nil
}

// Step implements rollout.Env. A move that is not offered loses the match.
func (s *seat) Step(ctx context.Context, a rollout.Action) (rollout.Feedback, error) {
	if len(a.Text) != 1 || !offered(s.View(), a.Text[0]) {
		return rollout.Feedback{Done: true, Outcome: "illegal"}, nil
	}
	s.Move(a.Text[0])
	if err := s.wait(ctx); err != nil {
		return rollout.Feedback{}, err
	}
	if s.Turn() >= 0 {
		return rollout.Feedback{Text: s.View()}, nil
	}
	outcome := "drawn"
	if w := s.won(); w > 0 {
		outcome = "won"
	} else if w < 0 {
		outcome = "lost"
	}
	return rollout.Feedback{Done: true, Outcome: outcome}, nil
}

// Close implements rollout.Env.
func (s *seat) Close() error { return nil }

// wait lets the other seat play while it is its turn.
func (s *seat) wait(ctx context.Context) error {
	for s.Turn() == 1-s.own {
		view := s.View()
		m, err := s.other(ctx, fmt.Sprintf("%s/other-%d", s.id, s.moves), view)
		if err != nil {
			return err
		}
		if !offered(view, m) {
			return fmt.Errorf("the opponent's move %q is not offered in %q", m, view)
		}
		s.Move(m)
		s.moves++
	}
	return nil
}

// won is what the own seat has won.
func (s *seat) won() float64 { return s.Score() * float64(1-2*s.own) }

func offered(view string, m byte) bool {
	for _, o := range []byte(tabular.Moves(view)) {
		if o == m {
			return true
		}
	}
	return false
}

// player plays the matches with a policy of any kind: a transformer's engine and its
// chat may stand in the place of the table's.
func player(policy rollout.Policy, seed uint64) rollout.Player {
	return rollout.Player{Policy: policy, Chat: tabular.Chat{}, Sampling: gen.Sampling{Temperature: 1}, Seed: seed}
}

// itself is the policy in the other seat.
func itself(p rollout.Player) opponent {
	return func(ctx context.Context, id, view string) (byte, error) {
		c, err := p.Policy.Generate(ctx, gen.Request{
			ID: id, Seed: p.Seed, Tokens: p.Chat.Prompt([]rollout.Message{{Role: "user", Content: view}}),
			MaxTokens: 1, Sampling: p.Sampling, StopTokens: p.Chat.StopTokens(),
		})
		if err != nil {
			return 0, err
		}
		text := p.Chat.Text(c.Tokens)
		if text == "" {
			return 0, fmt.Errorf("the opponent says nothing to %q", view)
		}
		return text[0], nil
	}
}

// random plays every move alike.
func random(seed uint64) opponent {
	return func(_ context.Context, id, view string) (byte, error) {
		moves := tabular.Moves(view)
		return moves[int(gen.NewStream(seed, id).Uniform(0)*float64(len(moves)))], nil
	}
}

// matches are n matches of each seat. Its role is its seat, as in SPIRAL (arXiv
// 2506.24119): first and second have a baseline each.
func matches(name string, n int, step int, other opponent, open func(id string) board) (tasks []rollout.Task) {
	for k := range 2 * n {
		own := k % 2
		role := []string{"first", "second"}[own]
		group := fmt.Sprintf("%s-%03d-%s", name, step, role)
		id := fmt.Sprintf("%s-%04d", group, k/2)
		tasks = append(tasks, rollout.Task{
			ID: id, Group: group, Role: rollout.Role(role), Step: step,
			Env: func() (rollout.Env, error) {
				return &seat{board: open(id), id: id, own: own, other: other}, nil
			},
			Score: func(_ context.Context, env rollout.Env, t *rollout.Trajectory) error {
				if t.Reward = env.(*seat).won(); t.Outcome == "illegal" {
					t.Reward = -1
				}
				return nil
			},
		})
	}
	return tasks
}

// selfPlay trains the policy against itself.
func selfPlay(p rollout.Player, name string, n int, open func(id string) board) train.Game {
	return &train.TaskGame{
		Runner: rollout.NewRunner(p, 16),
		Tasks:  func(step, _ int) []rollout.Task { return matches(name, n, step, itself(p), open) },
	}
}

// measure plays n matches of each seat against a random player, and returns what
// they win on average and how many are not lost.
func measure(ctx context.Context, p rollout.Player, n int, open func(id string) board) (score, notLost float64, err error) {
	err = rollout.NewRunner(p, 16).Run(ctx, matches("measure", n, 0, random(p.Seed), open), func(t *rollout.Trajectory) {
		if t.Status != rollout.Scored {
			err = fmt.Errorf("match %s: %s", t.ID, t.Failure)
		}
		score += t.Reward / float64(2*n)
		if t.Reward >= 0 {
			notLost += 1 / float64(2*n)
		}
	})
	return score, notLost, err
}
