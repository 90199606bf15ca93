package token

import (
	"errors"
	"testing"
	"unicode/utf8"
)

func TestJSONCalls(t *testing.T) {
	edit := FormatEdit("a.py", "x = 1\n", "x = 2")
	for _, c := range []struct {
		protocol Protocol
		text     string
		call     Call
		err      error
	}{
		{Hermes, "I look.\n<tool_call>\n{\"name\": \"bash\", \"arguments\": {\"command\": \"ls -la \\\"x\\\"\"}}\n</tool_call>", Call{"bash", `ls -la "x"`}, nil},
		{Hermes, "<think>\n<tool_call> {\"name\": 1} </think>\n<tool_call>{\"name\": \"submit\", \"arguments\": {}}</tool_call>\n", Call{"submit", ""}, nil},
		{Hermes, `<tool_call>{"name": "edit", "arguments": {"path": "a.py", "search": "x = 1\n", "replace": "x = 2"}}</tool_call>`, Call{"edit", edit}, nil},
		{Hermes, `<tool_call>{"name": "create", "arguments": "{\"path\": \"b\", \"content\": \"</tool_call>\\n\"}"}</tool_call>`, Call{"create", "b\n</tool_call>"}, nil},
		{Hermes, `<tool_call>{"arguments": {"input": "p"}, "name": "submit"}</tool_call>`, Call{"submit", "p"}, nil},
		{Hermes, `<tool_call>{"name": "bash", "arguments": {"command": "echo </think>"}}</tool_call>`, Call{"bash", "echo </think>"}, nil},
		{Hermes, "<tool_call>?</think>\n<tool_call>{\"name\": \"bash\", \"arguments\": {\"command\": \"ls\"}}</tool_call>", Call{}, ErrNoCall},
		{Hermes, "done", Call{}, ErrNoCall},
		{Hermes, "</tool_call>", Call{}, ErrNoCall},
		{Hermes, `<tool_call>ls</tool_call>`, Call{}, ErrNoCall},
		{Hermes, `<tool_call>{"arguments": {}}</tool_call>`, Call{}, ErrNoCall},
		{Hermes, `<tool_call>{"name": "bash", "arguments": {"cmd": "ls"}}</tool_call>`, Call{}, ErrNoCall},
		{Hermes, `<tool_call>{"name": "bash", "arguments": {"command": 1}}</tool_call>`, Call{}, ErrNoCall},
		{Hermes, `<tool_call>{"name": "bash", "arguments": ["ls"]}</tool_call>`, Call{}, ErrNoCall},
		{Hermes, `<tool_call>{"name": "bash", "arguments": {"command": "ls`, Call{}, ErrUnterminated},
		{Hermes, `<tool_call>{"name": "bash", "arguments": {"command": "ls"}}`, Call{}, ErrUnterminated},
		{Hermes, `<tool_call>{"name": "a"}</tool_call><tool_call>{"name": "b"}</tool_call>`, Call{}, ErrTwoCalls},
		{Llama3Calls, `{"name": "bash", "parameters": {"command": "ls"}}`, Call{"bash", "ls"}, nil},
		{Llama3Calls, "<|python_tag|>{\"name\": \"bash\", \"parameters\": {\"command\": \"é\"}}", Call{"bash", "é"}, nil},
		{Llama3Calls, "Use {x}: {\"name\": \"submit\", \"parameters\": null}", Call{"submit", ""}, nil},
		{Llama3Calls, "ls", Call{}, ErrNoCall},
		{Llama3Calls, "{x}", Call{}, ErrNoCall},
		{Llama3Calls, `{"name": "a"}; {"name": "b"}`, Call{}, ErrTwoCalls},
		{Llama3Calls, `{"name": "a", "parameters": {`, Call{}, ErrUnterminated},
	} {
		call, err := c.protocol.ParseCall(c.text)
		if call != c.call || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.text, call, err, c.call, c.err)
		}
	}
}

// What a protocol writes it reads again, and the JSON is as templates write it.
func FuzzJSONCalls(f *testing.F) {
	f.Add("bash", "ls\n\"x\" </tool_call> é")
	f.Add("submit", "")
	f.Add("edit", "a.py\n<<<<<<< SEARCH\nx\n=======\n\n>>>>>>> REPLACE")
	f.Add("create", "a\nb\n\n")
	f.Fuzz(func(t *testing.T, name, text string) {
		call := Call{name, text}
		if !isToolName(name) || !utf8.ValidString(text) {
			return
		}
		switch name {
		case "edit":
			path, search, replace, err := ParseEdit(text)
			if err != nil {
				return
			}
			call.Body = FormatEdit(path, search, replace)
		case "create":
			path, content, err := ParseCreate(text)
			if err != nil {
				return
			}
			call.Body = FormatCreate(path, content)
		}
		for _, p := range []Protocol{Hermes, Llama3Calls} {
			got, err := p.ParseCall("First.\n" + p.FormatCall(call))
			if errors.Is(err, ErrTwoCalls) { // the body spells a call
				continue
			}
			if err != nil || got != call {
				t.Errorf("%q became %+v, %v", p.FormatCall(call), got, err)
			}
		}
	})
}

func TestFormatJSONCall(t *testing.T) {
	call := Call{"edit", FormatEdit("é.py", "a", "b")}
	if got, want := Hermes.FormatCall(call), "<tool_call>\n{\"name\": \"edit\", \"arguments\": {\"path\": \"é.py\", \"search\": \"a\", \"replace\": \"b\"}}\n</tool_call>"; got != want {
		t.Errorf("Hermes writes %q, want %q", got, want)
	}
	if got, want := Llama3Calls.FormatCall(Call{"bash", "ls"}), `{"name": "bash", "parameters": {"command": "ls"}}`; got != want {
		t.Errorf("Llama 3 writes %q, want %q", got, want)
	}
}
