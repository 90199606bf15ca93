package selfplay

import (
	"math/rand/v2"

	"github.com/ssr-go/ssr/rollout"
)

// ScriptedPlayer is a player that follows a plan.
type ScriptedPlayer interface {
	rollout.TextPlayer
	// Skipped are the turns, from 0, that are not to be imitated.
	Skipped() []int
}

// Habits are how a scripted player works. With the zero value it makes every
// call once and submits without running a test.
type Habits struct {
	// Careful players test what they wrote before they submit it, and write anew
	// what does not hold.
	Careful bool
	// Shy: that a careful player tests its work is not to be imitated, unlike what
	// follows from it.
	Shy bool
	// Slip is the probability that a command of a careful player goes wrong, as
	// sampling goes wrong, so that there is something to mend.
	Slip float64
	// Draw decides; it may be nil where Slip is 0.
	Draw *rand.Rand
}

const (
	mostSlips = 3  // of an episode
	slipParts = 3  // most passages of a text that a slip replaces
	slipRunes = 40 // most runes of a passage
)

// worker is what careful players have in common.
type worker struct {
	Habits
	turn    int
	skipped []int
	slips   int
	checked bool
}

func (w *worker) Skipped() []int { return w.skipped }

// slip returns the command that the player gives in a turn, mostly the one meant.
func (w *worker) slip(command string) (given string, slipped bool) {
	if !w.Careful || w.slips == mostSlips || w.Slip == 0 || w.Draw.Float64() >= w.Slip {
		return command, false
	}
	w.slips++
	w.skipped = append(w.skipped, w.turn)
	for range 1 + w.Draw.IntN(slipParts) {
		command = garble(command, w.Draw)
	}
	return command, true
}

// checks notes that a turn looks at what came of the writing.
func (w *worker) checks() {
	if w.Shy && !w.checked {
		w.skipped = append(w.skipped, w.turn)
	}
	w.checked = true
}

// garble puts a passage from elsewhere in a text in the place of another.
func garble(text string, draw *rand.Rand) string {
	r := []rune(text)
	passage := func() (from, to int) {
		from = draw.IntN(len(r) + 1)
		return from, min(len(r), from+draw.IntN(slipRunes+1))
	}
	from, to := passage()
	first, last := passage()
	return string(r[:from]) + string(r[first:last]) + string(r[to:])
}
