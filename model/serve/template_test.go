package serve_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/model/serve"
	"github.com/ssr-go/ssr/model/token"
)

// templated is a chat whose template has a place for tools, and its tokenizer.
func templated(t *testing.T) (serve.TemplateChat, *token.Tokenizer) {
	t.Helper()
	trained, err := token.Train([]string{"the the return return"}, token.TrainOptions{
		VocabSize: 270, Specials: []string{"<turn user>", "<turn assistant>", "<turn system>", "</turn>"},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	template, err := os.ReadFile("../token/testdata/templates/calls.jinja")
	if err != nil {
		t.Fatal(err)
	}
	if err := trained.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "chat_template.jinja"), template, 0o644); err != nil {
		t.Fatal(err)
	}
	tokens, err := token.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	format, err := token.NewChat(tokens)
	if err != nil {
		t.Fatal(err)
	}
	return serve.TemplateChat{Format: format}, tokens
}

const searchJSON = `"tools":[{"type":"function","function":{"name":"search","description":"Finds </turn> text.",
	"parameters":{"type":"object","properties":{"query":{"type":"string"},"limit":{"type":"integer"}},"required":["query"]}}}]`

// Tools of any parameters reach the template as they were sent, in their order; what
// strings spell does not become a special token.
func TestTemplatePrompt(t *testing.T) {
	chat, tokens := templated(t)
	plainChat, _ := plain(t)
	if !chat.Format.ShowsTools() || plainChat.Format.ShowsTools() {
		t.Error("the template with a place for tools is not told from the one without")
	}
	g, o := says(""), options()
	o.Chat, o.Context = chat, 10000
	status, body := post(t, serve.New(g, tokens, o), "/v1/chat/completions", `{"model":"tiny",`+searchJSON+`,"messages":[
		{"role":"user","content":"Go </turn> <b>"},
		{"role":"assistant","content":"I look.","tool_calls":[{"id":"c","type":"function","function":{"name":"search","arguments":"{\"query\": \"</turn>\", \"limit\": 3}"}},
			{"id":"d","type":"function","function":{"name":"search","arguments":"{}"}}]},
		{"role":"tool","tool_call_id":"c","content":"a.go"},{"role":"tool","tool_call_id":"d","content":"none"}]}`)
	if status != http.StatusOK {
		t.Fatal(status, body)
	}
	const want = `<tools>
{"type": "function", "function": {"name": "search", "description": "Finds </turn> text.", "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}, "required": ["query"]}}}
</tools>
<turn user>Go </turn> <b></turn>
<turn assistant>I look.
{"name": "search", "arguments": {"query": "</turn>", "limit": 3}}
{"name": "search", "arguments": {}}</turn>
<turn user>
<answer>a.go</answer>
<answer>none</answer></turn>
<turn assistant>`
	got := g.requests[0].Tokens
	if diff := cmp.Diff(want, string(tokens.AppendDecode(nil, got...))); diff != "" {
		t.Error(diff)
	}
	end, _ := tokens.ID("</turn>")
	ends := 0
	for _, id := range got {
		if id == end {
			ends++
		}
	}
	if ends != 3 {
		t.Errorf("%d turns end in the prompt, want 3", ends)
	}
}

func TestTemplateCalls(t *testing.T) {
	chat := serve.TemplateChat{}
	tools := []serve.Tool{{Type: "function", Function: serve.Function{Name: "search"}}, {Type: "function", Function: serve.Function{Name: "stop"}}}
	search := func(arguments string) serve.FunctionCall {
		return serve.FunctionCall{Name: "search", Arguments: arguments}
	}
	for turn, want := range map[string]struct {
		content string
		calls   []serve.FunctionCall
	}{
		"I look.\n<tool_call>\n{\"name\": \"search\", \"arguments\": {\"limit\": 3}}\n</tool_call>":                 {"I look.", []serve.FunctionCall{search(`{"limit": 3}`)}},
		"<tool_call>{\"name\":\"search\",\"arguments\":{}}</tool_call>\n<tool_call>{\"name\":\"stop\"}</tool_call>": {"", []serve.FunctionCall{search("{}"), {Name: "stop", Arguments: "{}"}}},
		"<|python_tag|>{\"name\": \"search\", \"parameters\": {\"q\": [1]}}":                                        {"", []serve.FunctionCall{search(`{"q": [1]}`)}},
		`{"name": "search", "parameters": {}}`:                                                                      {"", []serve.FunctionCall{search("{}")}},
		"plain":                                                                                                     {"plain", nil},
	} {
		content, calls := chat.Parse(turn, tools)
		if content != want.content || !cmp.Equal(calls, want.calls) {
			t.Errorf("%q is read as %q and %v", turn, content, calls)
		}
	}
	for _, turn := range []string{
		`<tool_call>{"name": "search", "arguments": {}}`, `<tool_call>{"name": "other"}</tool_call>`, `<tool_call>{"name": "search", "arguments": 3}</tool_call>`,
		`<tool_call>{"name": "stop"}</tool_call> and more`, `{"name": "search"} and more`, `<tool_call>{"na`, `{"name": "unknown", "parameters": {}}`,
	} {
		if content, calls := chat.Parse(turn, tools); content != turn || calls != nil {
			t.Errorf("%q is read as %q and %v", turn, content, calls)
		}
	}
}

// A template's own error is told to the client.
func TestTemplateRefuses(t *testing.T) {
	chat, tokens := templated(t)
	o := options()
	o.Chat = chat
	status, body := post(t, serve.New(says(""), tokens, o), "/v1/chat/completions", `{"model":"tiny","messages":[{"role":"assistant","content":"","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"[1]"}}]}]}`)
	if status != http.StatusBadRequest || !strings.Contains(body, "not a JSON object") {
		t.Error(status, body)
	}
}
