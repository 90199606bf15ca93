package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/ssr-go/ssr/rollout"
)

// Transcript prints an episode for reading: its prompt, every turn with its
// tool call and what came back, and how it ended. What a policy or a sandbox
// wrote cannot drive the terminal: control characters are shown, not sent.
func Transcript(w io.Writer, t *rollout.Trajectory, colour bool) error {
	p := &printer{w: w, colour: colour}
	p.rule("%s  %s  step %d  group %s", t.ID, t.Role, t.Step, t.Group)
	for _, m := range t.Messages {
		p.block(dim, m.Role, m.Content)
	}
	for i, turn := range t.Turns {
		tool := turn.Tool
		if tool == "" {
			tool = "no valid call"
		}
		p.rule("turn %d  %s  %d tokens  %.1f s", i+1, tool, turn.End-turn.Start, turn.Seconds)
		p.block(bold, "policy", turn.Text)
		if turn.Observation != "" {
			p.block(plainStyle, "observation", turn.Observation)
		}
	}
	sampled := 0
	for _, s := range t.Trained {
		if s {
			sampled++
		}
	}
	p.rule("%s  %s", t.Status, t.Outcome)
	if t.Status == rollout.Scored {
		p.printf("reward   %+.3f\n", t.Reward)
	}
	if t.Failure != "" {
		p.printf("failure  %s\n", Printable(t.Failure))
	}
	p.printf("tokens   %s, %s of them sampled, in %d turns\n", Thousands(len(t.Tokens)), Thousands(sampled), len(t.Turns))
	if t.Detail != nil {
		detail, err := json.MarshalIndent(t.Detail, "", "  ")
		if err != nil {
			return err
		}
		p.block(plainStyle, "detail", string(detail))
	}
	return p.err
}

const (
	plainStyle = ""
	bold       = "\x1b[1m"
	dim        = "\x1b[2m"
	reset      = "\x1b[0m"
)

// printer keeps the first error of its writer.
type printer struct {
	w      io.Writer
	colour bool
	err    error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) rule(format string, args ...any) {
	title := Printable(fmt.Sprintf(format, args...))
	p.printf("── %s %s\n", title, strings.Repeat("─", max(2, 76-len([]rune(title)))))
}

func (p *printer) block(style, name, content string) {
	p.printf("%s:\n", name)
	for line := range strings.Lines(content) {
		line = Printable(strings.TrimRight(line, "\n"))
		if p.colour && style != plainStyle {
			line = style + line + reset
		}
		p.printf("  %s\n", line)
	}
}

// Printable replaces control characters, which a terminal would obey, by their
// pictures, and invalid UTF-8 by the replacement character.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return r
		case r < 0x20:
			return 0x2400 + r
		case r >= 0x7f && r < 0xa0:
			return '\ufffd'
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // bidirectional overrides
			return '\ufffd'
		}
		return r
	}, s)
}

// PrintableText is Printable of each line.
func PrintableText(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = Printable(l)
	}
	return strings.Join(lines, "\n")
}
