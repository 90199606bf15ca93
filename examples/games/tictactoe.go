package main

import (
	"fmt"
	"strings"
)

// tictactoe is a board of nine cells, each '.', 'x' or 'o'; x begins.
type tictactoe struct{ cells [9]byte }

func newTicTacToe(string) board {
	b := &tictactoe{}
	for i := range b.cells {
		b.cells[i] = '.'
	}
	return b
}

var lines = [8][3]int{{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {0, 3, 6}, {1, 4, 7}, {2, 5, 8}, {0, 4, 8}, {2, 4, 6}}

// winner is the mark of a full line, or '.'.
func (b *tictactoe) winner() byte {
	for _, l := range lines {
		if m := b.cells[l[0]]; m != '.' && m == b.cells[l[1]] && m == b.cells[l[2]] {
			return m
		}
	}
	return '.'
}

func (b *tictactoe) free() (cells []int) {
	for i, m := range b.cells {
		if m == '.' {
			cells = append(cells, i)
		}
	}
	return cells
}

func (b *tictactoe) Turn() int {
	free := len(b.free())
	if free == 0 || b.winner() != '.' {
		return -1
	}
	return (9 - free) % 2
}

func (b *tictactoe) View() string {
	var moves strings.Builder
	for _, i := range b.free() {
		fmt.Fprint(&moves, i+1)
	}
	return fmt.Sprintf("You are %c.\n%s\n%s\n%s\nFree cells: %s", "xo"[b.Turn()], b.cells[:3], b.cells[3:6], b.cells[6:], &moves)
}

func (b *tictactoe) Move(m byte) { b.cells[m-'1'] = "xo"[b.Turn()] }

func (b *tictactoe) Score() float64 {
	switch b.winner() {
	case 'x':
		return 1
	case 'o':
		return -1
	}
	return 0
}
