package train

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/rollout"
)

func TestGuard(t *testing.T) {
	gibberish := func(_ *table, g *puzzle) {
		g.played = func(string) error { return nil }
	}
	s := testSettings(10)
	s.Guard = Guard{MaxEntropy: 0.5, Patience: 2}
	_, lines, sum, err := play(t, Options{Settings: s}, gibberish)
	if !errors.Is(err, ErrDegenerate) || !strings.Contains(err.Error(), "entropy") || sum.Steps != 2 || len(lines) != 2 {
		t.Errorf("after %d steps: %v", sum.Steps, err)
	}

	loop := &rollout.Trajectory{Turns: []rollout.Turn{{Text: "ab\n\x00\xff\u0007"}}}
	for i := range 20 {
		loop.Append([]int32{int32(i % 2)}, []float32{-1}, []int64{0})
	}
	h := measureHealth([]*rollout.Trajectory{loop})
	// Twenty tokens have 13 8-grams, two of them different; three of six characters are odd.
	if math.Abs(h.Repetition-11.0/13) > 1e-12 || math.Abs(h.NonPrintable-0.5) > 1e-12 {
		t.Errorf("health %+v", h)
	}
	m := &Metrics{PlayMetrics: &PlayMetrics{Health: h}}
	if c := (Guard{MaxRepetition: 0.5, MaxNonPrintable: 0.4}).complaint(m); !strings.Contains(c, "85% of 8-grams") || !strings.Contains(c, "50% of characters") {
		t.Errorf("complaint %q", c)
	}
	if c := (Guard{}).complaint(m); c != "" {
		t.Errorf("complaint %q of a guard that is off", c)
	}
}
