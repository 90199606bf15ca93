package serve

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ssr-go/ssr/model/token"
)

// TemplateChat frames conversations with a chat template that has a place for
// tools, whatever their parameters. A turn calls them in one of the two ways that
// such templates teach: JSON with a name and arguments between <tool_call> tags, any
// number of them, or a turn that is such JSON, which Llama 3 calls parameters.
type TemplateChat struct{ Format *token.Chat }

// StopTokens end a turn.
func (c TemplateChat) StopTokens() []int32 { return c.Format.StopTokens() }

// CallEnds are none: a turn may have several calls and ends by itself.
func (c TemplateChat) CallEnds() []string { return nil }

// Prompt renders the conversation.
func (c TemplateChat) Prompt(messages []Message, tools []Tool) ([]int32, error) {
	type function struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	}
	type call struct {
		ID       string   `json:"id"`
		Type     string   `json:"type"`
		Function function `json:"function"`
	}
	type message struct {
		Role       string `json:"role"`
		Content    string `json:"content"`
		ToolCalls  []call `json:"tool_calls,omitempty"`
		ToolCallID string `json:"tool_call_id,omitempty"`
	}
	framed := make([]message, len(messages))
	for i, m := range messages {
		framed[i] = message{Role: m.Role, Content: m.Content, ToolCallID: m.ToolCallID}
		for _, t := range m.ToolCalls {
			// Templates expect the object that OpenAI's API has as text.
			arguments := json.RawMessage(t.Function.Arguments)
			var object map[string]json.RawMessage
			if err := json.Unmarshal(arguments, &object); err != nil {
				return nil, fmt.Errorf("messages: the arguments of %q are not a JSON object: %s", t.Function.Name, arguments)
			}
			framed[i].ToolCalls = append(framed[i].ToolCalls, call{t.ID, "function", function{t.Function.Name, arguments}})
		}
	}
	var offered json.RawMessage
	if len(tools) > 0 {
		offered = encode(tools)
	}
	return c.Format.Conversation(encode(framed), offered)
}

const (
	openCall  = "<tool_call>"
	closeCall = "</tool_call>"
	pythonTag = "<|python_tag|>"
)

// Parse finds the turn's calls. A turn with a call that is malformed, or of a tool
// that was not offered, is all content.
func (c TemplateChat) Parse(turn string, tools []Tool) (content string, calls []FunctionCall) {
	content, rest, tagged := strings.Cut(turn, openCall)
	if !tagged {
		text := strings.TrimSpace(turn)
		text = strings.TrimSpace(strings.TrimPrefix(text, pythonTag))
		if call, after, ok := parseCall(text, tools); ok && after == "" {
			return "", []FunctionCall{call}
		}
		return turn, nil
	}
	for {
		call, after, ok := parseCall(rest, tools)
		if !ok {
			return turn, nil
		}
		calls = append(calls, call)
		if after, ok = strings.CutPrefix(after, closeCall); !ok {
			return turn, nil
		}
		after = strings.TrimSpace(after)
		if after == "" {
			return strings.TrimRight(content, " \n"), calls
		}
		if rest, ok = strings.CutPrefix(after, openCall); !ok {
			return turn, nil
		}
	}
}

// parseCall reads a call at the start of text and returns what follows it.
func parseCall(text string, tools []Tool) (f FunctionCall, rest string, ok bool) {
	var call struct {
		Name                  string
		Arguments, Parameters json.RawMessage
	}
	d := json.NewDecoder(strings.NewReader(text))
	if d.Decode(&call) != nil {
		return f, "", false
	}
	arguments := call.Arguments
	if len(arguments) == 0 {
		arguments = call.Parameters
	}
	var object map[string]json.RawMessage
	if len(arguments) == 0 {
		arguments = json.RawMessage("{}")
	} else if json.Unmarshal(arguments, &object) != nil {
		return f, "", false
	}
	for _, t := range tools {
		if t.Function.Name == call.Name {
			return FunctionCall{Name: call.Name, Arguments: string(arguments)}, strings.TrimSpace(text[d.InputOffset():]), true
		}
	}
	return f, "", false
}
