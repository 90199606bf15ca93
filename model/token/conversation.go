package token

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Conversation renders messages and tools through the chat's own template and
// opens the assistant's turn. Messages are as [Conversation] has them, in OpenAI's
// JSON with each call's arguments an object; tools may be nil. As in [Chat.Prompt],
// what strings spell is ordinary text, special tokens included. Unlike it, the
// template sees the whole conversation at once and may write it as it likes.
func (c *Chat) Conversation(messages, tools json.RawMessage) ([]int32, error) {
	for name, data := range map[string]json.RawMessage{"messages": messages, "tools": tools} {
		if len(data) > 0 && !json.Valid(data) {
			return nil, fmt.Errorf("token: %s are not JSON", name)
		}
	}
	// A character that nothing holds, for private use, interrupts special tokens.
	held, mark := allStrings(messages)+allStrings(tools), ""
	for r := rune(0xF0000); mark == ""; r++ {
		if s := string(r); !strings.Contains(held, s) {
			mark = s
		}
	}
	text, err := c.template.Render(Conversation{
		Messages: c.markStrings(messages, mark), Tools: c.markStrings(tools, mark), Prompt: true, Options: c.variables,
	})
	if err != nil {
		return nil, err
	}
	return c.t.encodeMarked(text, mark, true), nil
}

// allStrings are the strings of valid JSON, put together, as they read.
func allStrings(data json.RawMessage) string {
	var b strings.Builder
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		t, err := d.Token()
		if err != nil {
			return b.String()
		}
		if s, ok := t.(string); ok {
			b.WriteString(s)
		}
	}
}

// ShowsTools says whether the template writes tools into the text.
func (c *Chat) ShowsTools() bool {
	const name = "a_tool_that_is_shown"
	text, err := c.template.Render(Conversation{
		Messages: json.RawMessage(`[{"role":"user","content":"` + question + `"}]`), Prompt: true, Options: c.variables,
		Tools: json.RawMessage(`[{"type":"function","function":{"name":"` + name + `","description":"d","parameters":{"type":"object","properties":{}}}}]`),
	})
	return err == nil && strings.Contains(text, name)
}

// markStrings interrupts the added tokens that the strings of valid JSON spell.
func (c *Chat) markStrings(data json.RawMessage, mark string) json.RawMessage {
	var out []byte
	for len(data) > 0 {
		if data[0] != '"' {
			n := bytes.IndexByte(data, '"')
			if n < 0 {
				n = len(data)
			}
			out, data = append(out, data[:n]...), data[n:]
			continue
		}
		n := 1
		for data[n] != '"' {
			if data[n] == '\\' {
				n++
			}
			n++
		}
		literal := data[:n+1]
		data = data[n+1:]
		var s string
		if err := json.Unmarshal(literal, &s); err != nil {
			panic(err) // a string of what was valid JSON
		}
		if marked := c.mark(s, mark); marked != s {
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			if err := e.Encode(marked); err != nil {
				panic(err) // a string has a JSON form
			}
			literal = bytes.TrimSpace(b.Bytes())
		}
		out = append(out, literal...)
	}
	return out
}
