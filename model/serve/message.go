package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Message is one message of a conversation, in OpenAI's JSON.
type Message struct {
	// Role is system, user, assistant or tool.
	Role string `json:"role"`
	// Content is text. A list of text parts is read as their concatenation.
	Content   string     `json:"content"`
	ToolCalls []ToolCall `json:"tool_calls,omitempty"`
	// ToolCallID names the call that a tool's message answers.
	ToolCallID string `json:"tool_call_id,omitempty"`
}

// ToolCall is a call as it stands in a message.
type ToolCall struct {
	// Index orders the calls of a streamed message; absent otherwise.
	Index    *int         `json:"index,omitempty"`
	ID       string       `json:"id"`
	Type     string       `json:"type"`
	Function FunctionCall `json:"function"`
}

// FunctionCall is a function's name and its arguments, a JSON object as text.
type FunctionCall struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// Tool is a function that a turn may call.
type Tool struct {
	Type     string   `json:"type"`
	Function Function `json:"function"`
}

// Function describes a function to the policy. Parameters is a JSON schema.
type Function struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"`
	Strict      bool            `json:"strict,omitempty"`
}

// UnmarshalJSON reads the forms that OpenAI's API allows, as far as they are text.
func (m *Message) UnmarshalJSON(data []byte) error {
	type plain Message // without this method
	in := struct {
		*plain
		Content json.RawMessage `json:"content"`
	}{plain: (*plain)(m)}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	switch m.Role {
	case "developer":
		m.Role = "system"
	case "system", "user", "assistant", "tool":
	case "":
		return errors.New("a message has no role")
	default:
		return fmt.Errorf("no role %q; there are system, developer, user, assistant and tool", m.Role)
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	switch {
	case len(in.Content) == 0 || string(in.Content) == "null":
		if m.Role != "assistant" {
			return fmt.Errorf("a message of the role %q has no content", m.Role)
		}
		return nil
	case json.Unmarshal(in.Content, &m.Content) == nil:
		return nil
	case json.Unmarshal(in.Content, &parts) != nil:
		return fmt.Errorf("the content of a message of the role %q is neither text nor a list of parts", m.Role)
	}
	var b strings.Builder
	for _, p := range parts {
		if p.Type != "text" {
			return fmt.Errorf("a message has a part of the type %q; this model reads text alone", p.Type)
		}
		b.WriteString(p.Text)
	}
	m.Content = b.String()
	return nil
}
