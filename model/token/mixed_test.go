package token

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mixed is testdata/mixed.json: strings made of fragments, and of each batch of
// them the start of a hash that scripts/reference/tokenizer.py computed of the
// ids and the decoded text that Hugging Face's library gives.
type mixed struct {
	Fragments    []string
	Count, Batch int
	Hashes       map[string][]string
}

func readMixed(t *testing.T) (m mixed, texts []string) {
	t.Helper()
	readJSON(t, "mixed.json", &m)
	state := uint64(1)
	draw := func(n int) int {
		state = state*6364136223846793005 + 1442695040888963407
		return int(state >> 33 % uint64(n))
	}
	for range m.Count {
		var b strings.Builder
		for range 1 + draw(12) {
			b.WriteString(m.Fragments[draw(len(m.Fragments))])
		}
		texts = append(texts, b.String())
	}
	return m, texts
}

func parseFile(t testing.TB, name string) *Tokenizer {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// pieces reads the golden tokenizer of the SentencePiece kind, rewritten to the
// other form when a scheme is given.
func pieces(t testing.TB, scheme string) *Tokenizer {
	t.Helper()
	data, err := os.ReadFile("testdata/pieces.json")
	if err != nil {
		t.Fatal(err)
	}
	if scheme != "" {
		var f map[string]any
		if err := json.Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		f["normalizer"] = nil
		f["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": metaspace, "prepend_scheme": scheme, "split": false}
		if data, err = json.Marshal(f); err != nil {
			t.Fatal(err)
		}
	}
	tok, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// Five thousand strings of code, diffs, white space, scripts, emoji and special
// tokens have the ids of Hugging Face's library, and decode to the same text.
func TestMixedStringsMatchHuggingFace(t *testing.T) {
	m, texts := readMixed(t)
	if m.Count < 5000 || len(m.Hashes) != 8 {
		t.Fatalf("%d strings, %d tokenizers in the golden file", m.Count, len(m.Hashes))
	}
	for name, hashes := range m.Hashes {
		var tok *Tokenizer
		switch kind, form, _ := strings.Cut(name, " "); {
		case kind == "pieces":
			tok = pieces(t, form)
		case form == "file":
			tok = parseFile(t, kind+".json")
		default:
			tok = trained(t, Pattern(name))
		}
		for i, want := range hashes {
			h := sha256.New()
			for _, s := range texts[i*m.Batch:][:m.Batch] {
				ids := tok.EncodeSpecial(s)
				text := tok.Decode(ids)
				row := append([]int32{int32(len(ids))}, ids...)
				if err := binary.Write(h, binary.LittleEndian, append(row, int32(len(text)))); err != nil {
					t.Fatal(err)
				}
				h.Write([]byte(text))
			}
			if got := hex.EncodeToString(h.Sum(nil))[:8]; got != want {
				t.Errorf("%s: strings %d to %d: hash %s, want %s", name, i*m.Batch, (i+1)*m.Batch-1, got, want)
			}
		}
	}
}

// TestPublishedTokenizers compares with Hugging Face's library on the vocabularies
// of published models, which are too large to be kept here: folders with a
// tokenizer.json each.
func TestPublishedTokenizers(t *testing.T) {
	root, folders := os.Getenv("SSR_REFERENCE_ROOT"), filepath.SplitList(os.Getenv("SSR_TOKENIZERS"))
	if root == "" || len(folders) == 0 {
		t.Skip("set SSR_REFERENCE_ROOT to a root file system with python3-tokenizers and SSR_TOKENIZERS to folders of tokenizers to run this")
	}
	_, texts := readMixed(t)
	var golden struct{ Texts []string }
	readJSON(t, "hf.json", &golden)
	texts = append(append(texts, golden.Texts...), corpus(t))
	stdin, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "tokenizer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	script, err := os.ReadFile("../../scripts/reference/tokenizer.py")
	if err != nil {
		t.Fatal(err)
	}
	inside := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(path, filepath.Clean(root))
	}
	check := inside("tokenizer.py", script)
	for _, folder := range folders {
		tok, err := Load(folder)
		if err != nil {
			t.Errorf("%s: %v", folder, err)
			continue
		}
		cmd := exec.CommandContext(t.Context(), "chroot", root, "python3", check, "--check", inside("tokenizer.json", tok.files["tokenizer.json"]))
		var stderr bytes.Buffer
		cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", folder, err, &stderr)
		}
		var answers [][2]json.RawMessage
		if err := json.Unmarshal(out, &answers); err != nil {
			t.Fatal(err)
		}
		bad := 0
		for i, a := range answers {
			var ids []int32
			var text string
			if err := json.Unmarshal(a[0], &ids); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(a[1], &text); err != nil {
				t.Fatal(err)
			}
			got := tok.EncodeSpecial(texts[i])
			if !slices.Equal(got, ids) || tok.Decode(got) != text {
				if bad++; bad < 4 {
					t.Errorf("%s: %.200q: ids %v, want %v; text %.200q, want %.200q", folder, texts[i], got, ids, tok.Decode(got), text)
				}
			}
		}
		t.Logf("%s: %d of %d strings differ", folder, bad, len(answers))
	}
}
