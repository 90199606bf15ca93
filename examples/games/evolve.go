package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// evolve is Multi-Agent Evolve (arXiv 2510.23595) on sums: one policy proposes
// questions, answers them, and judges both. A proposer earns the judge's opinion of
// its question and, where that passes, the share of answers that the judge holds
// wrong, weighed alike; a solver earns the judge's opinion of its answer; a judge
// earns the form of its verdict, which a table never misses. What is true earns nothing.
type evolve struct {
	runner              *rollout.Runner
	proposals, attempts int // of a step, of a question
}

const digits = "0123456789"

func firstView() string            { return "Propose a sum. First number: " + digits }
func secondView(a byte) string     { return fmt.Sprintf("Propose a sum. %c plus: %s", a, digits) }
func questionView(q string) string { return fmt.Sprintf("Has %s a sum of one digit: yn", q) }
func answerView(q string) string   { return fmt.Sprintf("What is %s: %s", q, digits) }
func gradeView(q, answer string) string {
	return fmt.Sprintf("Is %s the sum %s: yn", answer, q)
}

// question is the next one of an episode, from what was answered before.
type question func(said string) string

func only(view string) question { return func(string) string { return view } }

func propose(said string) string {
	if said == "" {
		return firstView()
	}
	return secondView(said[0])
}

// dialogue is an episode of one question after the other.
type dialogue struct {
	ask   question
	turns int
	said  string
}

func (d *dialogue) Start(context.Context) ([]rollout.Message, error) {
	return []rollout.Message{{Role: "user", Content: d.ask("")}}, nil
}

func (d *dialogue) Step(_ context.Context, a rollout.Action) (rollout.Feedback, error) {
	if d.said += a.Text; len(d.said) >= d.turns {
		return rollout.Feedback{Done: true, Outcome: "said"}, nil
	}
	return rollout.Feedback{Text: d.ask(d.said)}, nil
}

func (d *dialogue) Close() error { return nil }

// evolving is one step under way.
type evolving struct {
	*evolve
	ctx    context.Context
	step   int
	done   map[string]*rollout.Group
	finish func(train.Finished) error
}

// Play implements train.Game.
func (e *evolve) Play(ctx context.Context, step int, done []train.Finished, finish func(train.Finished) error) error {
	s := &evolving{e, ctx, step, map[string]*rollout.Group{}, finish}
	for _, f := range done {
		s.done[f.Group.ID] = f.Group
	}
	proposed, err := s.play("proposer", "proposer", 2, slices.Repeat([]question{propose}, e.proposals))
	if err != nil {
		return err
	}
	var questions []string
	var doubts []question
	for _, t := range proposed.Trajectories {
		q := t.Turns[0].Text + "+" + t.Turns[1].Text
		questions, doubts = append(questions, q), append(doubts, only(questionView(q)))
	}
	passed, err := s.judge("judge-questions", doubts)
	if err != nil {
		return err
	}
	difficulty := map[string]float64{}
	for k, q := range questions {
		if _, asked := difficulty[q]; passed[k] == 1 && !asked {
			if difficulty[q], err = s.solve(q); err != nil {
				return err
			}
		}
	}
	for k, t := range proposed.Trajectories {
		if t.Reward = passed[k] / 2; passed[k] == 1 {
			t.Reward += difficulty[questions[k]] / 2
		}
	}
	return s.end(proposed)
}

// solve lets solvers answer a question, and returns the share of answers that the
// judge holds wrong.
func (s *evolving) solve(q string) (wrong float64, err error) {
	solvers, err := s.play("solver-"+q, rollout.Solver, 1, slices.Repeat([]question{only(answerView(q))}, s.attempts))
	if err != nil {
		return 0, err
	}
	var doubts []question
	for _, t := range solvers.Trajectories {
		doubts = append(doubts, only(gradeView(q, t.Turns[0].Text)))
	}
	grades, err := s.judge("judge-answers-"+q, doubts)
	if err != nil {
		return 0, err
	}
	for k, t := range solvers.Trajectories {
		t.Reward = grades[k]
		wrong += (1 - grades[k]) / float64(s.attempts)
	}
	return wrong, s.end(solvers)
}

// judge asks the judge, and returns 1 for yes and 0 for no.
func (s *evolving) judge(name string, doubts []question) (verdicts []float64, err error) {
	group, err := s.play(name, "judge", 1, doubts)
	if err != nil {
		return nil, err
	}
	for _, t := range group.Trajectories {
		t.Reward = 1
		verdict := 0.0
		if t.Turns[0].Text == "y" {
			verdict = 1
		}
		verdicts = append(verdicts, verdict)
	}
	return verdicts, s.end(group)
}

// play returns the group of that name, an episode of so many turns for each question.
func (s *evolving) play(name string, role rollout.Role, turns int, questions []question) (*rollout.Group, error) {
	group := &rollout.Group{ID: fmt.Sprintf("%03d-%s", s.step, name), Role: role, Trajectories: make([]*rollout.Trajectory, len(questions))}
	if done := s.done[group.ID]; done != nil {
		return done, nil
	}
	place := map[string]int{}
	var tasks []rollout.Task
	for k, ask := range questions {
		id := fmt.Sprintf("%s-%02d", group.ID, k)
		place[id] = k
		tasks = append(tasks, rollout.Task{ID: id, Group: group.ID, Role: role, Step: s.step,
			Env: func() (rollout.Env, error) { return &dialogue{ask: ask, turns: turns}, nil }})
	}
	var failed error
	err := s.runner.Run(s.ctx, tasks, func(t *rollout.Trajectory) {
		if group.Trajectories[place[t.ID]] = t; t.Status != rollout.Scored {
			failed = fmt.Errorf("episode %s: %s %s", t.ID, t.Status, t.Failure)
		}
	})
	return group, cmp.Or(err, failed)
}

// end records a group, once.
func (s *evolving) end(group *rollout.Group) error {
	if s.done[group.ID] != nil {
		return nil
	}
	return s.finish(train.Finished{Group: group})
}

// State and Restore implement train.Game: there is nothing to carry over.
func (e *evolve) State() ([]byte, error) { return nil, nil }
func (e *evolve) Restore([]byte) error   { return nil }
