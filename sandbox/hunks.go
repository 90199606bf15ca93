package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// isNotDir: a component of the path is a file, so nothing is below it.
func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }

const (
	context3 = 3 // lines of context around a change
	// maxEdits bounds the search for the shortest edit script, whose time and
	// memory grow with its square; beyond it the differing middle is replaced.
	maxEdits = 2000
)

// span says that lines [a0,a1) of the old text become [b0,b1) of the new one.
type span struct{ a0, a1, b0, b1 int }

// writeHunks appends a unified diff with three lines of context.
func writeHunks(out *bytes.Buffer, a, b []string) {
	spans := diffLines(a, b)
	for len(spans) > 0 {
		n := 1
		for n < len(spans) && spans[n].a0-spans[n-1].a1 <= 2*context3 {
			n++
		}
		writeHunk(out, a, b, spans[:n])
		spans = spans[n:]
	}
}

func writeHunk(out *bytes.Buffer, a, b []string, spans []span) {
	first, last := spans[0], spans[len(spans)-1]
	before := min(context3, first.a0)
	after := min(context3, len(a)-last.a1)
	a0, b0 := first.a0-before, first.b0-before
	fmt.Fprintf(out, "@@ -%s +%s @@\n", lineRange(a0, last.a1+after-a0), lineRange(b0, last.b1+after-b0))
	at := a0
	for _, s := range spans {
		writeLines(out, ' ', a[at:s.a0])
		writeLines(out, '-', a[s.a0:s.a1])
		writeLines(out, '+', b[s.b0:s.b1])
		at = s.a1
	}
	writeLines(out, ' ', a[at:at+after])
}

// lineRange writes a 0-based range as a hunk header counts: from 1, and an
// empty range by the line before it.
func lineRange(start, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", start)
	case 1:
		return fmt.Sprint(start + 1)
	}
	return fmt.Sprintf("%d,%d", start+1, n)
}

func writeLines(out *bytes.Buffer, mark byte, lines []string) {
	for _, l := range lines {
		out.WriteByte(mark)
		out.WriteString(l)
		if !strings.HasSuffix(l, "\n") {
			out.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

// diffLines finds what differs, in order and without touching spans: Myers'
// shortest edit script (Algorithmica 1:251, 1986) between the common head and tail.
func diffLines(a, b []string) []span {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	a, b = a[head:len(a)-tail], b[head:len(b)-tail]
	if len(a) == 0 && len(b) == 0 {
		return nil
	}
	spans, ok := myers(a, b)
	if !ok {
		spans = []span{{0, len(a), 0, len(b)}}
	}
	for i := range spans {
		s := &spans[i]
		s.a0, s.a1, s.b0, s.b1 = s.a0+head, s.a1+head, s.b0+head, s.b1+head
	}
	return spans
}

// myers reports false when more than maxEdits lines differ.
func myers(a, b []string) ([]span, bool) {
	limit := min(len(a)+len(b), maxEdits)
	// far[k+limit] is the furthest x on diagonal k = x-y; trace keeps the state before each step.
	far := make([]int32, 2*limit+2)
	var trace [][]int32
	for d := 0; d <= limit; d++ {
		trace = append(trace, slices.Clone(far[limit-d:limit+d+1]))
		for k := -d; k <= d; k += 2 {
			var x int
			if k == -d || k != d && far[k-1+limit] < far[k+1+limit] {
				x = int(far[k+1+limit])
			} else {
				x = int(far[k-1+limit]) + 1
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			far[k+limit] = int32(x)
			if x >= len(a) && x-k >= len(b) {
				return backtrack(trace, len(a), len(b)), true
			}
		}
	}
	return nil, false
}

// backtrack walks the trace from the end and joins neighbouring edits.
func backtrack(trace [][]int32, x, y int) []span {
	var spans []span
	for d := len(trace) - 1; d > 0; d-- {
		far := func(k int) int { return int(trace[d][k+d]) }
		k := x - y
		down := k == -d || k != d && far(k-1) < far(k+1)
		prev := k - 1
		if down {
			prev = k + 1
		}
		px := far(prev)
		py := px - prev
		// The edit leads from (px,py) to (sx,sy); what follows it is common.
		sx, sy := px+1, py
		if down {
			sx, sy = px, py+1
		}
		if n := len(spans); n > 0 && spans[n-1].a0 == sx && spans[n-1].b0 == sy {
			spans[n-1].a0, spans[n-1].b0 = px, py
		} else {
			spans = append(spans, span{px, sx, py, sy})
		}
		x, y = px, py
	}
	slices.Reverse(spans)
	return spans
}
