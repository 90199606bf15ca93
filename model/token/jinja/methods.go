package jinja

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

var dictMethods = map[string]func(d *Dict, c call) any{
	"keys": func(d *Dict, _ call) any { return toAny(d.keys) },
	"values": func(d *Dict, _ call) any {
		out := make([]any, len(d.keys))
		for i, k := range d.keys {
			out[i] = d.values[k]
		}
		return out
	},
	"items": func(d *Dict, _ call) any {
		out := make([]any, len(d.keys))
		for i, k := range d.keys {
			out[i] = []any{k, d.values[k]}
		}
		return out
	},
	"get": func(d *Dict, c call) any {
		if v, ok := d.values[text(c.arg(0, "key", nil))]; ok {
			return v
		}
		return c.arg(1, "default", nil)
	},
}

func onString(f func(string) any) func(string, call) any {
	return func(s string, _ call) any { return f(s) }
}

// all reports whether s has characters and f holds for each.
func all(f func(rune) bool) func(string, call) any {
	return func(s string, _ call) any {
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !f(r) })
	}
}

func strip(trim func(string, func(rune) bool) string) func(string, call) any {
	return func(s string, c call) any {
		in := IsSpace
		if set := c.arg(0, "chars", nil); set != nil {
			chars := text(set)
			in = func(r rune) bool { return strings.ContainsRune(chars, r) }
		}
		return trim(s, in)
	}
}

// affix is startswith or endswith, of a string or any of several.
func affix(has func(s, part string) bool) func(string, call) any {
	return func(s string, c call) any {
		switch part := c.arg(0, "prefix", nil).(type) {
		case string:
			return has(s, part)
		case []any:
			return slices.ContainsFunc(part, func(p any) bool { return has(s, text(p)) })
		}
		fail("startswith and endswith want a string")
		return nil
	}
}

var stringMethods = map[string]func(s string, c call) any{
	"strip": strip(strings.TrimFunc), "lstrip": strip(strings.TrimLeftFunc), "rstrip": strip(strings.TrimRightFunc),
	"startswith": affix(strings.HasPrefix), "endswith": affix(strings.HasSuffix),
	"upper":      onString(func(s string) any { return strings.ToUpper(s) }),
	"lower":      onString(func(s string) any { return strings.ToLower(s) }),
	"title":      onString(func(s string) any { return title(s) }),
	"capitalize": onString(func(s string) any { return capitalize(s) }),
	"isdigit":    all(unicode.IsDigit), "isalpha": all(unicode.IsLetter), "isspace": all(IsSpace),
	"isalnum":      all(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }),
	"replace":      func(s string, c call) any { return replace(s, c) },
	"removeprefix": func(s string, c call) any { return strings.TrimPrefix(s, c.str(0, "prefix", "")) },
	"removesuffix": func(s string, c call) any { return strings.TrimSuffix(s, c.str(0, "suffix", "")) },
	"count":        func(s string, c call) any { return strings.Count(s, c.str(0, "sub", "")) },
	"find": func(s string, c call) any {
		at := strings.Index(s, c.str(0, "sub", ""))
		if at < 0 {
			return -1
		}
		return utf8.RuneCountInString(s[:at])
	},
	"join": func(s string, c call) any {
		var parts []string
		for _, x := range items(c.arg(0, "iterable", nil)) {
			parts = append(parts, text(x))
		}
		return strings.Join(parts, s)
	},
	"splitlines": onString(func(s string) any {
		lines := strings.Split(newlines.Replace(s), "\n")
		if lines[len(lines)-1] == "" {
			lines = lines[:len(lines)-1]
		}
		return toAny(lines)
	}),
	"split": func(s string, c call) any {
		n := c.integer(1, "maxsplit", -1)
		if sep := c.arg(0, "sep", nil); sep != nil {
			if text(sep) == "" {
				fail("split with an empty separator")
			}
			if n >= 0 {
				n++ // as SplitN counts
			}
			return toAny(strings.SplitN(s, text(sep), n))
		}
		if n >= 0 {
			fail("split at white space with a limit is not supported")
		}
		return toAny(strings.FieldsFunc(s, IsSpace))
	},
	"rsplit": func(s string, c call) any {
		sep, n := c.str(0, "sep", ""), c.integer(1, "maxsplit", -1)
		if sep == "" {
			fail("rsplit without a separator is not supported")
		}
		var parts []string
		for at := strings.LastIndex(s, sep); at >= 0 && n != 0; at = strings.LastIndex(s, sep) {
			parts = append(parts, s[at+len(sep):])
			s = s[:at]
			n--
		}
		parts = append(parts, s)
		slices.Reverse(parts)
		return toAny(parts)
	},
}

func replace(s string, c call) any {
	return strings.Replace(s, c.str(0, "old", ""), c.str(1, "new", ""), c.integer(2, "count", -1))
}

func capitalize(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return strings.ToUpper(s[:n]) + strings.ToLower(s[n:])
}

func title(s string) string {
	var b strings.Builder
	word := false
	for _, r := range s {
		if word {
			b.WriteRune(unicode.ToLower(r))
		} else {
			b.WriteRune(unicode.ToTitle(r))
		}
		word = unicode.IsLetter(r)
	}
	return b.String()
}
