package ui

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// Progress shows a run while it goes on: on a terminal a view that is repainted
// in place, elsewhere plain lines, one a step and one now and then within a
// long step. OnEvent is safe for concurrent use and returns at once.
type Progress struct {
	out      io.Writer
	terminal *os.File // nil for plain lines
	inFlight func() int
	now      func() time.Time

	mu      sync.Mutex
	state   state
	painted int // lines on the terminal that the next paint replaces
	quit    chan struct{}
	done    chan struct{}
}

// state is what the view shows.
type state struct {
	began, stepBegan time.Time
	event            train.Event
	history          []train.Metrics
	notice           time.Time // last plain line within a step
	measuring        bool      // the policy, which is no part of the step
}

const (
	repaintEvery = 250 * time.Millisecond
	noticeEvery  = 30 * time.Second
	barWidth     = 28
	// recent steps make up the rates shown and the time left.
	recent = 8
)

// NewProgress starts the view of a run on out. inFlight, where not nil, tells
// how many episodes are being played. Close ends the view.
func NewProgress(out *os.File, inFlight func() int) *Progress {
	p := newProgress(out, inFlight, time.Now)
	if term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb" {
		p.terminal = out
	}
	go p.tick()
	return p
}

func newProgress(out io.Writer, inFlight func() int, now func() time.Time) *Progress {
	p := &Progress{out: out, inFlight: inFlight, now: now, quit: make(chan struct{}), done: make(chan struct{})}
	p.state.began = now()
	p.state.stepBegan, p.state.notice = p.state.began, p.state.began
	return p
}

// Resume tells the view what earlier steps of the run measured.
func (p *Progress) Resume(history []train.Metrics) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.history = append(p.state.history, history...)
}

// OnEvent takes note of an event of the run.
func (p *Progress) OnEvent(e train.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.state
	if e.Step != s.event.Step {
		s.stepBegan, s.notice = p.now(), p.now()
	}
	s.event = e
	if e.Phase != train.PhaseStep {
		return
	}
	if e.Metrics != nil {
		// A resumed run takes the steps after its checkpoint again.
		s.history = slices.DeleteFunc(s.history, func(m train.Metrics) bool { return m.Step >= e.Metrics.Step })
		s.history = append(s.history, *e.Metrics)
		if p.terminal == nil {
			fmt.Fprintln(p.out, s.stepLine())
		}
	}
	s.stepBegan, s.notice = p.now(), p.now()
}

// Measuring says that the policy is being measured, or no longer is; the clock of the
// step begins again.
func (p *Progress) Measuring(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.measuring = on
	p.state.stepBegan, p.state.notice = p.now(), p.now()
}

// Println prints a line above the view.
func (p *Progress) Println(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintln(p.out, line)
	p.paint()
}

// Close ends the view; what it last showed stays on the terminal.
func (p *Progress) Close() {
	close(p.quit)
	<-p.done
}

func (p *Progress) tick() {
	defer close(p.done)
	t := time.NewTicker(repaintEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.refresh()
		case <-p.quit:
			p.refresh()
			return
		}
	}
}

// refresh repaints the view, or prints a line when a step takes long.
func (p *Progress) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal != nil {
		p.erase()
		p.paint()
		return
	}
	s := &p.state
	if now := p.now(); now.Sub(s.notice) >= noticeEvery && s.event.Step > 0 && (s.measuring || s.event.Phase != train.PhaseDone) {
		s.notice = now
		fmt.Fprintf(p.out, "step %d/%d %s\n", s.event.Step, s.event.Steps, s.phaseLine(now, p.flying()))
	}
}

func (p *Progress) flying() int {
	if p.inFlight == nil {
		return 0
	}
	return p.inFlight()
}

func (p *Progress) erase() {
	if p.painted > 0 {
		fmt.Fprintf(p.out, "\x1b[%dA\x1b[J", p.painted)
		p.painted = 0
	}
}

func (p *Progress) paint() {
	if p.terminal == nil {
		return
	}
	width, _, err := term.GetSize(int(p.terminal.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	view := p.state.view(p.now(), p.flying())
	for _, l := range view {
		if r := []rune(l); len(r) >= width {
			l = string(r[:width-1])
		}
		fmt.Fprintln(p.out, l)
	}
	p.painted = len(view)
}

// view is the terminal's picture.
func (s *state) view(now time.Time, flying int) []string {
	e := s.event
	if e.Step == 0 {
		return []string{"starting, " + duration(now.Sub(s.began))}
	}
	share := float64(len(s.history)) / float64(max(1, e.Steps))
	filled := min(barWidth, int(share*barWidth))
	out := []string{
		fmt.Sprintf("step %d/%d %s%s %.0f%%  elapsed %s%s", e.Step, e.Steps, strings.Repeat("━", filled), strings.Repeat("─", barWidth-filled),
			100*share, duration(now.Sub(s.began)), s.left()),
		"  now         " + s.phaseLine(now, flying),
	}
	if len(s.history) == 0 {
		return out
	}
	last := &s.history[len(s.history)-1]
	row := func(name string, of func(*train.Metrics) (float64, bool)) {
		values, some := s.values(of)
		if v, ok := window(s.tail(), of); some {
			out = append(out, fmt.Sprintf("  %-11s %4s  %s", name, percent(v, ok), sparkline(values)))
		}
	}
	row("solve rate", solveRate)
	row("valid bugs", validRate)
	if l := rewards(last); l != "" {
		out = append(out, "  reward      "+l)
	}
	return append(out, "  update      "+update(last))
}

// phaseLine says what the current step is busy with.
func (s *state) phaseLine(now time.Time, flying int) string {
	e, elapsed := s.event, now.Sub(s.stepBegan)
	in := ""
	if flying > 0 {
		in = fmt.Sprintf(", %d in flight", flying)
	}
	if s.measuring {
		return "measuring, " + duration(elapsed) + in
	}
	switch e.Phase {
	case train.PhaseUpdate:
		return "learning, " + duration(elapsed)
	case train.PhaseCheckpoint:
		return "writing a checkpoint"
	case train.PhaseStep:
		return "starting the next step"
	case train.PhaseDone:
		return "done"
	}
	line := fmt.Sprintf("playing, %s: %d episodes in %d groups finished", duration(elapsed), e.Episodes, e.Groups) + in
	if sec := elapsed.Seconds(); sec > 0 && e.Tokens > 0 {
		line += fmt.Sprintf(", %s tokens/s", Thousands(int(float64(e.Tokens)/sec)))
	}
	return line
}

// stepLine is the plain line of the last complete step.
func (s *state) stepLine() string {
	m := &s.history[len(s.history)-1]
	parts := []string{fmt.Sprintf("step %d/%d", m.Step, s.event.Steps)}
	if v, ok := solveRate(m); ok {
		parts = append(parts, "solved "+percent(v, true))
	}
	if v, ok := validRate(m); ok {
		parts = append(parts, "valid "+percent(v, true))
	}
	if l := rewards(m); l != "" {
		parts = append(parts, "reward "+l)
	}
	parts = append(parts, update(m))
	if m.PlayMetrics != nil && m.Seconds.Play > 0 {
		parts = append(parts, Thousands(int(float64(m.SampledTokens)/m.Seconds.Play))+" tokens/s")
	}
	parts = append(parts, duration(stepTime(m)))
	return strings.Join(parts, "  ") + s.left()
}

func rewards(m *train.Metrics) string {
	if m.PlayMetrics == nil {
		return ""
	}
	var parts []string
	for _, r := range []rollout.Role{rollout.Injector, rollout.Solver} {
		if x := m.Roles[r]; x != nil && x.Episodes > 0 {
			parts = append(parts, fmt.Sprintf("%s %+.2f", r, x.RewardMean))
		}
	}
	return strings.Join(parts, ", ")
}

func update(m *train.Metrics) string {
	if m.Updates == 0 {
		return "no update"
	}
	var parts []string
	for _, f := range []struct {
		name string
		v    *float64
	}{{"loss", m.Loss}, {"grad", m.GradNorm}, {"entropy", m.Entropy}, {"|Δlogprob|", m.LogprobGap}} {
		if f.v != nil {
			parts = append(parts, fmt.Sprintf("%s %.3g", f.name, *f.v))
		}
	}
	return strings.Join(parts, " ")
}

func stepTime(m *train.Metrics) time.Duration {
	return time.Duration((m.Seconds.Play + m.Seconds.Update + m.Seconds.Checkpoint) * float64(time.Second))
}

func (s *state) tail() []train.Metrics { return s.history[max(0, len(s.history)-recent):] }

// left estimates the time to the end from the recent steps.
func (s *state) left() string {
	if len(s.history) == 0 || s.event.Steps <= len(s.history) {
		return ""
	}
	var sum time.Duration
	for i := range s.tail() {
		sum += stepTime(&s.tail()[i])
	}
	return "  left " + duration(sum/time.Duration(len(s.tail()))*time.Duration(s.event.Steps-len(s.history)))
}

// values are a figure over the last steps.
func (s *state) values(of func(*train.Metrics) (float64, bool)) (out []float64, some bool) {
	const most = 40
	for i := max(0, len(s.history)-most); i < len(s.history); i++ {
		v, ok := of(&s.history[i])
		if !ok {
			v = -1
		}
		some = some || ok
		out = append(out, v)
	}
	return out, some
}

// sparkline draws shares between 0 and 1; a negative one is a gap.
func sparkline(values []float64) string {
	const blocks = "▁▂▃▄▅▆▇█"
	levels := []rune(blocks)
	var b strings.Builder
	for _, v := range values {
		if v < 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune(levels[min(len(levels)-1, int(v*float64(len(levels))))])
	}
	return b.String()
}
