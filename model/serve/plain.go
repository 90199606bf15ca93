package serve

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ssr-go/ssr/model/token"
)

// PlainChat frames conversations with a chat format that has no place for tools:
// they are described in a system message, a call is written as the protocol
// writes it, one a turn, and its result is the user's next turn. Since the input
// of a call is text, a tool has one parameter, a string, or none.
type PlainChat struct {
	Format   *token.Chat
	Protocol token.Protocol
}

// StopTokens end a turn.
func (c PlainChat) StopTokens() []int32 { return c.Format.StopTokens() }

// CallEnds are the protocol's stop strings.
func (c PlainChat) CallEnds() []string { return c.Protocol.StopStrings() }

// Prompt frames a conversation.
func (c PlainChat) Prompt(messages []Message, tools []Tool) ([]int32, error) {
	var framed []token.Message
	about, err := c.describe(tools)
	if err != nil {
		return nil, err
	}
	if about != "" {
		if len(messages) > 0 && messages[0].Role == token.System {
			about = messages[0].Content + "\n\n" + about
			messages = messages[1:]
		}
		framed = append(framed, token.Message{Role: token.System, Content: about})
	}
	for _, m := range messages {
		f := token.Message{Role: m.Role, Content: m.Content}
		switch {
		case m.Role == "tool":
			f.Role = token.User
		case len(m.ToolCalls) > 1:
			return nil, fmt.Errorf("messages: an assistant's message has %d tool calls; this chat carries one a turn", len(m.ToolCalls))
		case len(m.ToolCalls) == 1:
			call, err := written(m.ToolCalls[0].Function)
			if err != nil {
				return nil, fmt.Errorf("messages: %w", err)
			}
			if f.Content != "" && !strings.HasSuffix(f.Content, "\n") {
				f.Content += "\n"
			}
			f.Content += c.Protocol.FormatCall(call)
		}
		framed = append(framed, f)
	}
	return c.Format.Prompt(framed), nil
}

// Parse finds the turn's call. A turn whose call is malformed, or of a tool that
// was not offered, is all content.
func (c PlainChat) Parse(turn string, tools []Tool) (string, []FunctionCall) {
	call, err := c.Protocol.ParseCall(turn)
	if err != nil {
		return turn, nil
	}
	for _, t := range tools {
		if t.Function.Name != call.Name {
			continue
		}
		name, err := parameter(t.Function)
		if err != nil {
			return turn, nil
		}
		arguments := map[string]string{}
		if name != "" {
			arguments[name] = call.Body
		}
		content := turn
		if before, _, ok := strings.Cut(turn, c.Protocol.FormatCall(call)); ok {
			content = strings.TrimRight(before, "\n")
		}
		return content, []FunctionCall{{Name: call.Name, Arguments: strings.TrimSpace(string(encode(arguments)))}}
	}
	return turn, nil
}

// describe tells the policy about its tools.
func (c PlainChat) describe(tools []Tool) (string, error) {
	if len(tools) == 0 {
		return "", nil
	}
	var b strings.Builder
	b.WriteString("To call a tool, end your turn with\n" + c.Protocol.FormatCall(token.Call{Name: "NAME", Body: "INPUT"}) + "\n\nTools:")
	for _, t := range tools {
		name, err := parameter(t.Function)
		if err != nil {
			return "", fmt.Errorf("tools: %w", err)
		}
		fmt.Fprintf(&b, "\n- %s", t.Function.Name)
		if t.Function.Description != "" {
			b.WriteString(": " + t.Function.Description)
		}
		if name != "" {
			fmt.Fprintf(&b, " (input: %s)", name)
		}
	}
	return b.String(), nil
}

// parameter is the name of a function's one parameter, "" where it has none.
func parameter(f Function) (string, error) {
	var schema struct {
		Properties map[string]struct {
			Type string `json:"type"`
		} `json:"properties"`
	}
	if len(f.Parameters) > 0 {
		if err := json.Unmarshal(f.Parameters, &schema); err != nil {
			return "", fmt.Errorf("the parameters of %q are not a JSON schema: %w", f.Name, err)
		}
	}
	if n := len(schema.Properties); n > 1 {
		return "", fmt.Errorf("%q has %d parameters; this chat carries tools with one string or none", f.Name, n)
	}
	for name, p := range schema.Properties {
		if p.Type != "string" {
			return "", fmt.Errorf("the parameter %q of %q is of the type %q; this chat carries tools with one string or none", name, f.Name, p.Type)
		}
		return name, nil
	}
	return "", nil
}

// written is a client's call as the protocol writes it.
func written(f FunctionCall) (token.Call, error) {
	var arguments map[string]string
	if err := json.Unmarshal([]byte(f.Arguments), &arguments); err != nil || len(arguments) > 1 {
		return token.Call{}, fmt.Errorf("the arguments of %q are not an object with one string or none: %s", f.Name, f.Arguments)
	}
	call := token.Call{Name: f.Name}
	for _, v := range arguments {
		call.Body = v
	}
	return call, nil
}
