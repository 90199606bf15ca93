package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/tabular"
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

// dialogue is an episode of one question after the other, each made of what was
// answered before.
type dialogue struct {
	ask  []func(said string) string
	said string
}

func (d *dialogue) Start(context.Context) ([]rollout.Message, error) {
	return []rollout.Message{{Role: "user", Content: d.ask[0]("")}}, nil
}

func (d *dialogue) Step(_ context.Context, a rollout.Action) (rollout.Feedback, error) {
	d.said += a.Text
	if len(d.said) >= len(d.ask) {
		return rollout.Feedback{Done: true, Outcome: "said"}, nil
	}
	return rollout.Feedback{Text: d.ask[len(d.said)](d.said)}, nil
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
	proposed, err := s.play("proposer", "proposer", make([]string, e.proposals), func(string) []func(string) string {
		return []func(string) string{func(string) string { return firstView() }, func(said string) string { return secondView(said[0]) }}
	})
	if err != nil {
		return err
	}
	var questions []string
	for _, t := range proposed.Trajectories {
		questions = append(questions, t.Turns[0].Text+"+"+t.Turns[1].Text)
	}
	passed, err := s.judge("judge-questions", questions, func(k int) string { return questionView(questions[k]) })
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
	solvers, err := s.play("solver-"+q, rollout.Solver, make([]string, s.attempts), one(answerView(q)))
	if err != nil {
		return 0, err
	}
	grades, err := s.judge("judge-answers-"+q, make([]string, s.attempts), func(k int) string {
		return gradeView(q, solvers.Trajectories[k].Turns[0].Text)
	})
	if err != nil {
		return 0, err
	}
	for k, t := range solvers.Trajectories {
		t.Reward = grades[k]
		wrong += (1 - grades[k]) / float64(s.attempts)
	}
	return wrong, s.end(solvers)
}

func one(view string) func(string) []func(string) string {
	return func(string) []func(string) string {
		return []func(string) string{func(string) string { return view }}
	}
}

// judge asks the judge about each subject, and returns 1 for yes and 0 for no.
func (s *evolving) judge(name string, subjects []string, view func(k int) string) (verdicts []float64, err error) {
	views := make([]string, len(subjects))
	for k := range views {
		views[k] = view(k)
	}
	group, err := s.play(name, "judge", views, func(view string) []func(string) string { return one(view)("") })
	if err != nil {
		return nil, err
	}
	for _, t := range group.Trajectories {
		t.Reward = 1
		if t.Turns[0].Text == "y" {
			verdicts = append(verdicts, 1)
		} else {
			verdicts = append(verdicts, 0)
		}
	}
	return verdicts, s.end(group)
}

// play returns the group of that name: an episode for each subject, whose
// questions ask makes.
func (s *evolving) play(name string, role rollout.Role, subjects []string, ask func(subject string) []func(string) string) (*rollout.Group, error) {
	group := &rollout.Group{ID: fmt.Sprintf("%03d-%s", s.step, name), Role: role, Trajectories: make([]*rollout.Trajectory, len(subjects))}
	if done := s.done[group.ID]; done != nil {
		return done, nil
	}
	place := map[string]int{}
	var tasks []rollout.Task
	for k, subject := range subjects {
		id := fmt.Sprintf("%s-%02d", group.ID, k)
		place[id] = k
		tasks = append(tasks, rollout.Task{ID: id, Group: group.ID, Role: role, Step: s.step,
			Env: func() (rollout.Env, error) { return &dialogue{ask: ask(subject)}, nil }})
	}
	failed := error(nil)
	err := s.runner.Run(s.ctx, tasks, func(t *rollout.Trajectory) {
		if group.Trajectories[place[t.ID]] = t; t.Status != rollout.Scored {
			failed = fmt.Errorf("episode %s: %s %s", t.ID, t.Status, t.Failure)
		}
	})
	if err == nil {
		err = failed
	}
	return group, err
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

// sums calls visit with every question and its sum.
func sums(visit func(q string, sum int)) {
	for a := range 10 {
		for b := range 10 {
			visit(fmt.Sprintf("%d+%d", a, b), a+b)
		}
	}
}

// teach gives a table what a language model brings along: an opinion. It is fitted
// to right verdicts, and to nothing of what a proposer or a solver does.
func teach(ctx context.Context, dir string, policy *tabular.Policy, seed uint64) error {
	var lessons []train.Example
	lesson := func(view string, yes bool) {
		said := "n"
		if yes {
			said = "y"
		}
		tokens := tabular.Chat{}.Prompt([]rollout.Message{{Role: "user", Content: view}})
		shown := len(tokens)
		tokens = append(tokens, tabular.Chat{}.Reply(said)...)
		trained := make([]bool, len(tokens))
		trained[shown] = true
		lessons = append(lessons, train.Example{Tokens: tokens, Trained: trained})
	}
	sums(func(q string, sum int) {
		lesson(questionView(q), sum < 10)
		for _, d := range digits {
			lesson(gradeView(q, string(d)), string(d) == fmt.Sprint(sum))
		}
	})
	s := train.DefaultSFTSettings()
	s.Epochs, s.BatchSize, s.Optimizer.LR = 3, 110, 0.3
	_, err := train.SFT(ctx, train.SFTOptions{SFTSettings: s, Dir: filepath.Join(dir, "judge"), Seed: seed}, policy, lessons)
	return err
}

// abilities are what the policy can do, exactly: the probability of a right answer,
// on average over all sums of one digit, that of a proposal that has such a sum,
// and that of a right verdict on an answer.
func abilities(p *tabular.Policy) (solves, proposes, judges float64) {
	first := p.Probabilities(firstView())
	well := 0.0
	sums(func(q string, sum int) {
		for d := range 10 {
			yes := p.Probabilities(gradeView(q, fmt.Sprint(d)))[0]
			if d != sum {
				yes = 1 - yes
			}
			judges += yes / 1000
		}
		if sum < 10 {
			proposes += first[q[0]-'0'] * p.Probabilities(secondView(q[0]))[q[2]-'0']
			solves += p.Probabilities(answerView(q))[sum]
			well++
		}
	})
	return solves / well, proposes, judges
}
