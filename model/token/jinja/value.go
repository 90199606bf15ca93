package jinja

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A value of a template is nil (None), bool, int, float64, string, []any (lists
// and tuples), *Dict, Func, or undefined.

// Dict is a dictionary with string keys that keep their order.
type Dict struct {
	keys   []string
	values map[string]any
}

// NewDict returns an empty dictionary.
func NewDict() *Dict { return &Dict{values: map[string]any{}} }

// Set adds a key, or replaces its value.
func (d *Dict) Set(key string, value any) {
	if _, ok := d.values[key]; !ok {
		d.keys = append(d.keys, key)
	}
	d.values[key] = value
}

// Func is what a template can call.
type Func func(args []any, kwargs map[string]any) (any, error)

// undefined is the value of what is not there. It is false, empty, and printed
// as nothing; anything else done with it is an error.
type undefined struct{ name string }

// namespace is what namespace() makes: a dictionary whose items can be set.
type namespace struct{ *Dict }

func isUndefined(v any) bool {
	_, ok := v.(undefined)
	return ok
}

func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

// number reads ints, floats and, as Python does, booleans.
func number(v any) (f float64, whole, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true, true
		}
		return 0, true, true
	case int:
		return float64(v), true, true
	case float64:
		return v, false, true
	}
	return 0, false, false
}

func equal(a, b any) bool {
	if x, _, ok := number(a); ok {
		y, _, ok := number(b)
		return ok && x == y
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case string:
		s, ok := b.(string)
		return ok && a == s
	case undefined:
		return isUndefined(b)
	case []any:
		l, ok := b.([]any)
		return ok && slices.EqualFunc(a, l, equal)
	case *Dict:
		d, ok := b.(*Dict)
		if !ok || len(a.keys) != len(d.keys) {
			return false
		}
		for k, v := range a.values {
			if w, ok := d.values[k]; !ok || !equal(v, w) {
				return false
			}
		}
		return true
	}
	return false
}

// compare orders numbers, strings and lists.
func compare(a, b any) int {
	x, _, okA := number(a)
	y, _, okB := number(b)
	if okA && okB {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	if s, ok := a.(string); ok {
		if t, ok := b.(string); ok {
			return strings.Compare(s, t)
		}
	}
	if s, ok := a.([]any); ok {
		if t, ok := b.([]any); ok {
			return slices.CompareFunc(s, t, compare)
		}
	}
	fail("%s and %s have no order", typeName(a), typeName(b))
	return 0
}

func contains(in, v any) bool {
	switch in := in.(type) {
	case string:
		s, ok := v.(string)
		if !ok {
			fail("'in' with a string wants a string, not %s", typeName(v))
		}
		return strings.Contains(in, s)
	case []any:
		return slices.ContainsFunc(in, func(x any) bool { return equal(x, v) })
	case *Dict:
		s, ok := v.(string)
		_, there := in.values[s]
		return ok && there
	case undefined:
		return false
	}
	fail("'in' wants a string, a list or a dictionary, not %s", typeName(in))
	return false
}

// items lists what a loop over v visits.
func items(v any) []any {
	switch v := v.(type) {
	case []any:
		return v
	case *Dict:
		return toAny(v.keys)
	case string:
		list := make([]any, 0, len(v))
		for len(v) > 0 {
			_, n := utf8.DecodeRuneInString(v)
			list = append(list, v[:n])
			v = v[n:]
		}
		return list
	case undefined:
		return nil
	}
	fail("%s cannot be iterated over", typeName(v))
	return nil
}

func toAny(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

func length(v any) int {
	switch v := v.(type) {
	case string:
		return utf8.RuneCountInString(v)
	case *Dict:
		return len(v.keys)
	}
	return len(items(v))
}

func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return "a boolean"
	case int, float64:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "a list"
	case *Dict, namespace:
		return "a dictionary"
	case Func:
		return "a function"
	case undefined:
		return "undefined " + v.name
	}
	return fmt.Sprintf("%T", v)
}

// text is Python's str.
func text(v any) string {
	switch v := v.(type) {
	case undefined:
		return ""
	case string:
		return v
	}
	return repr(v)
}

// repr is Python's repr.
func repr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int:
		return strconv.Itoa(v)
	case float64:
		return floatText(v, "inf", "nan")
	case string:
		return reprString(v)
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = repr(x)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case *Dict:
		parts := make([]string, len(v.keys))
		for i, k := range v.keys {
			parts[i] = reprString(k) + ": " + repr(v.values[k])
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	fail("%s cannot be printed", typeName(v))
	return ""
}

func reprString(s string) string {
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	var b strings.Builder
	b.WriteByte(quote)
	for _, r := range s {
		switch {
		case r == rune(quote) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r >= 0x7f && r <= 0xff && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// floatText is Python's repr of a float, with these names for what is no number.
func floatText(f float64, inf, nan string) string {
	switch {
	case math.IsInf(f, 1):
		return inf
	case math.IsInf(f, -1):
		return "-" + inf
	case f != f:
		return nan
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// IsSpace is Python's str.isspace.
func IsSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }
