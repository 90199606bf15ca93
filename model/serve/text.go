package serve

import (
	"bytes"
	"slices"
	"unicode/utf8"
)

// sampled is a token with its log-probability and the bytes that it stands for.
type sampled struct {
	bytes   []byte
	logprob float32
	// unscored: nothing precedes the token that could predict it.
	unscored bool
	// top are the best tokens in its place, where they were asked for.
	top []alternative
	// offset is how many characters of the text begin before the token.
	offset int
	// The bytes are [start, end) of the text.
	start, end int
}

// alternative is a token that could stand in another's place.
type alternative struct {
	bytes   []byte
	logprob float32
}

// text is an answer as it grows. What may still turn out to belong to a stop
// string or to an incomplete character is kept back.
type text struct {
	decode func(dst []byte, ids ...int32) []byte
	stops  []string // end the text and are not part of it
	ends   []string // end the text and are part of it

	bytes  []byte
	runes  int // that begin in bytes
	tokens []sampled
	// What was taken already.
	takenBytes, takenTokens int
}

// add appends a token and reports whether the text ends with it.
func (t *text) add(id int32, logprob float32, top []alternative) bool {
	start := len(t.bytes)
	t.bytes = t.decode(t.bytes, id)
	own := slices.Clone(t.bytes[start:])
	t.tokens = append(t.tokens, sampled{bytes: own, logprob: logprob, top: top, offset: t.runes, start: start, end: len(t.bytes)})
	for _, b := range own {
		if utf8.RuneStart(b) {
			t.runes++
		}
	}
	cut := -1
	find := func(s string, keep int) {
		from := max(0, start-len(s)+1)
		if i := bytes.Index(t.bytes[from:], []byte(s)); i >= 0 && (cut < 0 || from+i+keep < cut) {
			cut = from + i + keep
		}
	}
	for _, s := range t.stops {
		find(s, 0)
	}
	for _, s := range t.ends {
		find(s, len(s))
	}
	if cut < 0 {
		return false
	}
	t.bytes = t.bytes[:cut]
	for n := len(t.tokens); n > 0 && t.tokens[n-1].start >= cut; n-- {
		t.tokens = t.tokens[:n-1]
	}
	return true
}

// take returns what was not taken before; all of it when the text has ended.
func (t *text) take(ended bool) (string, []sampled) {
	end := len(t.bytes)
	if !ended {
		end -= t.held()
	}
	s := string(t.bytes[t.takenBytes:end])
	t.takenBytes = end
	from := t.takenTokens
	for t.takenTokens < len(t.tokens) && (ended || t.tokens[t.takenTokens].end <= end) {
		t.takenTokens++
	}
	return s, slices.Clip(t.tokens[from:t.takenTokens])
}

// held is how many bytes at the end may be the beginning of a stop string or of a
// character.
func (t *text) held() int {
	rest := t.bytes[t.takenBytes:]
	held := 0
	for i := 1; i <= min(utf8.UTFMax-1, len(rest)); i++ {
		if last := rest[len(rest)-i:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				held = i
			}
			break
		}
	}
	for _, s := range t.stops {
		for n := min(len(s)-1, len(rest)); n > held; n-- {
			if bytes.HasSuffix(rest, []byte(s[:n])) {
				held = n
				break
			}
		}
	}
	return held
}
