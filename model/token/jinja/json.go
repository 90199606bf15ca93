package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Decode reads a JSON value for a template: objects become *Dict, so that their
// keys keep their order.
func Decode(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := decode(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("text after the JSON value")
	}
	return v, nil
}

func decode(d *json.Decoder) (any, error) {
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch v := tok.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n, nil
		}
		return v.Float64()
	case json.Delim:
		if v == '[' {
			list := []any{}
			for d.More() {
				item, err := decode(d)
				if err != nil {
					return nil, err
				}
				list = append(list, item)
			}
			_, err = d.Token()
			return list, err
		}
		dict := NewDict()
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			value, err := decode(d)
			if err != nil {
				return nil, err
			}
			dict.Set(key.(string), value)
		}
		_, err = d.Token()
		return dict, err
	}
	return tok, nil
}

// Encode writes a value of those that Decode gives as Python's json.dumps does,
// with characters beyond ASCII as they are.
func Encode(v any) string {
	var b strings.Builder
	writeJSON(&b, v, "", "\n")
	return b.String()
}

// writeJSON writes a value as json.dumps(v, ensure_ascii=False) does, or with
// indent where that is not empty; newline is the line end and margin so far.
func writeJSON(b *strings.Builder, v any, indent, newline string) {
	separator, inner := ", ", newline+indent
	if indent != "" {
		separator = "," + inner
	}
	// list writes n items between brackets.
	list := func(open, shut byte, n int, item func(i int)) {
		b.WriteByte(open)
		for i := range n {
			switch {
			case i > 0:
				b.WriteString(separator)
			case indent != "":
				b.WriteString(inner)
			}
			item(i)
		}
		if n > 0 && indent != "" {
			b.WriteString(newline)
		}
		b.WriteByte(shut)
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int:
		b.WriteString(strconv.Itoa(v))
	case float64:
		b.WriteString(floatText(v, "Infinity", "NaN"))
	case string:
		writeJSONString(b, v)
	case []any:
		list('[', ']', len(v), func(i int) { writeJSON(b, v[i], indent, inner) })
	case *Dict:
		list('{', '}', len(v.keys), func(i int) {
			writeJSONString(b, v.keys[i])
			b.WriteString(": ")
			writeJSON(b, v.values[v.keys[i]], indent, inner)
		})
	default:
		fail("tojson: %s is not JSON", typeName(v))
	}
}

func writeJSONString(b *strings.Builder, s string) {
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case '\n':
			b.WriteString(`\n`)
		case '\r':
			b.WriteString(`\r`)
		case '\t':
			b.WriteString(`\t`)
		case '\b':
			b.WriteString(`\b`)
		case '\f':
			b.WriteString(`\f`)
		default:
			if c < ' ' {
				fmt.Fprintf(b, `\u%04x`, c)
			} else {
				b.WriteByte(c)
			}
		}
	}
	b.WriteByte('"')
}
