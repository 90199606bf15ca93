package serve_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/model/serve"
	"github.com/ssr-go/ssr/model/token"
)

// plain is a chat over a small tokenizer, and that tokenizer.
func plain(t *testing.T) (serve.PlainChat, *token.Tokenizer) {
	t.Helper()
	tokens, err := token.Train([]string{"the the return return"}, token.TrainOptions{VocabSize: 270, Specials: token.ChatMLSpecials})
	if err != nil {
		t.Fatal(err)
	}
	format, err := token.NewChat(tokens)
	if err != nil {
		t.Fatal(err)
	}
	return serve.PlainChat{Format: format, Protocol: token.Plain}, tokens
}

const toolsJSON = `"tools":[{"type":"function","function":{"name":"bash","description":"Runs a command.",
	"parameters":{"type":"object","properties":{"command":{"type":"string"}},"required":["command"]}}},
	{"type":"function","function":{"name":"submit"}}]`

func TestToolPrompt(t *testing.T) {
	chat, tokens := plain(t)
	g := says("")
	o := options()
	o.Chat, o.Context = chat, 10000
	status, body := post(t, serve.New(g, tokens, o), "/v1/chat/completions", `{"model":"tiny",`+toolsJSON+`,"messages":[
		{"role":"system","content":"Be good."},{"role":"user","content":"Go <|im_end|>"},
		{"role":"assistant","content":"I look.","tool_calls":[{"id":"c","type":"function","function":{"name":"bash","arguments":"{\"command\":\"ls\"}"}}]},
		{"role":"tool","tool_call_id":"c","content":"a.go"}]}`)
	if status != http.StatusOK {
		t.Fatal(status, body)
	}
	const want = `<|im_start|>system
Be good.

To call a tool, end your turn with
<tool: NAME>
INPUT
</tool>

Tools:
- bash: Runs a command. (input: command)
- submit<|im_end|>
<|im_start|>user
Go <|im_end|><|im_end|>
<|im_start|>assistant
I look.
<tool: bash>
ls
</tool><|im_end|>
<|im_start|>user
a.go<|im_end|>
<|im_start|>assistant
`
	req := g.requests[0]
	if diff := cmp.Diff(want, tokens.Decode(req.Tokens)); diff != "" {
		t.Error(diff)
	}
	end, _ := tokens.ID("<|im_end|>")
	if n := strings.Count(tokens.Decode(req.Tokens), "<|im_end|>"); n != 5 || count(req.Tokens, end) != 4 {
		t.Errorf("%d ends of turns for %d messages: content closes a turn", count(req.Tokens, end), 4)
	}
	if diff := cmp.Diff([]string{"</tool>"}, req.StopStrings); diff != "" {
		t.Error(diff)
	}
}

func count(ids []int32, id int32) (n int) {
	for _, i := range ids {
		if i == id {
			n++
		}
	}
	return n
}

func TestToolCalls(t *testing.T) {
	bash := &serve.FunctionCall{Name: "bash", Arguments: `{"command":"ls <a>"}`}
	for _, c := range []struct {
		turn, content string
		call          *serve.FunctionCall
	}{
		{"I look.\n<tool: bash>\nls <a>\n</tool> never read", "I look.", bash},
		{"<tool: bash>\nls <a>\n</tool>", "", bash},
		{"<tool: submit>\n</tool>", "", &serve.FunctionCall{Name: "submit", Arguments: "{}"}},
		{"no call", "no call", nil},
		{"<tool: rm>\nx\n</tool>", "<tool: rm>\nx\n</tool>", nil},
		{"<tool: bash>\nls", "<tool: bash>\nls", nil},
	} {
		o := options()
		o.Chat = lines{serve.PlainChat{Protocol: token.Plain}}
		s := serve.New(says(c.turn), byteTokens{}, o)
		body := `{"model":"tiny",` + toolsJSON + `,"messages":[{"role":"user","content":"a"}]`
		_, whole := post(t, s, "/v1/chat/completions", body+`}`)
		_, streamed := post(t, s, "/v1/chat/completions", body+`,"stream":true}`)
		one, all := decode(t, whole).Choices[0], events(t, streamed)
		if len(all) != 1 || all[0].Choices[0].Delta.Role != "assistant" {
			t.Fatalf("%q is streamed as %s", c.turn, streamed)
		}
		for i, got := range []struct {
			content, finish string
			calls           []serve.ToolCall
		}{
			{one.Message.Content, one.FinishReason, one.Message.ToolCalls},
			{all[0].Choices[0].Delta.Content, all[0].Choices[0].FinishReason, all[0].Choices[0].Delta.ToolCalls},
		} {
			finish, calls := "stop", 0
			if c.call != nil {
				finish, calls = "tool_calls", 1
			}
			if got.content != c.content || got.finish != finish || len(got.calls) != calls {
				t.Errorf("%q gives %q and %d calls, finished by %q", c.turn, got.content, len(got.calls), got.finish)
				continue
			}
			if calls == 1 && (got.calls[0].Function != *c.call || got.calls[0].ID == "" || (got.calls[0].Index != nil) != (i == 1)) {
				t.Errorf("%q calls %+v", c.turn, got.calls[0])
			}
		}
	}
}

func TestToolsThatPlainTextCannotCarry(t *testing.T) {
	chat, tokens := plain(t)
	o := options()
	o.Chat = chat
	s := serve.New(says(""), tokens, o)
	for tail, want := range map[string]string{
		`"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"properties":{"a":{"type":"string"},"b":{"type":"string"}}}}}]`: "2 parameters",
		`"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"properties":{"a":{"type":"integer"}}}}}]`:                      `type \"integer\"`,
		`"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1}"}}]}]`:                                                                         "object with one string",
	} {
		if status, body := post(t, s, "/v1/chat/completions", `{"model":"tiny",`+tail+`}`); status != http.StatusBadRequest || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", tail, status, body)
		}
	}
}
