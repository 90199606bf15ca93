package token

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/ssr-go/ssr/model/token/jinja"
)

// Template is a chat template. It is immutable and safe for concurrent use.
type Template struct {
	parsed *jinja.Template
	// tokens are the special tokens that the template may name, such as bos_token.
	tokens map[string]string
}

// Conversation is what a template renders.
type Conversation struct {
	// Messages is a JSON list of objects with role and content, as in OpenAI's API.
	Messages json.RawMessage
	// Tools is a JSON list of tool definitions, or nil.
	Tools json.RawMessage
	// Prompt opens the assistant's turn at the end.
	Prompt bool
	// Options are further variables, such as enable_thinking or date_string:
	// booleans, integers, floats and strings. A template that shows a date has no
	// clock here and takes its own default.
	Options map[string]any
}

// ParseTemplate reads a template in Jinja. tokens are the special tokens by the
// names that it has for them.
func ParseTemplate(source string, tokens map[string]string) (*Template, error) {
	parsed, err := jinja.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("token: chat template: %w", err)
	}
	return &Template{parsed: parsed, tokens: maps.Clone(tokens)}, nil
}

// Render writes the conversation out, as transformers' apply_chat_template does.
// A message that spells a special token has it in the text; see [Chat] for what
// keeps it from becoming one.
func (t *Template) Render(c Conversation) (string, error) {
	vars := map[string]any{"add_generation_prompt": c.Prompt, "tools": nil, "documents": nil}
	for name, s := range t.tokens {
		vars[name] = s
	}
	maps.Copy(vars, c.Options)
	for name, data := range map[string]json.RawMessage{"messages": c.Messages, "tools": c.Tools} {
		if name == "tools" && len(data) == 0 {
			continue
		}
		v, err := jinja.Decode(data)
		if err != nil {
			return "", fmt.Errorf("token: %s: %w", name, err)
		}
		vars[name] = v
	}
	text, err := t.parsed.Render(vars)
	if err != nil {
		return "", fmt.Errorf("token: chat template: %w", err)
	}
	return text, nil
}
