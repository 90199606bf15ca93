package token

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Pattern names a pre-tokenizer: how text is cut into the pieces inside which
// merges happen. Each is written out by hand because the published regular
// expressions need look-ahead, which regexp lacks.
type Pattern string

const (
	GPT2   Pattern = "gpt2"
	Llama3 Pattern = "llama3" // digits in groups of up to three
	Qwen2  Pattern = "qwen2"  // digits one by one
	Tekken Pattern = "tekken" // Mistral's: words end where the case rises
)

// regexes are the regular expressions as they stand in published tokenizer.json files.
var regexes = map[Pattern]string{
	GPT2:   `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
	Llama3: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
	Qwen2:  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
	Tekken: `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
}

func patternOf(regex string) (Pattern, error) {
	for p, r := range regexes {
		if r == regex {
			return p, nil
		}
	}
	return "", fmt.Errorf("pre-tokenizer pattern %q is not one of GPT-2's, Llama 3's, Qwen2's and Tekken's", regex)
}

// class is what the patterns can tell about a character, a bit each.
type class uint8

const (
	other    class = 1 << iota // none of the below, invalid UTF-8 included
	mark                       // \p{M}
	upper                      // \p{Lu} or \p{Lt}
	lower                      // \p{Ll}
	caseless                   // \p{Lm} or \p{Lo}
	number                     // \p{N}
	space                      // \s but not a line end
	newline                    // \r or \n

	letter = upper | lower | caseless // \p{L}
	symbol = other | mark             // [^\s\p{L}\p{N}]
)

var asciiClass = func() (t [utf8.RuneSelf]class) {
	for r := range rune(utf8.RuneSelf) {
		t[r] = unicodeClass(r)
	}
	return t
}()

func unicodeClass(r rune) class {
	switch {
	case r == '\r' || r == '\n':
		return newline
	case unicode.IsSpace(r):
		return space
	case unicode.In(r, unicode.Ll, newLower):
		return lower
	case unicode.In(r, unicode.Lo, unicode.Lm, newCaseless):
		return caseless
	case unicode.In(r, unicode.Lu, unicode.Lt, newUpper):
		return upper
	case unicode.In(r, unicode.M, newMarks):
		return mark
	case unicode.In(r, unicode.N, newNumbers):
		return number
	}
	return other
}

// classAt returns the class and the length of the first character of s.
func classAt(s string) (class, int) {
	if s[0] < utf8.RuneSelf {
		return asciiClass[s[0]], 1
	}
	r, n := utf8.DecodeRuneInString(s)
	return unicodeClass(r), n
}

// run returns the length of the prefix of s made of characters of the classes in c.
func run(s string, c class) int {
	i := 0
	for i < len(s) {
		k, n := classAt(s[i:])
		if k&c == 0 {
			break
		}
		i += n
	}
	return i
}

// next returns the length of the first piece of s, which is not empty. None of
// the patterns looks behind, so pieces can be taken one after the other.
func (p Pattern) next(s string) int {
	switch p {
	case GPT2:
		return nextGPT2(s)
	case Llama3:
		return nextLlama3(s, 3)
	case Qwen2:
		return nextLlama3(s, 1)
	case Tekken:
		return nextTekken(s)
	}
	panic("token: unknown pattern " + string(p))
}

func nextGPT2(s string) int {
	if n := contraction(s, false); n > 0 {
		return n
	}
	skip := 0
	if s[0] == ' ' && len(s) > 1 {
		skip = 1
	}
	for _, c := range []class{letter, number, symbol} {
		if n := run(s[skip:], c); n > 0 {
			return skip + n
		}
	}
	return whitespace(s, false)
}

func nextLlama3(s string, digits int) int {
	if n := contraction(s, true); n > 0 {
		return n
	}
	c, n := classAt(s)
	switch c {
	case upper, lower, caseless:
		return n + run(s[n:], letter)
	case number:
		for range digits - 1 {
			if n == len(s) {
				break
			}
			k, m := classAt(s[n:])
			if k != number {
				break
			}
			n += m
		}
		return n
	case space, other, mark:
		if k := run(s[n:], letter); k > 0 {
			return n + k
		}
	}
	return nextSymbols(s, "\r\n")
}

// nextSymbols measures a piece that is no word and no number: symbols after a space or
// not, with what follows of the bytes in tail, or else white space.
func nextSymbols(s, tail string) int {
	skip := 0
	if s[0] == ' ' {
		skip = 1
	}
	if k := run(s[skip:], symbol); k > 0 {
		rest := s[skip+k:]
		return len(s) - len(strings.TrimLeft(rest, tail))
	}
	return whitespace(s, true)
}

func nextTekken(s string) int {
	c, n := classAt(s)
	switch {
	case c == number:
		return n
	case c&(space|symbol) != 0:
		if k := word(s[n:]); k > 0 {
			return n + k
		}
		if c == mark { // a word by itself, as capitals after it are not enough of one
			return n
		}
		if k := run(s[n:], upper); k > 0 {
			return n + k
		}
	case c != newline:
		if k := word(s); k > 0 {
			return k
		}
		return run(s, upper)
	}
	return nextSymbols(s, "\r\n/")
}

// word measures a word at the start of s that has more than capitals: what is not lower
// case, then what is not upper; 0 where there is none. Where nothing lower follows,
// capitals at the end are not of it.
func word(s string) int {
	begin := run(s, upper|caseless|mark)
	if k := run(s[begin:], lower|caseless|mark); k > 0 {
		return begin + k
	}
	end := 0
	for i := 0; i < begin; {
		c, n := classAt(s[i:])
		i += n
		if c != upper {
			end = i
		}
	}
	return end
}

// whitespace measures a piece that starts with white space: with lines, up to
// the last line end of the run; else the run, less its last character where a
// word follows (that one goes with the word, or stands alone).
func whitespace(s string, lines bool) int {
	i, last, lineEnd := 0, 0, 0
	for i < len(s) {
		c, n := classAt(s[i:])
		if c != space && c != newline {
			break
		}
		last = i
		i += n
		if c == newline {
			lineEnd = i
		}
	}
	switch {
	case lines && lineEnd > 0:
		return lineEnd
	case i < len(s) && last > 0:
		return last
	}
	return i
}

// contraction returns the length of an English contraction ('s, 't, 're, 've,
// 'm, 'll, 'd) at the start of s, or 0.
func contraction(s string, fold bool) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	low := func(i int) byte {
		if i >= len(s) {
			return 0
		}
		if c := s[i]; fold && 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return s[i]
	}
	switch a, b := low(1), low(2); {
	case a == 's' || a == 't' || a == 'm' || a == 'd':
		return 2
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 3
	case fold && a == "ſ"[0] && b == "ſ"[1]: // U+017F folds to s
		return 3
	}
	return 0
}

func isSpace(r rune) bool { return unicode.IsSpace(r) }

// isWord is \w for the single_word flag of added tokens.
func isWord(r rune) bool {
	return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.Is(unicode.M, r) || unicode.Is(unicode.Pc, r)
}

func endsWord(s string) bool {
	r, _ := utf8.DecodeLastRuneInString(s)
	return s != "" && isWord(r)
}

func startsWord(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return s != "" && isWord(r)
}
