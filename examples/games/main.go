// Command games plays other games with this trainer: three of SPIRAL's zero-sum
// text games in self-play (arXiv 2506.24119), and a loop of proposer, solver and
// judge (arXiv 2510.23595). The policy is a table, so that each takes seconds.
//
//	go run . -game tictactoe -run DIR
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"maps"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/tabular"
	"github.com/ssr-go/ssr/rollout"
)

// trial is how a game is trained and what is measured of the policy.
type trial struct {
	steps   int
	lr      float64
	kl      float64 // of the policy that plays every move alike: what keeps it mixed
	game    func(p rollout.Player) train.Game
	prepare func(ctx context.Context, dir string, policy *tabular.Policy, seed uint64) error
	measure func(ctx context.Context, policy *tabular.Policy, p rollout.Player) (figures, error)
	// advantage names an estimator, role_ema where empty.
	advantage string
}

// figures by name.
type figures map[string]float64

func (f figures) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		parts = append(parts, fmt.Sprintf("%s %.3f", name, f[name]))
	}
	return strings.Join(parts, ", ")
}

// against is a measure of matches against a random player.
func against(open func(string) board) func(context.Context, *tabular.Policy, rollout.Player) (figures, error) {
	return func(ctx context.Context, _ *tabular.Policy, p rollout.Player) (figures, error) {
		score, notLost, err := measure(ctx, p, 1000, open)
		return figures{"score against random": score, "not lost": notLost}, err
	}
}

var trials = map[string]trial{
	"tictactoe": {steps: 60, lr: 0.3, kl: 0.03,
		game:    func(p rollout.Player) train.Game { return selfPlay(p, "tictactoe", 500, newTicTacToe) },
		measure: against(newTicTacToe)},
	"kuhn": {steps: 120, lr: 0.05, kl: 0.1,
		game: func(p rollout.Player) train.Game { return selfPlay(p, "kuhn", 250, newKuhn) },
		measure: func(_ context.Context, policy *tabular.Policy, _ rollout.Player) (figures, error) {
			bet := func(card byte, history string) float64 { return policy.Probabilities(kuhnView(card, history))[1] }
			return figures{"exploitability": exploitability([2]strategy{bet, bet}), "value": value([2]strategy{bet, bet})}, nil
		}},
	"negotiation": {steps: 30, lr: 0.2,
		game:    func(p rollout.Player) train.Game { return selfPlay(p, "negotiation", 250, newNegotiation) },
		measure: against(newNegotiation)},
	"evolve": {steps: 100, lr: 0.2, kl: 0.05, advantage: "group_mean", prepare: teach,
		game: func(p rollout.Player) train.Game {
			return &evolve{runner: rollout.NewRunner(p, 16), proposals: 32, attempts: 16}
		},
		measure: func(_ context.Context, policy *tabular.Policy, _ rollout.Player) (figures, error) {
			solves, proposes, judges := abilities(policy)
			return figures{"sums solved": solves, "well-posed proposals": proposes, "right verdicts": judges}, nil
		}},
}

// play trains a table in dir, and shows follow what is measured before the first
// step and after every tenth and the last.
func play(ctx context.Context, t trial, dir string, seed uint64, follow func(step int, f figures)) error {
	policy := tabular.New()
	p := player(policy, seed)
	if t.prepare != nil {
		if err := t.prepare(ctx, dir, policy, seed); err != nil {
			return err
		}
	}
	s := train.DefaultSettings()
	s.Steps, s.CheckpointEvery, s.Schedule = t.steps, t.steps, train.Schedule{Kind: train.CosineLR, Floor: 0.1}
	s.Objective, s.Advantage, s.Optimizer.LR, s.Optimizer.Clip, s.Optimizer.WeightDecay = "ppo", "role_ema", t.lr, 0, 0
	if t.advantage != "" {
		s.Advantage = t.advantage
	}
	var err error
	if s.Loss, err = rl.Defaults(s.Objective); err != nil {
		return err
	}
	s.Loss.KLCoef = t.kl
	show := func(step int) {
		f, failed := t.measure(ctx, policy, p)
		if err == nil {
			err = failed
		}
		follow(step, f)
	}
	show(0)
	_, trained := train.Train(ctx, train.Options{Settings: s, Dir: dir, Seed: seed, OnEvent: func(e train.Event) {
		if e.Phase == train.PhaseStep && (e.Step%10 == 0 || e.Step == e.Steps) {
			show(e.Step)
		}
	}}, policy, t.game(p))
	if err == nil {
		err = trained
	}
	return err
}

func main() {
	name := flag.String("game", "tictactoe", strings.Join(slices.Sorted(maps.Keys(trials)), ", "))
	dir := flag.String("run", "run", "folder of the run")
	seed := flag.Uint64("seed", 1, "seed of every draw")
	flag.Parse()
	t, ok := trials[*name]
	if !ok {
		log.Fatalf("no game %q; there are %v", *name, slices.Sorted(maps.Keys(trials)))
	}
	err := play(context.Background(), t, *dir, *seed, func(step int, f figures) { fmt.Printf("step %3d: %v\n", step, f) })
	if err != nil {
		log.Fatal(err)
	}
}
