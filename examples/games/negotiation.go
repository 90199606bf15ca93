package main

import (
	"fmt"

	"github.com/ssr-go/ssr/model/gen"
)

// negotiation is a small form of TextArena's SimpleNegotiation, which SPIRAL plays:
// each seat holds wood and gold, which it values in its own way, and trades by
// offers. Who has gained more by its own values when they agree wins; after four
// turns without an agreement nobody does.
type negotiation struct {
	gold   [2]int // what a piece is worth to a seat, 1 to 3; wood is worth 2 to both
	turn   int
	offer  byte // of the seat before, 0 for none
	agreed bool
}

// offers are what a seat gives and takes, in pieces of wood and of gold.
var offers = map[byte]struct {
	text       string
	wood, gold int // that the one who offers gets
}{
	'w': {"1 wood for 1 gold", -1, 1},
	'W': {"2 wood for 1 gold", -2, 1},
	'g': {"1 gold for 1 wood", 1, -1},
	'G': {"2 gold for 1 wood", 1, -2},
}

const turns = 4

// newNegotiation draws the values by the match's name.
func newNegotiation(id string) board {
	draw := gen.NewStream(0, id)
	n := &negotiation{}
	for seat := range n.gold {
		n.gold[seat] = 1 + int(draw.Uniform(seat)*3)
	}
	return n
}

func (n *negotiation) Turn() int {
	if n.agreed || n.turn == turns {
		return -1
	}
	return n.turn % 2
}

func (n *negotiation) View() string {
	said, moves := "nothing", "nwWgG"
	if n.offer != 0 {
		said, moves = offers[n.offer].text, "a"+moves
	}
	return fmt.Sprintf("Turn %d of %d. Wood is worth 2 to you, gold %d. You are offered %s. Accept (a), no offer (n), or offer 1 or 2 wood (wW) or gold (gG): %s",
		n.turn+1, turns, n.gold[n.turn%2], said, moves)
}

func (n *negotiation) Move(m byte) {
	switch m {
	case 'a':
		n.agreed = true
		return // the offer is of the seat before
	case 'n':
		n.offer = 0
	default:
		n.offer = m
	}
	n.turn++
}

func (n *negotiation) Score() float64 {
	if !n.agreed {
		return 0
	}
	o, offered := offers[n.offer], 1-n.turn%2
	gain := func(seat, sign int) int { return sign * (2*o.wood + n.gold[seat]*o.gold) }
	lead := gain(offered, 1) - gain(1-offered, -1)
	if offered == 1 {
		lead = -lead
	}
	return float64(min(1, max(-1, lead)))
}
