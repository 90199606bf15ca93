package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/internal/lfs"
)

// The files a tokenizer consists of. Only the first is interpreted; the others
// are carried along from Load to Save.
var fileNames = []string{"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt"}

// maxTokenID bounds the ids of a file, so that a hostile one cannot make us
// allocate without limit.
const maxTokenID = 1 << 24

// Load reads the tokenizer.json in dir (Hugging Face's layout). What the file
// asks for and this package cannot do exactly is an error, never ignored.
func Load(dir string) (*Tokenizer, error) {
	path := filepath.Join(dir, fileNames[0])
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("token: %s: %w; a model is a Hugging Face folder that has one beside config.json and the weights", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if err := lfs.Check(data); err != nil {
		return nil, fmt.Errorf("token: %s: %w", path, err)
	}
	t, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("token: %s: %w", path, err)
	}
	for _, name := range fileNames[1:] {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		t.files[name] = data
	}
	return t, nil
}

// Save writes the tokenizer's files to dir, which must exist. A tokenizer that
// was loaded is written back byte for byte.
func (t *Tokenizer) Save(dir string) error {
	for _, name := range slices.Sorted(maps.Keys(t.files)) {
		if err := atomicfile.WriteBytes(filepath.Join(dir, name), t.files[name]); err != nil {
			return fmt.Errorf("token: %w", err)
		}
	}
	return nil
}

// tokenizerJSON is the layout of tokenizer.json, as far as we need it.
type tokenizerJSON struct {
	Version       string          `json:"version"`
	Truncation    json.RawMessage `json:"truncation"`
	Padding       json.RawMessage `json:"padding"`
	AddedTokens   []addedToken    `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         modelJSON       `json:"model"`
}

type modelJSON struct {
	Type                    string          `json:"type"`
	Dropout                 *float64        `json:"dropout"`
	UnkToken                *string         `json:"unk_token"`
	ContinuingSubwordPrefix *string         `json:"continuing_subword_prefix"`
	EndOfWordSuffix         *string         `json:"end_of_word_suffix"`
	FuseUnk                 bool            `json:"fuse_unk"`
	ByteFallback            bool            `json:"byte_fallback"`
	IgnoreMerges            bool            `json:"ignore_merges"`
	Vocab                   json.RawMessage `json:"vocab"`
	Merges                  json.RawMessage `json:"merges"`
}

// component is a normalizer or pre-tokenizer.
type component struct {
	Type           string      `json:"type"`
	Normalizers    []component `json:"normalizers"`
	Pretokenizers  []component `json:"pretokenizers"`
	Pattern        struct{ Regex, String *string }
	Behavior       string `json:"behavior"`
	Prepend        string `json:"prepend"`
	Content        string `json:"content"`
	Replacement    string `json:"replacement"`
	PrependScheme  string `json:"prepend_scheme"`
	Split          *bool  `json:"split"`
	Invert         bool   `json:"invert"`
	AddPrefixSpace bool   `json:"add_prefix_space"`
	UseRegex       *bool  `json:"use_regex"`
}

func parse(data []byte) (*Tokenizer, error) {
	var f tokenizerJSON
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	if !isNull(f.Truncation) || !isNull(f.Padding) {
		return nil, errors.New("truncation and padding are not supported: set both to null")
	}
	t := &Tokenizer{wholeWords: f.Model.IgnoreMerges, files: map[string][]byte{fileNames[0]: data}}
	var err error
	if t.pieces, err = parseSentencePiece(f); err != nil {
		return nil, err
	}
	if t.pieces == nil {
		if t.nfc, err = parseNormalizer(f.Normalizer); err != nil {
			return nil, err
		}
		if t.pattern, err = parsePreTokenizer(f.PreTokenizer); err != nil {
			return nil, err
		}
	}
	if err := t.parseModel(f.Model); err != nil {
		return nil, err
	}
	if err := t.parseAdded(f.AddedTokens); err != nil {
		return nil, err
	}
	return t, t.index()
}

func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(bytes.TrimSpace(raw), []byte("null"))
}

func parseNormalizer(raw json.RawMessage) (nfc bool, err error) {
	if isNull(raw) {
		return false, nil
	}
	var c component
	if err := json.Unmarshal(raw, &c); err != nil {
		return false, fmt.Errorf("normalizer: %w", err)
	}
	if c.Type == "Sequence" && len(c.Normalizers) == 0 {
		return false, nil
	}
	if c.Type == "Sequence" && len(c.Normalizers) == 1 {
		c = c.Normalizers[0]
	}
	if c.Type != "NFC" {
		return false, fmt.Errorf("normalizer %q is not supported, only NFC or none", c.Type)
	}
	return true, nil
}

func parsePreTokenizer(raw json.RawMessage) (Pattern, error) {
	var c component
	if isNull(raw) {
		return "", errors.New("no pre_tokenizer: not a byte-level BPE")
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", fmt.Errorf("pre_tokenizer: %w", err)
	}
	if c.Type == "Sequence" {
		if p := c.Pretokenizers; len(p) == 2 && p[0].Type == "Split" && p[1].Type == "ByteLevel" {
			switch {
			case p[0].Pattern.Regex == nil || p[0].Behavior != "Isolated" || p[0].Invert:
				return "", errors.New("pre_tokenizer: Split must isolate the matches of a Regex")
			case p[1].AddPrefixSpace || p[1].UseRegex == nil || *p[1].UseRegex:
				return "", errors.New("pre_tokenizer: ByteLevel after Split must have add_prefix_space and use_regex false")
			}
			return patternOf(*p[0].Pattern.Regex)
		}
	}
	if c.Type != "ByteLevel" {
		return "", fmt.Errorf("pre_tokenizer %q is not supported: only ByteLevel, or Split then ByteLevel", c.Type)
	}
	if c.AddPrefixSpace || c.UseRegex != nil && !*c.UseRegex {
		return "", errors.New("pre_tokenizer: ByteLevel must have add_prefix_space false and use_regex true")
	}
	return GPT2, nil
}

func (t *Tokenizer) parseModel(m modelJSON) error {
	switch {
	case m.Type != "BPE" && m.Type != "": // old files name no type
		return fmt.Errorf("model type %q is not supported, only BPE", m.Type)
	case m.Dropout != nil && *m.Dropout != 0:
		return errors.New("model: BPE dropout is not supported")
	case m.ContinuingSubwordPrefix != nil && *m.ContinuingSubwordPrefix != "",
		m.EndOfWordSuffix != nil && *m.EndOfWordSuffix != "":
		return errors.New("model: subword prefixes and suffixes are not supported")
	}
	var vocab map[string]int32
	if err := json.Unmarshal(m.Vocab, &vocab); err != nil {
		return fmt.Errorf("model.vocab: %w", err)
	}
	t.vocab = make(map[string]int32, len(vocab))
	for s, id := range vocab {
		text, key := s, s
		if t.pieces != nil {
			text = pieceText(s)
		} else if bytes, ok := fromByteLevel(s); ok {
			text, key = bytes, bytes
		} else {
			key = "" // an added token that the vocabulary lists too
		}
		if err := t.setText(id, text); err != nil {
			return fmt.Errorf("model.vocab: %w", err)
		}
		if key != "" {
			t.vocab[key] = id
		}
	}
	merges, err := parseMerges(m.Merges)
	if err != nil {
		return fmt.Errorf("model.merges: %w", err)
	}
	t.merges = make(map[pair]merge, len(merges))
	t.order = make([]pair, len(merges))
	for rank, m := range merges {
		a, okA := vocab[m[0]]
		b, okB := vocab[m[1]]
		id, ok := vocab[m[0]+m[1]]
		if !okA || !okB || !ok {
			return fmt.Errorf("model.merges: entry %d, %q + %q, names a token outside the vocabulary", rank, m[0], m[1])
		}
		t.order[rank] = pairOf(a, b)
		t.merges[pairOf(a, b)] = merge{int32(rank), id}
	}
	return nil
}

func (t *Tokenizer) setText(id int32, text string) error {
	if id < 0 || id >= maxTokenID {
		return fmt.Errorf("id %d of %q is out of range", id, text)
	}
	for int(id) >= len(t.text) {
		t.text = append(t.text, "")
	}
	if old := t.text[id]; old != "" && old != text {
		return fmt.Errorf("id %d stands for both %q and %q", id, old, text)
	}
	t.text[id] = text
	return nil
}

// parseMerges reads both layouts: "a b" strings and [a, b] pairs.
func parseMerges(raw json.RawMessage) ([][2]string, error) {
	var pairs [][2]string
	if json.Unmarshal(raw, &pairs) == nil {
		return pairs, nil
	}
	var lines []string
	if err := json.Unmarshal(raw, &lines); err != nil {
		return nil, err
	}
	pairs = make([][2]string, len(lines))
	for i, l := range lines {
		a, b, ok := strings.Cut(l, " ")
		if !ok || a == "" || b == "" || strings.Contains(b, " ") {
			return nil, fmt.Errorf("entry %d, %q, is not two tokens with a space between", i, l)
		}
		pairs[i] = [2]string{a, b}
	}
	return pairs, nil
}

func (t *Tokenizer) parseAdded(added []addedToken) error {
	seen := make(map[string]bool, len(added))
	for _, a := range added {
		if a.Content == "" || seen[a.Content] {
			return fmt.Errorf("added_tokens: id %d: %q is empty or repeated", a.ID, a.Content)
		}
		seen[a.Content] = true
		if int(a.ID) < len(t.text) && a.ID >= 0 && t.text[a.ID] != "" {
			delete(t.vocab, a.Content)
		}
		if err := t.setText(a.ID, a.Content); err != nil {
			return fmt.Errorf("added_tokens: %w", err)
		}
	}
	t.added = added
	return nil
}

// byteRune is the printable character that stands for each byte in
// tokenizer.json: printable Latin-1 for itself, the rest from U+0100 on.
var byteRune, runeByte = func() (to [256]rune, from map[rune]byte) {
	from = make(map[rune]byte, 256)
	next := rune(0x100)
	for b := range 256 {
		r := rune(b)
		if !(r >= '!' && r <= '~' || r >= 0xA1 && r <= 0xAC || r >= 0xAE && r <= 0xFF) {
			r = next
			next++
		}
		to[b] = r
		from[r] = byte(b)
	}
	return to, from
}()

func toByteLevel(text string) string {
	var b strings.Builder
	for i := range len(text) {
		b.WriteRune(byteRune[text[i]])
	}
	return b.String()
}

func fromByteLevel(s string) (string, bool) {
	out := make([]byte, 0, len(s))
	for _, r := range s {
		b, ok := runeByte[r]
		if !ok {
			return "", false
		}
		out = append(out, b)
	}
	return string(out), true
}
