package train

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/ssr-go/ssr/rollout"
)

// ErrDegenerate is wrapped when the guard stops a run.
var ErrDegenerate = errors.New("the policy degenerates")

// Guard watches for the game's known failure, gibberish late in training
// (paper, limitations). It stops the run when one limit is exceeded in Patience
// steps in a row. A zero limit is off; a zero Patience turns the guard off.
type Guard struct {
	// MaxRepetition bounds the share of a trajectory's sampled 8-grams that it had sampled before.
	MaxRepetition float64 `json:"max_repetition" yaml:"max_repetition"`
	// MaxNonPrintable bounds the share of characters written that are neither printable nor space.
	MaxNonPrintable float64 `json:"max_non_printable" yaml:"max_non_printable"`
	// MinEntropy and MaxEntropy bound the mean entropy of trained tokens, in nats.
	MinEntropy float64 `json:"min_entropy" yaml:"min_entropy"`
	MaxEntropy float64 `json:"max_entropy" yaml:"max_entropy"`
	Patience   int     `json:"patience" yaml:"patience"`
}

func (g Guard) check() error {
	if !(g.MaxRepetition >= 0) || !(g.MaxNonPrintable >= 0) || !(g.MinEntropy >= 0) || !(g.MaxEntropy >= 0) || g.Patience < 0 {
		return fmt.Errorf("guard: %+v; no field may be negative", g)
	}
	return nil
}

// Health is what the guard measures.
type Health struct {
	Repetition   float64 `json:"repetition"`
	NonPrintable float64 `json:"non_printable"`
}

// complaint says which limits the step exceeds, "" when none.
func (g Guard) complaint(m *Metrics) string {
	var found []string
	add := func(bad bool, format string, args ...any) {
		if bad {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	h := m.Health
	add(g.MaxRepetition > 0 && h.Repetition > g.MaxRepetition,
		"%.0f%% of 8-grams are repetitions (limit %.0f%%)", 100*h.Repetition, 100*g.MaxRepetition)
	add(g.MaxNonPrintable > 0 && h.NonPrintable > g.MaxNonPrintable,
		"%.0f%% of characters are not printable (limit %.0f%%)", 100*h.NonPrintable, 100*g.MaxNonPrintable)
	if m.Entropy != nil {
		add(g.MinEntropy > 0 && *m.Entropy < g.MinEntropy, "entropy %.3g is under %.3g nats", *m.Entropy, g.MinEntropy)
		add(g.MaxEntropy > 0 && *m.Entropy > g.MaxEntropy, "entropy %.3g is over %.3g nats", *m.Entropy, g.MaxEntropy)
	}
	return strings.Join(found, ", ")
}

const gramSize = 8

// measureHealth looks at what the policy wrote in scored trajectories.
func measureHealth(ts []*rollout.Trajectory) Health {
	var grams, repeated, runes, odd int
	for _, t := range ts {
		g, r := repetition(t)
		grams, repeated = grams+g, repeated+r
		for _, turn := range t.Turns {
			for _, c := range turn.Text {
				runes++
				if c == unicode.ReplacementChar || !unicode.IsPrint(c) && !unicode.IsSpace(c) {
					odd++
				}
			}
		}
	}
	return Health{Repetition: share(repeated, grams), NonPrintable: share(odd, runes)}
}

// repetition counts a trajectory's sampled 8-grams, and those of them that
// occurred before. An observation interrupts a gram.
func repetition(t *rollout.Trajectory) (grams, repeated int) {
	seen := map[[gramSize]int32]bool{}
	run := 0
	for i, sampled := range t.Trained {
		if !sampled {
			run = 0
			continue
		}
		if run++; run < gramSize {
			continue
		}
		gram := [gramSize]int32(t.Tokens[i-gramSize+1 : i+1])
		grams++
		if seen[gram] {
			repeated++
		}
		seen[gram] = true
	}
	return grams, repeated
}

// share is part/whole, 0 of nothing.
func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
