// Package token turns text into token ids and back. It reads Hugging Face's
// tokenizer.json, byte-level BPE and BPE converted from SentencePiece, trains and
// writes the former, frames chats by their templates, and parses the tool calls
// that a policy writes.
//
// Text that came out of a sandbox is encoded with [Tokenizer.Encode], which
// never produces a special id, so no output of a program can forge a turn.
package token

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// Tokenizer is a BPE tokenizer. It is immutable and safe for concurrent use.
type Tokenizer struct {
	pattern Pattern
	nfc     bool
	// pieces is set for a tokenizer of the SentencePiece kind, which has no pattern.
	pieces *sentencePiece
	// wholeWords: a pre-token that is itself in the vocabulary is not merged
	// step by step ("ignore_merges").
	wholeWords bool

	text   []string         // id → bytes; "" where the id is unused
	vocab  map[string]int32 // bytes (SentencePiece: as spelled in the file) → id, added tokens excluded
	byteID [256]int32
	merges map[pair]merge
	order  []pair // merges by rank

	added   []addedToken // by id
	addedID map[string]int32
	// addedBy has the added tokens that begin with a byte, the longest first.
	addedBy [256][]addedToken

	files map[string][]byte // what Save writes
}

// addedToken is an entry of tokenizer.json's added_tokens.
type addedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// VocabSize is one more than the largest id. A model's embedding may have more
// rows (padding); such ids decode to nothing.
func (t *Tokenizer) VocabSize() int { return len(t.text) }

// ID returns the id of an added token such as "<|im_end|>".
func (t *Tokenizer) ID(special string) (int32, bool) {
	id, ok := t.addedID[special]
	return id, ok
}

// Specials lists the added tokens by id.
func (t *Tokenizer) Specials() []string {
	s := make([]string, len(t.added))
	for i, a := range t.added {
		s[i] = a.Content
	}
	return s
}

// Encode turns text into ids. Special tokens spelled out in the text are
// ordinary text. Any byte sequence is accepted, valid UTF-8 or not, and Decode
// gives it back exactly, unless the tokenizer normalises: Qwen's declares NFC, and
// those of the SentencePiece kind read the character ▁ and a first space as their
// own. No begin-of-sequence token is added.
func (t *Tokenizer) Encode(text string) []int32 {
	return t.appendEncode(make([]int32, 0, len(text)/3+1), text, true)
}

// EncodeSpecial is Encode, except that added tokens spelled out in the text
// become their ids, as Hugging Face's encode(add_special_tokens=False) does.
// It is for trusted text only.
func (t *Tokenizer) EncodeSpecial(text string) []int32 { return t.encodeMarked(text, "", true) }

// encodeMarked is EncodeSpecial for text in which some added tokens are ordinary
// text: those that mark, which is taken out, interrupts. first says that nothing
// precedes text.
func (t *Tokenizer) encodeMarked(text, mark string, first bool) []int32 {
	out := make([]int32, 0, len(text)/3+1)
	unmark := func(s string) string {
		if mark == "" {
			return s
		}
		return strings.ReplaceAll(s, mark, "")
	}
	for ; text != ""; first = false {
		start, end, id := t.findAdded(text)
		if id < 0 {
			return t.appendEncode(out, unmark(text), first)
		}
		out = t.appendEncode(out, unmark(text[:start]), first)
		out = append(out, id)
		text = text[end:]
	}
	return out
}

// appendEncode encodes a stretch of ordinary text; first says that it begins the
// whole text.
func (t *Tokenizer) appendEncode(out []int32, text string, first bool) []int32 {
	if t.pieces != nil {
		if text = t.pieces.normalise(text, first); text != "" {
			out = t.appendPiece(out, text)
		}
		return out
	}
	if t.nfc {
		text = norm.NFC.String(text)
	}
	for text != "" {
		n := t.pattern.next(text)
		out = t.appendPiece(out, text[:n])
		text = text[n:]
	}
	return out
}

// findAdded finds the leftmost, then longest, added token in text; id is -1 when
// there is none.
func (t *Tokenizer) findAdded(text string) (start, end int, id int32) {
	for at := 0; at < len(text); at++ {
		for _, a := range t.addedBy[text[at]] {
			if !strings.HasPrefix(text[at:], a.Content) {
				continue
			}
			start, end = at, at+len(a.Content)
			if a.SingleWord && (endsWord(text[:start]) || startsWord(text[end:])) {
				at = end - 1 // the search goes on after it
				break
			}
			if a.LStrip {
				start = len(strings.TrimRightFunc(text[:start], isSpace))
			}
			if a.RStrip {
				end = len(text) - len(strings.TrimLeftFunc(text[end:], isSpace))
			}
			return start, end, a.ID
		}
	}
	return 0, 0, -1
}

// Decode turns ids into the exact bytes they stand for; special tokens appear
// as their text and unknown ids as nothing. Cut inside a character, the result
// is not valid UTF-8. A tokenizer of the SentencePiece kind loses the space that
// it put before the text.
func (t *Tokenizer) Decode(ids []int32) string {
	text := string(t.AppendDecode(make([]byte, 0, 4*len(ids)), ids...))
	if t.pieces != nil && t.pieces.prefix != prefixNever {
		text = strings.TrimPrefix(text, " ")
	}
	return text
}

// AppendDecode appends to dst the bytes that ids stand for, first space included.
func (t *Tokenizer) AppendDecode(dst []byte, ids ...int32) []byte {
	for _, id := range ids {
		if id >= 0 && int(id) < len(t.text) {
			dst = append(dst, t.text[id]...)
		}
	}
	return dst
}

// index fills the derived tables from text, vocab, order and added.
func (t *Tokenizer) index() error {
	for b := range 256 {
		name := string([]byte{byte(b)})
		if t.pieces != nil {
			name = fmt.Sprintf("<0x%02X>", b)
		}
		id, ok := t.vocab[name]
		if !ok {
			return fmt.Errorf("the vocabulary has no token for byte 0x%02x: not a byte-level BPE", b)
		}
		t.byteID[b] = id
	}
	t.addedID = make(map[string]int32, len(t.added))
	for _, a := range t.added {
		t.addedID[a.Content] = a.ID
		by := &t.addedBy[a.Content[0]]
		*by = append(*by, a)
	}
	for _, by := range t.addedBy {
		slices.SortFunc(by, func(a, b addedToken) int { return cmp.Compare(len(b.Content), len(a.Content)) })
	}
	sort.Slice(t.added, func(i, j int) bool { return t.added[i].ID < t.added[j].ID })
	return nil
}
