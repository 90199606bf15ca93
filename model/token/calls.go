package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/token/jinja"
)

// Hermes is the protocol of Qwen2.5, Qwen3 and the Hermes models: JSON in tags,
//
//	<tool_call>
//	{"name": "bash", "arguments": {"command": "ls"}}
//	</tool_call>
//
// Text before the call is free, and what a turn thinks up to </think> is not
// looked at. See [Llama3Calls] for how arguments and bodies correspond.
var Hermes Protocol = hermes{}

// Llama3Calls is the protocol of the Llama 3 models: one JSON object,
//
//	{"name": "bash", "parameters": {"command": "ls"}}
//
// after free text or <|python_tag|>. It ends with the turn.
//
// In both, the body of a call is its arguments put together: the command of bash;
// path, search and replace of edit as [FormatEdit] does, path and content of
// create as [FormatCreate]; of any other tool its one argument, input, if it
// has any. Arguments that the tool does not have are refused.
var Llama3Calls Protocol = llama3Calls{}

type (
	hermes      struct{}
	llama3Calls struct{}
)

const (
	openCall  = "<tool_call>"
	closeCall = "</tool_call>"
	openThink = "<think>"
	endThink  = "</think>"
	pythonTag = "<|python_tag|>"
)

func (hermes) StopStrings() []string      { return []string{closeCall} }
func (llama3Calls) StopStrings() []string { return nil }

func (hermes) FormatCall(c Call) string {
	return openCall + "\n" + formatJSONCall(c, "arguments") + "\n" + closeCall
}

func (llama3Calls) FormatCall(c Call) string { return formatJSONCall(c, "parameters") }

func (hermes) ParseCall(text string) (Call, error) {
	// Thoughts come first; later the tag is part of the call.
	if i := strings.Index(text, endThink); i >= 0 && (strings.HasPrefix(strings.TrimSpace(text), openThink) || i < strings.Index(text, openCall)) {
		text = text[i+len(endThink):]
	}
	_, rest, ok := strings.Cut(text, openCall)
	if !ok {
		if strings.Contains(text, closeCall) {
			return Call{}, fmt.Errorf("%w: %s without %s", ErrNoCall, closeCall, openCall)
		}
		return Call{}, fmt.Errorf("%w: end your turn with one call, %s, then JSON with its name and arguments, then %s", ErrNoCall, openCall, closeCall)
	}
	c, rest, err := parseJSONCall(rest)
	if err != nil {
		return Call{}, err
	}
	rest, ok = strings.CutPrefix(strings.TrimLeft(rest, " \t\r\n"), closeCall)
	if !ok {
		return Call{}, fmt.Errorf("%w: the call of %s has no %s after its JSON", ErrUnterminated, c.Name, closeCall)
	}
	if strings.Contains(rest, openCall) {
		return Call{}, fmt.Errorf("%w; make one call a turn and wait for its result", ErrTwoCalls)
	}
	return c, nil
}

func (llama3Calls) ParseCall(text string) (Call, error) {
	at := strings.Index(text, pythonTag)
	if at < 0 {
		at = strings.Index(text, `{"name"`)
	}
	if at < 0 {
		at = strings.IndexByte(text, '{')
	}
	if at < 0 {
		return Call{}, fmt.Errorf(`%w: end your turn with one call as JSON, {"name": …, "parameters": {…}}`, ErrNoCall)
	}
	c, rest, err := parseJSONCall(strings.TrimPrefix(text[at:], pythonTag))
	if err != nil {
		return Call{}, err
	}
	if strings.Contains(rest, `{"name"`) {
		return Call{}, fmt.Errorf("%w; make one call a turn and wait for its result", ErrTwoCalls)
	}
	return c, nil
}

// parameters are the arguments of the tools that have others than input. All are
// strings.
var parameters = map[string][]string{
	"bash":   {"command"},
	"edit":   {"path", "search", "replace"},
	"create": {"path", "content"},
}

const input = "input"

// parseJSONCall reads the object at the start of text and returns what follows.
func parseJSONCall(text string) (c Call, rest string, err error) {
	var call struct {
		Name       string          `json:"name"`
		Arguments  json.RawMessage `json:"arguments"`
		Parameters json.RawMessage `json:"parameters"`
	}
	d := json.NewDecoder(strings.NewReader(text))
	switch err := d.Decode(&call); {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return c, "", fmt.Errorf("%w: the JSON of the call ends too early", ErrUnterminated)
	case err != nil:
		return c, "", fmt.Errorf("%w: the call is not the JSON that it should be: %v", ErrNoCall, err)
	}
	if !isToolName(call.Name) {
		return c, "", fmt.Errorf(`%w: the JSON of the call needs the tool's name, {"name": …}`, ErrNoCall)
	}
	raw := call.Arguments
	if isNull(raw) {
		raw = call.Parameters
	}
	var quoted string // some write the arguments as a string of JSON
	if json.Unmarshal(raw, &quoted) == nil {
		raw = []byte(quoted)
	}
	arguments := map[string]string{}
	if !isNull(raw) {
		if err := json.Unmarshal(raw, &arguments); err != nil {
			return c, "", fmt.Errorf("%w: the arguments of %s must be an object of strings: %v", ErrNoCall, call.Name, err)
		}
	}
	c.Name = call.Name
	if c.Body, err = body(c.Name, arguments); err != nil {
		return c, "", err
	}
	return c, text[d.InputOffset():], nil
}

// body puts the arguments of a tool together.
func body(tool string, arguments map[string]string) (string, error) {
	want, known := parameters[tool]
	if !known && len(arguments) > 0 {
		want = []string{input}
	}
	if got := slices.Sorted(maps.Keys(arguments)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		return "", fmt.Errorf("%w: %s takes the arguments %s; got %s", ErrNoCall, tool, strings.Join(want, ", "), strings.Join(got, ", "))
	}
	switch tool {
	case "edit":
		return FormatEdit(arguments["path"], arguments["search"], arguments["replace"]), nil
	case "create":
		return FormatCreate(arguments["path"], arguments["content"]), nil
	case "bash":
		return arguments["command"], nil
	}
	return arguments[input], nil
}

func formatJSONCall(c Call, key string) string {
	arguments := jinja.NewDict()
	var err error
	switch c.Name {
	case "edit":
		var path, search, replace string
		if path, search, replace, err = ParseEdit(c.Body); err == nil {
			arguments.Set("path", path)
			arguments.Set("search", search)
			arguments.Set("replace", replace)
		}
	case "create":
		var path, content string
		if path, content, err = ParseCreate(c.Body); err == nil {
			arguments.Set("path", path)
			arguments.Set("content", content)
		}
	case "bash":
		arguments.Set("command", c.Body)
	default:
		if c.Body != "" {
			arguments.Set(input, c.Body)
		}
	}
	if err != nil { // a body that is no edit stays visible as what it is
		arguments.Set(input, c.Body)
	}
	call := jinja.NewDict()
	call.Set("name", c.Name)
	call.Set(key, arguments)
	return jinja.Encode(call)
}
