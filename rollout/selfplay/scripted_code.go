package selfplay

import (
	"regexp"
	"slices"
	"strings"
)

// This file reads source text by lines, without knowing its language: blocks
// are told by indentation or by brackets, statements by where they return to
// the level they began at.

// function is one function of a file; lines are numbered from 0, ends are exclusive.
type function struct {
	name       string
	start, end int // header included
	body       int // first line of the body
}

// spliced is the function's text with lines[start:end], which lie in it, replaced.
func (f function) spliced(lines []string, start, end int, with []string) string {
	return strings.Join(slices.Concat(lines[f.start:start], with, lines[end:f.end]), "\n")
}

// removal is a change by which statements disappear from a function.
type removal struct {
	start, end int      // lines taken out
	with       []string // what stands in their place: nothing, or an empty statement
}

// code reads files of one language.
type code struct {
	function *regexp.Regexp // first line of a function; its first group is the name
	indent   bool           // blocks by indentation, otherwise by brackets
	empty    string         // the statement of a block that has none, "" when not needed
	joined   *regexp.Regexp // lines that continue the statement before: else, except, …
	fixed    *regexp.Regexp // statements that are never removed
}

// functions lists the functions of a file in order, nested ones included.
func (c *code) functions(lines []string) []function {
	var all []function
	for i, line := range lines {
		m := c.function.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		f := function{name: m[1], start: i}
		f.body = c.headerEnd(lines, i)
		if c.indent {
			f.end = f.body
			for f.end < len(lines) && (blank(lines[f.end]) || indentation(lines[f.end]) > indentation(line)) {
				f.end++
			}
			for f.end > f.body && blank(lines[f.end-1]) {
				f.end--
			}
		} else {
			depth := 0
			for f.end = i; f.end < len(lines); f.end++ {
				if depth += brackets(lines[f.end]); depth <= 0 && f.end+1 >= f.body {
					break
				}
			}
			f.end = min(f.end+1, len(lines))
		}
		if f.end > f.body {
			all = append(all, f)
		}
	}
	return all
}

// headerEnd is the line after a function's header, which may span lines.
func (c *code) headerEnd(lines []string, at int) int {
	depth := 0
	for i := at; i < len(lines); i++ {
		depth += brackets(lines[i])
		if c.indent && depth <= 0 {
			return i + 1
		}
		if !c.indent && strings.HasSuffix(strings.TrimRight(lines[i], " \t"), "{") {
			return i + 1
		}
	}
	return len(lines)
}

// statement is a run of lines that form one statement, with the blocks in it.
type statement struct {
	start, end int
	blocks     [][2]int
}

// statements splits a block into its statements.
func (c *code) statements(lines []string, from, to int) []statement {
	var all []statement
	for i := from; i < to; {
		if blank(lines[i]) {
			i++
			continue
		}
		level, depth := indentation(lines[i]), brackets(lines[i])
		if !c.indent && depth < 0 {
			break // the bracket that closes the block
		}
		s := statement{start: i, end: i + 1}
		quoted := strings.Count(lines[i], `"""`)%2 == 1
		inner := -1 // first line of the nested block being read
		for s.end < to {
			line := lines[s.end]
			deeper := indentation(line) > level
			if !(quoted || depth > 0 || c.indent && (blank(line) || deeper || c.joined != nil && c.joined.MatchString(line))) {
				break
			}
			isInner := !quoted && !blank(line) && deeper && (c.indent && depth == 0 || !c.indent)
			switch {
			case isInner && inner < 0:
				inner = s.end
			case !isInner && !blank(line) && inner >= 0:
				s.blocks = append(s.blocks, [2]int{inner, s.end})
				inner = -1
			}
			if strings.Count(line, `"""`)%2 == 1 {
				quoted = !quoted
			}
			depth += brackets(line)
			s.end++
		}
		for s.end > s.start+1 && blank(lines[s.end-1]) {
			s.end--
		}
		if inner >= 0 && inner < s.end {
			s.blocks = append(s.blocks, [2]int{inner, s.end})
		}
		all = append(all, s)
		i = s.end
	}
	return all
}

// removals lists the ways to take one to three neighbouring statements, at most
// maxLines lines, out of a function without emptying it.
func (c *code) removals(lines []string, f function, maxLines int) []removal {
	var all []removal
	var visit func(from, to int, top bool)
	visit = func(from, to int, top bool) {
		list := c.statements(lines, from, to)
		for a := range list {
			if c.keeps(lines, list[a]) {
				continue
			}
			for b := a; b < len(list) && b < a+3; b++ {
				if c.keeps(lines, list[b]) || list[b].end-list[a].start > maxLines {
					break
				}
				r := removal{start: list[a].start, end: list[b].end}
				whole := b-a+1 == len(list)
				if top && b-a+1 == len(list)-c.kept(lines, list) {
					continue // nothing of the function would be left
				}
				if whole && c.empty != "" {
					r.with = []string{lines[r.start][:indentation(lines[r.start])] + c.empty}
				}
				all = append(all, r)
			}
		}
		for _, s := range list {
			for _, b := range s.blocks {
				if !c.function.MatchString(lines[s.start]) {
					visit(b[0], b[1], false)
				}
			}
		}
	}
	visit(f.body, f.end, true)
	return all
}

// keeps says whether a statement is never removed: comments, texts, definitions.
func (c *code) keeps(lines []string, s statement) bool {
	first := strings.TrimSpace(lines[s.start])
	return first == "" || c.fixed != nil && c.fixed.MatchString(first) || c.function.MatchString(lines[s.start]) ||
		first == c.empty && c.empty != "" || !strings.ContainsFunc(first, isWord)
}

func (c *code) kept(lines []string, list []statement) (n int) {
	for _, s := range list {
		if c.keeps(lines, s) {
			n++
		}
	}
	return n
}

func isWord(r rune) bool {
	return r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r > 127
}

func blank(line string) bool { return strings.TrimSpace(line) == "" }

// trimBlank is the lines up to the last that is not blank.
func trimBlank(lines []string) []string {
	for len(lines) > 0 && blank(lines[len(lines)-1]) {
		lines = lines[:len(lines)-1]
	}
	return lines
}

func indentation(line string) int {
	return len(line) - len(strings.TrimLeft(line, " \t"))
}

// brackets is how many brackets a line opens beyond those it closes; quoted
// text and comments do not count.
func brackets(line string) (n int) {
	var quote byte
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case quote != 0:
			if b == '\\' {
				i++
			} else if b == quote {
				quote = 0
			}
		case b == '"' || b == '\'' || b == '`':
			quote = b
		case b == '#' || b == '/' && i+1 < len(line) && line[i+1] == '/':
			return n
		case b == '(' || b == '[' || b == '{':
			n++
		case b == ')' || b == ']' || b == '}':
			n--
		}
	}
	return n
}

// splice is a change of a file as one edit: the lines old, which stand in the
// file exactly once, become new.
type splice struct{ old, new []string }

// uniqueSplice makes lines[start:end] → with into a splice: neighbouring lines,
// the one before first, are added until the old lines occur exactly once. It
// fails when that takes more than limit lines.
func uniqueSplice(lines []string, start, end int, with []string, limit int) (splice, bool) {
	a, b := start, end
	for {
		if b-a > limit {
			return splice{}, false
		}
		if b > a && !blank(strings.Join(lines[a:b], "")) && occurrences(lines, lines[a:b]) == 1 {
			s := splice{old: lines[a:b]}
			s.new = append(s.new, lines[a:start]...)
			s.new = append(s.new, with...)
			s.new = append(s.new, lines[end:b]...)
			return s, true
		}
		above := a > 0 && (!blank(lines[a-1]) || b == len(lines))
		switch {
		case above && (start-a <= b-end || b == len(lines)):
			a--
		case b < len(lines):
			b++
		case a > 0:
			a--
		default:
			return splice{}, false
		}
	}
}

func occurrences(lines, part []string) (n int) {
	for i := 0; i+len(part) <= len(lines); i++ {
		same := true
		for k := range part {
			if lines[i+k] != part[k] {
				same = false
				break
			}
		}
		if same {
			n++
		}
	}
	return n
}

// changedRegion is the smallest run of lines in which from and to differ:
// from[start:end] became with.
func changedRegion(from, to []string) (start, end int, with []string) {
	for start < len(from) && start < len(to) && from[start] == to[start] {
		start++
	}
	tail := 0
	for tail < len(from)-start && tail < len(to)-start && from[len(from)-1-tail] == to[len(to)-1-tail] {
		tail++
	}
	return start, len(from) - tail, to[start : len(to)-tail]
}

func splitLines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}
