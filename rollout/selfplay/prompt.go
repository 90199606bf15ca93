package selfplay

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

//go:embed prompts
var promptFiles embed.FS

// Names of the templates of a prompt set, each in a file NAME.tmpl.
const (
	toolsTemplate         = "tools"         // system message, toolsData; empty: no system message
	injectorTemplate      = "injector"      // the injector's task, injectorData
	issueTemplate         = "issue"         // the solver's task for any issue text, issueData
	specificationTemplate = "specification" // the issue text of a self-play bug, specificationData
	feedbackTemplate      = "feedback"      // a tool's answer, feedbackData
)

var templateNames = []string{toolsTemplate, injectorTemplate, issueTemplate, specificationTemplate, feedbackTemplate}

// Prompts are the texts of one prompt set: text/template files that a user can
// replace one by one.
type Prompts struct {
	// Name is "full" or "brief", the set that is the base.
	Name string
	// EditContext is how many lines around a change edit shows (8, or 1 in the brief set).
	EditContext int

	templates *template.Template
}

// FullPrompts explain the task, the tools and the files at length.
func FullPrompts() *Prompts { return fullPrompts() }

// BriefPrompts say next to nothing: for small policies that were fine-tuned on
// the protocol and have a short context.
func BriefPrompts() *Prompts { return briefPrompts() }

var (
	fullPrompts  = sync.OnceValue(func() *Prompts { return mustPrompts("full") })
	briefPrompts = sync.OnceValue(func() *Prompts { return mustPrompts("brief") })
)

func mustPrompts(set string) *Prompts {
	p, err := LoadPrompts(set, "")
	if err != nil {
		panic("selfplay: built-in prompts: " + err.Error())
	}
	return p
}

// LoadPrompts reads the set "full" or "brief". Files named like a template in
// dir, when that is not empty, take the place of the set's own.
func LoadPrompts(set, dir string) (*Prompts, error) {
	p := &Prompts{Name: set, EditContext: map[string]int{"full": 8, "brief": 1}[set]}
	if p.EditContext == 0 {
		return nil, fmt.Errorf("no prompt set is called %q; there are full and brief", set)
	}
	p.templates = template.New(set).Funcs(template.FuncMap{"compact": compactDiff}).Option("missingkey=error")
	for _, name := range templateNames {
		text, err := promptFiles.ReadFile(path.Join("prompts", set, name+".tmpl"))
		if err == nil && dir != "" {
			own, ownErr := os.ReadFile(filepath.Join(dir, name+".tmpl"))
			switch {
			case ownErr == nil:
				text = own
			case !errors.Is(ownErr, fs.ErrNotExist):
				err = ownErr
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read prompt template %s: %w", name, err)
		}
		if _, err := p.templates.New(name).Parse(string(text)); err != nil {
			return nil, fmt.Errorf("parse prompt template %s.tmpl: %w", name, err)
		}
	}
	return p, nil
}

// WritePrompts writes a set's templates into dir, to be edited there. Files
// that exist are left alone.
func WritePrompts(set, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range templateNames {
		text, err := promptFiles.ReadFile(path.Join("prompts", set, name+".tmpl"))
		if err != nil {
			return fmt.Errorf("no prompt set is called %q; there are full and brief", set)
		}
		f, err := os.OpenFile(filepath.Join(dir, name+".tmpl"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

type toolsData struct {
	Workdir        string
	CommandSeconds int
	SubmitBody     string
	// Format writes a call of a tool in the policy's protocol.
	Format func(name, body string) string
}

type injectorData struct {
	Strategy      Strategy
	Target        *Target
	Requirements  Requirements
	ScriptSeconds int
	Names         struct{ TestScript, TestFiles, TestParser, BugInject, TestWeaken string }
	SubmitHint    string
}

type issueData struct{ Workdir, Issue string }

type specificationData struct{ Diff string }

type feedbackData struct {
	Output, Notice string
	Turns, Tokens  int
}

func (p *Prompts) render(name string, data any) (string, error) {
	var b strings.Builder
	if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
		return "", fmt.Errorf("fill in prompt template %s.tmpl: %w", name, err)
	}
	return strings.TrimSpace(b.String()), nil
}

func (p *Prompts) feedback(d feedbackData) (string, error) { return p.render(feedbackTemplate, d) }

// messages puts task under the system message, if the set has one.
func (p *Prompts) messages(protocol token.Protocol, command time.Duration, submitBody, task string) ([]rollout.Message, error) {
	tools, err := p.render(toolsTemplate, toolsData{
		Workdir: sandbox.Workdir, CommandSeconds: int(command.Seconds()), SubmitBody: submitBody,
		Format: func(name, body string) string { return protocol.FormatCall(token.Call{Name: name, Body: body}) },
	})
	if err != nil {
		return nil, err
	}
	var m []rollout.Message
	if tools != "" {
		m = append(m, rollout.Message{Role: token.System, Content: tools})
	}
	return append(m, rollout.Message{Role: token.User, Content: task}), nil
}

// compactDiff drops from a git diff what a reader can do without: of each
// file's header its new name stays, of a hunk's header the text after it.
func compactDiff(diff string) string {
	var out strings.Builder
	inHunk := false
	for line := range strings.Lines(diff) {
		switch {
		case strings.HasPrefix(line, "diff --git "):
			inHunk = false
		case strings.HasPrefix(line, "@@ "):
			inHunk = true
			_, context, _ := strings.Cut(line[3:], "@@")
			out.WriteString("@@" + strings.TrimRight(context, "\n") + "\n")
		case inHunk:
			out.WriteString(line)
		case strings.HasPrefix(line, "+++ "):
			out.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, "+++ "), "b/"))
		}
	}
	return strings.TrimRight(out.String(), "\n")
}
