package jinja

import (
	"math"
	"strings"
	"unicode/utf8"
)

var arithmetic = map[string]func(a, b any) any{
	"~": func(a, b any) any { return text(a) + text(b) },
	"+": func(a, b any) any {
		switch x := a.(type) {
		case string:
			if y, ok := b.(string); ok {
				return x + y
			}
		case []any:
			if y, ok := b.([]any); ok {
				return append(x[:len(x):len(x)], y...)
			}
		}
		return calculate("+", a, b, func(x, y int) any { return x + y }, func(x, y float64) float64 { return x + y })
	},
	"-": func(a, b any) any {
		return calculate("-", a, b, func(x, y int) any { return x - y }, func(x, y float64) float64 { return x - y })
	},
	"*": func(a, b any) any {
		if s, ok := a.(string); ok {
			if n, ok := b.(int); ok && n*len(s) < maxSteps {
				return strings.Repeat(s, max(n, 0))
			}
		}
		return calculate("*", a, b, func(x, y int) any { return x * y }, func(x, y float64) float64 { return x * y })
	},
	"/": func(a, b any) any {
		return calculate("/", a, b, nil, func(x, y float64) float64 { return x / nonzero(y) })
	},
	"//": func(a, b any) any {
		return calculate("//", a, b, func(x, y int) any { return int(math.Floor(float64(x) / nonzero(float64(y)))) },
			func(x, y float64) float64 { return math.Floor(x / nonzero(y)) })
	},
	"%": func(a, b any) any {
		return calculate("%", a, b, func(x, y int) any { nonzero(float64(y)); return ((x % y) + y) % y },
			func(x, y float64) float64 { return x - y*math.Floor(x/nonzero(y)) })
	},
	"**": func(a, b any) any {
		return calculate("**", a, b, func(x, y int) any {
			if f := math.Pow(float64(x), float64(y)); y < 0 || math.Abs(f) >= 1<<53 {
				return f
			} else {
				return int(f)
			}
		}, math.Pow)
	},
}

func nonzero(x float64) float64 {
	if x == 0 {
		fail("division by zero")
	}
	return x
}

// calculate applies an operator to numbers; whole, if not nil, to two integers.
func calculate(symbol string, a, b any, whole func(x, y int) any, f func(x, y float64) float64) any {
	x, wholeX, okX := number(a)
	y, wholeY, okY := number(b)
	if !okX || !okY {
		fail("%s %s %s cannot be computed", typeName(a), symbol, typeName(b))
	}
	if wholeX && wholeY && whole != nil {
		return whole(int(x), int(y))
	}
	return f(x, y)
}

// attribute is v.name: a method, or else an item.
func attribute(v any, name string) any {
	switch v := v.(type) {
	case undefined:
		fail("%s has no attribute %s", typeName(v), name)
	case *Dict:
		if m, ok := dictMethods[name]; ok {
			return method(v, m)
		}
	case string:
		if m, ok := stringMethods[name]; ok {
			return method(v, m)
		}
	case namespace:
		return item(v.Dict, name)
	case loop:
		return v.attribute(name)
	}
	return item(v, name)
}

// method binds a method to its value.
func method[T any](v T, m func(T, call) any) Func {
	return func(args []any, kwargs map[string]any) (any, error) { return m(v, call{"", args, kwargs}), nil }
}

// item is v[key]; undefined where there is none.
func item(v, key any) any {
	switch v := v.(type) {
	case undefined:
		fail("%s has no item %s", typeName(v), text(key))
	case *Dict:
		if s, ok := key.(string); ok {
			if x, ok := v.values[s]; ok {
				return x
			}
			if m, ok := dictMethods[s]; ok {
				return method(v, m)
			}
		}
	case []any, string:
		n, ok := key.(int)
		if !ok {
			break
		}
		size := length(v)
		if n < 0 {
			n += size
		}
		if n < 0 || n >= size {
			break
		}
		if list, ok := v.([]any); ok {
			return list[n]
		}
		return slice(v, [3]any{n, n + 1, nil})
	}
	return undefined{text(key)}
}

// slice is v[from:to:step]; nil stands for what is left out.
func slice(v any, bounds [3]any) any {
	switch v.(type) {
	case []any, string:
	default:
		fail("%s cannot be sliced", typeName(v))
	}
	var n [3]int
	for i, b := range bounds {
		x, ok := b.(int)
		if b != nil && !ok {
			fail("a slice wants integers, not %s", typeName(b))
		}
		n[i] = x
	}
	size, step := length(v), 1
	if bounds[2] != nil {
		if step = n[2]; step == 0 {
			fail("a slice with a step of 0")
		}
	}
	// The range of valid positions; a step back begins and ends one lower.
	low, high := 0, size
	if step < 0 {
		low, high = -1, size-1
	}
	bound := func(i, d int) int {
		if bounds[i] == nil {
			return d
		}
		x := n[i]
		if x < 0 {
			x += size
		}
		return min(max(x, low), high)
	}
	from, to := bound(0, low), bound(1, high)
	if step < 0 {
		from, to = bound(0, high), bound(1, low)
	}
	if s, ok := v.(string); ok && step == 1 {
		return s[offset(s, from):offset(s, max(from, to))]
	}
	list, out := items(v), []any{}
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		out = append(out, list[i])
	}
	if _, ok := v.(string); ok {
		var b strings.Builder
		for _, x := range out {
			b.WriteString(x.(string))
		}
		return b.String()
	}
	return out
}

// offset is where character n of s begins.
func offset(s string, n int) int {
	at := 0
	for ; n > 0 && at < len(s); n-- {
		_, size := utf8.DecodeRuneInString(s[at:])
		at += size
	}
	return at
}
