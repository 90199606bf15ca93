package token

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/trained; run scripts/reference/tokenizer.py afterwards")

func readJSON(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func corpus(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("testdata/corpus.txt")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func trained(t testing.TB, p Pattern) *Tokenizer {
	t.Helper()
	tok, err := Train([]string{corpus(t)}, TrainOptions{VocabSize: 700, Specials: ChatMLSpecials, Pattern: p})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// Every code point has the class that Hugging Face's regular expressions give it.
func TestClassesMatchHuggingFace(t *testing.T) {
	var want map[string][][2]rune
	readJSON(t, "classes.json", &want)
	classes := slices.Repeat([]class{other}, 0x110000)
	for name, c := range map[string]class{"upper": upper, "lower": lower, "caseless": caseless, "mark": mark, "number": number, "space": space} {
		for _, r := range want[name] {
			for x := r[0]; x <= r[1]; x++ {
				classes[x] = c
			}
		}
	}
	classes['\r'], classes['\n'] = newline, newline
	for x := rune(0); x < 0x110000; x++ {
		if got := unicodeClass(x); got != classes[x] {
			t.Errorf("%U: class %d, want %d", x, got, classes[x])
		}
	}
}

// Our trainer learns the merges that Hugging Face's learns, and the ids of
// every text agree, for each pattern.
func TestTrainAndEncodeMatchHuggingFace(t *testing.T) {
	var want struct {
		Texts    []string
		Patterns map[Pattern]struct {
			Merges []string
			IDs    [][]int32 `json:"ids"`
		}
	}
	readJSON(t, "hf.json", &want)
	if len(want.Texts) < 250 || len(want.Patterns) != 4 {
		t.Fatalf("%d texts and %d patterns in the golden file", len(want.Texts), len(want.Patterns))
	}
	for p, golden := range want.Patterns {
		tok := trained(t, p)
		var merges []string
		for _, m := range tok.order {
			a, b := m.split()
			merges = append(merges, toByteLevel(tok.text[a])+" "+toByteLevel(tok.text[b]))
		}
		for i := range max(len(merges), len(golden.Merges)) {
			if i >= len(merges) || i >= len(golden.Merges) || merges[i] != golden.Merges[i] {
				t.Errorf("%s: merges differ from number %d on (%d here, %d there)", p, i, len(merges), len(golden.Merges))
				break
			}
		}
		for i, text := range want.Texts {
			if got := tok.EncodeSpecial(text); !slices.Equal(got, golden.IDs[i]) {
				t.Errorf("%s: %q: ids %v, want %v", p, text, got, golden.IDs[i])
			}
			if got := tok.Decode(tok.Encode(text)); got != text {
				t.Errorf("%s: %q comes back as %q", p, text, got)
			}
		}
	}
}

// The file we save is byte for byte the one that Hugging Face's library was
// given, and its ids and chat template agree with ours.
func TestSavedFileInHuggingFace(t *testing.T) {
	tok := trained(t, Qwen2)
	if *update {
		if err := os.MkdirAll("testdata/trained", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := tok.Save("testdata/trained"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		golden, err := os.ReadFile(filepath.Join("testdata/trained", name))
		if err != nil {
			t.Fatal(err)
		}
		if string(golden) != string(tok.files[name]) {
			t.Errorf("%s differs from testdata/trained; if that is meant, run go test -update and scripts/reference/tokenizer.py", name)
		}
	}
	loaded, err := Load("testdata/trained")
	if err != nil {
		t.Fatal(err)
	}
	var texts struct{ Texts []string }
	readJSON(t, "hf.json", &texts)
	var want struct {
		IDs   [][]int32 `json:"ids"`
		Chats []struct {
			Messages []Message
			IDs      []int32 `json:"ids"`
		}
	}
	readJSON(t, "trained.json", &want)
	for i, text := range texts.Texts {
		if got := loaded.EncodeSpecial(text); !slices.Equal(got, want.IDs[i]) {
			t.Errorf("%q: ids %v, want %v", text, got, want.IDs[i])
		}
	}
	chat, err := NewChat(loaded)
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Chats) == 0 {
		t.Fatal("no chats in the golden file")
	}
	for _, c := range want.Chats {
		if got := chat.Prompt(c.Messages); !slices.Equal(got, c.IDs) {
			t.Errorf("chat %v: ids %v, want %v", c.Messages, got, c.IDs)
		}
	}
}
