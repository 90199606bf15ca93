package jinja

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

type kind int

const (
	data   kind = iota // text outside tags
	output             // {{
	block              // {%
	end                // }} or %}
	name
	integer
	floating
	str
	op
	eof
)

type tok struct {
	kind kind
	text string
	line int
}

var (
	newlines   = strings.NewReplacer("\r\n", "\n", "\r", "\n")
	endRaw     = regexp.MustCompile(`\{%([-+]?)\s*endraw\s*([-+]?)%\}`)
	nameToken  = regexp.MustCompile(`^[\pL_][\pL\pN_]*`)
	numberText = regexp.MustCompile(`^[0-9](_?[0-9])*(\.[0-9](_?[0-9])*)?([eE][+-]?[0-9]+)?`)
)

// operators, the longer ones first.
var operators = []string{"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", ".", ",", ":", "|", "(", ")", "[", "]", "{", "}"}

type lexer struct {
	rest string
	toks []tok
	// lineStart: what stands before rest ends a line, so that spaces at its start
	// are indentation.
	lineStart bool
	source    string
}

// lex cuts a template into tokens, with trim_blocks and lstrip_blocks on.
func lex(source string) []tok {
	source = strings.TrimSuffix(newlines.Replace(source), "\n")
	l := &lexer{rest: source, source: source, lineStart: true}
	for l.rest != "" {
		at := -1
		for i := range len(l.rest) - 1 {
			if l.rest[i] == '{' && strings.IndexByte("{%#", l.rest[i+1]) >= 0 {
				at = i
				break
			}
		}
		if at < 0 {
			l.add(data, l.rest)
			break
		}
		before, tag := l.rest[:at], l.rest[at+1]
		l.rest = l.rest[at+2:]
		sign := l.sign()
		l.add(data, l.strip(before, tag, sign))
		switch tag {
		case '#':
			i := strings.Index(l.rest, "#}")
			if i < 0 {
				l.fail("a comment does not end")
			}
			sign := byte(0)
			if i > 0 {
				sign = l.rest[i-1]
			}
			l.rest = l.rest[i+2:]
			l.after('#', sign)
		case '{':
			l.add(output, "")
			l.inside("}}", '{')
		default:
			l.add(block, "")
			l.inside("%}", '%')
			if n := len(l.toks); l.toks[n-2].text == "raw" && l.toks[n-2].kind == name && l.toks[n-3].kind == block {
				l.toks = l.toks[:n-3]
				l.raw()
			}
		}
	}
	l.add(eof, "")
	return l.toks
}

func (l *lexer) line() int { return 1 + strings.Count(l.source[:len(l.source)-len(l.rest)], "\n") }

func (l *lexer) fail(format string, args ...any) {
	panic(failure{line: l.line(), text: sprintf(format, args...)})
}

func (l *lexer) add(k kind, text string) {
	if k != data || text != "" {
		l.toks = append(l.toks, tok{k, text, l.line()})
	}
}

// sign takes the sign after an opening tag.
func (l *lexer) sign() byte {
	if l.rest != "" && (l.rest[0] == '-' || l.rest[0] == '+') {
		c := l.rest[0]
		l.rest = l.rest[1:]
		return c
	}
	return 0
}

// strip takes the white space before a tag away that its kind and sign say.
func (l *lexer) strip(before string, tag, sign byte) string {
	switch {
	case sign == '-':
		return strings.TrimRightFunc(before, IsSpace)
	case sign == '+' || tag == '{':
		return before
	}
	line := strings.LastIndexByte(before, '\n') + 1
	if (line > 0 || l.lineStart) && strings.Trim(before[line:], " \t") == "" {
		return before[:line]
	}
	return before
}

// after takes the white space after a tag away.
func (l *lexer) after(tag, sign byte) {
	was := l.rest
	switch {
	case sign == '-':
		l.rest = strings.TrimLeftFunc(l.rest, IsSpace)
	case sign != '+' && tag != '{':
		l.rest = strings.TrimPrefix(l.rest, "\n")
	}
	taken := was[:len(was)-len(l.rest)]
	l.lineStart = strings.HasSuffix(taken, "\n")
}

func (l *lexer) raw() {
	m := endRaw.FindStringSubmatchIndex(l.rest)
	if m == nil {
		l.fail("raw does not end")
	}
	at := func(i int) byte {
		if m[i] == m[i+1] {
			return 0
		}
		return l.rest[m[i]]
	}
	open, shut := at(2), at(4)
	l.add(data, l.strip(l.rest[:m[0]], '%', open))
	l.rest = l.rest[m[1]:]
	l.after('%', shut)
}

// inside reads the tokens of a tag up to its end.
func (l *lexer) inside(closing string, tag byte) {
	var open []byte
	for {
		l.rest = strings.TrimLeftFunc(l.rest, IsSpace)
		if l.rest == "" {
			l.fail("a tag does not end with %s", closing)
		}
		if len(open) == 0 {
			for _, sign := range []string{"", "-", "+"} {
				if strings.HasPrefix(l.rest, sign+closing) && (sign != "+" || tag == '%') {
					l.add(end, "")
					l.rest = l.rest[len(sign)+2:]
					l.after(tag, (sign + "\x00")[0])
					return
				}
			}
		}
		c := l.rest[0]
		switch {
		case c == '"' || c == '\'':
			l.quoted(c)
		case '0' <= c && c <= '9':
			s := numberText.FindString(l.rest)
			k := integer
			if strings.ContainsAny(s, ".eE") {
				k = floating
			}
			l.add(k, strings.ReplaceAll(s, "_", ""))
			l.rest = l.rest[len(s):]
		default:
			if s := nameToken.FindString(l.rest); s != "" {
				l.add(name, s)
				l.rest = l.rest[len(s):]
				continue
			}
			o := l.operator()
			switch o {
			case "(", "[", "{":
				open = append(open, o[0])
			case ")", "]", "}":
				if len(open) == 0 || strings.IndexByte("([{", open[len(open)-1]) != strings.Index(")]}", o) {
					l.fail("%q has no opening bracket", o)
				}
				open = open[:len(open)-1]
			}
		}
	}
}

func (l *lexer) operator() string {
	for _, o := range operators {
		if strings.HasPrefix(l.rest, o) {
			l.add(op, o)
			l.rest = l.rest[len(o):]
			return o
		}
	}
	r, _ := utf8.DecodeRuneInString(l.rest)
	l.fail("unexpected character %q", r)
	return ""
}

var escapes = map[byte]string{'n': "\n", 't': "\t", 'r': "\r", '\\': "\\", '\'': "'", '"': "\"", 'a': "\a", 'b': "\b", 'f': "\f", 'v': "\v", '\n': ""}

// quoted reads a string literal with Python's escapes.
func (l *lexer) quoted(quote byte) {
	var b strings.Builder
	for i := 1; i < len(l.rest); i++ {
		c := l.rest[i]
		switch {
		case c == quote:
			l.add(str, b.String())
			l.rest = l.rest[i+1:]
			return
		case c != '\\' || i+1 == len(l.rest):
			b.WriteByte(c)
		default:
			i++
			c = l.rest[i]
			digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
			if s, ok := escapes[c]; ok {
				b.WriteString(s)
			} else if n, err := strconv.ParseUint(l.rest[min(i+1, len(l.rest)):min(i+1+digits, len(l.rest))], 16, 32); digits > 0 && err == nil {
				b.WriteRune(rune(n))
				i += digits
			} else {
				b.WriteByte('\\')
				b.WriteByte(c)
			}
		}
	}
	l.fail("a string does not end")
}
