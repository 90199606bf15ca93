package token

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// conversation is an entry of testdata/conversations.json.
type conversation struct {
	Messages json.RawMessage `json:"messages"`
	Tools    json.RawMessage `json:"tools,omitempty"`
	Prompt   bool            `json:"prompt,omitempty"`
	Options  map[string]any  `json:"options,omitempty"`
}

// compareRendered counts the conversations that t renders otherwise than want
// says; nil there is a refusal.
func compareRendered(t *testing.T, name string, template *Template, cases []conversation, want []*string) {
	t.Helper()
	if len(cases) < 20 || len(want) != len(cases) {
		t.Fatalf("%s: %d conversations, %d answers", name, len(cases), len(want))
	}
	for i, c := range cases {
		got, err := template.Render(Conversation(c))
		switch {
		case want[i] == nil && err == nil:
			t.Errorf("%s, conversation %d: rendered %q, transformers refuses", name, i, got)
		case want[i] != nil && err != nil:
			t.Errorf("%s, conversation %d: %v", name, i, err)
		case want[i] != nil && got != *want[i]:
			t.Errorf("%s, conversation %d:\n got %q\nwant %q", name, i, got, *want[i])
		}
	}
}

// Templates with everything that published ones use render as transformers
// renders them; see scripts/reference/template.py.
func TestTemplatesMatchTransformers(t *testing.T) {
	var cases []conversation
	readJSON(t, "conversations.json", &cases)
	var rendered map[string][]*string
	readJSON(t, "rendered.json", &rendered)
	if len(rendered) < 4 {
		t.Fatalf("%d templates in the golden file", len(rendered))
	}
	for name, want := range rendered {
		source, err := os.ReadFile(filepath.Join("testdata/templates", name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		template, err := ParseTemplate(string(source), map[string]string{"bos_token": "<s>", "eos_token": "</s>"})
		if err != nil {
			t.Fatal(err)
		}
		compareRendered(t, name, template, cases, want)
	}
}

// TestPublishedTemplates does the same with the templates of published models,
// in folders with a tokenizer_config.json each.
func TestPublishedTemplates(t *testing.T) {
	root, folders := os.Getenv("SSR_REFERENCE_ROOT"), filepath.SplitList(os.Getenv("SSR_TOKENIZERS"))
	if root == "" || len(folders) == 0 {
		t.Skip("set SSR_REFERENCE_ROOT to a root file system with python3-transformers and SSR_TOKENIZERS to folders of tokenizers to run this")
	}
	var cases []conversation
	readJSON(t, "conversations.json", &cases)
	for i := range cases { // transformers shows the date unless it is given one
		if cases[i].Options["date_string"] == nil {
			if cases[i].Options == nil {
				cases[i].Options = map[string]any{}
			}
			cases[i].Options["date_string"] = "26 Jul 2024"
		}
	}
	script, err := os.ReadFile("../../scripts/reference/template.py")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "tmp", "template_check.py")
	if err := os.WriteFile(path, script, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	for _, folder := range folders {
		tok := &Tokenizer{files: map[string][]byte{}} // whatever its vocabulary
		for _, name := range []string{"tokenizer_config.json", "chat_template.jinja"} {
			if data, err := os.ReadFile(filepath.Join(folder, name)); err == nil {
				tok.files[name] = data
			}
		}
		c, err := tok.config()
		if err != nil || c.template == "" {
			t.Logf("%s: no template (%v)", folder, err)
			continue
		}
		template, err := ParseTemplate(c.template, c.tokens)
		if err != nil {
			t.Error(err)
			continue
		}
		var asked []map[string]any
		for _, conv := range cases {
			asked = append(asked, map[string]any{"template": c.template, "tokens": c.tokens, "c": conv})
		}
		stdin, err := json.Marshal(asked)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "chroot", root, "python3", strings.TrimPrefix(path, filepath.Clean(root)), "--check")
		var stderr bytes.Buffer
		cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", folder, err, &stderr)
		}
		var want []*string
		if err := json.Unmarshal(out, &want); err != nil {
			t.Fatal(err)
		}
		compareRendered(t, folder, template, cases, want)
		if tok, err := Load(folder); err == nil {
			checkChat(t, folder, tok, template)
		}
	}
}

// checkChat plays a chat turn by turn and compares the ids with those of the
// template's text for all of it.
func checkChat(t *testing.T, name string, tok *Tokenizer, template *Template) {
	t.Helper()
	chat, err := NewChat(tok)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	render := func(messages ...Message) []int32 {
		data, err := json.Marshal(messages)
		if err != nil {
			t.Fatal(err)
		}
		text, err := template.Render(Conversation{Messages: data, Prompt: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return tok.EncodeSpecial(text)
	}
	system, ask := Message{System, "You repair code."}, Message{User, " def f(x):\n  return x\n"}
	reply, seen := Message{Assistant, "Let me look.\n\nls"}, Message{User, "a.py\nb.py\n"}
	for _, opening := range [][]Message{{ask}, {system, ask}} {
		ids := chat.Prompt(opening)
		if want := render(opening...); !slices.Equal(ids, want) {
			t.Errorf("%s: prompt %q, the template makes %q", name, tok.Decode(ids), tok.Decode(want))
		}
		ids = slices.Concat(ids, chat.Reply(reply.Content), chat.Observation(seen.Content, true))
		if want := render(append(opening, reply, seen)...); !slices.Equal(ids, want) {
			t.Errorf("%s: chat %q, the template makes %q", name, tok.Decode(ids), tok.Decode(want))
		}
		open := chat.Observation(seen.Content, false)
		if closed := chat.Observation(seen.Content, true); len(open) == 0 || open[0] != chat.StopTokens()[0] || !slices.Equal(open[1:], closed) {
			t.Errorf("%s: observation %v after an open turn, %v after a closed one", name, open, closed)
		}
	}
	forged := strings.Join(tok.Specials(), "x") + "\xff\xff"
	var found int
	for _, id := range chat.Prompt([]Message{{User, forged}}) {
		if tok.addedID[tok.text[id]] == id && tok.text[id] != "" {
			found++
		}
	}
	for _, id := range chat.Prompt([]Message{{User, "x"}}) {
		if tok.addedID[tok.text[id]] == id && tok.text[id] != "" {
			found--
		}
	}
	if found != 0 {
		t.Errorf("%s: a message that spells special tokens has %d of them", name, found)
	}
}

// A chat has the ids of its template's text, however it is put together.
func TestChatFollowsTemplate(t *testing.T) {
	for name, specials := range map[string][]string{
		"chatml": ChatMLSpecials, "calls": {"<s>", "</turn>", "<turn user>"}, "headers": {"<s>", "[end]", "[user]"},
	} {
		source, err := os.ReadFile(filepath.Join("testdata/templates", name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		tok, err := Train([]string{corpus(t)}, TrainOptions{VocabSize: 400, Specials: specials})
		if err != nil {
			t.Fatal(err)
		}
		tok.files["chat_template.jinja"] = source
		tok.files["tokenizer_config.json"] = []byte(`{"bos_token": {"content": "<s>"}, "eos_token": null}`)
		template, err := ParseTemplate(string(source), map[string]string{"bos_token": "<s>"})
		if err != nil {
			t.Fatal(err)
		}
		checkChat(t, name, tok, template)
	}
	for source, want := range map[string]string{
		"{{ messages[-1].content }}<|im_end|>":                                                "is not in the text in its place",
		"{% for m in messages %}{{ m.content }}\n\n{% endfor %}":                              "does not begin with a special token",
		"{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}":                "is not in the text",
		"{% for m in messages %}{{ raise_exception('never') }}{% endfor %}":                   "never",
		"{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}": "parts make",
	} {
		tok := trained(t, Qwen2)
		tok.files["chat_template.jinja"] = []byte(source)
		if _, err := NewChat(tok); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one about %q", source, err, want)
		}
	}
}

func TestTemplateRefusals(t *testing.T) {
	for source, want := range map[string]string{
		"{% if %}":                          "chat template",
		"{% include '/etc/hostname' %}":     "",
		"{{ open('/etc/hostname') }}":       "",
		"{% for x in range(0, 9, 0) %}":     "",
		"{{ raise_exception('no tools') }}": "no tools",
	} {
		template, err := ParseTemplate(source, nil)
		var text string
		if err == nil {
			text, err = template.Render(Conversation{Messages: []byte(`[]`)})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: rendered %q, error %v; want one about %q", source, text, err, want)
		}
	}
	template, err := ParseTemplate("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, messages := range []string{``, `[`, `[] []`, `{"a"}`} {
		if _, err := template.Render(Conversation{Messages: []byte(messages)}); err == nil {
			t.Errorf("messages %q are accepted", messages)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	source, err := os.ReadFile("testdata/templates/calls.jinja")
	if err != nil {
		b.Fatal(err)
	}
	template, err := ParseTemplate(string(source), nil)
	if err != nil {
		b.Fatal(err)
	}
	c := Conversation{Messages: []byte(`[{"role":"user","content":"Fix it."},{"role":"assistant","content":"x"},{"role":"user","content":"y"}]`), Prompt: true}
	for b.Loop() {
		if _, err := template.Render(c); err != nil {
			b.Fatal(err)
		}
	}
}
