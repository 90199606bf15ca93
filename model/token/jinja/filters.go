package jinja

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// call is how a filter or a method is called.
type call struct {
	name   string
	args   []any
	kwargs map[string]any
}

// arg is the argument at position i or of that name; d where it is not given.
func (c call) arg(i int, name string, d any) any {
	if v, ok := c.kwargs[name]; ok {
		return v
	}
	if i >= 0 && i < len(c.args) {
		return c.args[i]
	}
	return d
}

func (c call) str(i int, name, d string) string {
	s, ok := c.arg(i, name, d).(string)
	if !ok {
		fail("%s wants a string for %s, not %s", c.name, name, typeName(c.arg(i, name, d)))
	}
	return s
}

func (c call) integer(i int, name string, d int) int {
	n, ok := c.arg(i, name, d).(int)
	if !ok {
		fail("%s wants an integer for %s, not %s", c.name, name, typeName(c.arg(i, name, d)))
	}
	return n
}

// plain is a filter on the text of a value.
func plain(f func(string) string) func(any, call) any {
	return func(v any, _ call) any { return f(text(v)) }
}

var filters = map[string]func(v any, c call) any{
	"tojson": func(v any, c call) any {
		for name := range c.kwargs {
			if name != "indent" && name != "ensure_ascii" {
				fail("tojson with %s is not supported", name)
			}
		}
		if truth(c.arg(-1, "ensure_ascii", false)) {
			fail("tojson with ensure_ascii is not supported")
		}
		indent := ""
		if n := c.arg(1, "indent", nil); n != nil {
			indent = strings.Repeat(" ", c.integer(1, "indent", 0))
		}
		var b strings.Builder
		writeJSON(&b, v, indent, "\n")
		return b.String()
	},
	"trim": func(v any, c call) any {
		if set := c.arg(0, "chars", nil); set != nil {
			return strings.Trim(text(v), text(set))
		}
		return strings.TrimFunc(text(v), IsSpace)
	},
	"length": func(v any, _ call) any { return length(v) },
	"count":  func(v any, _ call) any { return length(v) },
	"default": func(v any, c call) any {
		if isUndefined(v) || truth(c.arg(1, "boolean", false)) && !truth(v) {
			return c.arg(0, "default_value", "")
		}
		return v
	},
	"join": func(v any, c call) any {
		var parts []string
		for _, x := range items(v) {
			if a := c.arg(1, "attribute", nil); a != nil {
				x = path(x, a)
			}
			parts = append(parts, text(x))
		}
		return strings.Join(parts, c.str(0, "d", ""))
	},
	"upper":      plain(strings.ToUpper),
	"lower":      plain(strings.ToLower),
	"title":      plain(title),
	"capitalize": plain(capitalize),
	"string":     plain(func(s string) string { return s }),
	"safe":       func(v any, _ call) any { return v },
	"replace":    func(v any, c call) any { return replace(text(v), c) },
	"first": func(v any, _ call) any {
		for _, x := range items(v) {
			return x
		}
		return undefined{"first item"}
	},
	"last": func(v any, _ call) any {
		if list := items(v); len(list) > 0 {
			return list[len(list)-1]
		}
		return undefined{"last item"}
	},
	"list": func(v any, _ call) any { return slices.Clone(items(v)) },
	"reverse": func(v any, _ call) any {
		if _, ok := v.(string); ok {
			return slice(v, [3]any{nil, nil, -1})
		}
		list := slices.Clone(items(v))
		slices.Reverse(list)
		return list
	},
	"int": func(v any, c call) any {
		switch v := v.(type) {
		case string:
			if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil {
				return n
			}
			if f, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil {
				return int(f)
			}
		default:
			if f, _, ok := number(v); ok {
				return int(f)
			}
		}
		return c.arg(0, "default", 0)
	},
	"float": func(v any, c call) any {
		if f, _, ok := number(v); ok {
			return f
		}
		if s, ok := v.(string); ok {
			if f, err := strconv.ParseFloat(strings.TrimSpace(s), 64); err == nil {
				return f
			}
		}
		return c.arg(0, "default", 0.0)
	},
	"abs": func(v any, _ call) any {
		if f, _, ok := number(v); ok && f < 0 {
			return arithmetic["-"](0, v)
		}
		return v
	},
	"items": func(v any, c call) any {
		if d, ok := v.(*Dict); ok {
			return dictMethods["items"](d, c)
		}
		return []any{}
	},
	"dictsort": func(v any, c call) any {
		d, ok := v.(*Dict)
		if !ok {
			fail("dictsort wants a dictionary, not %s", typeName(v))
		}
		pairs := dictMethods["items"](d, c).([]any)
		slices.SortStableFunc(pairs, func(a, b any) int { return compareFolded(a.([]any)[0], b.([]any)[0]) })
		return pairs
	},
	"sort": func(v any, c call) any {
		list := slices.Clone(items(v))
		attribute := c.arg(2, "attribute", nil)
		slices.SortStableFunc(list, func(a, b any) int {
			if attribute != nil {
				a, b = path(a, attribute), path(b, attribute)
			}
			if truth(c.arg(0, "reverse", false)) {
				a, b = b, a
			}
			if truth(c.arg(1, "case_sensitive", false)) {
				return compare(a, b)
			}
			return compareFolded(a, b)
		})
		return list
	},
	"unique": func(v any, _ call) any {
		out := []any{}
		for _, x := range items(v) {
			if !slices.ContainsFunc(out, func(y any) bool { return compareEqualFolded(x, y) }) {
				out = append(out, x)
			}
		}
		return out
	},
	"indent": func(v any, c call) any {
		margin, ok := c.arg(0, "width", 4).(string)
		if !ok {
			margin = strings.Repeat(" ", c.integer(0, "width", 4))
		}
		lines := strings.Split(text(v), "\n")
		for i, l := range lines {
			first := i > 0 || truth(c.arg(1, "first", false))
			if first && (l != "" || truth(c.arg(2, "blank", false))) {
				lines[i] = margin + l
			}
		}
		return strings.Join(lines, "\n")
	},
}

func init() { // they refer to filters and tests by name
	filters["d"] = filters["default"]
	filters["map"] = func(v any, c call) any {
		out := []any{}
		for _, x := range items(v) {
			if a, ok := c.kwargs["attribute"]; ok {
				if x = path(x, a); isUndefined(x) {
					x = c.arg(-1, "default", x)
				}
			} else {
				name := c.str(0, "filter", "")
				f, ok := filters[name]
				if !ok {
					fail("filter %q is not supported", name)
				}
				x = f(x, call{name, c.args[1:], c.kwargs})
			}
			out = append(out, x)
		}
		return out
	}
	for _, kind := range []struct {
		name      string
		attribute bool
		want      bool
	}{{"select", false, true}, {"reject", false, false}, {"selectattr", true, true}, {"rejectattr", true, false}} {
		filters[kind.name] = func(v any, c call) any {
			args := c.args
			if kind.attribute {
				if len(args) == 0 {
					fail("%s wants an attribute", kind.name)
				}
				args = args[1:]
			}
			test := func(v any, _ []any) bool { return truth(v) }
			if len(args) > 0 {
				name, _ := args[0].(string)
				if test = tests[name]; test == nil {
					fail("test %q is not supported", name)
				}
				args = args[1:]
			}
			out := []any{}
			for _, x := range items(v) {
				on := x
				if kind.attribute {
					on = path(x, c.args[0])
				}
				if test(on, args) == kind.want {
					out = append(out, x)
				}
			}
			return out
		}
	}
}

// path is an attribute of an attribute and so on: "a.b.0".
func path(v, attribute any) any {
	s, ok := attribute.(string)
	if !ok {
		return item(v, attribute)
	}
	for part := range strings.SplitSeq(s, ".") {
		if n, err := strconv.Atoi(part); err == nil {
			v = item(v, n)
		} else {
			v = item(v, part)
		}
	}
	return v
}

func fold(v any) any {
	if s, ok := v.(string); ok {
		return strings.ToLower(s)
	}
	return v
}

func compareFolded(a, b any) int       { return compare(fold(a), fold(b)) }
func compareEqualFolded(a, b any) bool { return equal(fold(a), fold(b)) }

func isType[T any](v any, _ []any) bool {
	_, ok := v.(T)
	return ok
}

func one(f func(a, b any) bool) func(any, []any) bool {
	return func(v any, args []any) bool {
		if len(args) != 1 {
			fail("a test wants one argument, not %d", len(args))
		}
		return f(v, args[0])
	}
}

var tests = map[string]func(v any, args []any) bool{
	"defined":   func(v any, _ []any) bool { return !isUndefined(v) },
	"undefined": func(v any, _ []any) bool { return isUndefined(v) },
	"none":      func(v any, _ []any) bool { return v == nil },
	"string":    isType[string],
	"mapping":   isType[*Dict],
	"boolean":   isType[bool],
	"integer":   isType[int],
	"float":     isType[float64],
	"callable":  isType[Func],
	"number":    func(v any, _ []any) bool { _, _, ok := number(v); return ok },
	"iterable":  isIterable,
	"sequence":  isIterable,
	"true":      func(v any, _ []any) bool { return v == true },
	"false":     func(v any, _ []any) bool { return v == false },
	"odd":       func(v any, _ []any) bool { n, ok := v.(int); return ok && n%2 != 0 },
	"even":      func(v any, _ []any) bool { n, ok := v.(int); return ok && n%2 == 0 },
	"in":        one(func(a, b any) bool { return contains(b, a) }),
	"eq":        one(equal), "equalto": one(equal), "==": one(equal), "sameas": one(equal),
	"ne": one(func(a, b any) bool { return !equal(a, b) }), "!=": one(func(a, b any) bool { return !equal(a, b) }),
	"gt": one(func(a, b any) bool { return compare(a, b) > 0 }), "lt": one(func(a, b any) bool { return compare(a, b) < 0 }),
	"ge": one(func(a, b any) bool { return compare(a, b) >= 0 }), "le": one(func(a, b any) bool { return compare(a, b) <= 0 }),
}

func isIterable(v any, _ []any) bool {
	switch v.(type) {
	case string, []any, *Dict, undefined:
		return true
	}
	return false
}

// globals are the functions that every template has.
var globals = map[string]any{
	"raise_exception": Func(func(args []any, _ map[string]any) (any, error) {
		if len(args) == 0 {
			return nil, errors.New("raise_exception without a message")
		}
		return nil, errors.New(text(args[0]))
	}),
	"namespace": Func(func(_ []any, kwargs map[string]any) (any, error) { return namespace{fromMap(kwargs)}, nil }),
	"dict":      Func(func(_ []any, kwargs map[string]any) (any, error) { return fromMap(kwargs), nil }),
	"range": Func(func(args []any, _ map[string]any) (any, error) {
		c := call{name: "range", args: args}
		from, to, step := 0, c.integer(0, "stop", 0), c.integer(2, "step", 1)
		if len(args) > 1 {
			from, to = to, c.integer(1, "stop", 0)
		}
		if step == 0 {
			return nil, errors.New("range with a step of 0")
		}
		out := []any{}
		for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
			if len(out) == 1<<16 {
				return nil, errors.New("range is too long")
			}
			out = append(out, i)
		}
		return out, nil
	}),
}

// fromMap makes a dictionary of keyword arguments, whose order is not known.
func fromMap(m map[string]any) *Dict {
	d := NewDict()
	for _, k := range sortedKeys(m) {
		d.Set(k, m[k])
	}
	return d
}
