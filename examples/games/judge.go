package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/tabular"
	"github.com/ssr-go/ssr/rollout"
)

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
