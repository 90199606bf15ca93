package jinja

import (
	"slices"
	"strings"
)

type expr func(s *scope) any

type parser struct {
	toks  []tok
	at    int
	loops int // loops that are open
	depth int // see maxDepth
}

// deeper counts a construct inside another until the function that it returns is called.
func (p *parser) deeper() func() {
	if p.depth++; p.depth > maxDepth {
		p.fail("the template is nested too deeply")
	}
	return func() { p.depth-- }
}

func (p *parser) fail(format string, args ...any) {
	panic(failure{line: p.peek().line, text: sprintf(format, args...)})
}

func (p *parser) peek() tok { return p.toks[p.at] }

func (p *parser) next() tok {
	t := p.toks[p.at]
	if t.kind != eof {
		p.at++
	}
	return t
}

// is reports whether the next token is an operator or a name with that text.
func (p *parser) is(text string) bool {
	t := p.peek()
	return (t.kind == op || t.kind == name) && t.text == text
}

func (p *parser) match(text string) bool {
	if p.is(text) {
		p.at++
		return true
	}
	return false
}

func (p *parser) want(text string) {
	if !p.match(text) {
		p.fail("want %q before %q", text, p.peek().text)
	}
}

func (p *parser) ident() string {
	t := p.next()
	if t.kind != name {
		p.fail("want a name before %q", t.text)
	}
	return t.text
}

func (p *parser) end() {
	if t := p.next(); t.kind != end {
		p.fail("unexpected %q in a tag", t.text)
	}
}

// body reads statements up to the end or to a block of one of these names, which
// it leaves.
func (p *parser) body(until ...string) []statement {
	defer p.deeper()()
	var out []statement
	for {
		t := p.peek()
		switch t.kind {
		case eof:
			if len(until) > 0 {
				p.fail("the template ends before %s", strings.Join(until, " or "))
			}
			return out
		case data:
			p.at++
			out = append(out, statement{t.line, func(_ *scope, b *strings.Builder) signal {
				b.WriteString(t.text)
				return normal
			}})
		case output:
			p.at++
			e := p.expression()
			p.end()
			out = append(out, statement{t.line, func(s *scope, b *strings.Builder) signal {
				b.WriteString(text(e(s)))
				return normal
			}})
		default: // a block
			if slices.Contains(until, p.toks[p.at+1].text) {
				return out
			}
			p.at++
			out = append(out, statement{t.line, p.statement()})
		}
	}
}

// close takes a closing block.
func (p *parser) close() string {
	p.at++
	word := p.ident()
	return word
}

func (p *parser) statement() func(*scope, *strings.Builder) signal {
	switch word := p.ident(); word {
	case "if":
		return p.ifBlock()
	case "for":
		return p.forBlock()
	case "set":
		return p.set()
	case "macro":
		return p.macro()
	case "generation": // transformers marks by it what the assistant wrote
		p.end()
		body := p.body("endgeneration")
		p.close()
		p.end()
		return func(s *scope, b *strings.Builder) signal { return run(body, s.inner(), b) }
	case "break", "continue":
		if p.loops == 0 {
			p.fail("%s outside a loop", word)
		}
		p.end()
		sig := map[string]signal{"break": breaks, "continue": continues}[word]
		return func(*scope, *strings.Builder) signal { return sig }
	default:
		p.fail("block %q is not supported", word)
		return nil
	}
}

func (p *parser) ifBlock() func(*scope, *strings.Builder) signal {
	type branch struct {
		when expr // nil: otherwise
		body []statement
	}
	var branches []branch
	for word := "if"; word != "endif"; word = p.close() {
		var b branch
		if word != "else" {
			b.when = p.expression()
		}
		p.end()
		b.body = p.body("elif", "else", "endif")
		branches = append(branches, b)
	}
	p.end()
	return func(s *scope, out *strings.Builder) signal {
		for _, b := range branches {
			if b.when == nil || truth(b.when(s)) {
				return run(b.body, s, out)
			}
		}
		return normal
	}
}

// targets reads the names that a loop or set gives values to.
func (p *parser) targets() []string {
	shut := p.match("(")
	names := []string{p.ident()}
	for p.match(",") {
		names = append(names, p.ident())
	}
	if shut {
		p.want(")")
	}
	return names
}

func assign(s *scope, names []string, v any) {
	if len(names) == 1 {
		s.vars[names[0]] = v
		return
	}
	parts := items(v)
	if len(parts) != len(names) {
		fail("%d values for the %d names %s", len(parts), len(names), strings.Join(names, ", "))
	}
	for i, n := range names {
		s.vars[n] = parts[i]
	}
}

func (p *parser) forBlock() func(*scope, *strings.Builder) signal {
	names := p.targets()
	p.want("in")
	in := p.or() // not a conditional: an if belongs to the loop
	var when expr
	if p.match("if") {
		when = p.expression()
	}
	p.end()
	p.loops++
	body := p.body("else", "endfor")
	p.loops--
	var otherwise []statement
	if p.close() == "else" {
		p.end()
		otherwise = p.body("endfor")
		p.close()
	}
	p.end()
	return func(s *scope, out *strings.Builder) signal {
		list := items(in(s))
		if when != nil {
			var kept []any
			for _, v := range list {
				inner := s.inner()
				if assign(inner, names, v); truth(when(inner)) {
					kept = append(kept, v)
				}
			}
			list = kept
		}
		if len(list) == 0 {
			return run(otherwise, s.inner(), out)
		}
		for i, v := range list {
			s.step()
			inner := s.inner()
			inner.vars["loop"] = loop{list, i}
			assign(inner, names, v)
			if run(body, inner, out) == breaks {
				break
			}
		}
		return normal
	}
}

// loop is the variable of that name: item i of list is visited.
type loop struct {
	list []any
	i    int
}

func (l loop) attribute(name string) any {
	switch name {
	case "index":
		return l.i + 1
	case "index0":
		return l.i
	case "revindex":
		return len(l.list) - l.i
	case "revindex0":
		return len(l.list) - l.i - 1
	case "first":
		return l.i == 0
	case "last":
		return l.i+1 == len(l.list)
	case "length":
		return len(l.list)
	case "previtem":
		return item(l.list[:l.i], -1)
	case "nextitem":
		return item(l.list[l.i+1:], 0)
	}
	fail("loop.%s is not supported", name)
	return nil
}

func (p *parser) set() func(*scope, *strings.Builder) signal {
	names := p.targets()
	attribute := ""
	if len(names) == 1 && p.match(".") {
		attribute = p.ident()
	}
	if p.peek().kind == end && attribute == "" && len(names) == 1 {
		p.end()
		body := p.body("endset")
		p.close()
		p.end()
		return func(s *scope, _ *strings.Builder) signal {
			var b strings.Builder
			sig := run(body, s.inner(), &b)
			s.vars[names[0]] = b.String()
			return sig
		}
	}
	p.want("=")
	value := p.tuple()
	p.end()
	return func(s *scope, _ *strings.Builder) signal {
		v := value(s)
		if attribute == "" {
			assign(s, names, v)
			return normal
		}
		ns, ok := s.get(names[0]).(namespace)
		if !ok {
			fail("%s is not a namespace, whose attributes alone can be set", names[0])
		}
		ns.Set(attribute, v)
		return normal
	}
}

func (p *parser) macro() func(*scope, *strings.Builder) signal {
	title := p.ident()
	var params []string
	defaults := map[string]expr{}
	p.want("(")
	for !p.match(")") {
		n := p.ident()
		params = append(params, n)
		if p.match("=") {
			defaults[n] = p.expression()
		}
		if !p.is(")") {
			p.want(",")
		}
	}
	p.end()
	loops := p.loops
	p.loops = 0
	body := p.body("endmacro")
	p.loops = loops
	p.close()
	p.end()
	return func(s *scope, _ *strings.Builder) signal {
		s.vars[title] = Func(func(args []any, kwargs map[string]any) (any, error) {
			if len(args) > len(params) {
				fail("macro %s takes %d arguments, not %d", title, len(params), len(args))
			}
			if s.used.macros++; s.used.macros > maxMacros {
				fail("macros call one another too deeply")
			}
			defer func() { s.used.macros-- }()
			inner := s.inner()
			for i, n := range params {
				v, named := kwargs[n]
				switch {
				case i < len(args):
					v = args[i]
				case !named && defaults[n] != nil:
					v = defaults[n](inner)
				case !named:
					v = undefined{n}
				}
				inner.vars[n] = v
			}
			for n := range kwargs {
				if !slices.Contains(params, n) {
					fail("macro %s has no parameter %s", title, n)
				}
			}
			var b strings.Builder
			run(body, inner, &b)
			return b.String(), nil
		})
		return normal
	}
}
