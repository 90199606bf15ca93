package main

import (
	"fmt"

	"github.com/ssr-go/ssr/model/gen"
)

// kuhn is Kuhn's poker: one card of three each, an ante of one, one bet of one.
// A seat passes (p) or bets (b); after a bet that is to fold or to call.
type kuhn struct {
	cards   string // of seat 0 and seat 1, each J, Q or K
	history string
}

var deals = []string{"JQ", "JK", "QJ", "QK", "KJ", "KQ"}

// newKuhn deals by the match's name.
func newKuhn(id string) board {
	return &kuhn{cards: deals[int(gen.NewStream(0, id).Uniform(0)*float64(len(deals)))]}
}

func (k *kuhn) Turn() int {
	switch k.history {
	case "pp", "pbp", "pbb", "bp", "bb":
		return -1
	}
	return len(k.history) % 2
}

func (k *kuhn) View() string { return kuhnView(k.cards[k.Turn()], k.history) }

func kuhnView(card byte, history string) string {
	return fmt.Sprintf("You hold %c. Played so far is %q. Pass or bet: pb", card, history)
}

func (k *kuhn) Move(m byte) { k.history += string(m) }

func (k *kuhn) Score() float64 {
	better := 1.0
	if rank(k.cards[0]) < rank(k.cards[1]) {
		better = -1
	}
	switch k.history {
	case "pp":
		return better
	case "bb", "pbb":
		return 2 * better
	case "bp":
		return 1
	case "pbp":
		return -1
	}
	return 0
}

func rank(card byte) int { return map[byte]int{'J': 0, 'Q': 1, 'K': 2}[card] }

// strategy is the probability of a bet by view.
type strategy func(card byte, history string) float64

// value is what seat 0 wins on average when the seats play by these strategies.
func value(seats [2]strategy) float64 {
	var walk func(k kuhn) float64
	walk = func(k kuhn) float64 {
		turn := k.Turn()
		if turn < 0 {
			return k.Score()
		}
		bet := seats[turn](k.cards[turn], k.history)
		return bet*walk(kuhn{k.cards, k.history + "b"}) + (1-bet)*walk(kuhn{k.cards, k.history + "p"})
	}
	var sum float64
	for _, d := range deals {
		sum += walk(kuhn{cards: d}) / float64(len(deals))
	}
	return sum
}

// exploitability is what a best response wins beyond the game's value, the mean
// of both seats: 0 of an equilibrium. A best response is found among all pure ones.
func exploitability(seats [2]strategy) float64 {
	histories := [2][2]string{{"", "pb"}, {"p", "b"}}
	var gain float64
	for own := range 2 {
		best := -2.0
		for choice := range 1 << 6 {
			reply := seats
			reply[own] = func(card byte, history string) float64 {
				bit := 2 * rank(card)
				if history == histories[own][1] {
					bit++
				}
				return float64(choice >> bit & 1)
			}
			best = max(best, value(reply)*float64(1-2*own))
		}
		gain += best
	}
	return gain / 2
}
