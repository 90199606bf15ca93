package token

import (
	"errors"
	"fmt"
	"strings"
)

// Call is a tool call: the tool's name and what stands between its tags.
type Call struct {
	Name string `json:"name"`
	Body string `json:"body"`
}

// Protocol is a way to write a tool call into an assistant's turn.
type Protocol interface {
	// ParseCall finds the one call in a turn. Its errors are written to be shown
	// to the model; they wrap ErrNoCall, ErrTwoCalls or ErrUnterminated.
	ParseCall(text string) (Call, error)
	// FormatCall writes a call so that ParseCall finds it.
	FormatCall(Call) string
	// StopStrings end a turn when sampled.
	StopStrings() []string
}

// ProtocolNamed is a protocol by the name that configurations have for it: plain,
// hermes or llama3; "" is plain.
func ProtocolNamed(name string) (Protocol, error) {
	switch name {
	case "", "plain":
		return Plain, nil
	case "hermes":
		return Hermes, nil
	case "llama3":
		return Llama3Calls, nil
	}
	return nil, fmt.Errorf("token: no protocol %q; there are plain, hermes and llama3", name)
}

// Kinds of malformed calls.
var (
	ErrNoCall       = errors.New("no tool call")
	ErrTwoCalls     = errors.New("more than one tool call")
	ErrUnterminated = errors.New("unterminated tool call")
)

// Plain is the plain-text protocol, one call a turn:
//
//	<tool: NAME>
//	body
//	</tool>
//
// Text before the call is free. The body ends at the first </tool>; one line
// end after the opening tag and one before the closing tag do not belong to it.
// Inside a body an opening tag may stand anywhere but at the start of a line.
var Plain Protocol = plain{}

type plain struct{}

const (
	openTag  = "<tool:"
	closeTag = "</tool>"
)

func (plain) ParseCall(text string) (Call, error) { return ParseCall(text) }
func (plain) StopStrings() []string               { return []string{closeTag} }
func (plain) FormatCall(c Call) string {
	if c.Body == "" {
		return "<tool: " + c.Name + ">\n" + closeTag
	}
	return "<tool: " + c.Name + ">\n" + c.Body + "\n" + closeTag
}

// ParseCall is Plain's.
func ParseCall(text string) (Call, error) {
	at, name, rest := findOpen(text)
	if at < 0 {
		switch {
		case strings.Contains(text, openTag):
			return Call{}, fmt.Errorf("%w: the opening tag is malformed; write <tool: NAME> on a line of its own", ErrNoCall)
		case strings.Contains(text, closeTag):
			return Call{}, fmt.Errorf("%w: %s without an opening <tool: NAME>", ErrNoCall, closeTag)
		}
		return Call{}, fmt.Errorf("%w: end your turn with one call, <tool: NAME>, its input, then %s", ErrNoCall, closeTag)
	}
	body, after, ok := strings.Cut(rest, closeTag)
	if !ok {
		return Call{}, fmt.Errorf("%w: <tool: %s> has no %s", ErrUnterminated, name, closeTag)
	}
	for line := range strings.Lines(body) {
		if i, inner, _ := findOpen(line); i == 0 {
			return Call{}, fmt.Errorf("%w: <tool: %s> begins before <tool: %s> is closed with %s", ErrUnterminated, inner, name, closeTag)
		}
	}
	if i, second, _ := findOpen(after); i >= 0 {
		return Call{}, fmt.Errorf("%w: <tool: %s> and <tool: %s>; make one call a turn and wait for its result", ErrTwoCalls, name, second)
	}
	body = strings.TrimPrefix(body, "\n")
	return Call{Name: name, Body: strings.TrimSuffix(body, "\n")}, nil
}

// findOpen finds the first well-formed opening tag: where it starts (-1 for
// none), the tool's name, and the text after it.
func findOpen(text string) (at int, name, rest string) {
	for from := 0; ; {
		i := strings.Index(text[from:], openTag)
		if i < 0 {
			return -1, "", ""
		}
		at = from + i
		from = at + len(openTag)
		name, rest, ok := strings.Cut(text[from:], ">")
		if name = strings.Trim(name, " "); ok && isToolName(name) {
			return at, name, rest
		}
	}
}

func isToolName(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Lines of an edit.
const (
	searchLine  = "<<<<<<< SEARCH"
	divideLine  = "======="
	replaceLine = ">>>>>>> REPLACE"
)

// ParseEdit reads the body of an edit: a path, then one block
//
//	<<<<<<< SEARCH
//	the text to find
//	=======
//	the text to put in its place
//	>>>>>>> REPLACE
//
// search is not empty; replace may be. Neither has a final line end. The path
// is not checked further than being there. Errors are written for the model.
func ParseEdit(body string) (path, search, replace string, err error) {
	path, rest, err := splitPath(body)
	if err != nil {
		return "", "", "", err
	}
	lines := strings.Split(rest, "\n")
	is := func(i int, marker string) bool { return strings.TrimRight(lines[i], " \t\r") == marker }
	first, divide, last := -1, -1, -1
	for i := range lines {
		switch {
		case is(i, searchLine):
			if first >= 0 {
				return "", "", "", fmt.Errorf("more than one %q line; give one block a call", searchLine)
			}
			first = i
		case is(i, divideLine) && first >= 0 && last < 0:
			if divide >= 0 {
				return "", "", "", fmt.Errorf("more than one %q line between %q and %q; choose a block without such a line", divideLine, searchLine, replaceLine)
			}
			divide = i
		case is(i, replaceLine):
			if divide < 0 {
				return "", "", "", fmt.Errorf("no %q line before %q", divideLine, replaceLine)
			}
			if last >= 0 {
				return "", "", "", fmt.Errorf("more than one %q line; give one block a call", replaceLine)
			}
			last = i
		case first < 0 || last >= 0:
			if strings.TrimSpace(lines[i]) != "" {
				return "", "", "", fmt.Errorf("unexpected text outside the block: %s", quote(lines[i]))
			}
		}
	}
	switch {
	case first < 0:
		return "", "", "", fmt.Errorf("no %q line after the path", searchLine)
	case divide < 0:
		return "", "", "", fmt.Errorf("no %q line after %q", divideLine, searchLine)
	case last < 0:
		return "", "", "", fmt.Errorf("no %q line after %q", replaceLine, divideLine)
	}
	search = strings.Join(lines[first+1:divide], "\n")
	if search == "" {
		return "", "", "", errors.New("the text to search for is empty; use create for a new file")
	}
	return path, search, strings.Join(lines[divide+1:last], "\n"), nil
}

// FormatEdit writes the body that ParseEdit reads.
func FormatEdit(path, search, replace string) string {
	if replace != "" {
		replace += "\n"
	}
	return path + "\n" + searchLine + "\n" + search + "\n" + divideLine + "\n" + replace + replaceLine
}

// ParseCreate reads the body of a create: a path, then the content on the lines
// after it. Content that is not empty ends with a line end.
func ParseCreate(body string) (path, content string, err error) {
	path, content, err = splitPath(body)
	if content != "" && !strings.HasSuffix(content, "\n") {
		content += "\n"
	}
	return path, content, err
}

// FormatCreate writes the body that ParseCreate reads.
func FormatCreate(path, content string) string {
	if trimmed := strings.TrimSuffix(content, "\n"); trimmed != "" && !strings.HasSuffix(trimmed, "\n") {
		content = trimmed
	}
	return path + "\n" + content
}

func splitPath(body string) (path, rest string, err error) {
	first, rest, _ := strings.Cut(body, "\n")
	path = strings.TrimSpace(first)
	switch {
	case path == "":
		return "", "", errors.New("the first line must be the file's path; it is empty")
	case strings.HasPrefix(path, "<<<<<<<"):
		return "", "", fmt.Errorf("the first line must be the file's path; it is %s", quote(path))
	case strings.ContainsRune(path, 0):
		return "", "", errors.New("the file's path holds a NUL byte")
	}
	return path, rest, nil
}

// quote shortens a line for a message.
func quote(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:60]) + "…"
	}
	return fmt.Sprintf("%q", s)
}
