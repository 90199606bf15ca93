package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// metaspace stands for a space in the vocabulary of a SentencePiece tokenizer.
const metaspace = "▁"

// sentencePiece is what sets a BPE that was converted from SentencePiece apart
// from a byte-level one: text is not cut into pieces, spaces are written as
// metaspace, one more is put before the text, and characters that the vocabulary
// lacks become bytes, written <0x00> to <0xFF>.
type sentencePiece struct {
	prefix prefix
}

// prefix says where a metaspace is put before the text between added tokens.
type prefix int

const (
	prefixNever   prefix = iota
	prefixFirst          // before the text's first token, unless there is a space
	prefixSegment        // before each stretch between added tokens, unless there is a space
	prefixAlways         // before each stretch, even where there is a space
)

// normalise writes a stretch of text as the vocabulary does. first says that it
// begins the text.
func (s *sentencePiece) normalise(text string, first bool) string {
	if text == "" {
		return ""
	}
	out := strings.ReplaceAll(text, " ", metaspace)
	switch {
	case s.prefix == prefixAlways,
		s.prefix == prefixSegment && !strings.HasPrefix(out, metaspace),
		s.prefix == prefixFirst && first && !strings.HasPrefix(out, metaspace):
		return metaspace + out
	}
	return out
}

// appendSymbols appends the ids that merging starts from: of characters, or of
// the bytes of a character that the vocabulary lacks.
func (t *Tokenizer) appendSymbols(out []int32, piece string) []int32 {
	if t.pieces == nil {
		for i := range len(piece) {
			out = append(out, t.byteID[piece[i]])
		}
		return out
	}
	for len(piece) > 0 {
		_, n := utf8.DecodeRuneInString(piece)
		if id, ok := t.vocab[piece[:n]]; ok {
			out = append(out, id)
		} else {
			for i := range n {
				out = append(out, t.byteID[piece[i]])
			}
		}
		piece = piece[n:]
	}
	return out
}

// byteToken reads the name of a byte's token.
func byteToken(s string) (b byte, ok bool) {
	const hex = "0123456789ABCDEF"
	if len(s) != 6 || s[:3] != "<0x" || s[5] != '>' {
		return 0, false
	}
	high, low := strings.IndexByte(hex, s[3]), strings.IndexByte(hex, s[4])
	return byte(high<<4 | low), high >= 0 && low >= 0
}

// pieceText is what a token of a SentencePiece vocabulary stands for.
func pieceText(s string) string {
	if b, ok := byteToken(s); ok {
		return string([]byte{b})
	}
	return strings.ReplaceAll(s, metaspace, " ")
}

// parseSentencePiece reads the two forms in which a tokenizer.json describes one:
// a normalizer that prepends and replaces, or a pre-tokenizer named Metaspace.
// It returns nil when the file describes neither.
func parseSentencePiece(f tokenizerJSON) (*sentencePiece, error) {
	if !f.Model.ByteFallback {
		return nil, nil
	}
	var norm, pre component
	for _, c := range []struct {
		raw  json.RawMessage
		into *component
	}{{f.Normalizer, &norm}, {f.PreTokenizer, &pre}} {
		if isNull(c.raw) {
			continue
		}
		if err := json.Unmarshal(c.raw, c.into); err != nil {
			return nil, err
		}
	}
	s := &sentencePiece{}
	switch {
	case norm.Type == "Sequence" && pre.Type == "":
		for _, c := range norm.Normalizers {
			switch {
			case c.Type == "Prepend" && c.Prepend == metaspace && s.prefix == prefixNever:
				s.prefix = prefixAlways
			case c.Type == "Replace" && c.Pattern.String != nil && *c.Pattern.String == " " && c.Content == metaspace:
			default:
				return nil, fmt.Errorf("normalizer %q of a SentencePiece model is not supported: only Prepend and Replace of a space by %s", c.Type, metaspace)
			}
		}
	case norm.Type == "" && pre.Type == "Metaspace":
		switch {
		case pre.Replacement != metaspace:
			return nil, fmt.Errorf("pre_tokenizer Metaspace with %q is not supported, only with %s", pre.Replacement, metaspace)
		case pre.Split == nil || *pre.Split:
			return nil, errors.New("pre_tokenizer Metaspace must have split false")
		}
		switch pre.PrependScheme {
		case "never":
		case "first":
			s.prefix = prefixFirst
		case "always":
			s.prefix = prefixSegment
		default:
			return nil, fmt.Errorf("pre_tokenizer Metaspace: prepend_scheme %q is not one of always, first and never", pre.PrependScheme)
		}
	default:
		return nil, fmt.Errorf("normalizer %q with pre_tokenizer %q is not supported for a model with byte_fallback", norm.Type, pre.Type)
	}
	if s.prefix == prefixAlways {
		for _, a := range f.AddedTokens {
			if a.Normalized {
				return nil, fmt.Errorf("added token %q is normalized, which is not supported beside a Prepend normalizer", a.Content)
			}
		}
	}
	return s, nil
}
