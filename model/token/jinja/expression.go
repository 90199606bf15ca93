package jinja

import (
	"slices"
	"strconv"
)

// tuple is an expression, or several with commas between them: a list.
func (p *parser) tuple() expr {
	first := p.expression()
	if !p.is(",") {
		return first
	}
	list := []expr{first}
	for p.match(",") && p.peek().kind != end && !p.is(")") {
		list = append(list, p.expression())
	}
	return listOf(list)
}

func listOf(list []expr) expr {
	return func(s *scope) any {
		out := make([]any, len(list))
		for i, e := range list {
			out[i] = e(s)
		}
		return out
	}
}

// expression is: value [if condition [else expression]].
func (p *parser) expression() expr {
	defer p.deeper()()
	value := p.or()
	for p.match("if") {
		then, when := value, p.or()
		var otherwise expr = func(*scope) any { return undefined{"else of a conditional"} }
		if p.match("else") {
			otherwise = p.expression()
		}
		value = func(s *scope) any {
			if truth(when(s)) {
				return then(s)
			}
			return otherwise(s)
		}
	}
	return value
}

func (p *parser) or() expr {
	left := p.and()
	for p.match("or") {
		a, b := left, p.and()
		left = func(s *scope) any {
			if v := a(s); truth(v) {
				return v
			}
			return b(s)
		}
	}
	return left
}

func (p *parser) and() expr {
	left := p.not()
	for p.match("and") {
		a, b := left, p.not()
		left = func(s *scope) any {
			if v := a(s); !truth(v) {
				return v
			}
			return b(s)
		}
	}
	return left
}

func (p *parser) not() expr {
	if p.match("not") {
		defer p.deeper()()
		e := p.not()
		return func(s *scope) any { return !truth(e(s)) }
	}
	return p.comparison()
}

var comparisons = map[string]func(a, b any) bool{
	"==":     equal,
	"!=":     func(a, b any) bool { return !equal(a, b) },
	"<":      func(a, b any) bool { return compare(a, b) < 0 },
	"<=":     func(a, b any) bool { return compare(a, b) <= 0 },
	">":      func(a, b any) bool { return compare(a, b) > 0 },
	">=":     func(a, b any) bool { return compare(a, b) >= 0 },
	"in":     func(a, b any) bool { return contains(b, a) },
	"not in": func(a, b any) bool { return !contains(b, a) },
}

func (p *parser) comparison() expr {
	type link struct {
		holds func(a, b any) bool
		with  expr
	}
	first := p.sum()
	var links []link
	for {
		word := p.peek().text
		if p.is("not") && p.toks[p.at+1].kind == name && p.toks[p.at+1].text == "in" {
			p.at++
			word = "not in"
		}
		holds := comparisons[word]
		if k := p.peek().kind; holds == nil || k != op && k != name {
			break
		}
		p.at++
		links = append(links, link{holds, p.sum()})
	}
	if links == nil {
		return first
	}
	return func(s *scope) any {
		a := first(s)
		for _, l := range links {
			b := l.with(s)
			if !l.holds(a, b) {
				return false
			}
			a = b
		}
		return true
	}
}

// binary reads operands of the next tighter kind with operators between them.
func (p *parser) binary(operand func() expr, operators ...string) expr {
	left := operand()
	for p.peek().kind == op && slices.Contains(operators, p.peek().text) {
		f := arithmetic[p.next().text]
		a, b := left, operand()
		left = func(s *scope) any {
			x := a(s)
			return f(x, b(s))
		}
	}
	return left
}

func (p *parser) sum() expr     { return p.binary(p.concat, "+", "-") }
func (p *parser) concat() expr  { return p.binary(p.product, "~") }
func (p *parser) product() expr { return p.binary(p.power, "*", "/", "//", "%") }
func (p *parser) power() expr   { return p.binary(func() expr { return p.unary(true) }, "**") }

func (p *parser) unary(filters bool) expr {
	defer p.deeper()()
	var e expr
	switch {
	case p.match("-"):
		operand := p.unary(false)
		e = func(s *scope) any { return arithmetic["-"](0, operand(s)) }
	case p.match("+"):
		e = p.unary(false)
	default:
		e = p.postfix(p.primary())
	}
	if filters {
		e = p.filtered(e)
	}
	return e
}

func (p *parser) primary() expr {
	t := p.next()
	var v any
	switch t.kind {
	case name:
		switch t.text {
		case "true", "True":
			v = true
		case "false", "False":
			v = false
		case "none", "None":
			v = nil
		default:
			return func(s *scope) any { return s.get(t.text) }
		}
	case str:
		text := t.text
		for p.peek().kind == str {
			text += p.next().text
		}
		v = text
	case integer:
		n, err := strconv.Atoi(t.text)
		if err != nil {
			p.fail("%s is too large", t.text)
		}
		v = n
	case floating:
		f, err := strconv.ParseFloat(t.text, 64)
		if err != nil {
			p.fail("%s is too large", t.text)
		}
		v = f
	default:
		switch t.text {
		case "(":
			if p.match(")") {
				return listOf(nil)
			}
			e := p.tuple()
			p.want(")")
			return e
		case "[":
			return listOf(p.list("]"))
		case "{":
			return p.dict()
		}
		p.at--
		p.fail("want a value before %q", t.text)
	}
	return func(*scope) any { return v }
}

func (p *parser) list(shut string) []expr {
	var list []expr
	for !p.match(shut) {
		list = append(list, p.expression())
		if !p.is(shut) {
			p.want(",")
		}
	}
	return list
}

func (p *parser) dict() expr {
	var keys, values []expr
	for !p.match("}") {
		keys = append(keys, p.expression())
		p.want(":")
		values = append(values, p.expression())
		if !p.is("}") {
			p.want(",")
		}
	}
	return func(s *scope) any {
		d := NewDict()
		for i, k := range keys {
			key, ok := k(s).(string)
			if !ok {
				fail("a key of a dictionary must be a string")
			}
			d.Set(key, values[i](s))
		}
		return d
	}
}

// postfix reads attributes, items, slices and calls.
func (p *parser) postfix(e expr) expr {
	for {
		of := e
		switch {
		case p.match("."):
			t := p.next()
			if t.kind != name && t.kind != integer {
				p.fail("want a name after a dot")
			}
			if n, err := strconv.Atoi(t.text); err == nil {
				e = func(s *scope) any { return item(of(s), n) }
			} else {
				e = func(s *scope) any { return attribute(of(s), t.text) }
			}
		case p.match("["):
			e = p.subscript(of)
		case p.match("("):
			e = p.call(of)
		default:
			return e
		}
	}
}

func (p *parser) subscript(of expr) expr {
	var parts [3]expr
	n := 0
	for !p.match("]") {
		if p.match(":") {
			if n++; n > 2 {
				p.fail("too many colons in a slice")
			}
			continue
		}
		parts[n] = p.expression()
	}
	if n == 0 {
		if parts[0] == nil {
			p.fail("an empty subscript")
		}
		return func(s *scope) any { return item(of(s), parts[0](s)) }
	}
	return func(s *scope) any {
		v := of(s)
		var bounds [3]any
		for i, e := range parts {
			if e != nil {
				bounds[i] = e(s)
			}
		}
		return slice(v, bounds)
	}
}

// arguments are those of a call, a filter or a test.
type arguments struct {
	positional []expr
	names      []string
	named      []expr
}

func (a arguments) eval(s *scope) (args []any, kwargs map[string]any) {
	for _, e := range a.positional {
		args = append(args, e(s))
	}
	kwargs = map[string]any{}
	for i, e := range a.named {
		kwargs[a.names[i]] = e(s)
	}
	return args, kwargs
}

// arguments reads them after the opening parenthesis.
func (p *parser) arguments() arguments {
	var a arguments
	for !p.match(")") {
		if p.peek().kind == name && p.toks[p.at+1].kind == op && p.toks[p.at+1].text == "=" {
			a.names = append(a.names, p.ident())
			p.at++
			a.named = append(a.named, p.expression())
		} else {
			a.positional = append(a.positional, p.expression())
		}
		if !p.is(")") {
			p.want(",")
		}
	}
	return a
}

func (p *parser) call(of expr) expr {
	a := p.arguments()
	return func(s *scope) any {
		v := of(s)
		f, ok := v.(Func)
		if !ok {
			fail("%s cannot be called", typeName(v))
		}
		args, kwargs := a.eval(s)
		out, err := f(args, kwargs)
		if err != nil {
			fail("%v", err)
		}
		return out
	}
}

// filtered reads filters and tests after a value.
func (p *parser) filtered(e expr) expr {
	for {
		of := e
		switch {
		case p.match("|"):
			word := p.ident()
			f, ok := filters[word]
			if !ok {
				p.fail("filter %q is not supported", word)
			}
			var a arguments
			if p.match("(") {
				a = p.arguments()
			}
			e = func(s *scope) any {
				v := of(s)
				args, kwargs := a.eval(s)
				return f(v, call{word, args, kwargs})
			}
		case p.match("is"):
			negate := p.match("not")
			word := p.ident()
			test, ok := tests[word]
			if !ok {
				p.fail("test %q is not supported", word)
			}
			var a arguments
			if p.match("(") {
				a = p.arguments()
			} else if p.startsArgument() {
				a.positional = []expr{p.postfix(p.primary())}
			}
			e = func(s *scope) any {
				v := of(s)
				args, _ := a.eval(s)
				return test(v, args) != negate
			}
		case p.is("("):
			p.at++
			e = p.call(of)
		default:
			return e
		}
	}
}

// startsArgument reports whether a test's one argument follows without parentheses.
func (p *parser) startsArgument() bool {
	t := p.peek()
	switch t.kind {
	case name:
		return !slices.Contains([]string{"else", "or", "and", "is", "if", "not", "in"}, t.text)
	case str, integer, floating:
		return true
	}
	return t.kind == op && (t.text == "[" || t.text == "{")
}
