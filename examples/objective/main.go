// Command objective adds an objective from outside the library, SPO (arXiv
// 2401.16025), and trains with it: a table learns to add in a few seconds.
// docs/variant.md walks through it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math"

	"gorgonia.org/gorgonia"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/tabular"
)

// SPO's loss of a token is −rA + |A|(r−1)²/(2ε): the further the ratio is from 1
// the harder it is drawn back, where PPO's clip lets go of it.
func init() {
	rl.Register("spo", rl.Family{
		About:    "a quadratic penalty in the place of the clip (arXiv 2401.16025)",
		Defaults: rl.Settings{Params: map[string]float64{"epsilon": 0.2}, Aggregation: rl.TokenMean},
		Build: func(s rl.Settings) (rl.Expression, error) {
			return rl.Expression{Build: func(in *rl.Inputs) *gorgonia.Node {
				weight := in.Frozen("|A|/2ε", func(t rl.Tokens, out []float64) {
					for i, a := range t.Advantages {
						out[i] = math.Abs(a) / (2 * s.Params["epsilon"])
					}
				})
				gap := gorgonia.Must(gorgonia.Sub(in.Ratio(), in.Const(1)))
				penalty := gorgonia.Must(gorgonia.HadamardProd(weight, gorgonia.Must(gorgonia.Square(gap))))
				return gorgonia.Must(gorgonia.Sub(penalty, gorgonia.Must(gorgonia.HadamardProd(in.Ratio(), in.Advantage()))))
			}}, nil
		},
	})
}

func main() {
	dir := flag.String("run", "run", "folder of the run")
	objective := flag.String("objective", "spo", "objective to train with")
	flag.Parse()
	if err := learn(*dir, *objective, func(e train.Event) {
		if m := e.Metrics; m != nil {
			fmt.Printf("step %2d: %5.1f%% solved, ratios up to %.2f\n", m.Step, 100**m.SolveRate, m.Objective["ratio_max"])
		}
	}); err != nil {
		log.Fatal(err)
	}
}

// learn trains a table on sums, with several updates a step: without them every
// ratio is 1, and one objective like the other.
func learn(dir, objective string, follow func(train.Event)) (err error) {
	s := train.DefaultSettings()
	s.Steps, s.Minibatches, s.Schedule.Warmup, s.CheckpointEvery = 20, 4, 0, 20
	s.Optimizer.LR, s.Optimizer.Clip = 0.2, 0
	s.Objective = objective
	if s.Loss, err = rl.Defaults(objective); err != nil {
		return err
	}
	policy := tabular.New()
	_, err = train.Train(context.Background(), train.Options{Settings: s, Dir: dir, OnEvent: follow}, policy, sums(policy))
	return err
}
