// Package jinja renders chat templates: the part of Jinja that they use, with the
// settings and additions of transformers (trim_blocks, lstrip_blocks, tojson,
// raise_exception, generation blocks, break and continue). A template sees only
// the variables that it is given: no files, no other templates, no clock.
//
// Values and methods behave as Python's do. What is not supported is an error
// that names it, when the template is parsed wherever that can be known.
package jinja

import (
	"fmt"
	"maps"
	"strings"
)

// Template is a parsed template. It is immutable and safe for concurrent use.
type Template struct{ body []statement }

// failure is an error on its way out of the parser or of a running template,
// as a panic that Parse and Render recover from.
type failure struct {
	line int
	text string
}

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// fail ends the rendering; the statement that runs adds its line.
func fail(format string, args ...any) { panic(failure{text: sprintf(format, args...)}) }

func catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case failure:
		*err = fmt.Errorf("line %d: %s", r.line, r.text)
	default:
		panic(r)
	}
}

// Parse reads a template.
func Parse(source string) (t *Template, err error) {
	defer catch(&err)
	p := &parser{toks: lex(source)}
	body := p.body()
	return &Template{body}, nil
}

// Templates come with checkpoints from elsewhere: what one of them can take of
// time and stack is bounded.
const (
	maxSteps  = 1_000_000 // statements and turns of loops that one rendering runs
	maxDepth  = 200       // expressions and blocks inside one another
	maxMacros = 50        // macros that call one another
)

// limits counts towards them while a template runs.
type limits struct{ steps, macros int }

// scope is where names are looked up, from the innermost one outwards.
type scope struct {
	vars  map[string]any
	outer *scope
	used  *limits
}

func (s *scope) inner() *scope { return &scope{vars: map[string]any{}, outer: s, used: s.used} }

func (s *scope) get(name string) any {
	for ; s != nil; s = s.outer {
		if v, ok := s.vars[name]; ok {
			return v
		}
	}
	return undefined{name}
}

func (s *scope) step() {
	if s.used.steps++; s.used.steps > maxSteps {
		fail("the template runs for too long")
	}
}

// Render runs the template. Values are those that Decode gives; a Func can be called.
func (t *Template) Render(vars map[string]any) (text string, err error) {
	defer catch(&err)
	inner := (&scope{vars: globals, used: &limits{}}).inner()
	maps.Copy(inner.vars, vars)
	var out strings.Builder
	run(t.body, inner, &out)
	return out.String(), nil
}

// signal says how a statement ended.
type signal int

const (
	normal signal = iota
	breaks
	continues
)

type statement struct {
	line int
	run  func(s *scope, out *strings.Builder) signal
}

func run(body []statement, s *scope, out *strings.Builder) signal {
	for i := range body {
		if sig := body[i].exec(s, out); sig != normal {
			return sig
		}
	}
	return normal
}

func (st *statement) exec(s *scope, out *strings.Builder) signal {
	defer func() {
		if r := recover(); r != nil {
			if f, ok := r.(failure); ok && f.line == 0 {
				f.line = st.line
				r = f
			}
			panic(r)
		}
	}()
	s.step()
	return st.run(s, out)
}
