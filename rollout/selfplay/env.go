package selfplay

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

// Tools of the scaffold.
const (
	ToolBash   = "bash"
	ToolEdit   = "edit"
	ToolCreate = "create"
	ToolSubmit = "submit"
)

// EnvOptions shape both roles' worlds. The zero value is the scaffold of the
// code world model as its public evaluation code has it.
type EnvOptions struct {
	Backend sandbox.Backend
	// Limits of an episode's sandbox. Zero fields: 120 s a command, 480 KiB of
	// output a command, otherwise the backend's defaults.
	Limits sandbox.Limits
	// Env is laid over the backend's base environment.
	Env map[string]string
	// Prompts are the texts shown to the policy (default: the full set).
	Prompts *Prompts
	// Protocol reads tool calls (default: token.Plain).
	Protocol token.Protocol
	// ObservationBytes is the most of a tool's output that is shown; a longer
	// one loses its middle (default 128 KiB). The episode's token limit comes on top.
	ObservationBytes int
	// Normaliser rewrites what differs from run to run in a tool's output. Nil
	// means DefaultNormaliser, an empty one rewrites nothing.
	Normaliser *Normaliser
	// Submissions is how many submits a solver has (default 1); the episode ends
	// with the last, and the last one counts.
	Submissions int
}

func (o EnvOptions) withDefaults() EnvOptions {
	if o.Limits.Command <= 0 {
		o.Limits.Command = 120 * time.Second
	}
	if o.Limits.Output <= 0 {
		o.Limits.Output = 480 << 10
	}
	if o.Prompts == nil {
		o.Prompts = FullPrompts()
	}
	if o.Protocol == nil {
		o.Protocol = token.Plain
	}
	if o.ObservationBytes <= 0 {
		o.ObservationBytes = 128 << 10
	}
	if o.Normaliser == nil {
		o.Normaliser = DefaultNormaliser()
	}
	if o.Submissions <= 0 {
		o.Submissions = 1
	}
	return o
}

// bench is what both roles share: a sandbox and the tools that act on it.
type bench struct {
	opts  EnvOptions
	box   sandbox.Sandbox
	shell *sandbox.Shell
}

func (b *bench) start(ctx context.Context, dir, owner string) error {
	box, err := b.opts.Backend.Start(ctx, sandbox.Spec{Dir: dir, Frozen: true, Env: b.opts.Env, Limits: b.opts.Limits, Owner: owner})
	if err != nil {
		return fmt.Errorf("start sandbox of %s over %s: %w", owner, dir, err)
	}
	b.box = box
	b.shell = sandbox.NewShell(box)
	b.shell.Timeout = b.opts.Limits.Command
	return nil
}

func (b *bench) Close() error {
	if b.box == nil {
		return nil
	}
	return b.box.Close()
}

// observation is what a tool answers before it is put into the feedback template.
type observation struct {
	output string
	// notice is what the environment has to say beside the output.
	notice string
}

// call is a parsed turn, or what was wrong with it.
type call struct {
	token.Call
	problem error
}

func (b *bench) parse(a rollout.Action) call {
	c, err := b.opts.Protocol.ParseCall(a.Text)
	if err != nil && a.Truncated {
		err = fmt.Errorf("your turn reached its token limit before the call was complete: %w", err)
	}
	return call{c, err}
}

// act carries out bash, edit and create. handled is false for any other tool.
func (b *bench) act(ctx context.Context, c token.Call) (obs observation, handled bool, err error) {
	switch c.Name {
	case ToolBash:
		obs, err = b.bash(ctx, c.Body)
	case ToolEdit:
		obs, err = b.edit(ctx, c.Body)
	case ToolCreate:
		obs, err = b.create(ctx, c.Body)
	default:
		return observation{}, false, nil
	}
	return obs, true, err
}

// feedback renders obs for the policy.
func (b *bench) feedback(a rollout.Action, tool string, obs observation) (rollout.Feedback, error) {
	text, err := b.opts.Prompts.feedback(feedbackData{
		Output: rollout.Elide(obs.output, b.opts.ObservationBytes),
		Notice: obs.notice, Turns: a.TurnsLeft, Tokens: a.TokensLeft,
	})
	return rollout.Feedback{Text: text, Tool: tool}, err
}

// malformed answers a turn without a usable call; Tool stays empty.
func (b *bench) malformed(a rollout.Action, problem error) (rollout.Feedback, error) {
	return b.feedback(a, "", observation{notice: "error: " + problem.Error()})
}

// Outcomes of episodes, beside those of the rollout package. A validated
// injection ends as "valid" or "refused:CHECK".
const (
	OutcomeSubmitted = "submitted"
	OutcomeEnded     = "ended" // a solver stopped without a tool call
	OutcomeValid     = "valid"
	OutcomeSolved    = "solved"
	OutcomeUnsolved  = "unsolved"
)

// noSuchTool answers a call of an unknown tool.
func noSuchTool(name string) error {
	return fmt.Errorf("no tool is called %q; there are bash, edit, create and submit", name)
}

// workspacePath checks a path that a policy wrote and makes it relative to the
// workspace. It is lexical: links are resolved inside the sandbox.
func workspacePath(p string) (string, error) {
	rel := p
	if path.IsAbs(p) {
		var ok bool
		if rel, ok = strings.CutPrefix(path.Clean(p), sandbox.Workdir+"/"); !ok {
			return "", fmt.Errorf("path %q is outside %s", p, sandbox.Workdir)
		}
	}
	rel = path.Clean(rel)
	switch {
	case rel == "." || strings.ContainsRune(rel, 0):
		return "", fmt.Errorf("path %q does not name a file", p)
	case rel == ".." || strings.HasPrefix(rel, "../"):
		return "", fmt.Errorf("path %q is outside %s", p, sandbox.Workdir)
	case rel == ".git" || strings.HasPrefix(rel, ".git/"):
		return "", errors.New("files below .git cannot be written with this tool")
	}
	return rel, nil
}
