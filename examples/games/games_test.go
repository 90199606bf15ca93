package main

import (
	"math"
	"testing"

	"github.com/ssr-go/ssr/rl/train/tabular"
)

// learned trains a game and returns what is measured before and after.
func learned(t *testing.T, name string) (before, after figures) {
	t.Helper()
	err := play(t.Context(), trials[name], t.TempDir(), 1, func(step int, f figures) {
		if before == nil {
			before = f
		}
		after = f
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: before %v; after %v", name, before, after)
	return before, after
}

// between holds a figure to a range.
func between(t *testing.T, f figures, name string, low, high float64) {
	t.Helper()
	if v, ok := f[name]; !ok || !(v >= low && v <= high) {
		t.Errorf("%s is %g, want it within [%g, %g]", name, v, low, high)
	}
}

// TestTicTacToe: two random players do not lose 56.4% of their matches, the mean of
// the seats (x wins 0.585, o 0.288, as all games weighed by their chances say);
// 2,000 matches are known to about ±2.2%.
func TestTicTacToe(t *testing.T) {
	before, after := learned(t, "tictactoe")
	between(t, before, "not lost", 0.54, 0.59)
	between(t, after, "not lost", 0.9, 1)
}

// TestRandomTicTacToe computes the figure of TestTicTacToe, and that every game ends.
func TestRandomTicTacToe(t *testing.T) {
	var wins [3]float64 // of o, of nobody, of x
	var walk func(b tictactoe, chance float64)
	walk = func(b tictactoe, chance float64) {
		if b.Turn() < 0 {
			wins[int(b.Score())+1] += chance
			return
		}
		moves := tabular.Moves(b.View())
		for i := range moves {
			next := b
			next.Move(moves[i])
			walk(next, chance/float64(len(moves)))
		}
	}
	walk(*newTicTacToe("").(*tictactoe), 1)
	for i, want := range []float64{0.288, 0.127, 0.585} {
		if math.Abs(wins[i]-want) > 0.0005 {
			t.Errorf("o, nobody and x win with the chances %.4f", wins)
		}
	}
}

func TestKuhn(t *testing.T) {
	before, after := learned(t, "kuhn")
	between(t, before, "exploitability", 0.4583, 0.4584)
	between(t, after, "exploitability", 0, 0.15)
}

// TestExploitability holds the measure to what is known of the game: the value
// is −1/18 in each of Kuhn's equilibria (1950), which nothing exploits, and 1/8
// between players who toss a coin.
func TestExploitability(t *testing.T) {
	coin := func(byte, string) float64 { return 0.5 }
	if v := value([2]strategy{coin, coin}); math.Abs(v-0.125) > 1e-12 {
		t.Errorf("the value between coins is %g", v)
	}
	second := func(card byte, history string) float64 {
		switch {
		case card == 'K':
			return 1
		case card == 'Q' && history == "p", card == 'J' && history == "b":
			return 0
		}
		return 1.0 / 3
	}
	for _, alpha := range []float64{0, 0.2, 1.0 / 3} {
		first := func(card byte, history string) float64 {
			switch {
			case card == 'K' && history == "":
				return 3 * alpha
			case card == 'K':
				return 1
			case card == 'J' && history == "":
				return alpha
			case card == 'Q' && history == "pb":
				return alpha + 1.0/3
			}
			return 0
		}
		seats := [2]strategy{first, second}
		if v, e := value(seats), exploitability(seats); math.Abs(v+1.0/18) > 1e-12 || math.Abs(e) > 1e-12 {
			t.Errorf("the equilibrium of α = %.2f has the value %g and is exploitable by %g", alpha, v, e)
		}
	}
}

func TestNegotiation(t *testing.T) {
	before, after := learned(t, "negotiation")
	between(t, before, "score against random", -0.05, 0.05)
	between(t, after, "score against random", 0.4, 1)
}

// TestNegotiationIsFair: whatever is agreed, one seat wins what the other loses, and
// by its own values.
func TestNegotiationIsFair(t *testing.T) {
	// Gold is worth 3 to seat 0 and 1 to seat 1. Seat 0 offers 1 wood for 1 gold: it
	// gains 1, and seat 1, who gets wood worth 2 for gold worth 1, gains 1 too.
	n := &negotiation{gold: [2]int{3, 1}}
	n.Move('w')
	n.Move('a')
	if s := n.Score(); s != 0 {
		t.Errorf("an even trade scores %g", s)
	}
	// 2 gold for 1 wood, from seat 1: it gains 2 − 2 = 0, seat 0 gains 6 − 2 = 4.
	n = &negotiation{gold: [2]int{3, 1}}
	n.Move('n')
	n.Move('G')
	n.Move('a')
	if s := n.Score(); s != 1 {
		t.Errorf("a gift to seat 0 scores %g", s)
	}
	// The same from seat 0: it gains 2 − 6 = −4, seat 1 gains 2 − 2 = 0.
	n = &negotiation{gold: [2]int{3, 1}}
	n.Move('G')
	n.Move('a')
	if s := n.Score(); s != -1 {
		t.Errorf("a gift to seat 1 scores %g", s)
	}
}

// TestEvolve: solvers learn from a judge's opinion what is true, though the truth
// earns nothing; proposers learn to ask what has an answer.
func TestEvolve(t *testing.T) {
	before, after := learned(t, "evolve")
	between(t, before, "sums solved", 0.0999, 0.1001)
	between(t, after, "sums solved", 0.85, 1)
	between(t, before, "well-posed proposals", 0.55, 0.5501)
	between(t, after, "well-posed proposals", 0.9, 1)
}
