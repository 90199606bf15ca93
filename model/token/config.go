package token

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// tokenizerConfig is what is used of tokenizer_config.json and its companions.
type tokenizerConfig struct {
	// template is the chat template's source, "" where there is none.
	template string
	// tokens are the special tokens by the names that templates have for them:
	// bos_token, eos_token and so on.
	tokens map[string]string
}

// config reads tokenizer_config.json, and the template from chat_template.jinja
// where that exists, as newer checkpoints have it.
func (t *Tokenizer) config() (tokenizerConfig, error) {
	c := tokenizerConfig{tokens: map[string]string{}}
	var fields map[string]json.RawMessage
	const name = "tokenizer_config.json"
	if data := t.files[name]; data != nil {
		if err := json.Unmarshal(data, &fields); err != nil {
			return c, fmt.Errorf("token: %s: %w", name, err)
		}
	}
	for _, key := range []string{"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"} {
		text, err := tokenText(fields[key])
		if err != nil {
			return c, fmt.Errorf("token: %s: %s: %w", name, key, err)
		}
		if text != "" {
			c.tokens[key] = text
		}
	}
	if data, ok := t.files["chat_template.jinja"]; ok {
		c.template = string(data)
		return c, nil
	}
	var err error
	if c.template, err = templateText(fields["chat_template"]); err != nil {
		return c, fmt.Errorf("token: %s: chat_template: %w", name, err)
	}
	return c, nil
}

// tokenText reads a special token: a string, an object with its content, or null.
func tokenText(raw json.RawMessage) (string, error) {
	if isNull(raw) {
		return "", nil
	}
	if bytes.TrimSpace(raw)[0] != '{' {
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	}
	var object struct {
		Content string `json:"content"`
	}
	err := json.Unmarshal(raw, &object)
	return object.Content, err
}

// templateText reads a chat template: a string, or a list of named ones, of which
// the one for chats with tools is preferred to the default, as it takes both.
func templateText(raw json.RawMessage) (string, error) {
	if isNull(raw) {
		return "", nil
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var named []struct {
		Name     string `json:"name"`
		Template string `json:"template"`
	}
	if err := json.Unmarshal(raw, &named); err != nil {
		return "", err
	}
	for _, name := range []string{"tool_use", "default"} {
		for _, t := range named {
			if t.Name == name {
				return t.Template, nil
			}
		}
	}
	return "", fmt.Errorf("none of %d templates is named default or tool_use", len(named))
}
