package rl

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/ssr-go/ssr/rollout"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s = %.9g, want %.9g ± %g", what, got, want, tolerance)
	}
}

func readGolden(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// tokenLosses is testdata/token_losses.json. Source: torchforge tests/rl/loss
// (BSD-3), recomputed independently with libtorch.
type tokenLosses struct {
	Shape             [3]int
	Logits            []float64
	Targets           [][]int
	Mask              [][]int
	RolloutLogprobs   [][]float64 `json:"rollout_logprobs"`
	ReferenceLogprobs [][]float64 `json:"reference_logprobs"`
	PolicyLogprobs    [][]float64 `json:"policy_logprobs"`
	Advantages        [][]float64
	Tolerance         float64
	Cases             []struct {
		Name     string
		Loss     float64
		GradNorm float64 `json:"grad_norm_wrt_logits"`
	}
}

// The figures are those of the file's cases, as settings of ours.
var tokenLossSettings = map[string]struct {
	objective string
	settings  Settings
}{
	"grpo":  {"clip", Settings{ClipLow: 0.2, ClipHigh: 0.2, KLCoef: 0.1, Aggregation: Constant, Length: 4}},
	"dapo":  {"dapo", Settings{ClipLow: 0.2, ClipHigh: 0.28, DualClip: 3, Aggregation: TokenMean}},
	"gspo":  {"gspo", Settings{ClipLow: 0.2, ClipHigh: 0.2, Aggregation: SequenceMean}},
	"cispo": {"cispo", Settings{ClipLow: 1, ClipHigh: 4, Aggregation: TokenMean}},
	"sapo":  {"sapo", Settings{TauPositive: 1, TauNegative: 1.05, Aggregation: SequenceMean}},
}

// TestTokenLosses checks loss and the gradient with respect to the logits,
// which is ours with respect to the log-probabilities through the softmax's
// Jacobian, onehot − p. The file's masks start at a predicted token, so each
// row is laid out behind a first token that is not predicted.
func TestTokenLosses(t *testing.T) {
	var g tokenLosses
	readGolden(t, "token_losses.json", &g)
	rows, cols, vocab := g.Shape[0], g.Shape[1], g.Shape[2]
	b := Batch{Offsets: []int{0}}
	var probs [][]float64
	var targets []int
	for r := range rows {
		b.Logprobs = append(b.Logprobs, math.NaN())
		b.RolloutLogprobs = append(b.RolloutLogprobs, math.NaN())
		b.ReferenceLogprobs = append(b.ReferenceLogprobs, math.NaN())
		b.Advantages = append(b.Advantages, math.NaN())
		b.Mask = append(b.Mask, false)
		probs, targets = append(probs, nil), append(targets, 0)
		for c := range cols {
			p := softmax(g.Logits[(r*cols+c)*vocab:][:vocab])
			target := g.Targets[r][c]
			near(t, "policy logprob", math.Log(p[target]), g.PolicyLogprobs[r][c], 1e-6)
			probs, targets = append(probs, p), append(targets, target)
			b.Logprobs = append(b.Logprobs, math.Log(p[target]))
			b.RolloutLogprobs = append(b.RolloutLogprobs, g.RolloutLogprobs[r][c])
			b.ReferenceLogprobs = append(b.ReferenceLogprobs, g.ReferenceLogprobs[r][c])
			b.Advantages = append(b.Advantages, g.Advantages[r][c])
			b.Mask = append(b.Mask, g.Mask[r][c] == 1)
		}
		b.Offsets = append(b.Offsets, len(b.Mask))
	}
	b.Totals = CountTotals(b.Mask, b.Offsets, nil)
	for _, c := range g.Cases {
		t.Run(c.Name, func(t *testing.T) {
			of := tokenLossSettings[c.Name]
			o, err := New(of.objective, of.settings)
			if err != nil {
				t.Fatal(err)
			}
			res, err := o.Evaluate(b)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "loss", res.Loss, c.Loss, g.Tolerance)
			var ss float64
			for i, p := range probs {
				for v, pv := range p {
					d := -pv
					if v == targets[i] {
						d++
					}
					ss += math.Pow(res.Grad[i]*d, 2)
				}
			}
			near(t, "gradient norm", math.Sqrt(ss), c.GradNorm, g.Tolerance)
		})
	}
	if len(g.Cases) != len(tokenLossSettings) {
		t.Errorf("the file has %d cases, %d are known", len(g.Cases), len(tokenLossSettings))
	}
}

func softmax(logits []float64) []float64 {
	top := math.Inf(-1)
	for _, l := range logits {
		top = max(top, l)
	}
	p := make([]float64, len(logits))
	var sum float64
	for i, l := range logits {
		p[i] = math.Exp(l - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// conventions is testdata/conventions.json: figures from the test suites and
// documents of SkyRL, prime-rl, slime and tinker-cookbook; each case names its own.
type conventions struct {
	Advantages []struct {
		Source, Name string
		Groups       [][]float64
		Expect       [][]float64
	}
	Reductions []struct {
		Source, Name string
		Values       [][]float64
		Mask         [][]int
		Expect       float64
	}
	Losses []struct {
		Source, Name  string
		Ratio         []float64
		Advantage     []float64
		DualClip      float64   `json:"dual_clip"`
		ClipLow       float64   `json:"clip_low"`
		ClipHigh      float64   `json:"clip_high"`
		Expect        []float64 `json:"expect"`
		ExpectClipped []float64 `json:"expect_clipped"`
	}
	MultiTurnMasks []struct {
		Source string
		Turns  []struct {
			Observation         []int32
			ObservationAppends  []int32 `json:"observation_appends"`
			ObservationReplaces []int32 `json:"observation_replaces"`
			Action              []int32
		}
		Sequences     int
		NextTokenMask [][]int `json:"next_token_mask"`
	} `json:"multi_turn_masks"`
}

func TestConventionalAdvantages(t *testing.T) {
	var g conventions
	readGolden(t, "conventions.json", &g)
	names := map[string]string{
		"rloo": "leave_one_out", "grpo_without_std": "group_mean", "maxrl": "maxrl",
		"group_mean (solvers of one proposed problem)": "group_mean",
	}
	for _, c := range g.Advantages {
		t.Run(c.Source+"/"+c.Name, func(t *testing.T) {
			for k, rewards := range c.Groups {
				for i, a := range estimate(t, presetOf(t, names[c.Name]), rewards) {
					near(t, "advantage", a, c.Expect[k][i], 1e-8)
				}
			}
		})
	}
}

// TestConventionalReductions feeds the values in as advantages of REINFORCE at
// logprob −1, whose term is then the value itself.
func TestConventionalReductions(t *testing.T) {
	var g conventions
	readGolden(t, "conventions.json", &g)
	names := map[string]Aggregation{"token_mean": TokenMean, "token_mean, all masked": TokenMean, "sequence_mean": SequenceMean}
	for _, c := range g.Reductions {
		t.Run(c.Source+"/"+c.Name, func(t *testing.T) {
			b := Batch{Offsets: []int{0}}
			for r, values := range c.Values {
				b.Mask, b.Advantages = append(b.Mask, false), append(b.Advantages, 0)
				for k, v := range values {
					b.Mask = append(b.Mask, c.Mask[r][k] == 1)
					b.Advantages = append(b.Advantages, v)
				}
				b.Offsets = append(b.Offsets, len(b.Mask))
			}
			for range b.Mask {
				b.Logprobs = append(b.Logprobs, -1)
			}
			b.Totals = CountTotals(b.Mask, b.Offsets, nil)
			o, err := New("reinforce", Settings{Aggregation: names[c.Name]})
			if err != nil {
				t.Fatal(err)
			}
			res, err := o.Evaluate(b)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "reduction", res.Loss, c.Expect, 1e-12)
		})
	}
}

func TestConventionalLosses(t *testing.T) {
	var g conventions
	readGolden(t, "conventions.json", &g)
	bands := map[string][2]float64{"cispo ratio band .2/.28": {0.2, 0.28}, "cispo ratio band 1/4": {1, 4}}
	for _, c := range g.Losses {
		t.Run(c.Source+"/"+c.Name, func(t *testing.T) {
			for i, ratio := range c.Ratio {
				s := Settings{ClipLow: c.ClipLow, ClipHigh: c.ClipHigh, DualClip: c.DualClip, Aggregation: TokenMean}
				name, advantage := "dapo", 1.0
				if c.Expect == nil {
					name = "cispo"
					s.ClipLow, s.ClipHigh = bands[c.Name][0], bands[c.Name][1]
				} else {
					advantage = c.Advantage[i]
				}
				o, err := New(name, s)
				if err != nil {
					t.Fatal(err)
				}
				res, err := o.Evaluate(Batch{
					Logprobs: []float64{0, -2 + math.Log(ratio)}, RolloutLogprobs: []float64{0, -2},
					Advantages: []float64{advantage, advantage}, Mask: []bool{false, true}, Offsets: []int{0, 2},
					Totals: Totals{Tokens: 1, Sequences: 1},
				})
				if err != nil {
					t.Fatal(err)
				}
				if c.Expect != nil {
					near(t, "loss", res.Loss, c.Expect[i], 1e-12)
				} else {
					// d(−w·A·logprob)/dlogprob = −w at A = 1.
					near(t, "weight", -res.Grad[1], c.ExpectClipped[i], 1e-12)
				}
			}
		})
	}
}

// TestConventionalMasks builds the episodes as records and packs them. The
// file's masks stand at the predicting position, ours at the predicted token.
func TestConventionalMasks(t *testing.T) {
	var g conventions
	readGolden(t, "conventions.json", &g)
	for _, c := range g.MultiTurnMasks {
		t.Run(c.Source, func(t *testing.T) {
			group := &rollout.Group{ID: "g", Role: rollout.Solver}
			begin := func() *rollout.Trajectory {
				tr := &rollout.Trajectory{ID: string(rune('a' + len(group.Trajectories))), Role: rollout.Solver,
					Status: rollout.Scored, Reward: float64(len(group.Trajectories))}
				group.Trajectories = append(group.Trajectories, tr)
				return tr
			}
			tr := begin()
			for _, turn := range c.Turns {
				if turn.ObservationReplaces != nil {
					tr = begin()
				}
				tr.Append(turn.Observation, nil, nil)
				tr.Append(turn.ObservationAppends, nil, nil)
				tr.Append(turn.ObservationReplaces, nil, nil)
				tr.Append(turn.Action, make([]float32, len(turn.Action)), make([]int64, len(turn.Action)))
			}
			if len(group.Trajectories) != c.Sequences {
				t.Fatalf("%d sequences, want %d", len(group.Trajectories), c.Sequences)
			}
			begin().Append([]int32{1, 2}, []float32{0, 0}, []int64{0, 0}) // gives the group its spread
			sel, err := Select([]*rollout.Group{group}, 0, Selection{Advantage: GroupEstimator(GroupMean), MaxLag: 0})
			if err != nil {
				t.Fatal(err)
			}
			packed, err := Pack(sel.Sequences, 1000)
			if err != nil {
				t.Fatal(err)
			}
			p := packed[0]
			for k, want := range c.NextTokenMask {
				id := group.Trajectories[k].ID
				for s, have := range p.IDs {
					if have != id {
						continue
					}
					mask := p.Mask[p.Offsets[s]:p.Offsets[s+1]]
					if len(mask) != len(want)+1 || mask[0] {
						t.Fatalf("sequence %s: mask %v", id, mask)
					}
					for i, w := range want {
						if mask[i+1] != (w == 1) {
							t.Errorf("sequence %s: mask[%d] = %v, want %d", id, i+1, mask[i+1], w)
						}
					}
				}
			}
		})
	}
}
